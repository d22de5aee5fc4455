import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.identity_metric import Named, identity_figures
from deploy.detections import Detections, no_detections
from deploy.errors import InputError
from deploy.pattern import Pattern
from deploy.tracking import Tracker, TrackSettings, overlaps

AT_ONCE = TrackSettings(hits=1)


def detections(*boxes: tuple[float, float, float, float], scores: float | list[float] = 0.9, class_id: int = 0):
    count = len(boxes)
    values = np.full(count, scores) if isinstance(scores, float) else np.array(scores)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), values.astype(np.float32), np.full(count, class_id, np.int32)
    )


def at(x: float, y: float = 0.0, side: float = 20.0) -> tuple[float, float, float, float]:
    return x, y, x + side, y + side


def test_an_identity_comes_after_the_third_frame() -> None:
    tracker = Tracker(TrackSettings())
    assert [tracker.update(detections(at(k)), k / 10).tolist() for k in range(4)] == [[0], [0], [1], [1]]


def test_what_flickers_gets_none() -> None:
    tracker = Tracker(TrackSettings())
    for k in range(20):
        found = detections(at(0)) if k % 3 < 2 else no_detections()
        assert not tracker.update(found, k / 10).any()


def test_a_missed_frame_keeps_the_identity_and_two_seconds_lose_it() -> None:
    for pause, identity in ((1, 1), (18, 1), (22, 2)):
        tracker = Tracker(AT_ONCE)
        for k in range(5):
            tracker.update(detections(at(0)), k / 10)
        for k in range(5, 4 + pause):
            tracker.update(no_detections(), k / 10)
        assert tracker.update(detections(at(0)), (4 + pause) / 10).tolist() == [identity]


def test_dropped_frames_are_time_that_passed() -> None:
    """50 pixels a second and boxes of 20: after 0.8 s without a frame nothing overlaps but by prediction."""
    tracker = Tracker(AT_ONCE)
    for k in range(20):
        tracker.update(detections(at(5 * k)), k / 10)
    assert tracker.update(detections(at(5 * 27)), 2.7).tolist() == [1]


def test_who_cross_keep_their_identities() -> None:
    tracker = Tracker(AT_ONCE)
    for k in range(41):
        # Of different heights, as people are; one passes in front of the other, at 40 pixels a second each.
        found = detections((4 * k, 0, 4 * k + 20, 60), (160 - 4 * k, 10, 180 - 4 * k, 60))
        if 18 <= k <= 22:
            found = found.take(np.array([0]))
        identities = tracker.update(found, k / 10).tolist()
        assert identities == [1, 2][: len(found)]


def test_unsure_detections_continue_tracks_and_begin_none() -> None:
    tracker = Tracker(AT_ONCE)
    tracker.update(detections(at(0)), 0.0)
    assert tracker.update(detections(at(1), at(300), scores=[0.15, 0.15]), 0.1).tolist() == [1, 0]
    assert tracker.update(detections(at(1), scores=0.05), 0.2).tolist() == [0]
    # Lost for a frame: an unsure one does not bring it back, a sure one does.
    assert tracker.update(detections(at(1), scores=0.15), 0.3).tolist() == [0]
    assert tracker.update(detections(at(1), scores=0.3), 0.4).tolist() == [1]


def test_classes_are_tracked_apart() -> None:
    tracker = Tracker(AT_ONCE)
    assert tracker.update(detections(at(0), class_id=3), 0.0).tolist() == [1]
    assert tracker.update(detections(at(0), class_id=4), 0.1).tolist() == [2]
    assert tracker.update(detections(at(0), class_id=3), 0.2).tolist() == [1]


@pytest.mark.parametrize("leap", [-1.0, 2.5, 1e9])
def test_a_leap_in_time_forgets_everyone_and_no_identity_returns(leap: float) -> None:
    tracker = Tracker(AT_ONCE)
    tracker.update(detections(at(0)), 5.0)
    tracker.update(detections(at(0)), 5.1)
    assert tracker.update(detections(at(0)), 5.1 + leap).tolist() == [2]


def scenes(draw: st.DrawFn) -> list[Detections]:
    seed, frames = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 12))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(frames):
        count = rng.integers(0, 8)
        low = rng.integers(0, 30, (count, 2)).astype(np.float32)
        size = rng.integers(0, 40, (count, 2)).astype(np.float32)
        scores = rng.choice(np.array([0.05, 0.15, 0.3, 0.8], np.float32), count)
        boxes = np.concatenate([low, low + size], axis=1)
        found.append(Detections(boxes, scores, rng.integers(0, 2, count).astype(np.int32)))
    return found


@settings(deadline=None, max_examples=80)
@given(st.composite(scenes)(), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3]))
def test_the_order_of_detections_does_not_matter(frames: list[Detections], seed: int, hits: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = Tracker(TrackSettings(hits=hits)), Tracker(TrackSettings(hits=hits))
    time = 0.0
    for found in frames:
        order = rng.permutation(len(found))
        first, second = one.update(found, time), two.update(found.take(order), time)
        rows = np.column_stack([found.boxes, found.scores, found.class_ids, first])
        assert sorted(rows.tolist()) == sorted(
            np.column_stack([*found.take(order).boxes.T, found.scores[order], found.class_ids[order], second]).tolist()
        )
        time += rng.exponential(0.3)


@settings(deadline=None, max_examples=80)
@given(st.composite(scenes)(), st.sampled_from([1, 3]))
def test_identities_are_unique_in_a_frame_and_keep_their_class(frames: list[Detections], hits: int) -> None:
    tracker, classes, most = Tracker(TrackSettings(hits=hits)), {}, 0
    for k, found in enumerate(frames):
        identities = tracker.update(found, k / 5)
        assert identities.dtype == np.int64 and identities.shape == (len(found),)
        given_here = identities[identities > 0].tolist()
        assert len(set(given_here)) == len(given_here)
        for identity, class_id in zip(identities.tolist(), found.class_ids.tolist(), strict=True):
            if identity:
                assert classes.setdefault(identity, class_id) == class_id
        new = [identity for identity in given_here if identity > most]
        assert sorted(new) == list(range(most + 1, most + 1 + len(new)))  # counted, none left out
        most += len(new)
        assert np.isfinite(tracker._state).all()


def test_on_the_drawn_scene_nearly_everyone_keeps_one_identity() -> None:
    """With detections as good as the truth: boxes that jitter by a twentieth, and one in ten missing."""
    rng, tracker = np.random.default_rng(3), Tracker(TrackSettings())
    pattern, truth, seen = Pattern(160, 120, fps=12, objects=8), [], []
    for k in range(300):
        true = pattern.frame(k)[1]
        truth.append(Named(true.identities, true.found.boxes))
        kept = true.found.take(np.flatnonzero(rng.random(len(true.found)) > 0.1))
        sizes = kept.boxes[:, 2:] - kept.boxes[:, :2]
        boxes = kept.boxes + (rng.normal(0, 0.05, kept.boxes.shape) * np.tile(sizes, 2)).astype(np.float32)
        identities = tracker.update(Detections(boxes, kept.scores * 0.8, kept.class_ids), k / 12)
        named = identities > 0
        seen.append(Named(identities[named], boxes[named]))
    figures = identity_figures(truth, seen)
    assert figures["idf1"] > 0.8 and figures["switches"] <= 0.2 * figures["true_identities"]


def test_overlaps() -> None:
    one = np.array([[0.0, 0, 10, 10], [5, 5, 5, 9]])
    two = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [5, 5, 5, 9]])
    # 50 of 150; nothing; no area
    assert overlaps(one, two).tolist() == [[1, 50 / 150, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"unsure": 0.5}, "not 0.5 and 0.25"),
        ({"sure": math.nan}, "not 0.1 and nan"),
        ({"hits": 0}, "at least 1 frame"),
        ({"lost_seconds": 0.0}, "more than 0 seconds, not 0.0"),
        ({"lost_seconds": math.inf}, "not inf"),
    ],
)
def test_senseless_numbers_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        TrackSettings(**settings)
