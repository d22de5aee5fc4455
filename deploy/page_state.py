"""What the page shows in numbers: the run's state once a second, the last ten minutes, the last events, the health."""

from __future__ import annotations

import collections
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploy.output import label_of
from deploy.result import Event, Result
from deploy.result_json import event_json, plain, snapshot_json
from deploy.status import FeedStatus, Snapshot

#: Seconds of history, one sample each.
HISTORY = 600
_EVENTS = 60
#: Classes of which the history keeps how many were in view, at most.
_CLASSES = 12


class State:
    """Takes a snapshot each second, whether or not someone watches, so that the history is whole."""

    def __init__(self, labels: Sequence[str], snapshot: Callable[[], Snapshot]) -> None:
        self._labels, self._snapshot = labels, snapshot
        self._changed = threading.Condition()
        self._number = 0
        self._text = "{}"
        self._history: collections.deque[dict[str, Any]] = collections.deque(maxlen=HISTORY)
        self._events: collections.deque[dict[str, Any]] = collections.deque(maxlen=_EVENTS)
        #: By feed: when the last result came, how many of each class it held, and zones' counts.
        self._last: dict[str, float] = {}
        self._in_view: dict[str, dict[str, int]] = {}
        self._counts: dict[str, Mapping[str, Any]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="page clock", daemon=True)
        self._thread.start()

    def put(self, result: Result) -> None:
        in_view = collections.Counter(label_of(self._labels, number) for number in result.found.class_ids.tolist())
        with self._changed:
            self._last[result.feed] = time.monotonic()
            self._in_view[result.feed] = dict(in_view)
            self._counts[result.feed] = result.counts
            self._events.extend(event_json(event) for event in result.events)

    def event(self, event: Event) -> None:
        with self._changed:
            self._events.append(event_json(event))
            if event.kind != "running":  # nobody is seen where nothing is looked at
                self._in_view.pop(event.feed, None)

    def close(self) -> None:
        """Ends the thread, and lets all go that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(1.0)

    def wait(self, after: int, timeout: float) -> tuple[int, str] | None:
        """The state's number and its JSON, as soon as it is another one than number `after`; None if none comes in
        timeout seconds, or ever."""
        with self._changed:
            ready = self._changed.wait_for(lambda: self._closed or self._number != after, timeout)
            return None if self._closed or not ready else (self._number, self._text)

    def history(self) -> str:
        """JSON: a list of samples, the oldest first: at (seconds since 1970), fps, age_ms (null where not known),
        in_view (by label)."""
        with self._changed:
            return json.dumps(list(self._history), allow_nan=False)

    def health(self, seconds: float) -> list[str]:
        """Why the run is not healthy, a line each: a feed without a result in so many seconds. A file that was read to
        its end is well. Empty when all is well."""
        feeds = self._snapshot().feeds
        now = time.monotonic()
        with self._changed:
            return [line for feed in feeds if (line := _illness(feed, self._last.get(feed.name), now, seconds))]

    def _run(self) -> None:
        while True:
            self._sample()
            with self._changed:
                # On the whole second, so that a sample is a second.
                if self._changed.wait_for(lambda: self._closed, 1 - time.time() % 1):
                    return

    def _sample(self) -> None:
        whole = snapshot_json(self._snapshot())
        with self._changed:
            now, at = time.monotonic(), round(time.time(), 1)
            whole["at"] = at
            whole["last_result"] = {feed: round(now - last, 1) for feed, last in self._last.items()}
            whole["in_view"] = {feed: dict(seen) for feed, seen in self._in_view.items()}
            whole["counts"] = plain(self._counts)
            whole["events"] = list(self._events)
            total: collections.Counter[str] = collections.Counter()
            for seen in self._in_view.values():
                total.update(seen)
            age = whole["age"]["p50"] if whole["age"] else None
            seen = dict(total.most_common(_CLASSES))
            self._history.append({"at": at, "fps": whole["fps"], "age_ms": age, "in_view": seen})
            self._text = json.dumps(whole, allow_nan=False)
            self._number += 1
            self._changed.notify_all()


def _illness(feed: FeedStatus, last: float | None, now: float, seconds: float) -> str | None:
    if feed.state == "ended" and not feed.live:
        return None
    if last is not None and now - last <= seconds:
        return None
    since = "no result yet" if last is None else f"no result for {now - last:.0f} s"
    return f"{feed.name}: {feed.state}, {since}" + (f" ({feed.reason})" if feed.reason else "")
