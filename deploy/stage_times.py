"""How long each stage took, how old results are and how many a second come: of the last seconds, always known."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deploy.status import Spread

#: What "the last seconds" are, and the most results that are kept of them.
SECONDS = 10.0
MOST = 512
#: In the order of a frame's way.
STAGES = ("wait", "preprocess", "invoke", "postprocess", "track")


class StageTimes:
    """One thread adds; any may ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: When a result was added, its stages, and its age, all in milliseconds but the first; None for the age where
        #: it has none.
        self._recent: deque[tuple[float, Mapping[str, float], float | None]] = deque(maxlen=MOST)
        self._results = 0
        self._detections: Counter[int] = Counter()

    def add(self, milliseconds: Mapping[str, float], age_ms: float | None, class_ids: Sequence[int]) -> None:
        """One result: its stages, the age of its frame where that is live, and the class of each detection."""
        with self._lock:
            self._recent.append((self._clock(), milliseconds, age_ms))
            self._results += 1
            self._detections.update(class_ids)

    def forget(self) -> None:
        """Times and ages so far, not the counts: what comes now is of another kind."""
        with self._lock:
            self._recent.clear()

    @property
    def results(self) -> int:
        return self._results

    def detections(self) -> dict[int, int]:
        """So far, by class, the most frequent first."""
        with self._lock:
            return dict(self._detections.most_common())

    def fps(self) -> float:
        """Results a second in the last seconds; 0.0 with fewer than two."""
        times = [added for added, _, _ in self._last()]
        # Up to now, not up to the newest one: a run that stands still must not show its old rate for ever.
        seconds = self._clock() - times[0] if times else 0.0
        return (len(times) - 1) / seconds if len(times) > 1 and seconds > 0 else 0.0

    def milliseconds(self) -> dict[str, Spread]:
        """By stage; only stages that there were."""
        found = [stages for _, stages, _ in self._last()]
        values = {name: [stages[name] for stages in found if name in stages] for name in STAGES}
        return {name: spread(times) for name, times in values.items() if times}

    def age(self) -> Spread | None:
        """Of the results of live feeds, None without any."""
        ages = [age for _, _, age in self._last() if age is not None]
        return spread(ages) if ages else None

    def _last(self) -> list[tuple[float, Mapping[str, float], float | None]]:
        since = self._clock() - SECONDS
        with self._lock:
            return [one for one in self._recent if one[0] >= since]


def spread(values: Sequence[float]) -> Spread:
    """Median and 95th percentile, linear between ranks, of at least one value."""
    middle, high = np.percentile(np.asarray(values, np.float64), (50, 95))
    return Spread(float(middle), float(high))
