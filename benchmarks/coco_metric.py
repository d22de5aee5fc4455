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

from benchmarks.voc_metric import Found, Truths
from deploy.errors import InputError


@dataclasses.dataclass(frozen=True)
class CocoPrecisions:
    """AP by class, (classes,) float64 in 0..1 each, NaN for a class without a truth that is not difficult."""

    #: Mean over the IoU thresholds .50:.05:.95.
    all: np.ndarray
    at50: np.ndarray
    at75: np.ndarray


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
    precision = np.where(precision < 0, np.nan, precision).mean(axis=1)
    return CocoPrecisions(precision.mean(axis=0), precision[0], precision[5])


def _corner_and_size(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) x1, y1, x2, y2 to x, y, width, height, float64."""
    boxes = boxes.astype(np.float64).reshape(-1, 4)
    return np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
