"""YOLO folders, whole and spoiled."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_folders import write_label, write_picture

from benchmarks import yolo_dataset
from benchmarks.yolo_dataset import is_yolo, read_names, read_yolo
from deploy.errors import InputError

NAMES = ("red", "blue")


def small(folder: Path, images: str = "images/train", labels: str = "labels/train") -> Path:
    """a with two objects, b without a label."""
    write_picture(folder / images / "a.jpg")  # 40 x 20
    write_picture(folder / images / "b.png")
    write_label(folder / labels / "a.txt", "1 0.5 0.5 0.25 0.5", "0 0.1 0.2 0.2 0.4")
    return folder


def reasons(folder: Path, split: str | None = "train") -> dict[str, str]:
    return {one.id: one.reason for one in read_yolo(folder, split, NAMES).skipped}


@pytest.mark.parametrize(
    ("images", "labels", "split"),
    [
        ("images/train", "labels/train", "train"),
        ("images/train", "labels/train", None),
        ("train/images", "train/labels", "train"),
        ("train/images", "train/labels", None),
        ("images", "labels", None),
        ("images/deep/er", "labels/deep/er", None),
    ],
)
def test_reads_boxes_wherever_they_lie(tmp_path, images, labels, split):
    data = read_yolo(small(tmp_path, images, labels), split, NAMES)
    assert [picture.id for picture in data.pictures] == [f"{images}/a", f"{images}/b"]
    assert data.names == ("blue", "red") and data.skipped == ()
    first, second = data.pictures
    assert first.path == tmp_path / images / "a.jpg"
    assert first.annotation.names == ("blue", "red") and first.annotation.difficult.tolist() == [False, False]
    assert first.annotation.size == (40, 20)
    # Centre and side as parts of 40 x 20, counted as VOC does: the left edge and one.
    expected = [[20 - 5 + 1, 10 - 5 + 1, 20 + 5, 10 + 5], [4 - 4 + 1, 4 - 4 + 1, 4 + 4, 4 + 4]]
    np.testing.assert_allclose(first.annotation.boxes, expected, rtol=1e-12)
    assert second.annotation.names == () and second.annotation.boxes.shape == (0, 4)


def test_sides_are_those_of_the_picture_turned_upright(tmp_path):
    from PIL import Image

    path = small(tmp_path) / "images/train/a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(path, exif=exif.tobytes())
    annotation = read_yolo(tmp_path, "train", NAMES).pictures[0].annotation
    assert annotation.size == (20, 40)
    np.testing.assert_allclose(annotation.boxes[0], [10 - 2.5 + 1, 20 - 10 + 1, 10 + 2.5, 20 + 10], rtol=1e-12)


def test_an_outline_stands_for_its_box(tmp_path):
    write_label(small(tmp_path) / "labels/train/a.txt", "0 0.1 0.5 0.5 0.2 0.9 0.4", "1 0 0 1 0 1 1 0 1")
    boxes = read_yolo(tmp_path, "train", NAMES).pictures[0].annotation.boxes
    np.testing.assert_allclose(boxes, [[4 + 1, 4 + 1, 36, 10], [1, 1, 40, 20]], rtol=1e-12)


def test_names_come_from_the_folder(tmp_path):
    small(tmp_path)
    (tmp_path / "toy.names").write_text("rouge\nbleu  marine \n\n")
    assert read_yolo(tmp_path, "train").names == ("bleu marine", "rouge")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="it has 2, classes.txt and toy.names"):
        read_yolo(tmp_path, "train")
    assert read_yolo(tmp_path, "train", NAMES).names == ("blue", "red")  # nothing is left open


def test_without_names_the_error_says_what_to_write(tmp_path):
    with pytest.raises(InputError, match=r"classes.txt or \*.names .* it has none; write a name a line"):
        read_yolo(small(tmp_path), "train")


@pytest.mark.parametrize("text", ["", "\n", "a\n\nb\n"])
def test_names_are_one_a_line(tmp_path, text):
    (tmp_path / "some.names").write_text(text)
    with pytest.raises(InputError, match="a name a line"):
        read_names(tmp_path / "some.names")
    with pytest.raises(InputError, match="cannot read"):
        read_names(tmp_path / "none.names")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 nan 0.5 0.5 0.5", "parts of the picture, 0 to 1"),
        ("0 0.5 inf 0.5 0.5", "parts of the picture, 0 to 1"),
        ("0 0.5 0.5 -0.1 0.5", "parts of the picture, 0 to 1"),
        ("0 0.5 0.5 -0.0005 0.5", "no negative width or height"),
        ("0 200 100 50 50", "parts of the picture, 0 to 1, not '0 200 100 50 50'"),
        ("2 0.5 0.5 0.5 0.5", "class is 0 to 1, as many as there are names, not '2'"),
        ("-1 0.5 0.5 0.5 0.5", "class is 0 to 1"),
        ("0.5 0.5 0.5 0.5 0.5", "class is 0 to 1"),
        ("nan 0.5 0.5 0.5 0.5", "class is 0 to 1"),
        ("red 0.5 0.5 0.5 0.5", "numbers alone"),
        ("0 0.5 0.5 0.5", "not 4 numbers"),
        ("0 0.5 0.5 0.5 0.5 0.9", "not 6 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "not 8 numbers"),
    ],
)
def test_a_spoiled_label_leaves_its_picture_out(tmp_path, line, reason):
    write_label(small(tmp_path) / "labels/train/a.txt", "0 0.5 0.5 0.5 0.5", line)
    assert list(reasons(tmp_path)) == ["images/train/a"] and reason in reasons(tmp_path)["images/train/a"]
    assert [picture.id for picture in read_yolo(tmp_path, "train", NAMES).pictures] == ["images/train/b"]


def test_what_else_leaves_a_picture_out(tmp_path, monkeypatch):
    small(tmp_path)
    for name in "cde":
        write_picture(tmp_path / f"images/train/{name}.jpg")
    (tmp_path / "images/train/c.jpg").write_bytes(b"no picture")
    write_label(tmp_path / "labels/train/c.txt", "0 0.5 0.5 0.5 0.5")
    (tmp_path / "labels/train/d.txt").write_bytes(b"\xff\xfe0 0.5 0.5 0.5 0.5")
    monkeypatch.setattr(yolo_dataset, "LABEL_LIMIT", 60)
    write_label(tmp_path / "labels/train/e.txt", *["0 0.5 0.5 0.5 0.5"] * 9)
    found = {key[-1]: text for key, text in reasons(tmp_path).items()}
    assert list(found) == ["c", "d", "e"]
    assert "is no picture" in found["c"] and "is text: d.txt is not" in found["d"] and "e.txt is larger" in found["e"]


def test_a_list_of_darknet_names_the_pictures(tmp_path):
    small(tmp_path, "obj/images", "obj/labels")
    write_picture(tmp_path / "beside/c.jpg")
    write_label(tmp_path / "beside/c.txt", "0 0.5 0.5 1 1")
    write_picture(tmp_path / "images/JPEGImages/d.jpg")
    write_label(tmp_path / "images/labels/d.txt", "0 0.5 0.5 1 1")
    lines = ["beside/c.jpg", f"{tmp_path}/obj/images/a.jpg", "", "./images/JPEGImages/d.jpg", "obj/images/gone.jpg"]
    (tmp_path / "train.txt").write_text("\r\n".join([*lines, "beside/c.jpg"]))
    data = read_yolo(tmp_path, "train", NAMES)
    assert [picture.id for picture in data.pictures] == ["beside/c", "obj/images/a", "images/JPEGImages/d"]
    assert [len(picture.annotation.names) for picture in data.pictures] == [1, 2, 1]
    assert {one.id: one.reason for one in data.skipped} == {
        "obj/images/gone": "its picture gone.jpg is missing",
        "beside/c": "stands more than once in the split; counted once",
    }


@pytest.mark.parametrize("line", ["../x.jpg", "/etc/passwd", "images/../../x.jpg", ".", "a\0b.jpg", "\33[2J.jpg"])
def test_a_list_does_not_lead_out_of_the_folder(tmp_path, line):
    small(tmp_path / "data")
    write_picture(tmp_path / "x.jpg")
    (tmp_path / "data/train.txt").write_text(f"images/train/a.jpg\n{line}\n")
    with pytest.raises(InputError, match="entry 2 of .*leads elsewhere"):
        read_yolo(tmp_path / "data", "train", NAMES)


def test_a_folder_may_be_named_from_where_one_stands(tmp_path, monkeypatch):
    small(tmp_path / "data")
    (tmp_path / "data/few.txt").write_text("images/train/a.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert len(read_yolo(Path("data"), "few", NAMES).pictures) == 1
    os.symlink(tmp_path / "data", tmp_path / "link")
    assert len(read_yolo(Path("link"), "few", NAMES).pictures) == 1
    assert len(read_yolo(Path("link"), "train", NAMES).pictures) == 2


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_list_is_an_error(tmp_path, text):
    (small(tmp_path) / "few.txt").write_text(text)
    with pytest.raises(InputError, match="lists at least one picture"):
        read_yolo(tmp_path, "few", NAMES)


@pytest.mark.parametrize("split", ["val", "", "../train", "/tmp"])
def test_a_missing_split_names_those_that_exist(tmp_path, split):
    small(tmp_path)
    small(tmp_path, "other/images", "other/labels")
    (tmp_path / "few.txt").write_text("images/train/a.jpg\n")
    (tmp_path / "classes.txt").write_text("red\nblue\n")
    with pytest.raises(InputError, match="existing: few, other, train"):
        read_yolo(tmp_path, split)


def test_no_usable_picture_is_an_error(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "labels").mkdir()
    assert is_yolo(tmp_path, None) and not is_yolo(tmp_path, "train") and not is_yolo(folder, None)
    with pytest.raises(InputError, match="all of .* has none, 0 were skipped; check the folder"):
        read_yolo(tmp_path, None, NAMES)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60) | st.text("0123456789.-+e \nnaif", max_size=60).map(str.encode))
def test_any_label_gives_boxes_in_the_picture_or_a_reason(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("yolo")
    write_picture(folder / "images/a.png")
    write_picture(folder / "images/b.png")
    (folder / "labels").mkdir()
    (folder / "labels/a.txt").write_bytes(content)
    data = read_yolo(folder, None, NAMES)
    assert len(data.pictures) + len(data.skipped) == 2
    for picture in data.pictures:
        boxes = picture.annotation.boxes
        assert np.isfinite(boxes).all() and len(boxes) == len(picture.annotation.names)
        # A centre at the border and a full side: half of it lies outside.
        assert (boxes >= -21).all() and (boxes <= 61).all()


@pytest.mark.real_data
def test_the_first_pictures_of_coco(real_data):
    names = read_names(real_data / "weights" / "coco.names")
    data = read_yolo(real_data / "coco" / "val2017-128", None, names)
    assert (len(data.pictures), len(data.skipped)) == (128, 0)
    labels = sorted((real_data / "coco" / "val2017-128" / "labels").glob("*.txt"))
    lines = [line for path in labels for line in path.read_text().splitlines() if line.strip()]
    assert sum(len(picture.annotation.names) for picture in data.pictures) == len(lines) == 898
    for picture in data.pictures:
        size = picture.annotation.size
        assert size is None or cv2.imread(str(picture.path)).shape[1::-1] == size
