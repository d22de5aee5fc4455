"""The drift between two backends' detections, as numbers known by heart."""

import numpy as np
import pytest

from benchmarks.box_drift import box_drift
from deploy.detections import Detections, no_detections


def found(*rows):
    """rows of box, score, class."""
    return Detections(
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float32),
        np.array([class_id for _, _, class_id in rows], np.int32),
    )


BOX, MOVED, FAR = (0, 0, 10, 10), (0, 0, 10, 8), (50, 50, 60, 60)


def test_the_same_detections_do_not_drift():
    pictures = [found((BOX, 0.9, 0), (FAR, 0.4, 1)), no_detections()]
    drift = box_drift(pictures, pictures, 0.25)
    assert drift["pairs"] == 2 and drift["identical"]
    assert drift["iou_loss"] == drift["score_difference"] == {"median": 0, "p95": 0, "max": 0}
    assert (drift["crossing"], drift["only_first"], drift["only_here"]) == (0, 0, 0)


def test_partners_are_of_one_picture_and_class_and_the_rest_is_counted():
    first = [found((BOX, 0.9, 0), (FAR, 0.5, 0), (FAR, 0.1, 1)), found((BOX, 0.5, 0))]
    other = [found((MOVED, 0.8, 0), (FAR, 0.125, 0), (FAR, 0.125, 1)), found((BOX, 0.5, 1))]
    drift = box_drift(first, other, 0.25)
    # IoU 80 / 100 and 1; the pair of class 1 lies below the threshold on both sides.
    assert drift["pairs"] == 2 and not drift["identical"]
    assert drift["iou_loss"] == pytest.approx({"median": 0.1, "p95": 0.19, "max": 0.2})
    assert drift["score_difference"]["max"] == pytest.approx(0.375)
    assert drift["score_bias"] == pytest.approx((-0.1 - 0.375) / 2, abs=1e-6)
    # FAR falls below 0.25 there, but has its partner; in the second picture the classes differ.
    assert (drift["crossing"], drift["only_first"], drift["only_here"]) == (1, 1, 1)


def test_without_a_pair_there_is_no_figure():
    drift = box_drift([found((BOX, 0.9, 0))], [no_detections()], 0.25)
    assert (drift["pairs"], drift["only_first"], drift["only_here"], drift["score_bias"]) == (0, 1, 0, None)
    assert drift["iou_loss"] == {"median": None, "p95": None, "max": None}
    assert box_drift([no_detections()], [no_detections()], 0.25)["identical"]
