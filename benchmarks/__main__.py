"""`python -m benchmarks`: the commands of `slimdet bench`, without the build side."""

from benchmarks.cli import main
from deploy.command_line import run

if __name__ == "__main__":
    run(main, "python -m benchmarks")
