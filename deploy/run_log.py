"""What a run that lasts tells on standard error: a line for each event, and on a terminal one that is rewritten."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from deploy.result import Event


class RunLog:
    """For several threads at once."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()
        self._live = self._stream.isatty()
        # The journal of systemd, which has its own clock, is where this is set.
        self._stamped = "JOURNAL_STREAM" not in os.environ
        self._shown = ""

    def event(self, event: Event) -> None:
        self.line(": ".join(filter(None, (event.feed, event.kind, event.text))))

    def line(self, text: str) -> None:
        """One line that stays."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S ") if self._stamped else ""
        with self._lock:
            self._write(f"{self._wiped()}{stamp}{_plain(text)}\n{self._shown}")

    def status(self, text: str) -> None:
        """The line that is rewritten; nothing where no terminal is."""
        if not self._live:
            return
        with self._lock:
            wiped, self._shown = self._wiped(), _plain(text)
            self._write(wiped + self._shown)

    def close(self) -> None:
        """Wipes the rewritten line."""
        with self._lock:
            self._write(self._wiped())
            self._shown = ""

    def _wiped(self) -> str:
        return f"\r{' ' * len(self._shown)}\r" if self._shown else ""

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a reader that has gone: the run goes on without its log
            pass


def _plain(text: str) -> str:
    """One line without what would disturb a terminal. As output.printable, which loads OpenCV."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.splitlines()))
