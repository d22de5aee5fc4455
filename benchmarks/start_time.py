"""Seconds from the start of `slimdet detect` to its first result.

    python -m benchmarks.start_time yolo_int8.tflite --source street.mp4

Each run is a process of its own, from its start to its first line of JSON, and ended then. The first run fills the
disk's cache and does not count.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.detect_process import detect_command, last_words, running
from benchmarks.environment import environment
from deploy.command_line import debug_option, json_option, run, write_json
from deploy.errors import GateError, InputError

SCHEMA = "slimdet.start-time/1"
#: Seconds that the median may take.
MOST_SECONDS = 1.5
#: Seconds after which a run without a result is given up.
_PATIENCE = 60.0


def first_result(command: Sequence[str]) -> float:
    """Seconds from the start of the process to its first line of JSON.

    Raises InputError where it ends without one, or none comes for a minute.
    """
    with tempfile.TemporaryFile() as noise:
        begin = time.perf_counter()
        with running(command, noise) as process:
            assert process.stdout is not None  # PIPE was asked for
            # Killed, it ends its output, and with it the wait for a line.
            timer = threading.Timer(_PATIENCE, process.kill)
            timer.start()
            try:
                line = process.stdout.readline()
                seconds = time.perf_counter() - begin
            finally:
                timer.cancel()
        try:
            json.loads(line)
        except ValueError as error:
            raise InputError(
                f"the first line is JSON, it was {line[:60]!r} after {seconds:.1f} s ({last_words(noise)}); run the "
                "command by hand"
            ) from error
    return seconds


@click.command(no_args_is_help=True, epilog="Example: python -m benchmarks.start_time yolo_int8.tflite --source a.mp4")
@click.argument("model", metavar="M.tflite", type=click.Path(path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--source", required=True, help="As detect takes it.")
@click.option("--runs", type=click.IntRange(1), default=10, show_default=True, help="Starts that count.")
@json_option("Write the result here as JSON; - is standard output.")
@debug_option
def main(model: Path, options: Sequence[str], source: str, runs: int, json_file: str | None) -> None:
    """Times the start of detect; OPTIONS after -- are its own. Exit code 3 where the median is above 1.5 s."""
    command = detect_command(model, source, options)
    seconds = [first_result(command) for _ in range(runs + 1)][1:]
    median = statistics.median(seconds)
    result: dict[str, Any] = {"schema": SCHEMA, "model": str(model), "seconds": seconds, "p50_s": median}
    result |= {"least_s": min(seconds), "most_s": max(seconds), "environment": environment()}
    if json_file != "-":
        click.echo(
            f"start to first result: {median:.2f} s, the median of {runs} ({min(seconds):.2f} to {max(seconds):.2f})"
        )
    if json_file:
        write_json(json_file, result)
    if median > MOST_SECONDS:
        raise GateError(f"the first result may take {MOST_SECONDS:g} s, it took {median:.2f}; is the machine busy?")


if __name__ == "__main__":
    run(main, "python -m benchmarks.start_time")
