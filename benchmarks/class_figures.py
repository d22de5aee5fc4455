"""What a detector does to each class: AP, its curve, and precision and recall at the score from which it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.coco_metric import coco_outcomes, coco_precisions
from benchmarks.voc_metric import Found, Outcomes, Truths, VocProtocol, outcomes, precision_recall

#: IoU from which a detection is a hit in the VOC family, and at the working point of all protocols.
IOU_THRESHOLD = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """AP of each class by the name of its mean, and the curve at IoU 0.5; NaN where a class has no truth."""

    #: `map`, for coco `map50` and `map75` too: (classes,) float64, 0..1.
    means: Mapping[str, np.ndarray]
    #: (classes, 101): the best precision at a recall of at least 0, .01, … 1.
    curves: np.ndarray


def in_coordinates(truths: Truths, found: Found, protocol: str) -> tuple[Truths, Found]:
    """Both in the coordinates that the protocol counts in; see accuracy.py. Truths in VOC's way, detections in pixels
    that cover i to i + 1."""
    if protocol == "coco":
        return dataclasses.replace(truths, boxes=truths.boxes - np.array([1, 1, 0, 0])), found
    return truths, dataclasses.replace(found, boxes=found.boxes.astype(np.float64) + 1)


def score(truths: Truths, found: Found, images: int, classes: int, protocol: str) -> Scores:
    """All in the protocol's coordinates. Raises InputError where coco's library is not installed."""
    if protocol == "coco":
        precisions = coco_precisions(truths, found, images, classes)
        means = {"map": precisions.all, "map50": precisions.at50, "map75": precisions.at75}
        return Scores(means, precisions.curves50)
    curves = precision_recall(truths, found, classes, _voc(protocol), IOU_THRESHOLD)
    return Scores({"map": curves.average}, curves.precision)


def outcomes_at(truths: Truths, found: Found, classes: int, protocol: str) -> Outcomes:
    """What becomes of each detection at IoU 0.5, by the protocol's rule; all in its coordinates."""
    if protocol == "coco":
        return coco_outcomes(truths, found, classes, IOU_THRESHOLD)
    return outcomes(truths, found, classes, _voc(protocol), IOU_THRESHOLD)


def _voc(protocol: str) -> VocProtocol:
    assert protocol in ("voc07", "voc", "darknet")
    return protocol  # type: ignore[return-value]


def from_score(found: Found, conf: float) -> Found:
    """The detections of at least that score."""
    keep = found.scores >= conf
    return Found(found.images[keep], found.class_ids[keep], found.boxes[keep], found.scores[keep])


def class_figures(
    scores: Scores,
    truths: Truths,
    found: Found,
    used: Found,
    seen: Outcomes,
    names: Sequence[str],
    scored: Sequence[int],
) -> dict[str, dict[str, Any]]:
    """Plain JSON by the class's name. found: all detections; used: those from the working threshold on, and seen what
    became of them. scored: the ids to tell.

    ap, truths, difficult, detections; `working`: detections (those that count), hits, precision (null where there is no
    detection) and recall; `curve`: 101 precisions, see Scores, to four decimals.
    """
    number = len(names)
    plain = np.bincount(truths.class_ids[~truths.difficult], minlength=number)
    every = np.bincount(truths.class_ids, minlength=number)
    detections = np.bincount(found.class_ids, minlength=number)
    counted = np.bincount(used.class_ids[seen.counted], minlength=number)
    hits = np.bincount(used.class_ids[seen.truth >= 0], minlength=number)
    return {
        names[place]: {
            "ap": float(scores.means["map"][place]),
            "truths": int(plain[place]),
            "difficult": int(every[place] - plain[place]),
            "detections": int(detections[place]),
            "working": working_point(int(hits[place]), int(counted[place]), int(plain[place])),
            "curve": [round(value, 4) for value in scores.curves[place].tolist()],
        }
        for place in scored
    }


def working_point(hits: int, counted: int, truths: int) -> dict[str, Any]:
    """Precision and recall of so many hits among so many detections, of so many truths, one at least."""
    return {
        "truths": truths,
        "detections": counted,
        "hits": hits,
        "precision": hits / counted if counted else None,
        "recall": hits / truths,
    }
