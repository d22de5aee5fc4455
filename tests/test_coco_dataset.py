"""COCO folders, whole and spoiled."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_folders import CATEGORIES, coco_image, coco_object, write_coco, write_picture

from benchmarks import coco_dataset
from benchmarks.coco_dataset import read_coco, splits
from deploy.errors import InputError


def small(folder: Path) -> Path:
    objects = [
        coco_object(9, 90, [10.5, 5, 20, 10.25]),
        coco_object(9, 3, [0, 0, 40, 20], crowd=1),
        coco_object(7, 3, [1, 2, 3, 4]),
    ]
    return write_coco(folder, "val", [coco_image(9), coco_image(7), coco_image(8)], objects)


def reasons(folder: Path, split: str | None = "val") -> dict[str, str]:
    return {one.id: one.reason for one in read_coco(folder, split).skipped}


def test_reads_boxes_classes_and_crowds_in_the_order_of_the_file(tmp_path):
    data = read_coco(small(tmp_path), "val")
    assert [picture.id for picture in data.pictures] == ["000000000009", "000000000007", "000000000008"]
    assert data.names == ("blue", "red") and data.skipped == ()
    first = data.pictures[0]
    assert first.path == tmp_path / "val" / "000000000009.jpg"
    # VOC counts from 1 and both ends belong to the box.
    assert first.annotation.boxes.tolist() == [[10.5 + 1, 5 + 1, 10.5 + 20, 5 + 10.25], [1, 1, 40, 20]]
    assert first.annotation.names == ("blue", "red")
    assert first.annotation.difficult.tolist() == [False, True]
    assert first.annotation.size == (40, 20)
    assert data.pictures[2].annotation.boxes.shape == (0, 4)


@pytest.mark.parametrize("pictures", ["{split}", "images/{split}", "images"])
def test_pictures_lie_in_one_of_three_places(tmp_path, pictures):
    write_coco(tmp_path, "val", [coco_image(1)], [coco_object(1, 3, [0, 0, 1, 1])], pictures=pictures)
    assert read_coco(tmp_path, "val").pictures[0].path.parent == tmp_path / pictures.format(split="val")


def test_a_name_may_lead_into_folders_below(tmp_path):
    write_coco(tmp_path, "val", [coco_image(1, file_name="a/b/c.jpg")], [coco_object(1, 3, [0, 0, 1, 1])])
    assert read_coco(tmp_path, "val").pictures[0].path == tmp_path / "val/a/b/c.jpg"


def test_no_split_is_all_of_them(tmp_path):
    small(tmp_path)
    write_coco(tmp_path, "train", [coco_image(1)], [])
    assert splits(tmp_path) == ("train", "val")
    assert [picture.path.parent.name for picture in read_coco(tmp_path, None).pictures] == ["train"] + ["val"] * 3


@pytest.mark.parametrize("split", ["test", "", "../val", "/etc/passwd"])
def test_a_missing_split_names_those_that_exist(tmp_path, split):
    with pytest.raises(InputError, match="existing: val"):
        read_coco(small(tmp_path), split)


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([1, 2, float("nan"), 4], "four numbers of pixels, not [1, 2, nan, 4]"),
        ([1, 2, float("inf"), 4], "four numbers of pixels"),
        ([1, 2, 3, 1e9], "four numbers of pixels"),
        ([1, 2, -3, 4], "no negative width or height"),
        ([1, 2, 3, -0.5], "no negative width or height"),
        ([1, 2, 3], "four numbers of pixels"),
        ([1, 2, "3", 4], "four numbers of pixels"),
        ([1, 2, True, 4], "four numbers of pixels"),
        (None, "four numbers of pixels, not None"),
        ([1, 2, 10**400, 4], "four numbers of pixels"),
    ],
)
def test_a_spoiled_box_leaves_its_picture_out(tmp_path, bbox, reason):
    write_coco(tmp_path, "val", [coco_image(1), coco_image(2)], [coco_object(1, 3, bbox)])
    assert [picture.id for picture in read_coco(tmp_path, "val").pictures] == ["000000000002"]
    assert list(reasons(tmp_path)) == ["val 1"] and reason in reasons(tmp_path)["val 1"]


def test_what_else_leaves_a_picture_out(tmp_path):
    images = [coco_image(number) for number in (1, 2, 3, 4, 5, 6, 1)]
    images[4]["file_name"], images[5]["width"] = "5.jpg", "wide"
    write_coco(
        tmp_path,
        "val",
        images,
        [
            coco_object(2, 4, [0, 0, 1, 1]),
            coco_object(3, 3, [0, 0, 1, 1], crowd=2),
            coco_object(5, True, [0, 0, 1, 1]),
        ],
    )
    (tmp_path / "val/000000000004.jpg").unlink()
    found = reasons(tmp_path)
    assert {key: text[:30] for key, text in found.items()} == {
        "val 2": "the category '4' of one of its",
        "val 3": "iscrowd of one of its objects ",
        "val 4": "its picture 000000000004.jpg i",
        "val 5": "the category 'True' of one of ",
        "val 1": "its id stands more than once; ",
    }
    kept = read_coco(tmp_path, "val").pictures
    assert [picture.annotation.size for picture in kept] == [(40, 20), None]  # 1 and 6


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/passwd", "a/../../x.jpg", "", "a//b.jpg", "C:\\x", "\33[2J", 7]
)
def test_a_name_stays_in_the_folder(tmp_path, name):
    write_coco(tmp_path, "val", [coco_image(1), coco_image(2)], [])
    path = tmp_path / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    content["images"][1]["file_name"] = name
    path.write_text(json.dumps(content))
    write_picture(tmp_path / "secret.jpg")
    assert "no name of a file within the folder" in reasons(tmp_path)["val 2"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[1, 2", b"\xff\xfe", b"[" * 100_000, b"[]", b"{}", b'{"images": [], "categories": [], "annotations": {}}'],
)
def test_a_file_that_is_none_of_cocos_is_refused(tmp_path, content):
    (small(tmp_path) / "annotations/instances_val.json").write_bytes(content)
    with pytest.raises(InputError, match="annotations (are JSON|of COCO have the lists)"):
        read_coco(tmp_path, "val")


@pytest.mark.parametrize(
    "change",
    [
        {"categories": [{"id": 3, "name": "red"}, {"id": 3, "name": "blue"}]},
        {"categories": [{"id": "3", "name": "red"}]},
        {"categories": [{"id": 3}]},
        {"categories": ["red"]},
        {"annotations": [{"category_id": 3}]},
        {"annotations": ["box"]},
        {"images": [{"file_name": "a.jpg"}]},
        {"images": [3]},
    ],
)
def test_what_belongs_to_no_picture_is_an_error(tmp_path, change):
    path = small(tmp_path) / "annotations/instances_val.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match="instances_val.json"):
        read_coco(tmp_path, "val")


def test_a_huge_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_dataset, "JSON_LIMIT", 10)
    with pytest.raises(InputError, match="is larger"):
        read_coco(small(tmp_path), "val")


def test_no_usable_picture_is_an_error_with_the_first_reason(tmp_path):
    (small(tmp_path) / "val").rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"'val' in .* has none, 3 .* \(val 9\) because .* 0+9.jpg is missing"):
        read_coco(tmp_path, "val")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["id", "name", "file_name", "image_id", "bbox", "category_id"]), inner),
    max_leaves=10,
)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["images", "annotations", "categories"]), st.lists(json_values, max_size=4))
def test_any_json_gives_a_data_set_or_an_input_error(tmp_path_factory, key, values):
    folder = tmp_path_factory.mktemp("coco")
    content = {"images": [coco_image(1)], "annotations": [], "categories": CATEGORIES, key: values}
    write_picture(folder / "val" / "000000000001.jpg")
    (folder / "annotations").mkdir()
    (folder / "annotations/instances_val.json").write_text(json.dumps(content))
    try:
        data = read_coco(folder, "val")
    except InputError:
        return
    for picture in data.pictures:
        assert len(picture.annotation.names) == len(picture.annotation.boxes) == len(picture.annotation.difficult)
