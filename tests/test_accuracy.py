"""mAP of a detector that is known by heart, on whole and spoiled data sets."""

import contextlib
import io
import json
import threading

import cv2
import numpy as np
import pytest
from labelled_folders import coco_image, coco_object, write_coco, write_label, write_picture
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from toy_detector import write_toy
from voc_folder import add_picture, small_set, xml

from benchmarks import picture_run
from benchmarks.accuracy import mean_average_precision, measure_accuracy
from benchmarks.yolo_dataset import read_names
from deploy import detector
from deploy.detections import Detections
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
    real = picture_run.read_picture

    def counted(path):
        with lock:
            read.append(path)
        return real(path)

    def interrupt(done, total):
        if done == 3:
            raise stop

    monkeypatch.setattr(picture_run, "read_picture", counted)
    with pytest.raises(stop):
        measure_accuracy(toy, tmp_path, "test", "voc", progress=interrupt)
    assert not decoders()
    # Never more than AHEAD wait while one is at work: the memory is bounded, whatever the data set.
    assert len(read) <= 3 + picture_run.AHEAD + 1


def test_a_fault_while_decoding_is_not_swallowed(tmp_path, toy, monkeypatch):
    def broken(path):
        raise MemoryError("no memory left for it")

    monkeypatch.setattr(picture_run, "read_picture", broken)
    with pytest.raises(MemoryError):
        measure_accuracy(toy, small_set(tmp_path), "test", "voc")
    assert not decoders()


LABELS = ("blue", "gnu", "red", "green")


def random_coco(folder, seed):
    """A COCO set of 12 pictures, each of one grey level, its number times 10; and detections on them, rows of picture,
    x1, y1, x2, y2, score, label. Some boxes are smaller than a pixel, every fifth is a crowd."""
    rng = np.random.default_rng(seed)
    categories = [{"id": 90, "name": "red"}, {"id": 3, "name": "blue"}, {"id": 7, "name": "green"}]
    images = [coco_image(10 * index + 5, width=80, height=60) for index in range(12)]
    objects, rows = [], []
    for index in range(60):
        picture, category = rng.integers(0, 12), rng.integers(0, 3)
        side = rng.uniform(0.3, 2, 2) if index % 10 == 0 else rng.uniform(5, 40, 2)
        corner = rng.uniform(0, (80, 60) - side)
        crowd = int(rng.random() < 0.2)
        box = [*corner.tolist(), *side.tolist()]
        area = float(side.prod())
        number = categories[category]["id"]
        objects.append(coco_object(10 * int(picture) + 5, number, box, crowd, id=index + 1, area=area))
        for _ in range(rng.integers(0, 4)):
            moved = np.concatenate([corner, corner + side]) + rng.normal(0, 0.15, 4) * np.tile(side, 2)
            label = LABELS.index(categories[category]["name"]) if rng.random() < 0.9 else rng.integers(0, 4)
            rows.append([picture, *moved, rng.integers(1, 30) / 30, label])
    write_coco(folder, "val", images, objects, categories)
    for index, image in enumerate(images):
        write_picture(folder / "val" / image["file_name"], (80, 60), (10 * index,) * 3)
    return folder / "annotations/instances_val.json", np.array(rows)


@pytest.mark.parametrize("seed", range(5))
def test_the_coco_protocol_on_a_coco_set_is_what_pycocotools_makes_of_its_file(tmp_path, seed):
    path, rows = random_coco(tmp_path, seed)

    def detect(bgr):
        mine = rows[rows[:, 0] == round(bgr.mean() / 10)]
        return Detections(mine[:, 1:5].astype(np.float32), mine[:, 5].astype(np.float32), mine[:, 6].astype(np.int64))

    got = mean_average_precision(LABELS, detect, tmp_path, "val", "coco")
    numbers = {"red": 90, "blue": 3, "green": 7}
    results = [
        {
            "image_id": 10 * int(picture) + 5,
            "category_id": numbers[LABELS[int(label)]],
            "bbox": [float(value) for value in np.float32([x1, y1, x2 - x1, y2 - y1])],
            "score": float(np.float32(score)),
        }
        for picture, x1, y1, x2, y2, score, label in rows
        if LABELS[int(label)] in numbers
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it talks
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0.1 < got < 0.9
    assert got == pytest.approx(evaluation.stats[0], abs=1e-6)


def test_other_layouts_score_the_same(tmp_path, toy):
    expected = measure_accuracy(toy, small_set(tmp_path / "voc"), "test", "coco")
    images = [coco_image(number) for number in range(4)]
    objects = [coco_object(number, (3, 90)[number % 2], [0, 0, 40, 20]) for number in range(4)]
    write_coco(tmp_path / "coco", "test", images, objects)
    for number in range(4):
        color = ((0, 0, 255), (255, 0, 0))[number % 2]
        write_picture(tmp_path / "coco/test" / images[number]["file_name"], color=color)
        write_picture(tmp_path / f"yolo/images/{number}.png", color=color)
        write_label(tmp_path / f"yolo/labels/{number}.txt", f"{number % 2} 0.5 0.5 1 1")
    with_coco = measure_accuracy(toy, tmp_path / "coco", "test", "coco")
    with_yolo = measure_accuracy(toy, tmp_path / "yolo", None, "coco", names=("red", "blue"))
    for result in (with_coco, with_yolo):
        assert result["per_class"] == expected["per_class"] == pytest.approx({"blue": 1.0, "red": 1.0})
        assert (result["images"], result["truths"], result["boxes_clipped"]) == (4, 4, 0)
    assert with_yolo["split"] is None


@pytest.mark.real_data
@pytest.mark.slow
def test_a_coco_detector_on_the_first_pictures_of_coco(real_data, tmp_path):
    model = next((real_data / "tflite").glob("coco_ssd_mobilenet_v1*.tflite"))
    names = read_names(real_data / "weights" / "coco.names")
    result = measure_accuracy(model, real_data / "coco" / "val2017-128", None, "coco", names=names)
    assert (result["images"], result["skipped_count"], result["truths"]) == (128, 0, 898)
    # Its authors publish 0.21 on all of val2017 (as float32); crowds, which YOLO labels do not have, are few.
    assert 0.15 < result["map"] < 0.30


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
