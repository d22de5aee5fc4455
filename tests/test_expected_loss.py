"""The loss of mAP without labels: what is equal loses nothing, what is missing loses its share."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.voc_metric import Found
from toolchain.expected_loss import expected_loss

CLASSES = 3


def detections(seed: int, count: int = 60, scores: tuple[float, float] = (0.05, 0.95)) -> Found:
    """Boxes of 10 x 10, each 20 from the next, so that none is taken for another, with scores of their own."""
    random = np.random.default_rng(seed)
    corner = np.arange(count)[:, None] * np.array([20.0, 0.0])
    boxes = np.concatenate([corner, corner + 10], axis=1)
    return Found(
        np.arange(count) % 4, np.arange(count) % CLASSES, boxes, random.permutation(np.linspace(*scores, count))
    )


def only(found: Found, rows: np.ndarray) -> Found:
    return Found(found.images[rows], found.class_ids[rows], found.boxes[rows], found.scores[rows])


def certain(found: Found) -> Found:
    return dataclasses.replace(found, scores=np.ones(len(found)))


NONE = only(detections(0), np.zeros(0, np.int64))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 80))
def test_equal_detections_lose_nothing_in_any_order(seed: int, count: int) -> None:
    found = detections(seed, count)
    order = np.random.default_rng(seed).permutation(count)
    assert expected_loss(found, found, CLASSES) == 0.0
    # Scores are all different: the order in which detections come says nothing.
    assert expected_loss(found, only(found, order), CLASSES) == 0.0


def test_the_order_does_not_matter_where_a_network_loses() -> None:
    found = detections(1)
    changed = dataclasses.replace(found, boxes=found.boxes + np.arange(60)[:, None] % 7, scores=found.scores**2)
    loss = expected_loss(found, changed, CLASSES)
    assert loss > 0.0
    order = np.random.default_rng(2).permutation(60)
    assert expected_loss(found, only(changed, order), CLASSES) == loss
    assert expected_loss(found, changed, CLASSES) == loss


def test_who_finds_nothing_loses_the_whole_map() -> None:
    # All that the original finds, and it alone, is true: its mAP is 1 in every drawing.
    assert expected_loss(certain(detections(0)), NONE, CLASSES) == 1.0
    # What it does not believe in at all is never true: no drawing has a truth.
    assert expected_loss(dataclasses.replace(detections(0), scores=np.zeros(60)), NONE, CLASSES) == 0.0
    # In between, the mAP of the original, that is above 0 and below 1.
    assert 0.0 < expected_loss(detections(0), NONE, CLASSES) < 1.0


def test_who_finds_half_loses_half() -> None:
    """20 certain detections a class, of which every second is left: recall 1/2 at precision 1."""
    found = certain(detections(0))
    half = only(found, np.arange(60)[np.arange(60) // CLASSES % 2 == 0])
    assert expected_loss(found, half, CLASSES) == pytest.approx(0.5, abs=1e-12)
    # A false alarm below all that is true costs nothing, and one above halves the first precision.
    more = Found(*(np.concatenate([getattr(found, key), getattr(found, key)[:1]])
                   for key in ("images", "class_ids", "boxes", "scores")))  # fmt: skip
    more.boxes[-1] += 1000
    for score, below in ((0.5, True), (2.0, False)):
        more.scores[-1] = score
        loss = expected_loss(found, more, CLASSES)
        # Above: the k-th of class 0's 20 truths comes with precision k / (k + 1), whose envelope is 20 / 21.
        assert loss == pytest.approx(0.0 if below else (1 - 20 / 21) / CLASSES, abs=1e-12)


def test_who_ranks_wrongly_loses() -> None:
    """What the original believes in is true, of 20 a class every second."""
    found = detections(3)
    truths = np.arange(60) // CLASSES % 2 == 0
    original = dataclasses.replace(found, scores=truths.astype(float))
    # The k-th of 10 truths comes behind 10 others with precision k / (10 + k), whose envelope is 1/2.
    loss = expected_loss(original, dataclasses.replace(found, scores=1.0 - truths), CLASSES)
    assert loss == pytest.approx(0.5, abs=1e-12)


def test_classes_with_hardly_a_truth_do_not_count() -> None:
    found = certain(detections(0, 20))
    few = dataclasses.replace(found, class_ids=(np.arange(20) < 4).astype(np.int64))
    without_few = only(few, np.arange(4, 20))
    # Class 1 has 4 truths, of class 0 are 16: it alone is counted.
    assert expected_loss(few, without_few, CLASSES) == 0.0
    five = dataclasses.replace(found, class_ids=(np.arange(20) < 5).astype(np.int64))
    assert expected_loss(five, only(five, np.arange(5, 20)), CLASSES) == 0.5
    # Where no class has more, the largest counts.
    assert expected_loss(only(five, np.arange(2)), NONE, CLASSES) == 1.0


def test_numpys_own_random_numbers_are_left_alone() -> None:
    np.random.seed(7)
    first = np.random.random()
    np.random.seed(7)
    expected_loss(detections(0), NONE, CLASSES)
    assert np.random.random() == first
