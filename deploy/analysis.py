"""From what was found in a frame to its result: least scores by label, identities over time, zones and lines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.annotate import Shape
from deploy.detect_settings import DetectSettings, SourceSettings
from deploy.detections import Detections
from deploy.errors import InputError
from deploy.pipeline import Found
from deploy.result import Event, Result
from deploy.source import Frame

if TYPE_CHECKING:
    from deploy.tracking import Tracker
    from deploy.zones import Zones

#: What a detector is run with where tracks may go on with unsure detections.
_UNSURE = 0.1
#: Seconds after which an identity that is not seen is forgotten.
_LOST_SECONDS = 2.0


def tracks(settings: DetectSettings) -> bool:
    """Whether identities are kept: zones and lines count by them."""
    return settings.track or any(source.zones or source.lines for source in settings.sources)


def least_score(settings: DetectSettings) -> float:
    """The threshold that the detector is run with: the least of all that are asked for, so that none hides another."""
    least = min([settings.conf, *settings.classes.values()])
    return min(least, _UNSURE) if tracks(settings) else least


class Analysis:
    """Of one feed. Not for several threads at once."""

    def __init__(self, settings: DetectSettings, source: SourceSettings, labels: Sequence[str], *, live: bool) -> None:
        """live: frames are told apart in time by when they came, else by the file's own clock.

        Raises InputError for a label in settings.classes that the model has not.
        """
        if unknown := [label for label in settings.classes if label not in labels]:
            raise InputError(f"least scores are of the model's own labels, which are not {unknown[0]!r}; correct it")
        self._live = live
        #: Zones and lines as pictures show them.
        self.shapes = [
            Shape(name, points, closed)
            for group, closed in ((source.zones, True), (source.lines, False))
            for name, points in group.items()
        ]
        #: float32 (classes,): what is shown. A class without a label has the last entry.
        self._least = np.array([settings.classes.get(label, settings.conf) for label in (*labels, "")], np.float32)
        self._tracker: Tracker | None = None
        self._zones: Zones | None = None
        #: Identities that reached their label's least score, and when they were last seen.
        self._worthy: dict[int, float] = {}
        if tracks(settings):
            from deploy import tracking

            unsure = min(_UNSURE, settings.conf)
            self._tracker = tracking.Tracker(tracking.TrackSettings(settings.conf, unsure, lost_seconds=_LOST_SECONDS))
        if source.zones or source.lines:
            self._zones = zones_of(source, labels)

    def result(self, one: Found) -> Result:
        begin = time.perf_counter()
        found = one.found
        sure = found.scores >= self._least[np.minimum(found.class_ids, len(self._least) - 1)]
        identities: np.ndarray | None = None
        events: tuple[Event, ...] = ()
        counts: Mapping[str, Any] = {}
        if self._tracker is not None:
            now = self._time(one.frame)
            identities = self._tracker.update(found, now)
            sure |= self._are_worthy(identities, sure, now)
            identities = identities[sure]
        # A frame whose detections are all shown keeps them as they are.
        found = found if sure.all() else found.take(np.flatnonzero(sure))
        if self._zones is not None:
            events, counts = self._counted(one, found, identities)
        if self._tracker is not None:
            one.milliseconds["track"] = (time.perf_counter() - begin) * 1000
        return Result(
            one.feed, one.frame, found, identities, events, counts, one.milliseconds, finished=time.monotonic()
        )

    def _are_worthy(self, identities: np.ndarray, sure: np.ndarray, now: float) -> np.ndarray:
        """bool (n,): which have an identity that was sure once, if not in this frame."""
        self._worthy.update((int(one), now) for one in identities[sure] if one)
        kept = {one: at for one, at in self._worthy.items() if 0 <= now - at <= _LOST_SECONDS}
        self._worthy = kept | {int(one): now for one in identities if int(one) in kept}
        return np.array([int(one) in kept for one in identities], bool)

    def _counted(
        self, one: Found, found: Detections, identities: np.ndarray | None
    ) -> tuple[tuple[Event, ...], Mapping[str, Any]]:
        assert self._zones is not None
        height, width = one.frame.pixels.shape[:2]
        # Events are told in seconds since 1970: now, less the frame's age.
        at = time.time() - (time.monotonic() - one.frame.captured if self._live else 0.0)
        return self._zones.update((height, width), found, identities, self._time(one.frame), at)

    def _time(self, frame: Frame) -> float:
        """Seconds, of the clock that frames are told apart by."""
        return frame.captured if self._live else frame.time


def zones_of(source: SourceSettings, labels: Sequence[str]) -> Zones:
    """Raises InputError for zones and lines that cannot be."""
    from deploy.zones import Line, Zone, Zones

    zones = [Zone(name, points) for name, points in source.zones.items()]
    lines = [Line(name, points[0], points[1]) for name, points in source.lines.items()]
    return Zones(source.name, zones, lines, labels, _LOST_SECONDS)
