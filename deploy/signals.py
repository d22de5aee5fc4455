"""Signals as words to wait for, so that nothing is interrupted at a place where it must not be."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType
from typing import Literal

Word = Literal["stop", "reload"]
_WORDS: dict[int, Word] = {signal.SIGINT: "stop", signal.SIGTERM: "stop"}
if hasattr(signal, "SIGHUP"):  # Windows has none
    _WORDS[signal.SIGHUP] = "reload"


class Signals:
    """Takes SIGINT and SIGTERM as "stop" and SIGHUP as "reload" while it is open. For the main thread.

    A second SIGINT raises KeyboardInterrupt at once: for somebody who does not want to wait.
    """

    def __init__(self, *, reload: bool) -> None:
        """reload: where False, SIGHUP ends the process, as it does without this."""
        self._words = {number: word for number, word in _WORDS.items() if reload or word != "reload"}
        self._came: list[int] = []

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._before = {number: signal.signal(number, self._note) for number in self._words}
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in self._came:
            raise KeyboardInterrupt
        self._came.append(number)

    def wait(self, seconds: float) -> Word | None:
        """What came, or None after so many seconds without any. "stop" stays; "reload" is told once."""
        if not self._came:
            select.select([self._read], [], [], seconds)
            try:
                os.read(self._read, 4096)
            except BlockingIOError:
                pass
        words = [self._words[number] for number in self._came]
        if "stop" in words:
            return "stop"
        # Only those that were looked at: another one may have come since.
        del self._came[: len(words)]
        return "reload" if words else None
