"""The three layouts, told apart."""

from pathlib import Path

import pytest
from labelled_folders import coco_image, coco_object, write_coco, write_label, write_picture
from voc_folder import small_set

from benchmarks.dataset import read_dataset
from deploy.errors import InputError


def yolo(folder: Path) -> Path:
    write_picture(folder / "images/test/a.jpg")
    write_label(folder / "labels/test/a.txt", "0 0.5 0.5 1 1")
    (folder / "classes.txt").write_text("green\n")
    return folder


def coco(folder: Path) -> Path:
    return write_coco(folder, "test", [coco_image(1)], [coco_object(1, 90, [0, 0, 40, 20])])


@pytest.mark.parametrize("split", ["test", None])
def test_each_layout_is_read_and_says_the_same_box(tmp_path, split):
    for write, name in ((small_set, "red"), (coco, "blue"), (yolo, "green")):
        data = read_dataset(write(tmp_path / write.__name__), split)
        assert data.names[-1] == name
        assert data.pictures[0].annotation.boxes.tolist() == [[1, 1, 40, 20]]
        assert data.pictures[0].annotation.size == (40, 20)


def test_the_first_of_several_layouts_counts(tmp_path):
    assert read_dataset(yolo(tmp_path), "test").names == ("green",)
    assert read_dataset(coco(tmp_path), "test").names == ("blue",)
    assert read_dataset(small_set(tmp_path), "test").names == ("blue", "red")


def test_names_are_for_data_that_name_no_classes(tmp_path):
    (yolo(tmp_path) / "classes.txt").unlink()
    assert read_dataset(tmp_path, None, ("gnu",)).names == ("gnu",)


def test_all_pictures_of_voc_without_lists(tmp_path):
    small_set(tmp_path)
    (tmp_path / "ImageSets/Main/test.txt").write_text("003\n001\n")
    assert [picture.id for picture in read_dataset(tmp_path, "test").pictures] == ["003", "001"]
    assert [picture.id for picture in read_dataset(tmp_path, None).pictures] == ["000", "001", "002", "003"]
    (tmp_path / "ImageSets").rename(tmp_path / "elsewhere")
    assert [picture.id for picture in read_dataset(tmp_path, None).pictures] == ["000", "001", "002", "003"]
    with pytest.raises(InputError, match="ImageSets/Main is missing"):
        read_dataset(tmp_path, "test")


def test_no_layout_is_an_error_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match="there is no .*none"):
        read_dataset(tmp_path / "none", "test")
    write_picture(tmp_path / "a.jpg")
    for part in ("ImageSets/Main", "Annotations", r"annotations/instances_<split>.json", "images and labels", ".txt"):
        with pytest.raises(InputError, match=part):
            read_dataset(tmp_path, "test")
    for write in (coco, small_set):
        write(tmp_path / write.__name__)
        with pytest.raises(InputError, match=f"did you mean its folder {write.__name__}"):
            read_dataset(tmp_path, "test")
        (tmp_path / write.__name__).rename(tmp_path.parent / f"{tmp_path.name}_{write.__name__}")
    yolo(tmp_path / "train")
    with pytest.raises(InputError, match="existing: train"):
        read_dataset(tmp_path, "test")


@pytest.mark.real_data
def test_real_pictures_without_lists(real_data):
    data = read_dataset(real_data / "voc2007" / "calibration200", None)
    assert (len(data.pictures), data.skipped) == (200, ())
