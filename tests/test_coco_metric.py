"""hotcoco's figures against pycocotools, the authority."""

import builtins
import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.coco_metric import coco_precisions
from benchmarks.voc_metric import Found, Truths
from deploy.errors import InputError


def by_pycocotools(truths: Truths, found: Found, images: int, classes: int) -> np.ndarray:
    """(3, classes): AP over .50:.95, AP50, AP75; NaN where a class has no truth."""
    truth = COCO()
    described = [{"id": index + 1} for index in range(images)]
    categories = [{"id": index + 1, "name": str(index)} for index in range(classes)]
    rows = []
    for index in range(len(truths)):
        x1, y1, x2, y2 = (float(value) for value in truths.boxes[index])
        rows.append(
            {
                "id": index + 1,
                "image_id": int(truths.images[index]) + 1,
                "category_id": int(truths.class_ids[index]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(truths.difficult[index]),
            }
        )
    truth.dataset = {"images": described, "categories": categories, "annotations": rows, "info": {}}
    detections = np.column_stack(
        [
            found.images + 1,
            found.boxes[:, :2],
            found.boxes[:, 2:] - found.boxes[:, :2],
            found.scores,
            found.class_ids + 1,
        ]
    ).astype(np.float64)
    with contextlib.redirect_stdout(io.StringIO()):  # it talks
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    precision = np.where(precision < 0, np.nan, precision).mean(axis=1)
    return np.array([precision.mean(axis=0), precision[0], precision[5]])


def ours(truths: Truths, found: Found, images: int, classes: int) -> np.ndarray:
    got = coco_precisions(truths, found, images, classes)
    return np.array([got.all, got.at50, got.at75])


def random_set(seed: int, images: int, classes: int, boxes: int, detections: int) -> tuple[Truths, Found]:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 60, (boxes, 2))
    places = np.rint(np.concatenate([corner, corner + random.uniform(5, 40, (boxes, 2))], axis=1))
    truths = Truths(
        random.integers(0, images, boxes), random.integers(0, classes, boxes), places, random.random(boxes) < 0.2
    )
    near = random.integers(0, max(boxes, 1), detections if boxes else 0)
    moved = places[near] + np.rint(random.normal(0, 3, (len(near), 4)))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    return truths, Found(truths.images[near], truths.class_ids[near], moved, random.integers(0, 20, len(near)) / 20)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4), st.integers(1, 40), st.integers(1, 200))
def test_equals_pycocotools(seed, images, classes, boxes, detections):
    # Whole-number boxes and few scores: ties, duplicates and crowds are common.
    truths, found = random_set(seed, images, classes, boxes, detections)
    expected = by_pycocotools(truths, found, images, classes)
    np.testing.assert_allclose(ours(truths, found, images, classes), expected, rtol=0, atol=1e-6)


def test_more_than_100_detections_a_picture_and_class():
    truths, found = random_set(7, 1, 1, 30, 400)
    expected = by_pycocotools(truths, found, 1, 1)
    assert 0 < expected[0, 0] < 1
    np.testing.assert_allclose(ours(truths, found, 1, 1), expected, rtol=0, atol=1e-6)


def test_no_detection_is_zero_and_no_truth_is_nan():
    truths, found = random_set(1, 2, 1, 5, 0)
    np.testing.assert_array_equal(ours(truths, found, 2, 2), [[0.0, np.nan]] * 3)
    nothing = Truths(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, bool))
    assert np.isnan(ours(nothing, random_set(1, 2, 1, 5, 9)[1], 2, 1)).all()


def test_a_class_of_difficult_truths_alone_has_no_figure():
    truths, found = random_set(1, 2, 1, 5, 9)
    hidden = Truths(truths.images, truths.class_ids, truths.boxes, np.ones(5, bool))
    assert np.isnan(ours(hidden, found, 2, 1)).all()


def test_without_hotcoco_the_error_says_what_to_do(monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "hotcoco":
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    truths, found = random_set(1, 2, 1, 5, 9)
    with pytest.raises(InputError, match="pip install hotcoco"):
        coco_precisions(truths, found, 2, 1)


@pytest.mark.real_data
def test_published_case(real_data):
    folder = real_data / "evaluator-cases" / "test_coco_eval"
    truth_rows = json.loads((folder / "gts" / "sampled_gts_bbox_area.json").read_text())["annotations"]
    found_rows = json.loads((folder / "dets" / "sampled_bbox_results.json").read_text())["annotations"]
    image_ids = sorted({row["image_id"] for row in truth_rows})
    category_ids = sorted({row["category_id"] for row in [*truth_rows, *found_rows]})

    def columns(rows: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        boxes = np.array([row["bbox"] for row in rows], float)
        boxes[:, 2:] += boxes[:, :2]
        images = np.array([image_ids.index(row["image_id"]) for row in rows])
        return images, np.array([category_ids.index(row["category_id"]) for row in rows]), boxes

    crowd = np.array([row["iscrowd"] for row in truth_rows], bool)
    truths = Truths(*columns(truth_rows), crowd)
    found = Found(*columns(found_rows), np.array([row["score"] for row in found_rows]))
    got = coco_precisions(truths, found, len(image_ids), len(category_ids))
    # The case's own areas are those of masks, which play no part over all areas.
    assert np.nanmean(got.all) == pytest.approx(0.503647, abs=5e-7)
    assert np.nanmean(got.at50) == pytest.approx(0.696973, abs=5e-7)
