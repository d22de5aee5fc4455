"""Which pictures a network is trained on and which it is only watched on, and what they show.

Nothing is decoded here: a picture's header says whether it can be used and how large it is.

The same picture is the same bytes, whatever its name. None is trained on twice, and none is trained on that the
network is watched on: VOC2007's trainval pictures, for one, stand in VOC2012 again.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.annotations import Annotation, Dataset, fit_boxes
from benchmarks.classes import match_classes
from benchmarks.dataset import read_dataset
from deploy.errors import InputError
from deploy.picture import picture_size
from deploy.source import locate
from deploy.strict_yaml import read_yaml
from toolchain.graph import Graph
from toolchain.training import PictureFolder, TrainingData

#: What ultralytics calls the file that describes data in YOLO layout.
DESCRIPTION = "data.yaml"


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One picture and what is to be found on it."""

    path: Path
    #: float32 (n, 5): x1, y1, x2, y2 in pixels of the picture, from 0 and at its outer edges, and the index of the
    #: class in graph.labels. (0, 5) where nothing is to be found, and where nobody said what is.
    objects: np.ndarray
    #: Whether somebody said what it shows.
    labelled: bool = True


@dataclasses.dataclass(frozen=True)
class Examples:
    """Pictures in the order of their folders, and what was left out of them, a sentence each."""

    pictures: tuple[Example, ...]
    left_out: tuple[str, ...]


def read_examples(folders: Sequence[PictureFolder], graph: Graph) -> Examples:
    """The pictures of all folders, each folder's classes matched to the graph's labels by name.

    Objects marked difficult are left out, as darknet does, and so are crowds. Pictures that cannot be used and classes
    that the graph does not know are told in `left_out`.

    Raises InputError for a folder that cannot be read, that shares no class with the graph, or that has no usable
    picture.
    """
    pictures: list[Example] = []
    left_out: list[str] = []
    for folder in folders:
        found = _labelled(folder, graph) if folder.labelled else _alone(folder)
        if not found.pictures:
            raise InputError(
                f"a training needs pictures: none of {folder.folder} can be used; {_first(found.left_out)}"
            )
        pictures += found.pictures
        left_out += found.left_out
    return Examples(tuple(pictures), tuple(dict.fromkeys(left_out)))


def split_examples(data: TrainingData, graph: Graph, seed: int = 0) -> tuple[Examples, Examples]:
    """What is trained on, and what is watched.

    Without validation folders a share of the pictures, drawn by the seed, is held out: at least one, unless the share
    is 0. All trainings of a recipe hold out the same, whatever their own seeds: none is watched on what another saw.
    Pictures that are there twice, or are watched too, are told in the first one's `left_out`.

    Raises InputError as read_examples does, for a share that is not 0 to below 1, and when nothing is left to train on.
    """
    if not 0 <= data.share < 1:
        raise InputError(f"a validation's share is 0 to below 1: got {data.share}; correct it")
    learning = read_examples(data.train, graph)
    watched = read_examples(data.validation, graph)
    kept, repeated = _without_repeats(learning.pictures, watched.pictures)
    held: tuple[Example, ...] = ()
    if not data.validation and data.share:
        count = max(1, round(data.share * len(kept)))
        out = set(np.random.default_rng(seed).permutation(len(kept))[:count].tolist())
        held = tuple(example for index, example in enumerate(kept) if index in out)
        kept = [example for index, example in enumerate(kept) if index not in out]
    if not kept:
        raise InputError(
            f"a training needs pictures that it is not watched on: all {len(learning.pictures)} are held out, or among "
            "the validation's; add others"
        )
    watched = dataclasses.replace(watched, pictures=watched.pictures + held)
    return Examples(tuple(kept), (*learning.left_out, *repeated)), watched


def _labelled(folder: PictureFolder, graph: Graph) -> Examples:
    dataset = read_dataset(folder.folder, folder.split, _described_names(folder.folder))
    class_of, unknown = _classes(dataset, folder.folder, graph)
    pictures: list[Example] = []
    left_out = [f"picture {skipped.id}: {skipped.reason}" for skipped in dataset.skipped]
    left_out += [f"class {name}: the model has none of that name" for name in unknown]
    for picture in dataset.pictures:
        try:
            width, height = picture_size(picture.path)
        except InputError as error:
            left_out.append(f"picture {picture.id}: {error}")
            continue
        pictures.append(Example(picture.path, _objects(picture.annotation, class_of, width, height)))
    return Examples(tuple(pictures), tuple(left_out))


def _alone(folder: PictureFolder) -> Examples:
    if folder.split is not None:
        raise InputError(
            f"a split is one of labelled data: pictures alone are all that lie in {folder.folder}; leave out "
            f"{folder.split!r}, or say that they are labelled"
        )
    source = locate(str(folder.folder))
    if source.kind != "folder":
        raise InputError(f"pictures come from a folder, but {folder.folder} is a {source.kind}; name the folder")
    pictures: list[Example] = []
    left_out: list[str] = []
    for path in source.files:
        try:
            picture_size(path)
        except InputError as error:
            left_out.append(f"picture {path.stem}: {error}")
            continue
        pictures.append(Example(path, np.zeros((0, 5), np.float32), labelled=False))
    return Examples(tuple(pictures), tuple(left_out))


def _classes(dataset: Dataset, folder: Path, graph: Graph) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label's index of every class of the data that the graph knows, and the names of the others."""
    matching = match_classes(graph.labels, dataset.names)
    if not matching.pairs:
        raise InputError(
            f"a training's data have classes of the model's: {folder} has {', '.join(dataset.names[:5]) or 'none'}, "
            f"the model {', '.join(graph.labels[:5])}; give data or a names file that fit"
        )
    return {dataset.names[place]: label for label, place in matching.pairs.items()}, matching.data_only


def _objects(annotation: Annotation, class_of: dict[str, int], width: int, height: int) -> np.ndarray:
    boxes, keep, _ = fit_boxes(annotation.boxes, width, height)
    classes = np.array([class_of.get(name, -1) for name in annotation.names], np.float64)
    keep &= (classes >= 0) & ~annotation.difficult
    corners = np.maximum(boxes[keep] - (1, 1, 0, 0), 0)
    return np.concatenate([corners, classes[keep, None]], axis=1).astype(np.float32)


def _described_names(folder: Path) -> tuple[str, ...]:
    """The classes that a data.yaml in the folder names, as a list or by index; none where there is no such file."""
    path = folder / DESCRIPTION
    if not path.is_file():
        return ()
    _, described, places = read_yaml(path, "recipe", "`slimdet build --schema`")
    named = described.get("names")
    if isinstance(named, dict) and list(named) == [str(index) for index in range(len(named))]:
        named = list(named.values())
    if not isinstance(named, list) or not named or not all(isinstance(name, str) and name.strip() for name in named):
        raise InputError(
            f"{places.text(path, ('names',))}: data in YOLO layout have names, a list of texts or a mapping 0, 1, 2, … "
            f"to texts; got {str(named)[:60]}; correct it"
        )
    return tuple(name.strip() for name in named)


def _without_repeats(pictures: Sequence[Example], watched: Sequence[Example]) -> tuple[list[Example], list[str]]:
    """The pictures, each once and none of those watched, and a sentence for each that was taken out. Of equal ones a
    labelled one stays."""
    order = sorted(pictures, key=lambda example: not example.labelled)
    digests = _digests_of_equally_long([example.path for example in (*watched, *order)])
    watched_as = {digests[example.path]: example.path for example in watched if example.path in digests}
    kept_as: dict[bytes, Path] = {}
    kept: list[Example] = []
    told: list[str] = []
    for example in order:
        digest = digests.get(example.path)
        if digest is None:
            kept.append(example)
        elif digest in watched_as:
            told.append(f"picture {example.path.stem}: watched as {watched_as[digest].stem}, so never trained on")
        elif digest in kept_as:
            told.append(f"picture {example.path.stem}: the same as {kept_as[digest].stem}; trained on once")
        else:
            kept_as[digest] = example.path
            kept.append(example)
    return kept, told


def _digests_of_equally_long(paths: Iterable[Path]) -> dict[Path, bytes]:
    """SHA-256 of the files that are as long as another of them: no other can be equal to one. A path that is given
    twice is as long as itself."""
    lengths = [(path, path.stat().st_size) for path in paths]
    often = Counter(length for _, length in lengths)
    return {path: hashlib.sha256(path.read_bytes()).digest() for path, length in lengths if often[length] > 1}


def _first(left_out: Sequence[str]) -> str:
    return left_out[0] if left_out else "there is none"
