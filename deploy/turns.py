"""Whose frame comes next, where several feeds share one model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from deploy.source import Frame

#: Seconds after which feeds are looked at again although none of them spoke up.
_LOOK = 0.2


class Taken(Protocol):
    """What is needed of a feed (capture.py has it whole)."""

    @property
    def name(self) -> str: ...

    @property
    def ended(self) -> bool: ...

    def take(self) -> Frame | None: ...


class Turns:
    """Takes the feeds' frames in turns: after one has had its turn, each other one that has a frame comes before it."""

    def __init__(self, feeds: Sequence[Taken], wake: threading.Event) -> None:
        """wake: what the feeds set whenever a frame came or one of them ended."""
        self._feeds, self._wake, self._next = list(feeds), wake, 0

    def __call__(self, stop: threading.Event) -> tuple[str, Frame] | None:
        """The next frame and its feed's name; None when all feeds have ended or `stop` is set."""
        while not stop.is_set():
            self._wake.clear()
            # Asked before the frames: a feed that ends after its last frame would else lose it.
            ended = all([feed.ended for feed in self._feeds])
            for step in range(len(self._feeds)):
                place = (self._next + step) % len(self._feeds)
                frame = self._feeds[place].take()
                if frame is not None:
                    self._next = place + 1
                    return self._feeds[place].name, frame
            if ended:
                return None
            self._wake.wait(_LOOK)
        return None
