"""Whether `slimdet detect` holds what it holds: memory, file descriptors and threads over many minutes.

    python -m benchmarks.soak yolo_int8.tflite --source rtsp://127.0.0.1:8554/street --minutes 30 -- --track
    python -m benchmarks.soak yolo_int8.tflite --source street.mp4 --minutes 30 -- --loop --out recorded

The process runs as a user starts it; what it and the processes that it starts hold is read from /proc every few
seconds, and its results are counted as they come on its standard output. The first tenth of the time is for it to fill
its caches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import click

from benchmarks.detect_process import PATIENCE, detect_command, last_words, running
from benchmarks.environment import environment
from benchmarks.process_usage import Usage, process_usage
from benchmarks.tables import table
from deploy.command_line import debug_option, json_option, run, write_json
from deploy.errors import GateError, InputError

SCHEMA = "slimdet.soak/1"
#: How much more memory the process may hold at the end than after it has warmed up.
MOST_GROWTH = 0.05
#: Parts of the run whose medians are compared; the first one is for warming up.
_PARTS = 10


@dataclasses.dataclass(frozen=True)
class Sample:
    #: Seconds since the process was started.
    seconds: float
    usage: Usage
    #: Lines on its standard output so far.
    results: int


class _Lines:
    """Counts lines in a thread of its own, so that the process never waits for a full pipe."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.count = 0
        # A daemon: a child that outlives the process would hold the pipe open.
        threading.Thread(target=self._read, args=(pipe,), daemon=True).start()

    def _read(self, pipe: IO[bytes]) -> None:
        # Not pipe.readline(): its lock would keep others from closing the pipe.
        with contextlib.suppress(OSError, ValueError):  # closed
            while piece := os.read(pipe.fileno(), 65536):
                self.count += piece.count(b"\n")


def soak(command: Sequence[str], seconds: float, every: float) -> list[Sample]:
    """Samples of the command's process, one every so many seconds, for so long.

    Raises InputError where it ends by itself.
    """
    samples: list[Sample] = []
    with tempfile.TemporaryFile() as noise:
        begin = time.monotonic()
        with running(command, noise) as process:
            assert process.stdout is not None  # PIPE was asked for
            lines = _Lines(process.stdout)
            while (now := time.monotonic() - begin) < seconds:
                usage = process_usage(process.pid)
                if usage is None:
                    raise InputError(
                        f"detect runs until it is stopped, it ended after {now:.1f} s ({last_words(noise)}); give a "
                        "source that does not end, or -- --loop"
                    )
                samples.append(Sample(now, usage, lines.count))
                time.sleep(max(0.0, begin + len(samples) * every - time.monotonic()))
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)  # while the thread reads on
    return samples


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """The parts of the run, and how the last compares with the second, as plain JSON.

    Of each part: minutes, the medians of memory_mb, descriptors and threads, and results_per_s. memory_growth: 0.05
    for 5 % more. Raises InputError for fewer than three samples a part.
    """
    if len(samples) < 3 * _PARTS:
        raise InputError(f"a run has at least {3 * _PARTS} samples, not {len(samples)}; give more --minutes")
    bounds = [round(len(samples) * part / _PARTS) for part in range(_PARTS + 1)]
    parts = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        part = samples[start:end]
        span = part[-1].seconds - part[0].seconds
        parts.append(
            {
                "minutes": part[-1].seconds / 60,
                "memory_mb": statistics.median(one.usage.memory_mb for one in part),
                "descriptors": statistics.median(one.usage.descriptors for one in part),
                "threads": statistics.median(one.usage.threads for one in part),
                "results_per_s": (part[-1].results - part[0].results) / span if span > 0 else 0.0,
            }
        )
    warm, last = parts[1], parts[-1]
    held = [part["memory_mb"] for part in parts[1:]]
    return {
        "parts": parts,
        "memory_growth": last["memory_mb"] / warm["memory_mb"] - 1,
        "memory_spread": max(held) / min(held) - 1,
        "descriptor_growth": last["descriptors"] - warm["descriptors"],
        "thread_growth": last["threads"] - warm["threads"],
        "results": samples[-1].results,
    }


def verdicts(found: dict[str, Any]) -> list[str]:
    """What grew, in words; nothing where all is flat."""
    failed = []
    if found["memory_spread"] > MOST_GROWTH:
        failed.append(f"memory stays within {MOST_GROWTH:.0%}, it went {found['memory_spread']:.1%} apart")
    for key, words in (("descriptor_growth", "file descriptors"), ("thread_growth", "threads")):
        if found[key] > 0:
            failed.append(f"{words} stay as many, {found[key]:g} more came")
    if any(part["results_per_s"] <= 0 for part in found["parts"][1:]):
        failed.append("results come all the time, in a tenth of the run none did")
    return failed


def as_text(found: dict[str, Any]) -> str:
    """The parts for a reader."""
    rows = [
        (
            f"{part['minutes']:.1f}",
            f"{part['memory_mb']:.1f}",
            f"{part['descriptors']:g}",
            f"{part['threads']:g}",
            f"{part['results_per_s']:.1f}",
        )
        for part in found["parts"]
    ]
    note = f"memory after the first tenth: {found['memory_growth']:+.1%} at the end, {found['memory_spread']:.1%} apart"
    return f"{table(('until minute', 'MB', 'descriptors', 'threads', 'results/s'), rows)}\n\n{note}"


@click.command(no_args_is_help=True, epilog="Example: python -m benchmarks.soak yolo_int8.tflite --source 0")
@click.argument("model", metavar="M.tflite", type=click.Path(path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--source", required=True, help="As detect takes it.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=30, show_default=True, help="How long.")
@click.option("--every", type=click.FloatRange(0.02), default=2, show_default=True, help="Seconds between samples.")
@json_option("Write the result here as JSON; - is standard output.")
@debug_option
def main(
    model: Path, options: Sequence[str], source: str, minutes: float, every: float, json_file: str | None
) -> None:
    """Runs detect for long and looks at what it holds; OPTIONS after -- are its own. Exit code 3 where that grows."""
    samples = soak(detect_command(model, source, options), minutes * 60, every)
    result = {"schema": SCHEMA, "model": str(model), **summary(samples), "environment": environment()}
    if json_file != "-":
        click.echo(as_text(result))
    if json_file:
        write_json(json_file, result)
    if failed := verdicts(result):
        raise GateError(f"{'; '.join(failed)}; find what keeps it")


if __name__ == "__main__":
    run(main, "python -m benchmarks.soak")
