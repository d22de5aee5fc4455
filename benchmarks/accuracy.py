"""Measures the mean average precision of a .tflite on a labelled data set, as the device computes it.

Pre-processing, decoding and NMS are those of `deploy`.

Coordinates. A detection's pixel i covers i to i + 1; VOC counts pixels from 1. For `voc07`, `voc` and `darknet`
detections are moved by +1, as darknet's own `detector valid` does it for the devkit, and as its voc_label.py does it
to the truth the other way round; no other choice meets the reference figures. For `coco` truths become [xmin - 1,
ymin - 1, xmax, ymax], the pixels' outer edges: of data in COCO layout the very boxes that they name. Detections are
scored as the network gives them, not cut at the picture's border (darknet's `detector map` does not either; cutting
gains some 0.1 to 0.6 points).

mAP looks at all scores; whoever uses a detector looks at those from a threshold on. Precision, recall and the causes of
errors are told there, at the *working threshold*, at IoU 0.5.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from benchmarks.annotations import Dataset
from benchmarks.class_figures import (
    IOU_THRESHOLD,
    Scores,
    class_figures,
    from_score,
    in_coordinates,
    outcomes_at,
    score,
    working_point,
)
from benchmarks.classes import Matching, match_classes
from benchmarks.dataset import read_dataset
from benchmarks.environment import environment
from benchmarks.misses import find_misses, misses_json
from benchmarks.picture_run import Seen, run_over, timed_detect
from benchmarks.voc_metric import Found, Truths
from benchmarks.worst_pictures import check_folder, write_worst
from deploy.detections import Detections
from deploy.detector import Detector
from deploy.errors import InputError

Protocol = Literal["voc07", "voc", "darknet", "coco"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

#: Detections kept of a picture: as many as NMS looks at. COCO counts 100 a class, so nothing that counts is cut off.
LIMIT = 10_000

SCHEMA = "slimdet.accuracy/1"
#: Where the working threshold is not given: that of `slimdet detect`.
WORKING_CONF = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """A result, and what it was made of."""

    #: See measure_accuracy.
    result: dict[str, Any]
    #: Ids of the scored pictures.
    picture_ids: list[str]
    #: Of each scored picture, with the model's class ids.
    found: list[Detections]


def measure_accuracy(
    model: Path,
    data: Path,
    split: str | None,
    protocol: str,
    *,
    names: tuple[str, ...] = (),
    backend: str = "cpu",
    threads: int = 1,
    conf: float = 0.005,
    iou: float = 0.45,
    working_conf: float | None = None,
    worst: Path | None = None,
    worst_count: int = 12,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The mAP of a .tflite, as plain JSON: `map` (0 to 1), `per_class`, `protocol`, `images` (those scored), and all
    that the figure depends on. `map` is at IoU 0.5, for coco the mean over .50:.05:.95 with `map50` and `map75`
    beside it. `classes` has more of each class (see class_figures), `working` precision and recall of all, `misses` the
    causes of the errors (see misses_json), the last two at the working threshold.

    data, split and names: see read_dataset. Only classes that model and data share are scored, and of these only those
    with a truth. conf: least score, 0..1. iou: of the suppression, 0..1. working_conf: conf..1; where None 0.25, or
    conf if that is more. worst: folder that receives the worst_count worst pictures (see write_worst). progress is
    called with the pictures done and their total.

    Raises InputError for a protocol, data set or model that cannot be used, BackendError for the backend. A single
    picture that cannot be used is left out, of the truth as well, and listed under `skipped`.
    """
    return measure(
        model,
        data,
        split,
        protocol,
        names=names,
        backend=backend,
        threads=threads,
        conf=conf,
        iou=iou,
        working_conf=working_conf,
        worst=worst,
        worst_count=worst_count,
        progress=progress,
    ).result


def measure(
    model: Path,
    data: Path,
    split: str | None,
    protocol: str,
    *,
    names: tuple[str, ...] = (),
    backend: str = "cpu",
    threads: int = 1,
    conf: float = 0.005,
    iou: float = 0.45,
    working_conf: float | None = None,
    worst: Path | None = None,
    worst_count: int = 12,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """As measure_accuracy, with the detections themselves."""
    start = time.perf_counter()
    if protocol not in PROTOCOLS:
        raise InputError(f"a protocol is one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    working = max(WORKING_CONF, conf) if working_conf is None else working_conf
    detector = Detector(model, backend, threads, conf=conf, iou=iou, limit=LIMIT)
    if not conf <= working <= 1:
        raise InputError(
            f"the working threshold is a score from conf, {conf}, to 1, not {working}; give one, or a smaller conf"
        )
    dataset = read_dataset(data, split, names)
    if worst is not None:
        check_folder(worst, data)
    matching = _matched(detector.contract.labels, dataset)
    seen = run_over(dataset, functools.partial(timed_detect, detector), progress)
    metric_start = time.perf_counter()
    truths, found = _scorable(seen, dataset, matching, _place(data, split))
    scores = score(*in_coordinates(truths, found, protocol), len(seen.found), len(dataset.names), protocol)
    figures = {
        **_figures(scores, dataset.names, matching),
        **_at_work(seen, dataset, matching, truths, found, scores, protocol, working, worst, worst_count),
    }
    end = time.perf_counter()
    seconds = {**seen.seconds, "metric_s": end - metric_start, "wall_s": end - start}
    result = {
        "schema": SCHEMA,
        **figures,
        "protocol": protocol,
        "iou_threshold": "0.50:0.05:0.95" if protocol == "coco" else IOU_THRESHOLD,
        "images": len(seen.found),
        "truths": int((~truths.difficult).sum()),
        "difficult": int(truths.difficult.sum()),
        "detections": len(found),
        **_left_out(seen, dataset, matching),
        **_settings(model, data, split, detector),
        "working_conf": working,
        **seconds,
        "wall_ratio": seconds["wall_s"] / max(seconds["decode_s"] + seconds["invoke_s"], 1e-9),
        "environment": environment(),
    }
    return Measured(result, [picture.id for picture in seen.pictures], seen.found)


def mean_average_precision(
    labels: tuple[str, ...],
    detect: Callable[[np.ndarray], Detections],
    data: Path,
    split: str | None,
    protocol: Protocol,
    *,
    names: tuple[str, ...] = (),
) -> float:
    """The mAP, 0 to 1, of anything that detects: see measure_accuracy. detect takes uint8 BGR pixels (h, w, 3) and
    gives detections in the picture's own pixels, not cut at its border, with indices of labels."""
    dataset = read_dataset(data, split, names)
    matching = _matched(labels, dataset)
    seen = run_over(dataset, lambda pixels, _: detect(pixels), None)
    truths, found = _scorable(seen, dataset, matching, _place(data, split))
    scores = score(*in_coordinates(truths, found, protocol), len(seen.found), len(dataset.names), protocol)
    value: float = _figures(scores, dataset.names, matching)["map"]
    return value


def _matched(labels: tuple[str, ...], dataset: Dataset) -> Matching:
    matching = match_classes(labels, dataset.names)
    if not matching.pairs:
        raise InputError(
            f"a model is scored on classes that it shares with the data: none of its {len(matching.model_only)} "
            f"({_some(matching.model_only)}) is one of the data's {len(dataset.names)} ({_some(matching.data_only)})"
        )
    return matching


def _scorable(seen: Seen, dataset: Dataset, matching: Matching, place: str) -> tuple[Truths, Found]:
    """Truths and detections. Raises InputError where no picture of place was read, or none has a truth."""
    if not seen.found:
        raise InputError(f"accuracy needs pictures: none of {place} can be read ({seen.skipped[-1].reason})")
    truths, found = _flatten(seen, dataset, matching)
    if not (~truths.difficult).any():
        raise InputError(
            f"accuracy needs truths: {place} has none of the classes that the model knows; check the data"
        )
    return truths, found


def _flatten(seen: Seen, dataset: Dataset, matching: Matching) -> tuple[Truths, Found]:
    """Truths and detections of the shared classes, under the data's class ids."""
    index = {name: place for place, name in enumerate(dataset.names) if place in matching.pairs.values()}
    class_ids = np.array([index.get(name, -1) for _, names, _ in seen.truths for name in names], np.int64)
    images = np.repeat(np.arange(len(seen.truths)), [len(names) for _, names, _ in seen.truths])
    boxes = np.concatenate([boxes for boxes, _, _ in seen.truths])
    difficult = np.concatenate([flags for _, _, flags in seen.truths])
    keep = class_ids >= 0
    truths = Truths(images[keep], class_ids[keep], boxes[keep], difficult[keep])

    data_class = np.full(max(matching.pairs) + 1, -1)
    data_class[list(matching.pairs)] = list(matching.pairs.values())
    model_class = np.concatenate([found.class_ids for found in seen.found])
    class_ids = np.where(model_class < len(data_class), data_class[np.minimum(model_class, len(data_class) - 1)], -1)
    images = np.repeat(np.arange(len(seen.found)), [len(found) for found in seen.found])
    boxes = np.concatenate([found.boxes for found in seen.found])
    scores = np.concatenate([found.scores for found in seen.found])
    keep = class_ids >= 0
    return truths, Found(images[keep], class_ids[keep], boxes[keep], scores[keep])


def _scored(scores: Scores, matching: Matching) -> list[int]:
    """The data's ids of the classes that the mean is of."""
    return [place for place in sorted(matching.pairs.values()) if not np.isnan(scores.means["map"][place])]


def _figures(scores: Scores, names: tuple[str, ...], matching: Matching) -> dict[str, Any]:
    scored = _scored(scores, matching)
    figures: dict[str, Any] = {name: float(np.mean(values[scored])) for name, values in scores.means.items()}
    figures["per_class"] = {names[place]: float(scores.means["map"][place]) for place in scored}
    return figures


def _at_work(
    seen: Seen,
    dataset: Dataset,
    matching: Matching,
    truths: Truths,
    found: Found,
    scores: Scores,
    protocol: str,
    conf: float,
    worst: Path | None,
    worst_count: int,
) -> dict[str, Any]:
    """Each class, precision and recall, the causes of errors and the worst pictures, at the working threshold."""
    names, scored = dataset.names, _scored(scores, matching)
    used = from_score(found, conf)
    placed_truths, placed = in_coordinates(truths, used, protocol)
    outcomes = outcomes_at(placed_truths, placed, len(names), protocol)
    misses = find_misses(placed_truths, placed, outcomes, protocol)
    classes = class_figures(scores, truths, found, used, outcomes, names, scored)
    hits, counted = (sum(one["working"][key] for one in classes.values()) for key in ("hits", "detections"))
    figures = {
        "working": working_point(hits, counted, sum(one["truths"] for one in classes.values())),
        "classes": classes,
        "misses": misses_json(misses, truths, used, names, scored),
    }
    if worst is not None:
        figures["worst"] = write_worst(worst, worst_count, seen.pictures, truths, used, outcomes, misses, names)
    return figures


def _left_out(seen: Seen, dataset: Dataset, matching: Matching) -> dict[str, Any]:
    """All that did not count, or was changed."""
    skipped = [*dataset.skipped, *seen.skipped]
    scorable = {name for boxes, names, difficult in seen.truths for name in names[~difficult]}
    shared = [dataset.names[place] for place in sorted(matching.pairs.values())]
    return {
        "skipped_count": len(skipped),
        "skipped": [dataclasses.asdict(one) for one in skipped],
        "classes_without_truth": [name for name in shared if name not in scorable],
        "data_classes_without_partner": list(matching.data_only),
        "model_classes_without_partner": list(matching.model_only),
        "boxes_clipped": seen.clipped,
        "boxes_dropped": seen.dropped,
        "pictures_of_other_size_than_annotated": seen.other_size,
    }


def _settings(model: Path, data: Path, split: str | None, detector: Detector) -> dict[str, Any]:
    contract = detector.contract
    return {
        "model": str(model),
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "model_bytes": model.stat().st_size,
        "precision": contract.precision,
        "input": [contract.input.height, contract.input.width],
        "resize": contract.input.resize,
        "data": str(data),
        "split": split,
        "conf": detector.conf,
        "iou": detector.iou,
        "backend": detector.model.backend,
        "threads": detector.model.threads,
        "delegation": detector.model.delegated.as_json(),
    }


def _place(data: Path, split: str | None) -> str:
    return f"all of {data}" if split is None else f"{split!r} in {data}"


def _some(names: tuple[str, ...], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
