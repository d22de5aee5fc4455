"""One file on several backends, and its worst pictures."""

import base64
import json

import cv2
import numpy as np
import pytest
from toy_detector import write_toy
from voc_folder import add_picture, small_set, xml

from benchmarks import picture_run
from benchmarks.accuracy import measure_accuracy
from benchmarks.backends import measure_backends
from deploy.errors import InputError


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("model") / "toy.tflite")


def test_each_backend_is_held_against_the_first(tmp_path, toy):
    told = []
    result = measure_backends(
        toy,
        small_set(tmp_path),
        "test",
        "voc",
        ["cpu-builtin", "cpu-reference"],
        progress=lambda done, total: told.append((done, total)),
    )
    assert [run["backend"] for run in result["backends"]] == ["cpu-builtin", "cpu-reference"]
    assert [run["map"] for run in result["backends"]] == pytest.approx([1, 1])
    first, second = (run["drift"] for run in result["backends"])
    assert first is None and second["pairs"] == 4 and second["only_first"] == second["only_here"] == 0
    assert result["backend"] == "cpu-builtin" and told[-1] == (8, 8) and len(told) == 8
    json.dumps(result, allow_nan=False)


def test_a_backend_twice_and_pictures_that_change_are_errors(tmp_path, toy, monkeypatch):
    data = small_set(tmp_path)
    with pytest.raises(InputError, match="name each once"):
        measure_backends(toy, data, "test", "voc", ["cpu", "cpu"])
    reads = []
    real = picture_run.read_picture

    def damaged_later(path):
        reads.append(path)
        if len(reads) == 6:
            raise InputError("damaged meanwhile")
        return real(path)

    monkeypatch.setattr(picture_run, "read_picture", damaged_later)
    with pytest.raises(InputError, match="4 could be read for cpu, 3 for cpu-builtin"):
        measure_backends(toy, data, "test", "voc", ["cpu", "cpu-builtin"])


@pytest.mark.parametrize("protocol", ["voc07", "voc", "darknet", "coco"])
def test_classes_and_working_point(tmp_path, toy, protocol):
    small_set(tmp_path)
    add_picture(tmp_path, "004", "red", label="blue")
    result = measure_accuracy(toy, tmp_path, "test", protocol)
    # Four hits of five detections; of blue's three truths one is taken for red.
    assert result["schema"] == "slimdet.accuracy/1"
    assert result["working"] == pytest.approx(
        {"truths": 5, "detections": 5, "hits": 4, "precision": 4 / 5, "recall": 4 / 5}
    )
    blue = result["classes"]["blue"]
    assert (blue["truths"], blue["difficult"], blue["detections"]) == (3, 0, 2)
    assert blue["working"]["recall"] == pytest.approx(2 / 3) and blue["working"]["precision"] == 1
    assert blue["ap"] == result["per_class"]["blue"]
    # Recall 2/3 at precision 1, and no more: 67 of the 101 recalls are reached.
    assert blue["curve"] == [1.0] * 67 + [0.0] * 34
    assert result["misses"]["false_positives"]["class"] == result["misses"]["false_negatives"]["class"] == 1


def test_no_detection_has_no_precision(tmp_path, toy):
    result = measure_accuracy(toy, small_set(tmp_path), "test", "voc", working_conf=1.0)
    assert result["working"] == {"truths": 4, "detections": 0, "hits": 0, "precision": None, "recall": 0.0}
    assert result["misses"]["false_negatives"]["missed"] == 4
    with pytest.raises(InputError, match="a score from conf, 0.5, to 1, not 0.25"):
        measure_accuracy(toy, tmp_path, "test", "voc", conf=0.5, working_conf=0.25)


def test_the_worst_pictures_are_drawn_and_the_data_stay(tmp_path, toy):
    data = small_set(tmp_path / "data")
    add_picture(data, "004", "red", label="blue")
    (data / "Annotations/000.xml").write_text(xml((40, 20), []))
    before = sorted(path.relative_to(data) for path in data.rglob("*"))
    worst = measure_accuracy(toy, data, "test", "voc", worst=tmp_path / "out", worst_count=5)["worst"]
    # 004: a false positive and a missed truth; 000: a false positive alone. The others are right.
    assert [(one["id"], one["false_positives"], one["missed"]) for one in worst["pictures"]] == [
        ("004", 1, 1),
        ("000", 1, 0),
    ]
    assert worst["pictures"][0]["cost"] == pytest.approx(1 + worst["pictures"][1]["cost"], abs=1e-6)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "01_004.jpg",
        "02_000.jpg",
        "contact_sheet.jpg",
    ]
    assert cv2.imread(str(tmp_path / "out/01_004.jpg")).shape == (320, 640, 3)
    sheet = cv2.imdecode(np.frombuffer(base64.b64decode(worst["contact_sheet"]), np.uint8), cv2.IMREAD_COLOR)
    assert sheet.shape[1] <= 1000
    assert sorted(path.relative_to(data) for path in data.rglob("*")) == before


def test_worst_pictures_go_neither_into_the_data_nor_through_a_link(tmp_path, toy):
    data = small_set(tmp_path / "data")
    (data / "Annotations/000.xml").write_text(xml((40, 20), []))
    (tmp_path / "link").symlink_to(data)
    for folder in (data, data / "JPEGImages" / "x", tmp_path / "link" / "out"):
        with pytest.raises(InputError, match="never drawn into the data"):
            measure_accuracy(toy, data, "test", "voc", worst=folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/01_000.jpg").symlink_to(data / "JPEGImages/000.png")
    with pytest.raises(InputError, match="is a link"):
        measure_accuracy(toy, data, "test", "voc", worst=tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        measure_accuracy(toy, data, "test", "voc", worst=tmp_path / "file" / "out")


def test_without_an_error_there_is_no_worst_picture(tmp_path, toy):
    worst = measure_accuracy(toy, small_set(tmp_path / "data"), "test", "voc", worst=tmp_path / "out")["worst"]
    assert worst["pictures"] == [] and worst["contact_sheet"] is None and not list((tmp_path / "out").iterdir())
