"""`python -m benchmarks`: the commands of `slimdet bench`, without the build side."""

import sys

if __name__ == "__main__":
    try:
        # Loaded here, so that Ctrl-C meanwhile shows no traceback either.
        from benchmarks.cli import main
        from deploy.command_line import run
    except KeyboardInterrupt:
        sys.exit("slimdet: error: interrupted")
    run(main, "python -m benchmarks")
