import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.nms import nms


def reference(boxes: np.ndarray, scores: np.ndarray, class_ids: np.ndarray, iou: float) -> list[int]:
    """One box after the other, each against all that stayed, in float32 as the real one computes."""
    kept: list[int] = []
    for new in sorted(range(len(scores)), key=lambda index: -scores[index]):
        if not any(class_ids[old] == class_ids[new] and _above(boxes[old], boxes[new], iou) for old in kept):
            kept.append(new)
    return kept


def _above(a: np.ndarray, b: np.ndarray, iou: float) -> bool:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), np.float32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), np.float32(0))
    intersection = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return bool(intersection > np.float32(iou) * union)


def crowd(count: int, classes: int, objects: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes scattered around objects, with many equal scores."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, objects, count)
    centers = rng.uniform(0, 400, (objects, 2))[which] + rng.normal(0, 6, (count, 2))
    sizes = rng.uniform(20, 150, (objects, 2))[which] * np.exp(rng.normal(0, 0.2, (count, 2)))
    boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1).astype(np.float32)
    return boxes, (rng.integers(1, 50, count) / 50).astype(np.float32), rng.integers(0, classes, objects)[which]


corners = hnp.arrays(np.int16, st.tuples(st.integers(0, 40), st.just(4)), elements=st.integers(0, 8))


@settings(deadline=None, max_examples=300)
@given(corners, st.sampled_from([0.0, 0.25, 0.45, 0.5, 1.0]), st.data())
def test_equals_the_plain_greedy_rule(corners: np.ndarray, iou: float, data: st.DataObject) -> None:
    # Small whole numbers: many equal boxes, equal scores, boxes without area, and overlaps exactly at the threshold.
    low, high = np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])
    boxes = np.concatenate([low, high], axis=1).astype(np.float32)
    n = len(boxes)
    scores = np.array(data.draw(st.lists(st.sampled_from([0.25, 0.5, 0.75]), min_size=n, max_size=n)), np.float32)
    class_ids = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), np.int32)
    assert nms(boxes, scores, class_ids, iou).tolist() == reference(boxes, scores, class_ids, iou)


# 256 boxes are compared at once: sizes below, at, above and far above.
@pytest.mark.parametrize(
    ("count", "classes", "objects"), [(0, 1, 1), (1, 1, 1), (256, 20, 30), (257, 3, 30), (1000, 1, 40), (1500, 20, 60)]
)
def test_equals_the_plain_rule_across_blocks(count: int, classes: int, objects: int) -> None:
    crowded = crowd(count, classes, objects)
    every = nms(*crowded, 0.45, limit=count + 1)
    assert every.tolist() == reference(*crowded, 0.45)
    assert nms(*crowded, 0.45, limit=7).tolist() == every[:7].tolist()


def test_a_suppressed_box_suppresses_nothing() -> None:
    # Each overlaps its neighbours by 6 / 14 = 0.43, and the one after by 2 / 18: the first and third stay, and the
    # fifth.
    boxes = np.array([[4 * i, 0, 4 * i + 10, 10] for i in range(5)], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
    assert nms(boxes, scores, np.zeros(5, np.int32), 0.4).tolist() == [0, 2, 4]


def test_an_overlap_of_exactly_the_threshold_stays() -> None:
    # 5 / (10 + 5 - 5) = 0.5
    boxes = np.array([[0, 0, 10, 1], [0, 0, 5, 1]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert nms(boxes, scores, np.zeros(2, np.int32), 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, np.zeros(2, np.int32), 0.4999).tolist() == [0]


def test_classes_do_not_meet_and_ties_keep_their_order() -> None:
    boxes = np.array([[0, 0, 10, 10]] * 4, np.float32)
    scores = np.array([0.5, 0.5, 0.5, 0.75], np.float32)
    assert nms(boxes, scores, np.array([0, 1, 0, 2]), 0.5).tolist() == [3, 0, 1]


def test_only_the_best_candidates_are_looked_at() -> None:
    boxes = np.array([[20 * i, 0, 20 * i + 10, 10] for i in range(10)], np.float32)
    scores = np.linspace(0.1, 1, 10).astype(np.float32)
    assert nms(boxes, scores, np.zeros(10, np.int32), 0.5, candidates=3).tolist() == [9, 8, 7]


def test_far_away_and_huge_boxes_do_not_warn() -> None:
    huge, far = [-1e12, -1e12, 1e12, 1e12], [3e7, 3e7, 3e7 + 16, 3e7 + 16]
    boxes = np.array([huge, huge, far], np.float32)
    assert nms(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int32), 0.5).tolist() == [0, 2]
