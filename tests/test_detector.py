import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_tflite

import deploy
from deploy.contract import Contract
from deploy.detections import Detections
from deploy.detector import Detector
from deploy.errors import BackendError, ContractError, InputError
from deploy.model_file import write
from deploy.picture import read_picture


def saved(folder: Path, body: bytes, contract: Contract) -> Path:
    path = folder / "model.tflite"
    path.write_bytes(write(body, contract))
    return path


@pytest.fixture(scope="module", params=["float32", "int8"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), *tiny_tflite.yolo(request.param))


#: Twice the network's input, so that every pixel of it is a block of four. BGR.
BLACK = np.zeros((2 * tiny_tflite.HEIGHT, 2 * tiny_tflite.WIDTH, 3), np.uint8)


def dot(picture: np.ndarray, row: int, column: int, bgr: tuple[int, int, int]) -> None:
    """Colours the upper left pixel of a cell, and the pixels that the resize mixes with it."""
    y, x = 2 * 16 * row, 2 * 16 * column
    picture[max(y - 2, 0) : y + 4, max(x - 2, 0) : x + 4] = bgr


def test_a_picture_becomes_boxes_in_its_own_pixels(model: Path) -> None:
    picture = BLACK.copy()
    dot(picture, 0, 1, (0, 0, 255))
    dot(picture, 1, 3, (230, 0, 0))
    found = Detector(model).detect(picture)
    # Each dot has a box of either anchor; centres lie half a cell in. The anchors overlap by 8 * 10 / (200 + 240 - 80)
    # = 0.22: both stay. Pixels of the input count twice.
    expected = []
    for row, column, class_id in ((0, 1, 0), (1, 3, 1)):
        x, y = 2 * 16 * (column + 0.5), 2 * 16 * (row + 0.5)
        for w, h in tiny_tflite.ANCHORS:
            box = [max(x - w, 0), max(y - h, 0), min(x + w, 2 * tiny_tflite.WIDTH), min(y + h, 2 * tiny_tflite.HEIGHT)]
            expected.append((class_id, box))
    assert list(zip(found.class_ids.tolist(), found.boxes.tolist(), strict=True)) == expected
    # sigmoid(6) * sigmoid(4) = 0.980; blue of 230 / 255 is less.
    np.testing.assert_allclose(found.scores[:2], 0.9796, atol=0.001)
    assert (found.scores[2:] < 0.97).all()


def test_nothing_is_found_on_black(model: Path) -> None:
    found = Detector(model).detect(BLACK)
    assert isinstance(found, Detections) and len(found) == 0


def test_a_letterboxed_picture_gives_its_own_pixels(model: Path) -> None:
    # 64 x 64 into 32 high, 64 wide: half the size, between bars of 16. The first cell column is bar.
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[30:36, 0:4] = (0, 0, 255)
    found = Detector(model).detect(picture)
    # Cell (1, 1): centre (24, 24) in the input, (24 - 16) * 2 = 16 and 24 * 2 = 48 in the picture; anchor 0 is 20 x 10.
    assert found.boxes[0].tolist() == [0, 48 - 10, 16 + 20, 48 + 10]


def test_thresholds_and_limit_are_used(model: Path) -> None:
    picture = BLACK.copy()
    for column in range(3):
        dot(picture, 0, column, (0, 0, 255))
    assert len(Detector(model, conf=0.99).detect(picture)) == 0
    assert len(Detector(model).detect(picture)) == 6
    assert len(Detector(model, limit=4).detect(picture)) == 4
    # Anchor 0 is 20 wide, the cells are 16 apart: neighbours overlap by 4 / 36.
    assert len(Detector(model, iou=0.1).detect(picture)) < 6


def test_the_parts_make_the_whole(model: Path) -> None:
    picture = BLACK.copy()
    dot(picture, 1, 2, (255, 0, 0))
    detector = Detector(model, conf=0.5)
    tensor, placement = detector.preprocess(picture)
    parts = detector.postprocess(detector.invoke(tensor), placement)
    whole = detector.detect(picture)
    assert parts.boxes.tolist() == whole.boxes.tolist() != []
    assert detector.contract.labels[whole.class_ids[0]] == "blue"


def test_pictures_of_changing_shapes(tmp_path: Path) -> None:
    body, contract = tiny_tflite.yolo()
    # Black bars: grey ones are dots to this network.
    contract = dataclasses.replace(contract, input=dataclasses.replace(contract.input, fill=0))
    detector = Detector(saved(tmp_path, body, contract))
    for height, width in ((64, 128), (1, 300), (300, 1), (64, 128)):
        assert len(detector.detect(np.zeros((height, width, 3), np.uint8))) == 0


def test_what_is_seen_in_the_bars_alone_is_left_out(model: Path) -> None:
    # One row of pixels, at row (32 - 1) // 2 = 15 of the input; the network takes all grey cells around it for both
    # classes.
    found = Detector(model, iou=1).detect(np.zeros((1, 64, 3), np.uint8))
    # Centres at rows 8 and 24 and columns 8, 24, 40, 56: boxes 10 high miss row 15, those 30 high do not.
    assert len(found) == 2 * 4 * len(tiny_tflite.LABELS)
    assert found.boxes[:, 1].tolist() == [0] * len(found) and found.boxes[:, 3].tolist() == [1] * len(found)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"conf": -0.1}, "conf is a number from 0 to 1"),
        ({"conf": 1.1}, "conf is a number from 0 to 1"),
        ({"conf": float("nan")}, "conf is a number from 0 to 1"),
        ({"iou": 2}, "iou is a number from 0 to 1"),
        ({"limit": 0}, "limit is at least 1"),
        ({"threads": 0}, "threads is a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(model: Path, settings: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        Detector(model, **settings)


def test_bad_backends_pictures_and_files_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="npu needs a chip"):
        Detector(model, "npu")
    with pytest.raises(InputError, match="a picture is uint8"):
        Detector(model).detect(np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match="No such file"):
        Detector(tmp_path / "missing.tflite")


def test_metadata_of_another_network_is_refused(tmp_path: Path) -> None:
    body, _ = tiny_tflite.yolo("int8")
    _, contract = tiny_tflite.yolo("float32")
    with pytest.raises(ContractError, match="the metadata contradicts the file: tensor 'image'"):
        Detector(saved(tmp_path, body, contract))


def test_standard_error_stays_empty(model: Path) -> None:
    code = f"from deploy import Detector; print(Detector({str(model)!r}).model.delegated.nodes)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_the_public_names_are_there_and_come_when_asked_for() -> None:
    for name in deploy.__all__:
        assert getattr(deploy, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        deploy.Nonsense
    code = "import sys, deploy, deploy.errors, deploy.contract; print('cv2' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.real_data
def test_a_foreign_detector_works_without_any_option(real_data: Path) -> None:
    detector = Detector(real_data / "tflite" / "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite", conf=0.6)
    # A dog and the person behind it; a bus.
    expected = {"000001": {"dog", "person"}, "000054": {"bus", "person"}, "000040": {"bird"}}
    for name, labels in expected.items():
        picture = read_picture(real_data / "voc2007" / "test991" / "JPEGImages" / f"{name}.jpg")
        found = detector.detect(picture)
        assert {detector.contract.labels[class_id] for class_id in found.class_ids} == labels
        assert (np.diff(found.scores) <= 0).all()
        assert (found.boxes[:, 2] <= picture.shape[1]).all() and (found.boxes[:, 3] <= picture.shape[0]).all()
    # The truth of 000001 says dog at 48, 240, 195, 371.
    found = detector.detect(read_picture(real_data / "voc2007" / "test991" / "JPEGImages" / "000001.jpg"))
    dog = found.boxes[found.class_ids == detector.contract.labels.index("dog")][0]
    np.testing.assert_allclose(dog, [48, 240, 195, 371], atol=10)
