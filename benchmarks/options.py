"""Options that several commands of `bench` share, and how they tell their progress."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from deploy.backend import BACKEND_HELP

#: Progress is told from here on, and then as often: on a terminal in one line, elsewhere in lines of their own.
QUIET_SECONDS, TERMINAL_SECONDS, LOG_SECONDS = 2.0, 0.2, 10.0

MODEL = click.argument("model", metavar="M.tflite", type=click.Path(path_type=Path))
BACKEND = click.option("--backend", default="cpu", show_default=True, help=BACKEND_HELP)
THREADS = click.option(
    "--threads",
    "--num-threads",
    "--num_threads",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Threads of the interpreter.",
)


def number(_: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuses NaN, as the callback of an option."""
    if value is not None and math.isnan(value):  # what a FloatRange lets through
        raise click.BadParameter("nan is not a number", param=parameter)
    return value


def silence_opencv() -> None:
    """OpenCV writes its own words on damaged pictures to standard error; ours are enough. Read when it loads."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")


def progress(what: str) -> Callable[[int, int], None]:
    """What tells on standard error how far something is and how long it takes still, once it has taken two seconds."""
    start = time.monotonic()
    told = 0.0
    terminal = sys.stderr.isatty()

    def tell(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if terminal and told and done >= total:
            click.echo("\r\033[K", nl=False, err=True)
        pause = TERMINAL_SECONDS if terminal else LOG_SECONDS if told else 0.0
        if done >= total or now - start < QUIET_SECONDS or now - told < pause:
            return
        told = now
        left = round((now - start) / max(done, 1) * (total - done))
        line = f"{done} of {total} {what}, {left // 60}:{left % 60:02d} left"
        click.echo(f"\r\033[K{line}" if terminal else line, nl=not terminal, err=True)

    return tell
