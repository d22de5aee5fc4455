"""How far the detections of two backends on the same pictures part: box drift.

Partners. By falling score each detection of the first backend takes, of the other's in the same picture and of the same
class, the free one that it overlaps most, by IoU 0.5 at least. All kept detections take part, also those far below the
score threshold, so that one which falls below it elsewhere still has its partner. Told are the pairs of which one at
least reaches the threshold, how many of them cross it (only one of the two reaches it), and the detections that reach
it and have no partner at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.box_pairs import close_pairs, greedy
from deploy.detections import Detections

#: Least IoU of partners.
PARTNER_IOU = 0.5


def box_drift(first: Sequence[Detections], other: Sequence[Detections], conf: float) -> dict[str, Any]:
    """The drift of `other` against `first`, the detections of the same pictures in the same order, as plain JSON.

    `iou_loss` is 1 - IoU, `score_difference` the difference's absolute value, each with median, p95 and max, null where
    there is no pair; `score_bias` is the mean of the other's score less the first's. `only_first` and `only_here` count
    detections without a partner. conf: the score threshold, 0..1.
    """
    (pictures, classes, boxes, scores), (other_pictures, other_classes, other_boxes, other_scores) = (
        _columns(found) for found in (first, other)
    )
    number = int(max(classes.max(initial=0), other_classes.max(initial=0))) + 1
    keys, other_keys = pictures * number + classes, other_pictures * number + other_classes
    partners = greedy(close_pairs(keys, boxes, other_keys, other_boxes, PARTNER_IOU), scores)
    reach, other_reach = scores >= conf, other_scores >= conf
    told = partners.take(reach[partners.first] | other_reach[partners.second])
    difference = other_scores[told.second].astype(np.float64) - scores[told.first]
    return {
        "partner_iou": PARTNER_IOU,
        "conf": conf,
        "pairs": len(told),
        "iou_loss": _spread(1 - told.iou),
        "score_difference": _spread(np.abs(difference)),
        "score_bias": float(difference.mean()) if len(told) else None,
        "crossing": int((reach[told.first] != other_reach[told.second]).sum()),
        "only_first": int(np.delete(reach, partners.first).sum()),
        "only_here": int(np.delete(other_reach, partners.second).sum()),
        "identical": all(
            np.array_equal(mine, others)
            for mine, others in zip((keys, boxes, scores), (other_keys, other_boxes, other_scores), strict=True)
        ),
    }


def _columns(found: Sequence[Detections]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Picture, class, box and score of all detections."""
    pictures = np.repeat(np.arange(len(found)), [len(one) for one in found])
    return (
        pictures,
        np.concatenate([one.class_ids for one in found]).astype(np.int64),
        np.concatenate([one.boxes for one in found]),
        np.concatenate([one.scores for one in found]),
    )


def _spread(values: np.ndarray) -> dict[str, float | None]:
    """median, p95 (linear between the two nearest ranks) and max; null where there are none."""
    if not len(values):
        return {"median": None, "p95": None, "max": None}
    # Rounding may make an IoU of equal boxes a little more than 1.
    median, p95, most = np.maximum(np.percentile(values, (50, 95, 100)), 0.0).tolist()
    return {"median": median, "p95": p95, "max": most}
