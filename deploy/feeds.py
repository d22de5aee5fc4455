"""The feeds of a run: opened before all else, so that cameras begin while the model is loaded, and ended together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from deploy.address import Address
from deploy.capture import CaptureOptions, Feed, open_feed
from deploy.detect_settings import SourceSettings
from deploy.run_log import RunLog

if TYPE_CHECKING:
    from deploy.result import Event

_MOST_EARLY = 64
_Key = tuple[str, Address, CaptureOptions]


class Feeds:
    """The feeds of a run, which outlast a reload where their settings stay."""

    def __init__(self, log: RunLog) -> None:
        self.wake = threading.Event()
        self._log = log
        self._open: dict[_Key, Feed] = {}
        self._lock = threading.Lock()
        self._listener: Callable[[Event], None] | None = None
        #: What came while nobody listened: outputs are opened later than feeds.
        self._early: deque[Event] = deque(maxlen=_MOST_EARLY)

    def __enter__(self) -> Feeds:
        return self

    def __exit__(self, *_: object) -> None:
        all_at_once(feed.close for feed in self._open.values())

    def open(self, sources: Sequence[SourceSettings]) -> list[Feed]:
        """Feeds in the order of the sources; those that are no longer among them are closed.

        Raises InputError for a file that is not there; feeds that were open stay so.
        """
        opened: dict[_Key, Feed] = {}
        try:
            for one in sources:
                # Zones and lines are not the feed's affair.
                key = (one.name, one.address, one.options)
                kept = self._open.get(key)
                opened[key] = kept or open_feed(one.name, one.address, one.options, self.wake, self._tell)
        except BaseException:  # whatever it is, Ctrl-C too, is raised again: no thread or process is left behind
            all_at_once(feed.close for key, feed in opened.items() if key not in self._open)
            raise
        all_at_once(feed.close for key, feed in self._open.items() if key not in opened)
        self._open = opened
        return list(opened.values())

    def listen(self, listener: Callable[[Event], None] | None) -> None:
        """From now on listener takes each feed's events, beside the log, those first that nobody took before. It must
        not wait, and is called in other threads too."""
        with self._lock:
            self._listener = listener
            while listener is not None and self._early:
                listener(self._early.popleft())

    def _tell(self, event: Event) -> None:
        self._log.event(event)
        with self._lock:
            if self._listener is None:
                self._early.append(event)
            else:
                self._listener(event)


def all_at_once(calls: Iterable[Callable[[], object]]) -> None:
    """Makes all calls, each in a thread of its own, since each may take its second. Raises the first error of them."""
    errors: list[BaseException] = []

    def call(one: Callable[[], object]) -> None:
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(one,), daemon=True) for one in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
