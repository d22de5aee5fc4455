"""Times the VOC metric alone at the size of the VOC2007 test set: 4,952 images, 20 classes, 495,200 detections.

python -m benchmarks.metric_speed [--json -]
"""

from __future__ import annotations

import statistics
import time

import click
import numpy as np

from benchmarks.environment import environment
from benchmarks.voc_metric import Found, Truths, VocProtocol, average_precisions
from deploy.command_line import debug_option, json_option, run, write_json

IMAGES, CLASSES = 4952, 20
#: Detections an image; half of them on a truth, shifted, half of them anywhere.
DETECTIONS = 100
#: Truths of the VOC2007 test set: 12,032 that count, and 2,944 difficult ones.
TRUTHS, DIFFICULT = 12_032 + 2_944, 2_944


def synthetic_set(seed: int = 0) -> tuple[Truths, Found]:
    """A set of VOC-test size whose boxes and scores are drawn at random, the same ones for the same seed."""
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 300, (TRUTHS, 2))
    boxes = np.rint(np.concatenate([corner, corner + random.uniform(20, 200, (TRUTHS, 2))], axis=1))
    difficult = np.arange(TRUTHS) < DIFFICULT
    truths = Truths(random.integers(0, IMAGES, TRUTHS), random.integers(0, CLASSES, TRUTHS), boxes, difficult)
    total = IMAGES * DETECTIONS
    images = np.repeat(np.arange(IMAGES), DETECTIONS)
    class_ids = random.integers(0, CLASSES, total)
    corner = random.uniform(0, 300, (total, 2))
    found_boxes = np.concatenate([corner, corner + random.uniform(20, 200, (total, 2))], axis=1).astype(np.float32)
    near = random.choice(total, total // 2, replace=False)
    chosen = random.integers(0, TRUTHS, len(near))
    images[near], class_ids[near] = truths.images[chosen], truths.class_ids[chosen]
    found_boxes[near] = boxes[chosen] + random.normal(0, 15, (len(near), 4))
    return truths, Found(images, class_ids, found_boxes, random.random(total, np.float32))


@click.command()
@click.option("--repetitions", type=click.IntRange(1), default=7, show_default=True)
@json_option("Write the result here as JSON; - is standard output.")
@debug_option
def metric_speed(repetitions: int, json_file: str | None) -> None:
    """Time the VOC metric on a synthetic set of VOC-test size, for each protocol."""
    truths, found = synthetic_set()
    protocols: tuple[VocProtocol, ...] = ("voc07", "voc", "darknet")
    medians, means = {}, {}
    for protocol in protocols:
        seconds = []
        for _ in range(repetitions):
            start = time.perf_counter()
            precisions = average_precisions(truths, found, CLASSES, protocol)
            seconds.append(time.perf_counter() - start)
        medians[protocol], means[protocol] = statistics.median(seconds), float(np.nanmean(precisions))
    result = {
        "images": IMAGES,
        "classes": CLASSES,
        "truths": len(truths),
        "detections": len(found),
        "seconds": max(medians.values()),
        "seconds_by_protocol": medians,
        "map_by_protocol": means,
        "environment": environment(),
    }
    write_json(json_file or "-", result)


if __name__ == "__main__":
    run(metric_speed, "python -m benchmarks.metric_speed")
