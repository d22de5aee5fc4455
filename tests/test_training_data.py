"""What is trained on, what is watched, and that the two never meet."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_folders import coco_image, coco_object, write_coco, write_label, write_picture
from voc_folder import xml

from deploy.errors import InputError
from toolchain.graph import Graph
from toolchain.training import PictureFolder, TrainingData
from toolchain.training_data import Example, read_examples, split_examples

GRAPH = Graph("toy", (), (), labels=("red", "blue"))

Object = tuple[str, tuple[float, ...], int]


def add(folder: Path, split: str, name: str, picture: np.ndarray, objects: list[Object]) -> Path:
    """A picture in VOC layout; returns the folder."""
    for part in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "JPEGImages" / f"{name}.png"), picture)
    (folder / "Annotations" / f"{name}.xml").write_text(xml(picture.shape[1::-1], objects))
    with open(folder / "ImageSets" / "Main" / f"{split}.txt", "a") as names:
        names.write(f"{name}\n")
    return folder


def picture(number: int) -> np.ndarray:
    """64 x 48 in a grey level of its own, as long as any other when it is compressed."""
    return np.full((48, 64, 3), number, np.uint8)


RED: list[Object] = [("red", (1, 1, 20, 20), 0)]


def voc(folder: Path, count: int, split: str = "train", first: int = 0) -> PictureFolder:
    for number in range(first, first + count):
        add(folder, split, f"{split}_{number}", picture(number), RED)
    return PictureFolder(folder, split)


def names(pictures: tuple[Example, ...]) -> list[str]:
    return [example.path.stem for example in pictures]


def test_objects_are_edges_in_pixels_of_the_picture_under_the_models_classes(tmp_path: Path) -> None:
    add(tmp_path, "train", "a", picture(0), [("blue", (21, 11, 60, 30), 0), ("Red", (50, 40, 300, 48), 0)])
    add(tmp_path, "train", "b", picture(1), [])
    found = read_examples([PictureFolder(tmp_path, "train")], GRAPH)
    first, second = found.pictures
    assert first.path == tmp_path / "JPEGImages/a.png" and first.labelled
    # VOC's first pixel is 1, and the second box ends at the picture's border.
    assert first.objects.dtype == np.float32
    assert first.objects.tolist() == [[20, 10, 60, 30, 1], [49, 39, 64, 48, 0]]
    assert second.objects.shape == (0, 5) and second.labelled
    assert found.left_out == ()


def test_what_cannot_be_learnt_from_is_left_out_and_told(tmp_path: Path) -> None:
    box = (1, 1, 20, 20)
    add(tmp_path, "train", "good", picture(0), [("red", box, 0), ("blue", box, 1), ("zebra", box, 0)])
    for name in ("broken", "cut", "missing"):
        add(tmp_path, "train", name, picture(0), RED)
    (tmp_path / "JPEGImages/broken.png").write_bytes(b"")
    content = (tmp_path / "JPEGImages/cut.png").read_bytes()
    (tmp_path / "JPEGImages/cut.png").write_bytes(content[:-20])
    (tmp_path / "JPEGImages/missing.png").unlink()
    found = read_examples([PictureFolder(tmp_path, "train")] * 2, GRAPH)
    assert [example.objects.tolist() for example in found.pictures] == [[[0, 0, 20, 20, 0]]] * 2
    assert [text.split(":")[0] for text in found.left_out] == [
        "picture missing",
        "class zebra",
        "picture broken",
        "picture cut",
    ]


def test_the_annotated_size_does_not_count(tmp_path: Path) -> None:
    add(tmp_path, "train", "a", picture(0), RED)
    (tmp_path / "Annotations/a.xml").write_text(xml((640, 480), [("red", (1, 1, 640, 480), 0)]))
    (example,) = read_examples([PictureFolder(tmp_path, "train")], GRAPH).pictures
    assert example.objects.tolist() == [[0, 0, 64, 48, 0]]


def test_every_folder_matches_its_own_classes(tmp_path: Path) -> None:
    voc(tmp_path / "voc", 1)
    write_coco(tmp_path / "coco", "val", [coco_image(1)], [coco_object(1, 90, [4, 5, 6, 7])])
    write_picture(tmp_path / "yolo/images/a.png")  # 40 x 20
    write_label(tmp_path / "yolo/labels/a.txt", "1 0.5 0.5 0.5 0.5")
    (tmp_path / "yolo/data.yaml").write_text("path: elsewhere\nnc: 2\nnames: [cow, RED]\n")
    folders = [PictureFolder(tmp_path / "voc", "train"), PictureFolder(tmp_path / "coco", "val")]
    found = read_examples([*folders, PictureFolder(tmp_path / "yolo")], GRAPH)
    assert [example.objects.tolist() for example in found.pictures] == [
        [[0, 0, 20, 20, 0]],
        [[4, 5, 10, 12, 1]],
        [[10, 5, 30, 15, 0]],
    ]


@pytest.mark.parametrize("text", ["names:\n  0: cow\n  1: red\n", "names: [cow, red]\n", "names:\n- cow\n- ' red '\n"])
def test_names_of_a_description(tmp_path: Path, text: str) -> None:
    write_picture(tmp_path / "images/train/a.png")
    write_label(tmp_path / "labels/train/a.txt", "1 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text(text)
    (example,) = read_examples([PictureFolder(tmp_path, "train")], GRAPH).pictures
    assert example.objects[:, 4].tolist() == [0]


@pytest.mark.parametrize(
    "text", ["nc: 2", "names:\n  1: red\n  0: cow\n", "names: []", "names: [red, 2]", "names: red"]
)
def test_a_description_without_names_is_refused_at_its_place(tmp_path: Path, text: str) -> None:
    write_picture(tmp_path / "images/train/a.png")
    write_label(tmp_path / "labels/train/a.txt", "0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=r"data.yaml:1:\d+: data in YOLO layout have names"):
        read_examples([PictureFolder(tmp_path, "train")], GRAPH)


def test_a_description_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    voc(tmp_path, 1)
    (tmp_path / "data.yaml").write_text("names: &a [red]\nmore: *a\n")
    with pytest.raises(InputError, match="data.yaml:1:8: "):
        read_examples([PictureFolder(tmp_path, "train")], GRAPH)


def test_data_without_any_class_of_the_model_are_refused(tmp_path: Path) -> None:
    add(tmp_path, "train", "a", picture(0), [("zebra", (1, 1, 20, 20), 0)])
    with pytest.raises(InputError, match="zebra"):
        read_examples([PictureFolder(tmp_path, "train")], GRAPH)


def test_a_folder_without_a_readable_picture_is_refused(tmp_path: Path) -> None:
    add(tmp_path / "voc", "train", "a", picture(0), RED)
    (tmp_path / "voc/JPEGImages/a.png").write_bytes(b"\x89PNG")
    for folder in (PictureFolder(tmp_path / "voc", "train"), PictureFolder(tmp_path / "voc/JPEGImages", None, False)):
        with pytest.raises(InputError, match="none of .* can be used; picture a: "):
            read_examples([folder], GRAPH)


def test_pictures_alone(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "sub/c.png", ".hidden.png"):
        write_picture(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "note.txt").write_text("no picture")
    found = read_examples([PictureFolder(tmp_path, labelled=False)], Graph("unnamed", (), ()))
    assert names(found.pictures) == ["a", "b"]
    assert all(example.objects.shape == (0, 5) and not example.labelled for example in found.pictures)
    assert [text.split(":")[0] for text in found.left_out] == ["picture broken"]
    with pytest.raises(InputError, match="a split is one of labelled data"):
        read_examples([PictureFolder(tmp_path, "train", labelled=False)], GRAPH)
    with pytest.raises(InputError, match="is a picture; name the folder"):
        read_examples([PictureFolder(tmp_path / "a.png", labelled=False)], GRAPH)


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 0.99), st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_a_share_is_held_out_and_nothing_lost(tmp_path_factory: pytest.TempPathFactory, share, seed, count) -> None:
    folder = tmp_path_factory.mktemp("voc")
    data = TrainingData((voc(folder, count),), share=share)
    expected = 0 if share == 0 else max(1, round(share * count))
    if expected == count:
        with pytest.raises(InputError, match="needs pictures that it is not watched on"):
            split_examples(data, GRAPH, seed)
        return
    learning, watched = split_examples(data, GRAPH, seed)
    assert len(watched.pictures) == expected
    assert sorted(names(learning.pictures) + names(watched.pictures)) == sorted(f"train_{i}" for i in range(count))
    again = split_examples(data, GRAPH, seed)
    assert names(again[1].pictures) == names(watched.pictures)


def test_another_seed_holds_others_out(tmp_path: Path) -> None:
    data = TrainingData((voc(tmp_path, 30),), share=0.5)
    drawn = {tuple(names(split_examples(data, GRAPH, seed)[1].pictures)) for seed in range(5)}
    assert len(drawn) == 5


def test_a_picture_is_never_trained_on_twice_or_watched_too(tmp_path: Path) -> None:
    train, validation = voc(tmp_path / "train", 6), voc(tmp_path / "val", 3, "val", first=100)
    other = voc(tmp_path / "other", 2, "more", first=200)
    pictures = tmp_path / "train/JPEGImages"
    (pictures / "train_4.png").write_bytes((tmp_path / "val/JPEGImages/val_101.png").read_bytes())
    (tmp_path / "other/JPEGImages/more_200.png").write_bytes((pictures / "train_0.png").read_bytes())
    learning, watched = split_examples(TrainingData((train, other), (validation,)), GRAPH, 0)
    assert names(learning.pictures) == ["train_0", "train_1", "train_2", "train_3", "train_5", "more_201"]
    assert names(watched.pictures) == ["val_100", "val_101", "val_102"]
    assert learning.left_out == (
        "picture train_4: watched as val_101, so never trained on",
        "picture more_200: the same as train_0; trained on once",
    )
    # Whoever names the same folder twice, or watches what is trained on, gets no further.
    learning, _ = split_examples(TrainingData((train, train), (validation,)), GRAPH, 0)
    assert len(learning.pictures) == 5
    with pytest.raises(InputError, match="all 6 are held out, or among the validation's"):
        split_examples(TrainingData((train,), (train,)), GRAPH, 0)


def test_of_equal_pictures_the_labelled_one_stays(tmp_path: Path) -> None:
    train = voc(tmp_path, 3)
    alone = PictureFolder(tmp_path / "JPEGImages", labelled=False)
    learning, watched = split_examples(TrainingData((alone, train), share=0.34), GRAPH, 0)
    assert len(learning.pictures) == 2 and len(watched.pictures) == 1
    assert all(example.labelled for example in learning.pictures + watched.pictures)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(InputError, match="0 to below 1"):
        split_examples(TrainingData((voc(tmp_path, 3),), share=share), GRAPH, 0)


@pytest.mark.real_data
def test_half_of_the_calibration_pictures_are_trained_on_already(real_data: Path) -> None:
    graph = Graph("voc", (), (), labels=tuple((real_data / "weights" / "voc.names").read_text().split()))
    voc2007 = real_data / "voc2007"
    folders = (PictureFolder(voc2007 / "trainval940", "trainval"), PictureFolder(voc2007 / "calibration200"))
    learning, watched = split_examples(TrainingData(folders, share=0.1), graph, 0)
    assert len(learning.left_out) == 100 and all("trained on once" in text for text in learning.left_out)
    assert (len(learning.pictures), len(watched.pictures)) == (940 + 100 - 104, 104)
    tested = read_examples([PictureFolder(voc2007 / "test991", "test")], graph)
    # 2,420 objects, of which only those that are not difficult are learnt.
    assert sum(len(example.objects) for example in tested.pictures) == 2420
