"""Which variant of a model runs: a faster one when results grow old or the machine hot, and back when there is room.

Variants stand in order, the most exact first and the fastest last. A step down is made quickly, a step up slowly: only
after a quiet time, which doubles with every step up that did not hold, so that two variants never take turns.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import deque
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class AdaptSettings:
    #: Degrees Celsius of the hottest sensor above which a faster variant is taken; None for no bound.
    most_temperature: float | None = None
    #: Seconds that a bound must be missed before a step down, and after each step before the next one down.
    patience: float = 3.0
    #: Seconds in which all bounds are kept before a step up, and the most that it grows to.
    quiet: float = 15.0
    most_quiet: float = 600.0
    #: Degrees below most_temperature that the machine must have cooled to before a step up.
    cooled: float = 5.0


@dataclasses.dataclass(frozen=True)
class Change:
    """Another variant runs from now on."""

    before: int
    after: int
    #: One line for people.
    reason: str


class Adaptive:
    """Decides; whoever owns the pipeline does it. One thread."""

    def __init__(self, settings: AdaptSettings, model_ms: Sequence[float]) -> None:
        """model_ms: milliseconds of one inference of each variant, measured when it was loaded."""
        self._settings, self._model_ms = settings, tuple(model_ms)
        self.variant = 0
        #: (time, age, temperature) since the last change.
        self._seen: deque[tuple[float, float | None, float | None]] = deque()
        #: Since when a bound is missed, and since when there is room for a slower variant; None where it is not so.
        self._missed: float | None = None
        self._kept: float | None = None
        self._quiet = settings.quiet
        self._bound: float | None = None
        self._went_up: float | None = None

    def update(
        self, now: float, age_ms: float | None, most_age_ms: float | None, temperature: float | None
    ) -> Change | None:
        """To be called about once a second. now: time.monotonic(). age_ms: median of the last seconds' results, None
        where there were none. most_age_ms: above which a faster variant is taken, None for no bound. temperature: None
        where the machine tells none."""
        self._bound = most_age_ms
        self._seen.append((now, age_ms, temperature))
        while self._seen[0][0] < now - self._settings.patience:
            self._seen.popleft()
        reason = self._too_much()
        self._missed = None if not reason else self._missed if self._missed is not None else now
        self._kept = None if not self._room() else self._kept if self._kept is not None else now
        if self._missed is not None and now - self._missed >= self._settings.patience:
            return self._down(now, reason)
        if self._kept is not None and now - self._kept >= self._quiet:
            return self._up(now)
        self._forgive(now)
        return None

    def _down(self, now: float, reason: str) -> Change | None:
        if self.variant == len(self._model_ms) - 1:
            return None
        if self._went_up is not None:
            # The step up did not hold: the next one waits twice as long.
            self._quiet = min(2 * self._quiet, self._settings.most_quiet)
            self._went_up = None
        return self._change(self.variant + 1, reason)

    def _up(self, now: float) -> Change | None:
        if self.variant == 0:
            return None
        self._went_up = now
        return self._change(self.variant - 1, f"all bounds were kept for {self._quiet:.0f} s")

    def _change(self, after: int, reason: str) -> Change:
        change = Change(self.variant, after, reason)
        self.variant, self._missed, self._kept = after, None, None
        self._seen.clear()
        return change

    def _forgive(self, now: float) -> None:
        """A step up that held for as long as any could wait counts for nothing any more."""
        if self._went_up is not None and now - self._went_up > 2 * self._settings.most_quiet:
            self._went_up, self._quiet = None, self._settings.quiet

    def _too_much(self) -> str:
        """Which bound is missed, "" where none is."""
        age, temperature = self._age(), self._temperature()
        bound, hottest = self._bound, self._settings.most_temperature
        if bound is not None and age is not None and age > bound:
            return f"results are {age:.0f} ms old, at most {bound:.0f} are wanted"
        if hottest is not None and temperature is not None and temperature > hottest:
            return f"the machine has {temperature:.0f} degrees, at most {hottest:.0f} are wanted"
        return ""

    def _room(self) -> bool:
        """Whether the next slower variant would keep all bounds, as far as can be told."""
        if self.variant == 0:
            return False
        age, temperature = self._age(), self._temperature()
        bound, hottest = self._bound, self._settings.most_temperature
        if bound is not None:
            slower = self._model_ms[self.variant - 1] - self._model_ms[self.variant]
            if age is None or age + max(slower, 0.0) > bound:
                return False
        return hottest is None or temperature is None or temperature <= hottest - self._settings.cooled

    def _age(self) -> float | None:
        ages = [age for _, age, _ in self._seen if age is not None]
        return statistics.median(ages) if ages else None

    def _temperature(self) -> float | None:
        return self._seen[-1][2]
