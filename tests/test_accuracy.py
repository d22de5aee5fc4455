"""mAP of a detector that is known by heart, on whole and spoiled data sets."""

import json
import threading

import cv2
import numpy as np
import pytest
from toy_detector import write_toy
from voc_folder import add_picture, small_set, xml

from benchmarks import accuracy
from benchmarks.accuracy import measure_accuracy
from deploy import detector
from deploy.errors import BackendError, ContractError, InputError


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("model") / "toy.tflite")


@pytest.mark.parametrize("protocol", ["voc07", "voc", "darknet", "coco"])
def test_a_perfect_detector_scores_one(tmp_path, toy, protocol):
    result = measure_accuracy(toy, small_set(tmp_path), "test", protocol)
    # Its box is the whole picture: for the VOC family 1..41 where the truth is 1..40, an overlap of 0.93 still.
    assert result["map"] == pytest.approx(1.0, abs=1e-12)
    assert result["per_class"] == pytest.approx({"blue": 1.0, "red": 1.0}, abs=1e-12)
    assert (result["images"], result["truths"], result["protocol"]) == (4, 4, protocol)
    assert result["skipped_count"] == result["boxes_clipped"] == result["boxes_dropped"] == 0
    assert ("map50" in result, "map75" in result) == (protocol == "coco",) * 2
    json.dumps(result, allow_nan=False)


def test_a_wrong_answer_costs_its_class(tmp_path, toy):
    small_set(tmp_path)
    add_picture(tmp_path, "004", "red", label="blue")
    result = measure_accuracy(toy, tmp_path, "test", "voc")
    # red: hits 000, 002 and the false alarm 004 have one score and keep their order: precision 1 up to recall 1.
    # blue: 001 and 003 hit, 004 is missed: recall 2/3 at precision 1.
    assert result["per_class"] == pytest.approx({"red": 1.0, "blue": 2 / 3})
    assert result["map"] == pytest.approx((1 + 2 / 3) / 2)


def test_the_settings_stand_in_the_result(tmp_path, toy):
    result = measure_accuracy(
        toy, small_set(tmp_path), "test", "voc07", backend="cpu-builtin", threads=2, conf=0.1, iou=0.6
    )
    told = {key: result[key] for key in ("backend", "threads", "conf", "iou", "resize", "precision", "input", "split")}
    assert told == {
        "backend": "cpu-builtin",
        "threads": 2,
        "conf": 0.1,
        "iou": 0.6,
        "resize": "stretch",
        "precision": "float32",
        "input": [32, 32],
        "split": "test",
    }
    assert len(result["model_sha256"]) == 64
    parts = [result[key] for key in ("decode_s", "preprocess_s", "invoke_s", "postprocess_s", "metric_s", "wall_s")]
    assert all(seconds > 0 for seconds in parts)
    assert result["wall_ratio"] == pytest.approx(result["wall_s"] / (result["decode_s"] + result["invoke_s"]))


def test_synonyms_are_scored_and_classes_without_partner_listed(tmp_path):
    model = write_toy(tmp_path / "toy.tflite", labels=("airplane", "gnu"))
    data = tmp_path / "data"
    add_picture(data, "000", "red", label="aeroplane")
    add_picture(data, "001", "blue", label="unicorn")
    result = measure_accuracy(model, data, "test", "voc")
    assert result["per_class"] == {"aeroplane": 1.0}
    assert result["map"] == 1.0
    assert result["data_classes_without_partner"] == ["unicorn"]
    assert result["model_classes_without_partner"] == ["gnu"]
    assert (result["images"], result["truths"], result["detections"]) == (2, 1, 1)


def test_no_shared_class_is_an_error_that_names_both_sides(tmp_path):
    model = write_toy(tmp_path / "toy.tflite", labels=("gnu", "yak"))
    with pytest.raises(InputError, match=r"none of its 2 \(gnu, yak\) is one of the data's 2 \(blue, red\)"):
        measure_accuracy(model, small_set(tmp_path / "data"), "test", "voc")


def test_a_class_of_difficult_truths_alone_is_left_out_of_the_mean(tmp_path, toy):
    small_set(tmp_path)
    for index in ("001", "003"):
        (tmp_path / f"Annotations/{index}.xml").write_text(xml((40, 20), [("blue", (1, 1, 40, 20), 1)]))
    result = measure_accuracy(toy, tmp_path, "test", "voc07")
    assert result["per_class"] == pytest.approx({"red": 1.0})
    assert result["classes_without_truth"] == ["blue"]
    assert (result["truths"], result["difficult"]) == (2, 2)


def test_nothing_but_difficult_truths_is_an_error(tmp_path, toy):
    add_picture(tmp_path, "000", difficult=1)
    with pytest.raises(InputError, match="accuracy needs truths"):
        measure_accuracy(toy, tmp_path, "test", "voc07")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n then nothing", b"\xff\xd8\xff\xe0 not a JPEG"])
def test_a_corrupt_picture_is_skipped_in_the_truth_too(tmp_path, toy, content):
    small_set(tmp_path)
    (tmp_path / "JPEGImages/001.png").write_bytes(content)
    result = measure_accuracy(toy, tmp_path, "test", "voc07")
    assert (result["images"], result["truths"]) == (3, 3)
    assert result["map"] == pytest.approx(1.0, abs=1e-12)
    assert result["skipped_count"] == 1
    assert result["skipped"][0]["id"] == "001" and "001.png" in result["skipped"][0]["reason"]


def test_a_picture_cut_in_half_is_skipped(tmp_path, toy):
    random = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    add_picture(tmp_path, "000", suffix=".jpg")
    add_picture(tmp_path, "001", suffix=".jpg")
    whole = cv2.imencode(".jpg", random)[1].tobytes()
    (tmp_path / "JPEGImages/001.jpg").write_bytes(whole[: len(whole) // 2])
    result = measure_accuracy(toy, tmp_path, "test", "voc07")
    assert [one["id"] for one in result["skipped"]] == ["001"]


def test_no_readable_picture_is_an_error(tmp_path, toy):
    for path in (small_set(tmp_path) / "JPEGImages").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of 'test' in .* can be read"):
        measure_accuracy(toy, tmp_path, "test", "voc07")


def test_boxes_outside_are_counted_and_sizes_that_differ_listed(tmp_path, toy):
    small_set(tmp_path)
    boxes = [("red", (1, 1, 45, 20), 0), ("red", (60, 1, 70, 20), 0)]
    (tmp_path / "Annotations/000.xml").write_text(xml((80, 20), boxes))
    result = measure_accuracy(toy, tmp_path, "test", "voc07")
    assert (result["boxes_clipped"], result["boxes_dropped"]) == (1, 1)
    assert result["pictures_of_other_size_than_annotated"] == ["000"]
    assert result["map"] == pytest.approx(1.0, abs=1e-12)  # the clipped box is the whole picture


def test_a_picture_without_objects_brings_false_alarms_only(tmp_path, toy):
    small_set(tmp_path)
    (tmp_path / "Annotations/000.xml").write_text(xml((40, 20), []))
    result = measure_accuracy(toy, tmp_path, "test", "voc")
    assert (result["images"], result["truths"], result["detections"]) == (4, 3, 4)
    # red: the false alarm comes first among equal scores, then the hit: precision 1/2 at recall 1.
    assert result["per_class"] == pytest.approx({"blue": 1.0, "red": 1 / 2})


def test_a_threshold_above_every_score_gives_zero(tmp_path, toy):
    for protocol in ("voc07", "coco"):
        result = measure_accuracy(toy, small_set(tmp_path / protocol), "test", protocol, conf=1.0)
        assert (result["map"], result["detections"]) == (0.0, 0)


def test_boxes_are_not_cut_at_the_border(tmp_path, toy, monkeypatch):
    """A box that the network puts around the picture is scored as it is: at 2.5 times its width it overlaps by 0.4."""
    add_picture(tmp_path, "000")
    decode = detector.decode

    def wider(outputs, contract, conf):
        found = decode(outputs, contract, conf)
        found.boxes[:, 2] *= 2.5
        return found

    monkeypatch.setattr(detector, "decode", wider)
    assert measure_accuracy(toy, tmp_path, "test", "voc")["map"] == 0.0


def test_errors_of_model_backend_protocol_and_split(tmp_path, toy):
    data = small_set(tmp_path)
    half = tmp_path / "half.tflite"
    half.write_bytes(toy.read_bytes()[: toy.stat().st_size // 2])
    foreign = tmp_path / "text.tflite"
    foreign.write_text("no model")
    for model, error in (
        (half, (InputError, ContractError)),
        (foreign, InputError),
        (tmp_path / "none.tflite", InputError),
    ):
        with pytest.raises(error):
            measure_accuracy(model, data, "test", "voc")
    with pytest.raises(BackendError):
        measure_accuracy(toy, data, "test", "voc", backend="abacus")
    with pytest.raises(InputError, match="one of voc07, voc, darknet, coco, not 'voc12'"):
        measure_accuracy(toy, data, "test", "voc12")
    with pytest.raises(InputError, match="existing: test"):
        measure_accuracy(toy, data, "trainval", "voc")
    with pytest.raises(InputError, match="conf is a number from 0 to 1"):
        measure_accuracy(toy, data, "test", "voc", conf=2)


def test_progress_counts_every_picture(tmp_path, toy):
    small_set(tmp_path)
    (tmp_path / "JPEGImages/001.png").write_bytes(b"")
    told = []
    measure_accuracy(toy, tmp_path, "test", "voc", progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def decoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, BackendError])
def test_an_interrupted_run_leaves_no_thread_and_decodes_no_further(tmp_path, toy, monkeypatch, stop):
    for index in range(40):
        add_picture(tmp_path, f"{index:03d}")
    read, lock = [], threading.Lock()
    real = accuracy.read_picture

    def counted(path):
        with lock:
            read.append(path)
        return real(path)

    def interrupt(done, total):
        if done == 3:
            raise stop

    monkeypatch.setattr(accuracy, "read_picture", counted)
    with pytest.raises(stop):
        measure_accuracy(toy, tmp_path, "test", "voc", progress=interrupt)
    assert not decoders()
    # Never more than AHEAD wait while one is at work: the memory is bounded, whatever the data set.
    assert len(read) <= 3 + accuracy.AHEAD + 1


def test_a_fault_while_decoding_is_not_swallowed(tmp_path, toy, monkeypatch):
    def broken(path):
        raise MemoryError("no memory left for it")

    monkeypatch.setattr(accuracy, "read_picture", broken)
    with pytest.raises(MemoryError):
        measure_accuracy(toy, small_set(tmp_path), "test", "voc")
    assert not decoders()


@pytest.mark.real_data
def test_a_foreign_coco_detector_on_voc_pictures(real_data, tmp_path):
    """The SSD file knows COCO's classes; the first 60 pictures of the VOC set in a list of their own."""
    data = real_data / "voc2007" / "test991"
    for part in ("Annotations", "JPEGImages"):
        (tmp_path / part).symlink_to(data / part)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    ids = (data / "ImageSets/Main/test.txt").read_text().split()[:60]
    (lists / "few.txt").write_text("\n".join(ids))
    model = next((real_data / "tflite").glob("coco_ssd_mobilenet_v1*.tflite"))
    result = measure_accuracy(model, tmp_path, "few", "voc07", conf=0.05)
    assert result["images"] == 60
    assert result["data_classes_without_partner"] == []
    found = len(result["per_class"]) + len(result["classes_without_truth"])
    assert len(result["model_classes_without_partner"]) == 80 - found
    # On all 991 it scores 0.56; by chance alone it would be near 0.
    assert 0.4 < result["map"] < 0.8
