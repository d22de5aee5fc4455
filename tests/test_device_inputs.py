"""Which files go to a device."""

import pytest
from labelled_folders import coco_image, coco_object, write_coco, write_label, write_picture
from voc_folder import add_picture, small_set

from benchmarks.dataset import read_dataset
from benchmarks.device_inputs import labelled, one_file, source
from deploy.errors import InputError


def copied(found, folder):
    """The files as they would lie on the device."""
    for inside, path in found.files.items():
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        (folder / inside).write_bytes(path.read_bytes())
    return folder / found.name


def same(data, split, folder, names=()):
    """The data set read on the device has the same pictures, truths and reasons."""
    found = labelled(str(data), {"split": split, "names": None})
    here, there = read_dataset(data, split or None, names), read_dataset(copied(found, folder), split or None, names)
    assert [one.id for one in here.pictures] == [one.id for one in there.pictures]
    assert [one.annotation.names for one in here.pictures] == [one.annotation.names for one in there.pictures]
    assert here.skipped == there.skipped and here.names == there.names
    return found


@pytest.mark.parametrize("split", ["test", ""])
def test_voc(tmp_path, split):
    data = small_set(tmp_path / "VOC2007")
    (data / "Annotations" / "001.xml").write_text("<broken")
    (data / "JPEGImages" / "002.png").unlink()
    (data / "JPEGImages" / "other.png").write_bytes(b"")
    found = same(data, split, tmp_path / "device")
    assert found.name == "VOC2007" and "VOC2007/JPEGImages/other.png" not in found.files


def test_voc_takes_one_split_alone(tmp_path):
    data = small_set(tmp_path / "data")
    add_picture(data, "900")
    lines = (data / "ImageSets/Main/test.txt").read_text().splitlines()
    (data / "ImageSets/Main/val.txt").write_text(f"{lines[0]}\n")
    assert sorted(labelled(str(data), {"split": "val"}).files) == [
        "data/Annotations/000.xml", "data/ImageSets/Main/val.txt", "data/JPEGImages/000.png",
    ]  # fmt: skip


@pytest.mark.parametrize("split", ["val", ""])
def test_coco(tmp_path, split):
    data = write_coco(tmp_path / "coco", "val", [coco_image(1), coco_image(2)], [coco_object(1, 3, [0, 0, 5, 5])])
    found = same(data, split, tmp_path / "device")
    assert sorted(found.files) == [
        "coco/annotations/instances_val.json", "coco/val/000000000001.jpg", "coco/val/000000000002.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize("split", ["val", ""])
def test_yolo(tmp_path, split):
    data = tmp_path / "yolo"
    place = f"{split}/" if split else ""
    for index in range(3):
        write_picture(data / f"images/{place}{index}.png")
    write_label(data / f"labels/{place}0.txt", "0 0.5 0.5 1 1")
    write_label(data / f"labels/{place}1.txt", "9 0.5 0.5 1 1")
    write_label(data / "classes.txt", "red")
    same(data, split, tmp_path / "device")


def test_a_source(tmp_path):
    photos = tmp_path / "photos"
    for name in ("a.jpg", "b.png", ".hidden.jpg", "below/c.jpg"):
        write_picture(photos / name)
    (photos / "notes.txt").write_text("")
    assert sorted(source(str(photos), {}).files) == ["photos/a.jpg", "photos/b.png"]
    assert list(source(str(photos / "a.jpg"), {}).files) == ["a.jpg"]
    for camera in ("0", "/dev/video0", "rtsp://user:secret@camera/1", "/dev/null"):
        assert source(camera, {}) is None
    with pytest.raises(InputError, match="there is no 'phtos' here"):
        source("phtos", {})
    with pytest.raises(InputError, match="there is no file"):
        one_file(str(photos), {})
