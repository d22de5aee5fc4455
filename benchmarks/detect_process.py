"""`slimdet detect` as a process of its own, as a benchmark starts it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

#: Seconds that it has to end after SIGTERM, before it is killed.
PATIENCE = 10.0


def detect_command(model: Path, source: str, options: Sequence[str]) -> list[str]:
    """The command line. JSON lines go to standard output, unless the options say otherwise."""
    # -P: a file of the current folder never takes the place of a module.
    command = [sys.executable, "-P", "-m", "deploy", "detect", str(model), "--source", source, *options]
    return command if "--jsonl" in options else [*command, "--jsonl", "-"]


@contextlib.contextmanager
def running(command: Sequence[str], noise: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, whose standard output is a pipe; at the end it has been told to end, or killed. noise: takes its
    standard error."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=noise,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    try:
        yield process
    finally:
        process.terminate()  # does nothing where it has ended
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Reads on, so that it never waits for a full pipe.
            process.communicate(timeout=PATIENCE)
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def last_words(noise: IO[bytes]) -> str:
    """The last line of standard error."""
    noise.seek(0)
    lines = noise.read()[-10_000:].decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no word"
