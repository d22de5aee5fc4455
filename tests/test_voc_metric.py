"""The VOC metric against the devkit's rule written plainly, published cases and another engine's figures."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import metric_speed
from benchmarks.voc_dataset import read_voc
from benchmarks.voc_metric import Found, Truths, average_precisions

PROTOCOLS = ("voc07", "voc", "darknet")


def plain_ap(truths: Truths, found: Found, class_id: int, protocol: str, threshold: float = 0.5) -> float:
    """VOCevaldet.m, statement by statement; for darknet with its own threshold, widths and difficult boxes."""
    darknet = protocol == "darknet"
    edge = 0.0 if darknet else 1.0
    mine = [i for i in range(len(truths)) if truths.class_ids[i] == class_id and not (darknet and truths.difficult[i])]
    npos = sum(not truths.difficult[i] for i in mine)
    if not npos:
        return float("nan")
    rows = [i for i in range(len(found)) if found.class_ids[i] == class_id]
    rows.sort(key=lambda i: -found.scores[i])  # Python's sort is stable, as MATLAB's is
    taken, tp, fp = set(), [], []
    for row in rows:
        best, best_truth = -np.inf, -1
        x1, y1, x2, y2 = (float(value) for value in found.boxes[row])
        for i in mine:
            if truths.images[i] != found.images[row]:
                continue
            u1, v1, u2, v2 = (float(value) for value in truths.boxes[i])
            iw, ih = min(x2, u2) - max(x1, u1) + edge, min(y2, v2) - max(y1, v1) + edge
            if iw > 0 and ih > 0:
                union = (x2 - x1 + edge) * (y2 - y1 + edge) + (u2 - u1 + edge) * (v2 - v1 + edge) - iw * ih
                if iw * ih / union > best:
                    best, best_truth = iw * ih / union, i
        if best > threshold if darknet else best >= threshold:
            if truths.difficult[best_truth]:
                tp.append(0), fp.append(0)
            elif best_truth in taken:
                tp.append(0), fp.append(1)
            else:
                taken.add(best_truth)
                tp.append(1), fp.append(0)
        else:
            tp.append(0), fp.append(1)
    tp, fp = np.cumsum(tp), np.cumsum(fp)
    with np.errstate(invalid="ignore"):  # nothing counted yet: 0 / 0, which max leaves out, as MATLAB's does
        recall, precision = tp / npos, np.nan_to_num(tp / (fp + tp))
    if protocol == "voc07":
        ap = 0.0
        for t in np.arange(0.0, 1.1, 0.1):
            reached = precision[recall >= t]
            ap += (reached.max() if len(reached) else 0.0) / 11
        return ap
    mrec, mpre = np.concatenate([[0.0], recall, [1.0]]), np.concatenate([[0.0], precision, [0.0]])
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)) if mrec[i] != mrec[i - 1])


def as_truths(rows: list[tuple[int, int, tuple[float, ...], bool]]) -> Truths:
    """rows of image, class, box, difficult."""
    boxes = np.array([row[2] for row in rows], np.float64).reshape(-1, 4)
    columns = [np.array([row[place] for row in rows], kind) for place, kind in ((0, int), (1, int), (3, bool))]
    return Truths(columns[0], columns[1], boxes, columns[2])


def as_found(rows: list[tuple[int, int, tuple[float, ...], float]]) -> Found:
    """rows of image, class, box, score."""
    boxes = np.array([row[2] for row in rows], np.float64).reshape(-1, 4)
    columns = [np.array([row[place] for row in rows], kind) for place, kind in ((0, int), (1, int), (3, float))]
    return Found(columns[0], columns[1], boxes, columns[2])


# Few images, classes, places and scores: ties, duplicates, taken truths and overlaps of exactly one half are common.
images, class_ids = st.integers(0, 2), st.integers(0, 2)
boxes = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 5), st.integers(0, 5)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
truth_rows = st.lists(st.tuples(images, class_ids, boxes, st.booleans()), max_size=14)
found_rows = st.lists(st.tuples(images, class_ids, boxes, st.sampled_from([0.25, 0.5, 0.75, 1.0])), max_size=24)


@settings(deadline=None, max_examples=400)
@given(truth_rows, found_rows, st.sampled_from(PROTOCOLS), st.sampled_from([0.3, 0.5, 0.75]))
def test_equals_the_plain_rule(truth_rows, found_rows, protocol, threshold):
    truths, found = as_truths(truth_rows), as_found(found_rows)
    expected = [plain_ap(truths, found, class_id, protocol, threshold) for class_id in range(4)]
    np.testing.assert_allclose(average_precisions(truths, found, 4, protocol, threshold), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equals_the_plain_rule_on_many_boxes(protocol):
    random = np.random.default_rng(3)
    corner = random.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corner, corner + random.uniform(10, 40, (200, 2))], axis=1)
    truths = Truths(random.integers(0, 20, 200), random.integers(0, 3, 200), boxes, random.random(200) < 0.2)
    near = random.integers(0, 200, 1500)
    moved = (boxes[near] + random.normal(0, 4, (1500, 4))).astype(np.float32)
    scores = random.integers(0, 50, 1500) / 50
    found = Found(truths.images[near], truths.class_ids[near], moved, scores)
    expected = [plain_ap(truths, found, class_id, protocol) for class_id in range(3)]
    assert min(expected) > 0.01  # the case is a real one
    np.testing.assert_allclose(average_precisions(truths, found, 3, protocol), expected, rtol=0, atol=1e-9)


BOX, NEAR, FAR = (10, 10, 19, 19), (11, 10, 20, 19), (50, 50, 59, 59)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_detection_is_zero_and_no_truth_is_nan(protocol):
    truths = as_truths([(0, 0, BOX, False), (0, 1, BOX, True)])
    found = as_found([(0, 2, BOX, 0.9)])
    np.testing.assert_array_equal(average_precisions(truths, found, 3, protocol), [0.0, np.nan, np.nan])
    np.testing.assert_array_equal(average_precisions(truths, as_found([]), 3, protocol), [0.0, np.nan, np.nan])
    assert np.isnan(average_precisions(as_truths([]), found, 3, protocol)).all()


def test_a_detection_goes_to_the_nearest_truth_even_if_that_is_taken():
    # Both detections overlap BOX most. The second also overlaps NEAR by 8*10/(2*100-80) = 0.67, but must not get it.
    truths = as_truths([(0, 0, BOX, False), (0, 0, NEAR, False)])
    found = as_found([(0, 0, BOX, 0.9), (0, 0, (9, 10, 18, 19), 0.8)])
    assert average_precisions(truths, found, 1, "voc")[0] == pytest.approx(1 / 2)


def test_a_difficult_truth_absorbs_any_number_of_detections():
    truths = as_truths([(0, 0, BOX, True), (0, 0, FAR, False)])
    found = as_found([(0, 0, BOX, 0.9), (0, 0, BOX, 0.8), (0, 0, FAR, 0.7)])
    assert average_precisions(truths, found, 1, "voc")[0] == 1.0
    # darknet drops the truth, so both are false alarms before the hit.
    assert average_precisions(truths, found, 1, "darknet")[0] == pytest.approx(1 / 3)


def test_widths_count_both_ends_and_the_threshold_is_inclusive_in_voc():
    # 10 x 10 pixels against their upper half: 50 / 100 with both ends counted, 9*4 / 81 without.
    truths, found = as_truths([(0, 0, BOX, False)]), as_found([(0, 0, (10, 10, 19, 14), 0.9)])
    assert average_precisions(truths, found, 1, "voc")[0] == 1.0
    assert average_precisions(truths, found, 1, "darknet")[0] == 0.0
    # Plain widths: exactly one half is not above it.
    truths, found = as_truths([(0, 0, (0, 0, 10, 10), False)]), as_found([(0, 0, (0, 0, 10, 5), 0.9)])
    assert average_precisions(truths, found, 1, "darknet")[0] == 0.0


def test_equal_scores_stay_in_their_order():
    truths = as_truths([(0, 0, BOX, False)])
    hit, miss = (0, 0, BOX, 0.5), (0, 0, FAR, 0.5)
    assert average_precisions(truths, as_found([hit, miss]), 1, "voc")[0] == 1.0
    assert average_precisions(truths, as_found([miss, hit]), 1, "voc")[0] == 0.5


def test_the_synthetic_set_has_the_size_of_the_voc2007_test_set():
    truths, found = metric_speed.synthetic_set()
    assert len(found) == 4952 * 100 == 495_200
    assert (~truths.difficult).sum() == 12_032
    assert 0.05 < average_precisions(truths, found, 20, "voc07").mean() < 0.95


def read_case(folder: Path) -> tuple[Truths, Found]:
    """A case of one class in text files: `class [score] x y width height` a line."""
    rows: dict[str, list] = {"gts": [], "dets": []}
    for kind in rows:
        for image, path in enumerate(sorted((folder / kind).glob("*.txt"))):
            for line in path.read_text().splitlines():
                *score, x, y, width, height = (float(value) for value in line.split()[1:])
                rows[kind].append((image, 0, (x, y, x + width, y + height), score[0] if score else False))
    return as_truths(rows["gts"]), as_found(rows["dets"])


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("voc07", {0.1: 0.33333, 0.3: 0.26840, 0.5: 0.03030, 0.75: 0}),
        ("voc", {0.1: 0.33720, 0.3: 0.24569, 0.5: 0.02222, 0.75: 0}),
    ],
)
def test_published_case(real_data, protocol, expected):
    truths, found = read_case(real_data / "evaluator-cases" / "test_case_1")
    got = {iou: average_precisions(truths, found, 1, protocol, iou)[0] for iou in expected}
    assert got == pytest.approx(expected, abs=5e-6)  # the published figures have five decimals


@pytest.mark.real_data
@pytest.mark.slow
def test_meets_the_reference_figures_of_another_engine(real_data, tmp_path):
    """OpenCV's darknet reader on 991 pictures, with its own suppression; the figures have two decimals, in percent."""
    data = read_voc(real_data / "voc2007" / "test991", "test")
    labels = (real_data / "weights" / "voc.names").read_text().split()
    name = "voc-yolo-fastest"
    cfg = (real_data / "weights" / f"{name}.cfg").read_text()
    # OpenCV drops scores below 0.2 unless the section says otherwise.
    (tmp_path / "net.cfg").write_text(re.sub(r"(?m)^\[yolo\]\s*$", "[yolo]\nthresh=0.0001", cfg))
    net = cv2.dnn.readNetFromDarknet(str(tmp_path / "net.cfg"), str(real_data / "weights" / f"{name}.weights"))
    truth_rows, found_rows = [], []
    for image, picture in enumerate(data.pictures):
        bgr = cv2.imread(str(picture.path))
        height, width = bgr.shape[:2]
        net.setInput(cv2.dnn.blobFromImage(bgr, 1 / 255, (320, 320), swapRB=True))
        raw = np.concatenate(net.forward(net.getUnconnectedOutLayersNames()))
        center, size = raw[:, :2] * [width, height], raw[:, 2:4] * [width, height]
        corner_and_size = np.concatenate([center - size / 2, size], axis=1)
        for class_id in range(len(labels)):
            rows = np.flatnonzero(raw[:, 5 + class_id] > 0.005)
            if len(rows):
                kept = cv2.dnn.NMSBoxes(corner_and_size[rows].tolist(), raw[rows, 5 + class_id].tolist(), 0.005, 0.45)
                for row in rows[np.ravel(kept)]:
                    x, y, w, h = corner_and_size[row] + [1, 1, 0, 0]  # VOC counts pixels from 1
                    found_rows.append((image, class_id, (x, y, x + w, y + h), raw[row, 5 + class_id]))
        notes = picture.annotation
        truth_rows += [
            (image, labels.index(name), tuple(box), flag)
            for name, box, flag in zip(notes.names, notes.boxes, notes.difficult, strict=True)
        ]
    truths, found = as_truths(truth_rows), as_found(found_rows)
    got = {protocol: 100 * average_precisions(truths, found, 20, protocol).mean() for protocol in ("darknet", "voc07")}
    assert got == pytest.approx({"darknet": 60.76, "voc07": 60.75}, abs=0.05)
