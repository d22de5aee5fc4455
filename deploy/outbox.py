"""A queue and a thread between the pipeline and each output, so that a slow or dead output never slows the feed.

Live, the newest results win: where an output falls behind, the oldest waiting ones are dropped and counted. From files
to files nothing may be lost: there the pipeline waits, and the output's error ends the run.
"""

from __future__ import annotations

import collections
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType

import click

from deploy.errors import InputError, SlimdetError
from deploy.output import printable
from deploy.result import Event, Output, Result
from deploy.status import OutputStatus

#: Events that wait at most; they are rarer than results and matter more, so they are dropped apart from them.
_MOST_EVENTS = 256
#: Seconds between two lines about an output that keeps failing.
_REPEAT = 60.0


def end_run() -> None:
    """Ends the run as Ctrl-C does: Python hands the signal to the main thread. For an output whose user has left."""
    os.kill(os.getpid(), signal.SIGINT)


def _print(line: str) -> None:
    click.echo(line, err=True)


class Written:
    """An output that a function is enough for. What the function writes to is opened and closed by someone else."""

    def __init__(
        self, name: str, result: Callable[[Result], None], event: Callable[[Event], None] | None = None
    ) -> None:
        self.name = name
        self._result, self._event = result, event

    def result(self, result: Result) -> None:
        self._result(result)

    def event(self, event: Event) -> None:
        if self._event is not None:
            self._event(event)

    def close(self) -> None:
        """Nothing to finish."""


class Outbox:
    """Hands results and events to one output, in their order and in a thread of its own.

    What the output raises is told once a minute and counted, and the next one is tried again. Lossless, the first
    failure is kept instead: the next offer, or close, raises it.
    """

    def __init__(
        self, output: Output, capacity: int = 4, lossless: bool = False, warn: Callable[[str], None] = _print
    ) -> None:
        """capacity: results that wait at most, from 1. warn: takes one line about a failure."""
        self._output, self._capacity, self._lossless, self._warn = output, capacity, lossless, warn
        self._changed = threading.Condition()
        self._number = itertools.count()
        self._results: collections.deque[tuple[int, Result]] = collections.deque()
        self._events: collections.deque[tuple[int, Event]] = collections.deque()
        self._sent = self._dropped = self._failed = 0
        self._error = ""
        self._failure: Exception | None = None
        self._told = -_REPEAT
        self._closing = self._abandoned = False
        # A daemon: an output that hangs in a socket must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name=f"output {output.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        try:
            self.close(None if self._lossless else 1.0)
        except SlimdetError:
            if kind is None:
                raise

    @property
    def lossless(self) -> bool:
        return self._lossless

    def offer(self, result: Result) -> None:
        """Never blocks, unless lossless: then it waits for room. Once closed, drops.

        Raises what the output raised, where lossless.
        """
        with self._changed:
            if self._lossless:
                self._changed.wait_for(lambda: len(self._results) < self._capacity or self._failure or self._closing)
                self._raise()
            if self._closing:
                self._dropped += 1
                return
            if len(self._results) >= self._capacity:
                self._results.popleft()
                self._dropped += 1
            self._results.append((next(self._number), result))
            self._changed.notify_all()

    def offer_event(self, event: Event) -> None:
        """Never blocks. Beyond 256 waiting events the oldest is dropped."""
        with self._changed:
            if self._closing or len(self._events) >= _MOST_EVENTS:
                self._dropped += 1
                if self._closing:
                    return
                self._events.popleft()
            self._events.append((next(self._number), event))
            self._changed.notify_all()

    def status(self) -> OutputStatus:
        with self._changed:
            waiting = len(self._results) + len(self._events)
            return OutputStatus(self._output.name, self._sent, self._dropped, self._failed, waiting, self._error)

    def close(self, timeout: float | None = 1.0) -> None:
        """Hands out what waits, closes the output, and ends the thread. After timeout seconds (None: however long it
        takes) it lets go of an output that hangs, and what waited is dropped and counted.

        Raises what the output raised, where lossless.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        with self._changed:
            self._abandoned = True
            self._dropped += len(self._results) + len(self._events)
            self._results.clear()
            self._events.clear()
            if self._lossless:
                self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._output.event(item) if isinstance(item, Event) else self._output.result(item)
            except Exception as error:  # whatever it is, the feed goes on
                self._fail(error)
            else:
                with self._changed:
                    self._sent += 1
                    self._error = ""
        try:
            self._output.close()
        except Exception as error:
            self._fail(error)

    def _next(self) -> Result | Event | None:
        """The next one in the order of their offers; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._results or self._events or self._closing)
            if self._abandoned or (self._lossless and self._failure) or not (self._results or self._events):
                return None
            queues = [queue for queue in (self._results, self._events) if queue]
            item: Result | Event = min(queues, key=lambda queue: queue[0][0]).popleft()[1]
            self._changed.notify_all()
            return item

    def _fail(self, error: Exception) -> None:
        reason = _in_one_line(error)
        with self._changed:
            self._failed += 1
            self._error = reason
            if self._lossless and self._failure is None:
                self._failure = error if isinstance(error, SlimdetError) else InputError(reason)
            now = time.monotonic()
            tell = now - self._told >= _REPEAT and not self._lossless
            self._told = now if tell else self._told
            self._changed.notify_all()
        if tell:
            self._warn(f"output {self._output.name}: {reason}")


def _in_one_line(error: Exception) -> str:
    """Why it failed. Of an error that is not ours only the kind: its text may hold an address with its password."""
    if isinstance(error, SlimdetError):
        return printable(" ".join(str(error).split()))
    if isinstance(error, OSError) and error.strerror:
        return printable(error.strerror)
    return type(error).__name__
