"""JSON lines of a run that lasts: appended to one file, each line visible at once, and whole."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from deploy.errors import InputError
from deploy.outbox import end_run
from deploy.result import Event, Result
from deploy.result_json import event_json, result_json


class JsonLog:
    """Appends a line a result (result_json) and a line {"event": …} an event that stands in no result.

    A file that was renamed or removed (logrotate) is made anew with the next line, without a signal. A line that a full
    disk cut short is taken back. "-" is standard output; a pipe or device is written to as it is. When the reader of
    standard output has gone (`slimdet … | head`) the run ends.
    """

    name = "jsonl"

    def __init__(self, destination: str, labels: Sequence[str], stop: Callable[[], None] = end_run) -> None:
        """stop: called once, when the reader of standard output has gone.

        Raises InputError where the file cannot be opened.
        """
        self._labels, self._stop = labels, stop
        self._gone = False
        self._path = None if destination == "-" else Path(destination)
        self._file: int | None = None
        self._identity = (0, 0)
        self._regular = False
        if self._path is not None:
            self._open(self._path)

    def result(self, result: Result) -> None:
        """Raises InputError where the line cannot be written; nothing of it stays then."""
        self._write(result_json(result, self._labels))

    def event(self, event: Event) -> None:
        """As result."""
        self._write({"event": event_json(event)})

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, allow_nan=False)
        if self._path is None:
            self._tell(text)
            return
        if self._file is None or self._moved(self._path):
            self.close()
            self._open(self._path)
        assert self._file is not None  # _open has set it
        before = os.fstat(self._file).st_size if self._regular else 0
        rest = memoryview(text.encode() + b"\n")
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            if self._regular:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, before)
            raise _failure(self._path, error) from error

    def _tell(self, text: str) -> None:
        if self._gone:
            return
        try:
            click.echo(text)  # which flushes
        except BrokenPipeError:
            self._gone = True
            # What standard output still holds must not fail once more at the end of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._stop()

    def _moved(self, path: Path) -> bool:
        try:
            found = os.stat(path)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._identity

    def _open(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _failure(path, error) from error
        found = os.fstat(self._file)
        self._identity, self._regular = (found.st_dev, found.st_ino), stat.S_ISREG(found.st_mode)
        # What an earlier run left unfinished when it was killed must not swallow the next line.
        if self._regular and found.st_size and os.pread(self._file, 1, found.st_size - 1) != b"\n":
            os.write(self._file, b"\n")


def _failure(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {path}: {error.strerror or error}; choose another place or free some")
