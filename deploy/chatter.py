"""Keeps the runtime's idle talk from the terminal, and reads what it tells nowhere else."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Said on standard error for every file, though nothing is wrong.
_CHATTER = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU."
#: There is one standard error: two threads that divert it at once would never restore it.
_lock = threading.Lock()


@contextmanager
def without_chatter() -> Iterator[None]:
    """Keeps one known line of the runtime, and no other, from standard error.

    The runtime has no switch for it, so the file descriptor leads into memory meanwhile. All else that came is passed
    on afterwards, in its order.
    """
    with _lock:
        saved = _divert_stderr()
        try:
            yield
        finally:
            if saved is not None:
                _restore_stderr(*saved)


class Caught:
    """What was written to standard error, once it is known."""

    text: str = ""


@contextmanager
def caught_stderr() -> Iterator[Caught]:
    """Keeps all that is written to standard error meanwhile, by whatever language, and gives it as text at the end.

    For calls whose reasons stand there alone, among much talk. What ends the process meanwhile takes it along.
    """
    caught = Caught()
    with _lock, tempfile.TemporaryFile() as file:
        try:
            terminal: int | None = os.dup(2)
        except OSError:  # standard error is closed
            terminal = None
        os.dup2(file.fileno(), 2)
        try:
            yield caught
        finally:
            if terminal is None:
                os.close(2)
            else:
                os.dup2(terminal, 2)
                os.close(terminal)
            file.seek(0)
            caught.text = file.read().decode(errors="replace")


def silence_stderr() -> None:
    """Keeps all that follows from standard error: for the last moment of a process, where only libraries that are
    unloaded still speak."""
    if sys.stderr is not None:
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _divert_stderr() -> tuple[int, int] | None:
    """Descriptors of the real standard error and of the memory that stands in for it; None where that cannot be had."""
    if not hasattr(os, "memfd_create"):  # Linux has it; elsewhere the line is seen
        return None
    try:
        terminal = os.dup(2)
    except OSError:  # standard error is closed: nobody would see the line
        return None
    memory = os.memfd_create("stderr")
    os.dup2(memory, 2)
    return terminal, memory


def _restore_stderr(terminal: int, memory: int) -> None:
    os.dup2(terminal, 2)
    os.close(terminal)
    os.lseek(memory, 0, os.SEEK_SET)
    with open(memory, "rb") as caught:
        rest = b"".join(line for line in caught if line.strip() != _CHATTER)
    with open(2, "wb", closefd=False) as stderr:
        stderr.write(rest)
