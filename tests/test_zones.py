import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.detections import Detections, no_detections
from deploy.errors import InputError
from deploy.zones import Line, Zone, Zones

LABELS = ("person", "car")
LEFT_HALF = Zone("left half", ((0, 0), (0.5, 0), (0.5, 1), (0, 1)))
#: Down the middle: who goes to the left of the picture goes to the right of who walks down.
MIDDLE = Line("middle", (0.5, 0), (0.5, 1))
FRAME = (100, 200)


def people(*feet: tuple[float, float], height: float = 40.0, class_id: int = 0) -> Detections:
    """Boxes that stand there."""
    boxes = [(x - 5, y - height, x + 5, y) for x, y in feet]
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.ones(count, np.float32), np.full(count, class_id, np.int32)
    )


def walk(zones: Zones, way: list[float], identity: int = 1, start: float = 0.0, y: float = 50.0) -> list[Any]:
    """Events and the last counts of one person who is at those x, ten a second."""
    events: list[Any] = []
    for step, x in enumerate(way):
        more, counts = zones.update(FRAME, people((x, y)), np.array([identity]), start + step / 10, 1000.0 + step)
        events += more
    return [events, counts]


def test_who_comes_and_goes() -> None:
    events, counts = walk(Zones("door", [LEFT_HALF], [], LABELS), [150, 120, 90, 60, 90, 120, 150])
    assert [(event.kind, event.feed, event.at) for event in events] == [
        ("entered", "door", 1002.0),
        ("left", "door", 1005.0),
    ]
    assert events[0].facts == {"zone": "left half", "track": 1, "label": "person"}
    assert events[1].facts["dwell_s"] == 0.3 and events[1].text == "person 1 left left half after 0.3 s"
    assert counts == {"left half": {"inside": {}, "entered": {"person": 1}, "left": {"person": 1}, "dwell_s": {}}}
    json.dumps(counts, allow_nan=False)


def test_who_is_seen_inside_first_has_entered_and_dwells() -> None:
    events, counts = walk(Zones("", [LEFT_HALF], [], LABELS), [20] * 6, identity=7)
    assert [event.kind for event in events] == ["entered"]
    assert counts["left half"]["inside"] == {"person": 1} and counts["left half"]["dwell_s"] == {"7": 0.5}


def test_a_trembling_box_on_the_border_counts_once() -> None:
    # The border is at 100; a tenth of 40 pixels is 4.
    way = [100 + wobble for wobble in (3, -3, 3, -2, 1, -3, 3, -1)]
    events, counts = walk(Zones("", [LEFT_HALF], [MIDDLE], LABELS), way)
    assert [event.kind for event in events] == ["entered"]
    assert counts["middle"] == {"in": {}, "out": {}}
    events, counts = walk(Zones("", [LEFT_HALF], [MIDDLE], LABELS), [*way, 106, *way, 94, *way])
    assert [event.kind for event in events] == ["entered", "left", "entered", "crossed"]


def test_the_lost_leave_and_dwelt_until_last_seen() -> None:
    zones = Zones("", [LEFT_HALF], [], LABELS, lost_seconds=1.0)
    walk(zones, [20, 30, 40])
    events, counts = zones.update(FRAME, no_detections(), np.zeros(0, np.int64), 1.2, 0.0)
    assert not events and counts["left half"]["inside"] == {"person": 1}
    events, counts = zones.update(FRAME, no_detections(), np.zeros(0, np.int64), 1.3, 0.0)
    assert [event.facts["dwell_s"] for event in events] == [0.2]
    assert counts["left half"] == {"inside": {}, "entered": {"person": 1}, "left": {"person": 1}, "dwell_s": {}}


def test_a_film_that_begins_anew_empties_zones() -> None:
    zones = Zones("", [LEFT_HALF], [], LABELS)
    walk(zones, [20], start=50)
    events, counts = walk(zones, [30], identity=2)
    assert [(event.kind, event.facts["track"]) for event in events] == [("left", 1), ("entered", 2)]


@pytest.mark.parametrize(
    ("line", "way", "expected"),
    [
        (MIDDLE, [120, 80], {"in": {"person": 1}, "out": {}}),
        (MIDDLE, [80, 120], {"in": {}, "out": {"person": 1}}),
        (MIDDLE, [120, 80, 120, 80], {"in": {"person": 2}, "out": {"person": 1}}),
        (Line("middle", (0.5, 1), (0.5, 0)), [120, 80], {"in": {}, "out": {"person": 1}}),
        # y is 50 of 100: past the line's end
        (Line("middle", (0.5, 0), (0.5, 0.4)), [120, 80], {"in": {}, "out": {}}),
        (Line("middle", (0.5, 0), (0.5, 0.6)), [120, 99, 98, 97, 94], {"in": {"person": 1}, "out": {}}),
    ],
)
def test_lines_count_by_direction(line: Line, way: list[float], expected: dict[str, Any]) -> None:
    events, counts = walk(Zones("", [], [line], LABELS), way)
    assert counts == {"middle": expected}
    assert len(events) == sum(sum(side.values()) for side in expected.values())
    assert all(event.kind == "crossed" and event.facts["line"] == "middle" for event in events)


def test_a_crossing_tells_its_direction() -> None:
    (event,), _ = walk(Zones("", [], [MIDDLE], LABELS), [120, 80], identity=5)
    assert event.facts == {"line": "middle", "track": 5, "label": "person", "direction": "in"}
    assert event.text == "person 5 crossed middle, in"


def test_counts_are_by_label() -> None:
    both = Detections(
        np.concatenate([people((20, 50)).boxes, people((30, 50)).boxes]), np.ones(2, np.float32), np.array([0, 1])
    )
    _, counts = Zones("", [LEFT_HALF], [], LABELS).update(FRAME, both, np.array([1, 2]), 0.0, 0.0)
    assert counts["left half"]["inside"] == counts["left half"]["entered"] == {"person": 1, "car": 1}


def test_without_identities_zones_tell_who_is_inside_now() -> None:
    zones = Zones("", [LEFT_HALF], [MIDDLE], LABELS)
    events, counts = zones.update(FRAME, people((20, 50), (30, 50), (150, 50)), None, 0.0, 0.0)
    assert events == () and counts["left half"]["inside"] == {"person": 2} and counts["left half"]["entered"] == {}
    _, counts = zones.update(FRAME, people((20, 50), (30, 50)), np.array([0, 4]), 0.1, 0.0)
    assert counts["left half"]["inside"] == {"person": 1}


def test_the_lower_border_of_the_picture_is_inside() -> None:
    _, counts = walk(Zones("", [LEFT_HALF], [], LABELS), [50], y=100.0)
    assert counts["left half"]["inside"] == {"person": 1}


def test_another_resolution_is_the_same_scene() -> None:
    zones = Zones("", [LEFT_HALF], [MIDDLE], LABELS)
    walk(zones, [80, 85])
    events, _ = zones.update((200, 400), people((170, 100), height=80), np.array([1]), 0.2, 0.0)
    assert events == ()
    events, counts = zones.update((400, 800), people((440, 200), height=160), np.array([1]), 0.3, 0.0)
    assert [event.kind for event in events] == ["left", "crossed"] and counts["middle"]["out"] == {"person": 1}


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_entered_less_left_is_inside(seed: int, frames: int) -> None:
    rng = np.random.default_rng(seed)
    triangle = Zone("triangle", ((0.1, 0.1), (0.9, 0.2), (0.4, 0.9)))
    zones, time, told = Zones("", [LEFT_HALF, triangle], [MIDDLE], LABELS, lost_seconds=0.5), 0.0, []
    for _ in range(frames):
        present = rng.permutation(6)[: rng.integers(0, 7)]
        feet = [tuple(place) for place in rng.uniform(0, 1, (len(present), 2)) * (200, 100)]
        found = people(*feet)
        found = Detections(found.boxes, found.scores, (present % 2).astype(np.int32))
        time += rng.choice([0.05, 0.3, 0.8, -3])
        events, counts = zones.update(FRAME, found, present, time, 0.0)
        told += events
        for name in ("left half", "triangle"):
            one = counts[name]
            for label in LABELS:
                entered, left = one["entered"].get(label, 0), one["left"].get(label, 0)
                assert entered - left == one["inside"].get(label, 0)
                here = [event for event in told if (event.facts.get("zone"), event.facts["label"]) == (name, label)]
                kinds = [event.kind for event in here]
                assert (kinds.count("entered"), kinds.count("left")) == (entered, left)
            assert len(one["dwell_s"]) == sum(one["inside"].values())
            assert all(seconds >= 0 for seconds in one["dwell_s"].values())
        assert sum(counts["middle"]["in"].values()) + sum(counts["middle"]["out"].values()) == sum(
            event.kind == "crossed" for event in told
        )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Zone("z", ((0, 0), (1, 1))), "3 to 100 points, 'z' has 2"),
        (lambda: Zone("z", ((0, 0), (0.5, 0.5), (1, 1))), "bound an area"),
        (lambda: Zone("z", ((0, 0), (640, 0), (1, 1))), r"from 0 to 1, .* has \(640, 0\); divide"),
        (lambda: Zone("z", ((0, 0), (math.nan, 0), (1, 1))), "from 0 to 1"),
        (lambda: Line("l", (0.5, 0.5), (0.5, 0.5)), "two ends"),
        (lambda: Zones("", [LEFT_HALF], [Line("left half", (0, 0), (1, 1))], LABELS), "there twice"),
        (lambda: Zones("", [Zone("", LEFT_HALF.points)], [], LABELS), "'' is none"),
    ],
)
def test_senseless_ones_are_refused(make: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()
