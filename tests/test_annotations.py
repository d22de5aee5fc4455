"""Boxes and pictures, whatever layout they come from."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.annotations import fit_boxes


def test_boxes_across_the_border_are_clipped_and_those_outside_dropped():
    boxes = np.array(
        [
            [1, 1, 40, 20],  # the whole picture
            [0, 0, 39, 19],  # counted from 0: let pass
            [-5, 3, 10, 25],  # clipped on two sides
            [41, 1, 50, 20],  # outside
            [-9, 1, -1, 20],  # outside
            [10, 5, 9, 8],  # ends before it begins
            [7, 7, 7, 7],  # one pixel
            [7.6, 7, 7.2, 7],  # six tenths of a pixel wide: its left edge is at 6.6
            [8.25, 7, 7.25, 7],  # no width
        ],
        float,
    )
    fitted, keep, clipped = fit_boxes(boxes, 40, 20)
    assert keep.tolist() == [True, True, True, False, False, False, True, True, False]
    assert fitted[keep].tolist() == [[1, 1, 40, 20], [0, 0, 39, 19], [0, 3, 10, 20], [7, 7, 7, 7], [7.6, 7, 7.2, 7]]
    assert clipped == 1


side = st.floats(-50, 150, allow_nan=False)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(side, side, side, side), max_size=6), st.integers(1, 90), st.integers(1, 90))
def test_fitted_boxes_lie_inside_and_boxes_inside_are_untouched(boxes, width, height):
    boxes = np.array(boxes, float).reshape(-1, 4)
    fitted, keep, clipped = fit_boxes(boxes, width, height)
    assert (fitted >= 0).all() and (fitted <= [width, height, width, height]).all()
    assert (fitted[keep][:, :2] - 1 < fitted[keep][:, 2:]).all()
    assert clipped == (fitted != boxes)[keep].any(axis=1).sum()
