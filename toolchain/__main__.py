"""The program `slimdet`, also `python -m toolchain`."""

from __future__ import annotations

from deploy.command_line import run
from toolchain.cli import slimdet


def main() -> None:
    run(slimdet, "slimdet")


if __name__ == "__main__":
    main()
