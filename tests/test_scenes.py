from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.voc_dataset import read_voc
from deploy.errors import InputError
from toolchain import scenes
from toolchain.carried import built_in_networks
from toolchain.scenes import CLASSES, draw_scene, write_scenes


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout_and_bytes_follow_from_the_arguments(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_scenes(tmp_path / name, splits={"train": 3, "val": 2}, seed=5, size=96)
    write_scenes(tmp_path / "other", splits={"train": 3, "val": 2}, seed=6, size=96)
    one = files(tmp_path / "one")
    assert len(one) == (3 + 2) * 2 + 2  # a picture and its annotation each, and two lists
    assert one == files(tmp_path / "two")
    assert one.keys() == files(tmp_path / "other").keys()
    assert all(one[name] != content for name, content in files(tmp_path / "other").items() if name.endswith(".jpg"))


def test_a_longer_split_begins_with_the_shorter_ones_scenes(tmp_path: Path) -> None:
    write_scenes(tmp_path / "short", splits={"train": 2}, seed=1, size=64)
    write_scenes(tmp_path / "long", splits={"val": 1, "train": 4}, seed=1, size=64)
    short, long = files(tmp_path / "short"), files(tmp_path / "long")
    pictures = [name for name in short if not name.endswith(".txt")]
    assert len(pictures) == 2 * 2
    assert all(short[name] == long[name] for name in pictures)


def test_splits_share_no_scene(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", splits={"train": 3, "test": 3}, seed=1, size=64)
    pictures = [content for name, content in files(tmp_path / "data").items() if name.endswith(".jpg")]
    assert len(set(pictures)) == 3 + 3


def test_the_annotations_are_the_drawn_boxes_in_vocs_pixels(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", splits={"train": 8}, seed=2, size=128)
    pictures = read_voc(tmp_path / "data", "train").pictures
    assert len(pictures) == 8
    for index, picture in enumerate(pictures):
        _, boxes, classes = draw_scene((2, *b"train"), index, 128)
        assert picture.annotation.size == (128, 128)
        assert picture.annotation.names == tuple(CLASSES[shape] for shape in classes)
        # VOC counts from 1: the box covers xmin - 1 to xmax; the outline is in it, less than a pixel from each side.
        spare = boxes - (picture.annotation.boxes - (1, 1, 0, 0))
        assert (spare[:, :2] >= 0).all() and (spare[:, :2] < 1).all()
        assert (spare[:, 2:] <= 0).all() and (spare[:, 2:] > -1).all()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(64, 320))
def test_every_scene_has_shapes_inside_it_that_hardly_overlap(seed: int, size: int) -> None:
    picture, boxes, classes = draw_scene((seed,), 0, size)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    assert boxes.shape == (len(classes), 4) and 1 <= len(classes) <= scenes._MOST_SHAPES
    assert ((0 <= classes) & (classes < len(CLASSES))).all()
    assert (boxes >= 0).all() and (boxes <= size).all() and (boxes[:, 2:] - boxes[:, :2] > 4).all()
    for index, box in enumerate(boxes):
        for other in boxes[:index]:
            shared = np.prod(np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0))
            assert shared <= scenes._OVERLAP * min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2])) + 1e-9


@pytest.mark.parametrize("shape", range(len(CLASSES)))
def test_the_box_is_that_of_the_pixels(shape: int) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        canvas = np.zeros((160, 160, 3), np.uint8)
        outline = scenes._place(rng, scenes._outline(rng, shape, 160), [], 160)
        assert outline is not None
        box = np.concatenate([outline.min(axis=0), outline.max(axis=0)])
        scenes._fill(rng, canvas, outline, box)
        rows, columns = np.nonzero(canvas.max(axis=2) > canvas.max() / 2)
        drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        # Half a pixel by rounding to pixels; a thin tip (star, triangle) fills less than half of its last two or so.
        assert np.abs(drawn - box).max() <= 0.5 + 2


def test_classes_are_those_of_the_built_in_network() -> None:
    names = built_in_networks()["shapes"].with_suffix(".names")
    assert tuple(names.read_text().split()) == CLASSES


def test_a_folder_with_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        write_scenes(tmp_path / "data", splits={"train": 1}, seed=0, size=64)
    assert files(tmp_path) == {"data/thesis.txt": b"precious"}


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_was_begun_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: BaseException) -> None:
    encode, calls = cv2.imencode, []

    def failing(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise cause
        return encode(*arguments)

    monkeypatch.setattr(cv2, "imencode", failing)
    with pytest.raises((KeyboardInterrupt, InputError)) as caught:
        write_scenes(tmp_path / "data", splits={"train": 9}, seed=0, size=64)
    assert isinstance(cause, KeyboardInterrupt) or "No space left" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "splits, size, told",
    [
        ({"train": 1}, 63, "64 to 4096"),
        ({"train": 1}, 5000, "64 to 4096"),
        ({"train": 0}, 64, "at least one scene"),
        ({"../up": 1}, 64, "plain name"),
    ],
)
def test_senseless_numbers_are_refused(tmp_path: Path, splits: dict[str, int], size: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        write_scenes(tmp_path / "data", splits=splits, seed=0, size=size)
    assert list(tmp_path.iterdir()) == []
