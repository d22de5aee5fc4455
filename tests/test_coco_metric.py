"""hotcoco's figures against pycocotools, the authority."""

import builtins
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.coco_metric import coco_outcomes, coco_precisions
from benchmarks.metric_speed import by_pycocotools
from benchmarks.voc_metric import Found, Truths
from deploy.errors import InputError


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


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 3), st.integers(1, 30), st.integers(1, 90))
def test_the_outcomes_give_the_curve_that_pycocotools_has_at_iou_one_half(seed, images, classes, boxes, detections):
    truths, found = random_set(seed, images, classes, boxes, detections)
    # One score a detection: how equal ones of different pictures are ordered is no part of an outcome.
    found = Found(found.images, found.class_ids, found.boxes, np.random.default_rng(seed).permutation(detections) / 100)
    seen = coco_outcomes(truths, found, classes)
    curves = coco_precisions(truths, found, images, classes).curves50
    for class_id in range(classes):
        positives = int((~truths.difficult & (truths.class_ids == class_id)).sum())
        if not positives:
            assert np.isnan(curves[class_id]).all()
            continue
        rows = np.flatnonzero((found.class_ids == class_id) & seen.counted)
        hits = np.cumsum(seen.truth[rows[np.argsort(-found.scores[rows])]] >= 0)
        precision = np.append(hits / np.arange(1, len(hits) + 1), 0)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        expected = best[np.searchsorted(hits / positives, np.linspace(0, 1, 101), side="left")]
        np.testing.assert_allclose(curves[class_id], expected, rtol=0, atol=1e-6)


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
