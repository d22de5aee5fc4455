"""What mAP a changed network loses, estimated without labels from what the original finds.

A detection's score is the original's own belief that there is an object. So truths are drawn: each of its detections
is one with the probability of its score. Both networks are scored against the same truths (darknet protocol, IoU 0.5),
and the difference of their mAPs is averaged over many drawings. What neither finds counts in no drawing, so that both
mAPs are higher than on labels; the difference comes out larger rather than smaller: on 500 VOC pictures 1.5, 2.1, 1.1
and 1.8 points where 991 labelled ones said 0.8, 0.9, -0.7 and 0.4 (int8 of voc-yolo-fastest-xl, voc-yolo-fastest,
MobileNetV2-YOLOv3-Nano and yolov4-tiny). On fewer pictures it is a matter of luck.
"""

from __future__ import annotations

import numpy as np

from benchmarks.voc_metric import Found, Truths, average_precisions

_DRAWINGS = 32
_SEED = 20_261_130
#: With fewer drawn truths a class's AP is a matter of luck.
_LEAST_TRUTHS = 5


def expected_loss(original: Found, changed: Found, classes: int) -> float:
    """The mean difference of the two mAPs, -1 to 1, above 0 where the changed network is worse. 0.0 where no drawing
    has a truth. Both found on the same pictures, under class ids below classes."""
    random = np.random.default_rng(_SEED)
    losses = []
    for _ in range(_DRAWINGS):
        drawn = random.random(len(original)) < original.scores
        truths = Truths(
            original.images[drawn], original.class_ids[drawn], original.boxes[drawn], np.zeros(int(drawn.sum()), bool)
        )
        counts = np.bincount(truths.class_ids, minlength=classes)
        counted = counts >= min(_LEAST_TRUTHS, max(int(counts.max(initial=0)), 1))
        if counted.any():
            both = [average_precisions(truths, found, classes, "darknet")[counted] for found in (original, changed)]
            losses.append(float(np.mean(both[0] - both[1])))
    return float(np.mean(losses)) if losses else 0.0
