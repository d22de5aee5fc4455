"""The program `slimdet`, also `python -m toolchain`."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        # Loaded here, so that Ctrl-C meanwhile shows no traceback either.
        from deploy.command_line import run
        from toolchain.cli import slimdet
    except KeyboardInterrupt:
        sys.exit("slimdet: error: interrupted")
    run(slimdet, "slimdet")


if __name__ == "__main__":
    main()
