"""Times the metrics alone: VOC at the size of the VOC2007 test set (4,952 images, 20 classes, 495,200 detections), and
COCO's at that of val2017 (5,000 images, 80 classes, 500,000 detections), with what else an accuracy tells there.

python -m benchmarks.metric_speed [--pycocotools] [--json -]
"""

from __future__ import annotations

import contextlib
import functools
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

from benchmarks.class_figures import from_score, outcomes_at
from benchmarks.coco_metric import coco_precisions
from benchmarks.environment import environment
from benchmarks.misses import find_misses
from benchmarks.voc_metric import Found, Truths, VocProtocol, average_precisions
from deploy.command_line import debug_option, json_option, run, write_json
from deploy.errors import InputError

IMAGES, CLASSES = 4952, 20
#: Detections an image; half of them on a truth, shifted, half of them anywhere.
DETECTIONS = 100
#: Truths of the VOC2007 test set: 12,032 that count, and 2,944 difficult ones.
TRUTHS, DIFFICULT = 12_032 + 2_944, 2_944
#: As COCO's val2017: images, classes, truths, and crowds among them.
COCO_SIZE = (5000, 80, 36_781, 446)
#: Score from which the causes of errors are sought, as in a real run: a tenth of the detections reach it.
_WORKING = 0.9


def synthetic_set(
    seed: int = 0, size: tuple[int, int, int, int] = (IMAGES, CLASSES, TRUTHS, DIFFICULT)
) -> tuple[Truths, Found]:
    """A set whose boxes and scores are drawn at random, the same ones for the same seed; by default of VOC-test size.
    size: images, classes, truths, and how many of these are difficult."""
    images_all, classes, truths_all, difficult_all = size
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 300, (truths_all, 2))
    boxes = np.rint(np.concatenate([corner, corner + random.uniform(20, 200, (truths_all, 2))], axis=1))
    difficult = np.arange(truths_all) < difficult_all
    truths = Truths(
        random.integers(0, images_all, truths_all), random.integers(0, classes, truths_all), boxes, difficult
    )
    total = images_all * DETECTIONS
    images = np.repeat(np.arange(images_all), DETECTIONS)
    class_ids = random.integers(0, classes, total)
    corner = random.uniform(0, 300, (total, 2))
    found_boxes = np.concatenate([corner, corner + random.uniform(20, 200, (total, 2))], axis=1).astype(np.float32)
    near = random.choice(total, total // 2, replace=False)
    chosen = random.integers(0, truths_all, len(near))
    images[near], class_ids[near] = truths.images[chosen], truths.class_ids[chosen]
    found_boxes[near] = boxes[chosen] + random.normal(0, 15, (len(near), 4))
    return truths, Found(images, class_ids, found_boxes, random.random(total, np.float32))


def _median_seconds(call: Callable[[], object], repetitions: int) -> float:
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def coco_speed(repetitions: int, compare: bool) -> dict[str, Any]:
    """Median seconds of COCO's metric, and of the causes of errors, at COCO's size; where compare, the greatest
    difference of a class's AP, AP50 or AP75 to pycocotools, and its seconds."""
    images, classes, _, _ = COCO_SIZE
    truths, found = synthetic_set(size=COCO_SIZE)
    used = from_score(found, _WORKING)

    def causes() -> None:
        find_misses(truths, used, outcomes_at(truths, used, classes, "coco"), "coco")

    precisions = coco_precisions(truths, found, images, classes)
    result: dict[str, Any] = {
        "images": images,
        "classes": classes,
        "truths": len(truths),
        "detections": len(found),
        "map": float(np.nanmean(precisions.all)),
        "seconds": _median_seconds(lambda: coco_precisions(truths, found, images, classes), repetitions),
        "causes_detections": len(used),
        "causes_seconds": _median_seconds(causes, repetitions),
    }
    if compare:
        start = time.perf_counter()
        expected = by_pycocotools(truths, found, images, classes)
        got = np.array([precisions.all, precisions.at50, precisions.at75])
        result["pycocotools_seconds"] = time.perf_counter() - start
        result["greatest_difference"] = float(np.nanmax(np.abs(got - expected)))
    return result


def by_pycocotools(truths: Truths, found: Found, images: int, classes: int) -> np.ndarray:
    """(3, classes) AP, AP50 and AP75 by the authority. Raises InputError where it is not installed."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise InputError("--pycocotools compares with pycocotools, which is not installed; install it") from error
    truth = COCO()
    sizes = truths.boxes[:, 2:] - truths.boxes[:, :2]
    rows = zip(truths.images, truths.class_ids, truths.boxes, sizes, truths.difficult, strict=True)
    truth.dataset = {
        "info": {},
        "images": [{"id": number + 1} for number in range(images)],
        "categories": [{"id": number + 1, "name": str(number)} for number in range(classes)],
        "annotations": [
            {
                "id": number,
                "image_id": int(image) + 1,
                "category_id": int(class_id) + 1,
                "bbox": [*box[:2].tolist(), *size.tolist()],
                "area": float(size.prod()),
                "iscrowd": int(crowd),
            }
            for number, (image, class_id, box, size, crowd) in enumerate(rows, 1)
        ],
    }
    boxes = found.boxes.astype(np.float64)
    columns = (found.images + 1, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], found.scores, found.class_ids + 1)
    with contextlib.redirect_stdout(io.StringIO()):  # it talks
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(np.column_stack(columns).astype(np.float64)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    precision = np.where(precision < 0, np.nan, precision).mean(axis=1)
    return np.array([precision.mean(axis=0), precision[0], precision[5]])


@click.command()
@click.option("--repetitions", type=click.IntRange(1), default=7, show_default=True)
@click.option("--pycocotools", is_flag=True, help="Compare COCO's metric with pycocotools too, which takes minutes.")
@json_option("Write the result here as JSON; - is standard output.")
@debug_option
def metric_speed(repetitions: int, pycocotools: bool, json_file: str | None) -> None:
    """Time the metrics on synthetic sets of the sizes of VOC's test set and of COCO's val2017."""
    truths, found = synthetic_set()
    protocols: tuple[VocProtocol, ...] = ("voc07", "voc", "darknet")
    medians = {
        protocol: _median_seconds(functools.partial(average_precisions, truths, found, CLASSES, protocol), repetitions)
        for protocol in protocols
    }
    means = {
        protocol: float(np.nanmean(average_precisions(truths, found, CLASSES, protocol))) for protocol in protocols
    }
    result = {
        "images": IMAGES,
        "classes": CLASSES,
        "truths": len(truths),
        "detections": len(found),
        "seconds": max(medians.values()),
        "seconds_by_protocol": medians,
        "map_by_protocol": means,
        "coco": coco_speed(repetitions, pycocotools),
        "environment": environment(),
    }
    write_json(json_file or "-", result)


if __name__ == "__main__":
    run(metric_speed, "python -m benchmarks.metric_speed")
