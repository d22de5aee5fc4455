"""Zones that objects enter and leave, and lines that they cross: counts and events of one feed.

An object is where it stands: at the middle of its box's lower edge. Boxes tremble, and whoever stands on a border must
not come and go with every frame: one leaves a zone, or a side of a line, only by a tenth of the box's height.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploy.detections import Detections
from deploy.errors import InputError
from deploy.output import label_of, printable
from deploy.polygon import area, border_distance, inside
from deploy.result import Event
from deploy.tracking import TrackSettings

#: Of the box's height: how far beyond a border one is to be, to have left. Detections err by a twentieth.
_MARGIN = 0.1
_MOST_POINTS = 100

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Zone:
    """A part of the picture. Raises InputError for points that bound none."""

    #: Unique among the feed's zones and lines.
    name: str
    #: Three or more vertices x, y, as parts of the picture's width and height, 0..1: they hold at any resolution.
    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if not 3 <= len(self.points) <= _MOST_POINTS:
            raise InputError(
                f"a zone has 3 to {_MOST_POINTS} points, {self.name!r} has {len(self.points)}; give its corners in turn"
            )
        _check_points(self.name, self.points)
        if area(np.array(self.points)) == 0:
            raise InputError(f"a zone's points bound an area, those of {self.name!r} do not; give its corners in turn")


@dataclasses.dataclass(frozen=True)
class Line:
    """A border to cross. To go from the left to the right of who walks from start to end, is in; the other way, out.

    Raises InputError for two points that are one.
    """

    #: As Zone has them.
    name: str
    start: Point
    end: Point

    def __post_init__(self) -> None:
        _check_points(self.name, (self.start, self.end))
        if self.start == self.end:
            raise InputError(f"a line has two ends, those of {self.name!r} are one; give another end")


def _check_points(name: str, points: Sequence[Point]) -> None:
    for point in points:
        if not (len(point) == 2 and all(math.isfinite(value) and 0 <= value <= 1 for value in point)):
            raise InputError(
                f"a point is x, y from 0 to 1, parts of the picture's width and height, {name!r} has {point}; divide "
                "pixels by the picture's size"
            )


@dataclasses.dataclass
class _Visit:
    """An object as a zone knows it."""

    label: str
    inside: bool
    #: When it came in, and when it was last seen, seconds of the feed.
    since: float
    seen: float


@dataclasses.dataclass
class _Side:
    """An object as a line knows it: where it last was clearly on a side."""

    #: x, y as parts of the picture's width and height.
    place: Point
    seen: float


class _ZoneCounts:
    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.visits: dict[int, _Visit] = {}
        self.entered: collections.Counter[str] = collections.Counter()
        self.left: collections.Counter[str] = collections.Counter()


class _LineCounts:
    def __init__(self, line: Line) -> None:
        self.line = line
        self.sides: dict[int, _Side] = {}
        self.crossed: dict[str, collections.Counter[str]] = {"in": collections.Counter(), "out": collections.Counter()}


class Zones:
    """What the zones and lines of one feed have counted so far.

    Raises InputError for a name that is there twice.
    """

    def __init__(
        self,
        feed: str,
        zones: Sequence[Zone],
        lines: Sequence[Line],
        labels: Sequence[str],
        lost_seconds: float = TrackSettings.lost_seconds,
    ) -> None:
        """labels: the model's. lost_seconds: the tracker's; who is not seen for longer has left."""
        names = [zone.name for zone in zones] + [line.name for line in lines]
        for name in names:
            if not name or names.count(name) > 1:
                raise InputError(f"zones and lines have a name each, {name!r} is none or there twice; choose others")
        self._feed, self._labels, self._lost_seconds = feed, labels, lost_seconds
        self._zones, self._lines = [_ZoneCounts(zone) for zone in zones], [_LineCounts(line) for line in lines]
        self._time = -math.inf

    def update(
        self, frame_hw: tuple[int, int], found: Detections, tracks: np.ndarray | None, time: float, at: float
    ) -> tuple[tuple[Event, ...], Mapping[str, Any]]:
        """What happened in a frame, and what is counted since the beginning.

        frame_hw: height and width of the frame. found: what is shown of it. tracks: int64 (n,) from Tracker.update, of
        the same detections; those with 0 are left out. None where nothing tracks: then zones tell only how many are
        inside now. time: of the frame, seconds, the clock that the tracker is given; dwelling is measured by it. at:
        seconds since 1970, for the events.

        The counts by name: of a zone {"inside", "entered", "left"}, each by label, and "dwell_s", the seconds of
        everyone inside by identity; of a line {"in", "out"} by label. Identities that the tracker has lost for
        lost_seconds have left. entered less left is inside, always.
        """
        events: list[Event] = []
        if time < self._time:
            self._forget(math.inf, at, events)
        self._time = time
        self._forget(time, at, events)
        height, width = frame_hw
        size = np.array([width, height], np.float64)
        boxes = found.boxes.astype(np.float64)
        points = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 3]], axis=1)
        # Whoever is cut by the picture's lower border stands in a zone that reaches down to it.
        points = np.clip(points, 0.5, size - 0.5)
        margins = _MARGIN * (boxes[:, 3] - boxes[:, 1])
        labels = [label_of(self._labels, class_id) for class_id in found.class_ids.tolist()]
        now: dict[str, collections.Counter[str]] = {}
        for zone in self._zones:
            polygon = np.array(zone.zone.points) * size
            within = inside(points, polygon)
            far = ~within & (border_distance(points, polygon) > margins)
            if tracks is None:
                now[zone.zone.name] = collections.Counter(itertools.compress(labels, within))
                continue
            for index, label in enumerate(labels):
                if identity := int(tracks[index]):
                    self._step_zone(zone, identity, label, bool(within[index]), bool(far[index]), at, events)
            now[zone.zone.name] = collections.Counter(one.label for one in zone.visits.values() if one.inside)
        if tracks is not None:
            parts = (points / size).tolist()
            for line in self._lines:
                for index, label in enumerate(labels):
                    if identity := int(tracks[index]):
                        margin = float(margins[index])
                        self._step_line(line, (width, height), identity, label, parts[index], margin, at, events)
        return tuple(events), self._counts(now)

    def _step_zone(
        self, zone: _ZoneCounts, identity: int, label: str, within: bool, far: bool, at: float, events: list[Event]
    ) -> None:
        """far: outside, and not near the border."""
        visit = zone.visits.setdefault(identity, _Visit(label, False, self._time, self._time))
        visit.seen = self._time
        if within and not visit.inside:
            visit.inside, visit.since = True, self._time
            zone.entered[visit.label] += 1
            facts = {"zone": zone.zone.name, "track": identity, "label": visit.label}
            text = f"{visit.label} {identity} entered {zone.zone.name}"
            events.append(Event(self._feed, "entered", at, printable(text), facts))
        elif far and visit.inside:
            self._leave(zone, identity, visit, at, events)

    def _leave(self, zone: _ZoneCounts, identity: int, visit: _Visit, at: float, events: list[Event]) -> None:
        """Whoever is lost was there until last seen."""
        visit.inside = False
        zone.left[visit.label] += 1
        dwell = round(visit.seen - visit.since, 3)
        facts = {"zone": zone.zone.name, "track": identity, "label": visit.label, "dwell_s": dwell}
        text = f"{visit.label} {identity} left {zone.zone.name} after {dwell:.1f} s"
        events.append(Event(self._feed, "left", at, printable(text), facts))

    def _step_line(
        self,
        line: _LineCounts,
        size: Point,
        identity: int,
        label: str,
        place: Point,
        margin: float,
        at: float,
        events: list[Event],
    ) -> None:
        start, end = line.line.start, line.line.end
        side = line.sides.setdefault(identity, _Side(place, self._time))
        side.seen = self._time
        distance = _to_the_right(place, start, end, size)
        if abs(distance) <= margin:
            return
        before, side.place = side.place, place
        distance_before = _to_the_right(before, start, end, size)
        if distance * distance_before >= 0:
            return
        # The way meets the line between its ends where these are on different sides of the way.
        if _to_the_right(start, before, place, size) * _to_the_right(end, before, place, size) <= 0:
            way = "in" if distance > 0 else "out"
            line.crossed[way][label] += 1
            facts = {"line": line.line.name, "track": identity, "label": label, "direction": way}
            text = f"{label} {identity} crossed {line.line.name}, {way}"
            events.append(Event(self._feed, "crossed", at, printable(text), facts))

    def _forget(self, time: float, at: float, events: list[Event]) -> None:
        """Whoever was not seen for lost_seconds before `time`."""
        for zone in self._zones:
            for identity, visit in list(zone.visits.items()):
                if time - visit.seen > self._lost_seconds:
                    if visit.inside:
                        self._leave(zone, identity, visit, at, events)
                    del zone.visits[identity]
        for line in self._lines:
            line.sides = {
                identity: side for identity, side in line.sides.items() if time - side.seen <= self._lost_seconds
            }

    def _counts(self, now: Mapping[str, collections.Counter[str]]) -> dict[str, Any]:
        counts: dict[str, Any] = {}
        for zone in self._zones:
            dwell = {
                str(identity): round(self._time - visit.since, 3)
                for identity, visit in zone.visits.items()
                if visit.inside
            }
            counts[zone.zone.name] = {
                "inside": dict(now[zone.zone.name]),
                "entered": dict(zone.entered),
                "left": dict(zone.left),
                "dwell_s": dwell,
            }
        for line in self._lines:
            counts[line.line.name] = {way: dict(counted) for way, counted in line.crossed.items()}
        return counts


def _to_the_right(place: Point, start: Point, end: Point, size: Point) -> float:
    """Pixels by which the place is to the right of who walks from start to end; below 0 to the left. All three are
    parts of the picture's width and height, size in pixels, which y counts downwards."""
    along_x, along_y = (end[0] - start[0]) * size[0], (end[1] - start[1]) * size[1]
    x, y = (place[0] - start[0]) * size[0], (place[1] - start[1]) * size[1]
    return (along_x * y - along_y * x) / math.hypot(along_x, along_y)
