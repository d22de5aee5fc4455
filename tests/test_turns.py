"""Feeds that share one model take turns."""

import threading
from collections import deque

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deploy.source import Frame
from deploy.turns import Turns


class Fake:
    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.rest = deque(Frame(name, i, 0.0, np.zeros((1, 1, 3), np.uint8)) for i in range(count))

    @property
    def ended(self) -> bool:
        return not self.rest

    def take(self) -> Frame | None:
        return self.rest.popleft() if self.rest else None


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_every_frame_comes_once_and_nobody_waits_longer_than_a_round(counts: list[int]) -> None:
    feeds = [Fake(str(i), count) for i, count in enumerate(counts)]
    turns, stop = Turns(feeds, threading.Event()), threading.Event()
    order = []
    left = {feed.name: len(feed.rest) for feed in feeds}
    waited = dict.fromkeys(left, 0)
    while (taken := turns(stop)) is not None:
        name, frame = taken
        order.append((name, frame.index))
        left[name] -= 1
        waited = {other: 0 if other == name or not left[other] else steps + 1 for other, steps in waited.items()}
        assert max(waited.values()) < len(feeds)
    assert sorted(order) == sorted((str(i), k) for i, count in enumerate(counts) for k in range(count))


def test_it_waits_for_a_frame_and_ends_when_told() -> None:
    feed, wake, stop = Fake("a", 0), threading.Event(), threading.Event()
    feed.__class__ = type("Open", (Fake,), {"ended": False})
    turns = Turns([feed], wake)

    def later() -> None:
        feed.rest.append(Frame("a", 7, 0.0, np.zeros((1, 1, 3), np.uint8)))
        wake.set()

    threading.Timer(0.02, later).start()
    taken = turns(stop)
    assert taken is not None and taken[1].index == 7
    threading.Timer(0.02, stop.set).start()
    assert turns(stop) is None
