"""Pairs of boxes and their matching, against the same said in plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import box_pairs
from benchmarks.box_pairs import Pairs, best_of_each, close_pairs, greedy

corners = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 5), st.integers(1, 5))
rows = st.lists(st.tuples(st.integers(0, 2), corners), max_size=15)


def arrays(rows):
    boxes = np.array([(x, y, x + w, y + h) for _, (x, y, w, h) in rows], float).reshape(-1, 4)
    return np.array([key for key, _ in rows], int), boxes


def plain_iou(a, b, edge, share_of_first):
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + edge, min(a[3], b[3]) - max(a[1], b[1]) + edge
    common = max(width, 0) * max(height, 0)
    area, other = ((c[2] - c[0] + edge) * (c[3] - c[1] + edge) for c in (a, b))
    return common / (area if share_of_first else area + other - common)


@settings(deadline=None)
@given(rows, rows, st.sampled_from([0.0, 1.0]), st.booleans(), st.integers(1, 40))
def test_close_pairs_are_those_of_two_loops_whatever_the_block(first, second, edge, share, block):
    (keys, boxes), (other_keys, other_boxes) = arrays(first), arrays(second)
    expected = {
        (i, j): plain_iou(boxes[i], other_boxes[j], edge, share)
        for i in range(len(boxes))
        for j in range(len(other_boxes))
        if keys[i] == other_keys[j] and plain_iou(boxes[i], other_boxes[j], edge, share) >= 0.25
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box_pairs, "_BLOCK", block)
        got = close_pairs(keys, boxes, other_keys, other_boxes, 0.25, edge=edge, share_of_first=share)
    found = list(zip(got.first.tolist(), got.second.tolist()))
    assert sorted(found) == sorted(expected) and len(set(found)) == len(found)
    np.testing.assert_allclose(got.iou, [expected[pair] for pair in found], rtol=1e-12)


@settings(deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=30),
    st.lists(st.sampled_from([0.2, 0.5, 0.9]), min_size=8, max_size=8),
    st.randoms(use_true_random=False),
)
def test_greedy_is_one_choice_after_the_other(places, scores, random):
    places = sorted(places)
    iou = np.array([random.choice([0.5, 0.7, 0.9]) for _ in places])
    pairs = Pairs(np.array([a for a, _ in places], int), np.array([b for _, b in places], int), iou)
    expected, taken = {}, set()
    for row in sorted(range(8), key=lambda row: -scores[row]):
        free = [i for i, (a, b) in enumerate(places) if a == row and b not in taken]
        if free:
            best = max(free, key=lambda i: (iou[i], places[i][1]))
            expected[row] = places[best][1]
            taken.add(places[best][1])
    got = greedy(pairs, np.array(scores))
    assert dict(zip(got.first.tolist(), got.second.tolist())) == expected
    assert got.first.tolist() == sorted(expected)


def test_best_of_each_is_the_first_of_equals_and_none_is_minus_one():
    pairs = Pairs(np.array([0, 0, 2, 2]), np.array([4, 1, 3, 5]), np.array([0.6, 0.6, 0.2, 0.7]))
    iou, other = best_of_each(pairs, 4)
    assert iou.tolist() == [0.6, 0, 0.7, 0]
    assert other.tolist() == [1, -1, 5, -1]


def test_nothing_on_either_side_is_no_pair():
    none, boxes = np.zeros(0, int), np.zeros((0, 4))
    for keys in ((none, boxes, none, boxes), (none, boxes, np.zeros(1, int), np.ones((1, 4)))):
        assert len(close_pairs(*keys, 0.5)) == len(greedy(close_pairs(*keys, 0.5), np.zeros(0))) == 0
