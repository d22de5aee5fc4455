"""COCO's average precision, by hotcoco (equal to pycocotools to six decimals, and some 50 times faster).

As cocodataset.org/#detection-eval defines it: per class the mean of the best precision at the recalls 0, .01, … 1
with at most 100 detections an image, averaged over the IoU thresholds .50, .55, … .95; plain widths, no offset.

VOC's difficult truths become `iscrowd`: detections on them count neither for nor against, and nobody misses them. For
such a truth the IoU is the overlap's share of the *detection*, and a free normal truth is preferred to it: this is
why figures of VOC pictures differ a little from those of the VOC protocols.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmarks.box_pairs import Pairs, close_pairs, greedy
from benchmarks.voc_metric import Found, Outcomes, Truths
from deploy.errors import InputError


@dataclasses.dataclass(frozen=True)
class CocoPrecisions:
    """AP by class, (classes,) float64 in 0..1 each, NaN for a class without a truth that is not difficult."""

    #: Mean over the IoU thresholds .50:.05:.95.
    all: np.ndarray
    at50: np.ndarray
    at75: np.ndarray
    #: (classes, 101): the best precision at a recall of at least 0, .01, … 1, at IoU .5.
    curves50: np.ndarray


def coco_precisions(truths: Truths, found: Found, images: int, classes: int) -> CocoPrecisions:
    """COCO's AP by class. Image indices are in 0..images-1, class ids in 0..classes-1.

    Raises InputError when hotcoco is not installed.
    """
    try:
        from hotcoco import COCO, COCOeval
    except ImportError as error:
        raise InputError(
            "the coco protocol is computed by hotcoco, which is not installed; "
            "run `pip install hotcoco`, or choose --protocol voc"
        ) from error
    described = [{"id": index + 1, "width": 1, "height": 1, "file_name": ""} for index in range(images)]
    categories = [{"id": index + 1, "name": str(index)} for index in range(classes)]
    boxes = _corner_and_size(truths.boxes)
    truth = COCO.from_arrays(
        described,
        categories,
        truths.images + 1,
        truths.class_ids + 1,
        boxes,
        area=boxes[:, 2] * boxes[:, 3],
        iscrowd=truths.difficult.astype(np.int64),
    )
    rows = np.column_stack([found.images + 1, _corner_and_size(found.boxes), found.scores, found.class_ids + 1])
    evaluation = COCOeval(truth, truth.load_res(rows.astype(np.float64)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    # (IoU thresholds, recalls, classes): all areas, 100 detections an image. -1 marks a class without truths.
    assert evaluation.eval is not None  # accumulate has filled it
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    curves = np.where(precision < 0, np.nan, precision)
    means = curves.mean(axis=1)
    return CocoPrecisions(means.mean(axis=0), means[0], means[5], curves[0].T)


def coco_outcomes(truths: Truths, found: Found, classes: int, iou: float = 0.5) -> Outcomes:
    """What becomes of each detection at one IoU by COCO's rule: by falling score each takes the free truth of its image
    and class that it overlaps most; what takes none and lies on a difficult one does not count. No detection is cut off
    at 100 an image. That of one does not depend on those of a lower score."""
    keys = [rows.images.astype(np.int64) * classes + rows.class_ids for rows in (found, truths)]
    normal, crowd = np.flatnonzero(~truths.difficult), np.flatnonzero(truths.difficult)

    def near(rows: np.ndarray, share_of_first: bool) -> Pairs:
        return close_pairs(
            keys[0], found.boxes, keys[1][rows], truths.boxes[rows], iou, share_of_first=share_of_first
        )

    seen = Outcomes(np.full(len(found), -1), np.ones(len(found), bool))
    hits = greedy(near(normal, False), found.scores)
    seen.truth[hits.first] = normal[hits.second]
    absorbed = near(crowd, True).first
    seen.counted[absorbed[seen.truth[absorbed] < 0]] = False
    return seen


def _corner_and_size(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) x1, y1, x2, y2 to x, y, width, height, float64."""
    boxes = boxes.astype(np.float64).reshape(-1, 4)
    return np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
