"""A split of labelled pictures in memory, as a network's input wants them, and the batches of an epoch.

Small data: the pictures are kept as uint8 at the network's size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.classes import match_classes
from benchmarks.dataset import Picture, fit_boxes, read_voc
from deploy.contract import Tensor
from deploy.errors import InputError
from deploy.picture import read_picture
from deploy.preprocess import Preprocessor
from toolchain.graph import Graph

#: Most memory that the pictures of one split may take, in bytes.
_LIMIT = 8 << 30


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """n pictures and their truth."""

    #: uint8 (n, height, width, 3): resized and in the network's colour order, but not yet less mean and over std.
    images: np.ndarray
    #: float32 (n, M, 5): x1, y1, x2, y2 in pixels of the input, and the class. Rows of class -1 are padding. M >= 1.
    truth: np.ndarray
    #: What was left out, and why, a sentence each.
    left_out: tuple[str, ...]


def read_samples(data: Path, split: str, graph: Graph) -> Samples:
    """Reads a split in VOC layout for a graph with input and labels, whose classes are matched to the data's by name.

    Objects marked difficult are left out, as darknet does. Pictures that cannot be used and classes that the graph does
    not know are told in `left_out`. Raises InputError when nothing is left, or the split does not fit into memory.
    """
    assert graph.input is not None
    dataset = read_voc(data, split)
    matching = match_classes(graph.labels, dataset.names)
    if not matching.pairs:
        raise InputError(
            f"a training's data have classes of the model's: {data} has {', '.join(dataset.names[:5]) or 'none'}, "
            f"the model {', '.join(graph.labels[:5])}; give data or a names file that fit"
        )
    class_of = {dataset.names[place]: label for label, place in matching.pairs.items()}
    needed = len(dataset.pictures) * graph.input.height * graph.input.width * 3
    if needed > _LIMIT:
        raise InputError(
            f"a split to train on takes at most {_LIMIT >> 30} GiB of pixels: {split!r} takes {needed >> 30}; list less"
        )
    left_out = [f"picture {skipped.id}: {skipped.reason}" for skipped in dataset.skipped]
    left_out += [f"class {name}: the model has none of that name" for name in matching.data_only]
    # Mean 0 and standard deviation 1 keep the pixels whole.
    plain = dataclasses.replace(graph.input, mean=(0.0,) * 3, std=(1.0,) * 3)
    shape = (graph.input.height, graph.input.width, 3)
    preprocessor = Preprocessor(plain, Tensor(graph.input.name, (1, *shape), "uint8", scale=1.0))
    images, truths = [], []
    for picture in dataset.pictures:
        try:
            image, truth = _sample(picture, preprocessor, class_of)
        except InputError as error:
            left_out.append(f"picture {picture.id}: {error}")
            continue
        images.append(image)
        truths.append(truth)
    if not images:
        raise InputError(f"a training needs pictures: none of the split {split!r} of {data} can be read; {left_out[0]}")
    return Samples(np.stack(images), _padded(truths), tuple(left_out))


def _sample(picture: Picture, preprocessor: Preprocessor, class_of: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels, uint8 (h, w, 3), and the truth, float32 (m, 5), of one picture."""
    pixels = read_picture(picture.path)
    tensor, placement = preprocessor(pixels)
    annotation = picture.annotation
    boxes, keep, _ = fit_boxes(annotation.boxes, pixels.shape[1], pixels.shape[0])
    classes = np.array([class_of.get(name, -1) for name in annotation.names], np.float64)
    keep &= (classes >= 0) & ~annotation.difficult
    # VOC counts pixels from 1 and both ends belong to the box: its left edge is xmin - 1, its right one xmax.
    corners = boxes[keep] - (1, 1, 0, 0)
    scale = (placement.scale_x, placement.scale_y) * 2
    moved = np.maximum(corners, 0) * scale + (placement.pad_x, placement.pad_y) * 2
    return tensor[0].copy(), np.concatenate([moved, classes[keep, None]], axis=1).astype(np.float32)


def _padded(truths: list[np.ndarray]) -> np.ndarray:
    """Truths (m, 5) of different m as one array (n, M, 5)."""
    most = max(1, *(len(truth) for truth in truths))
    padded = np.full((len(truths), most, 5), -1, np.float32)
    for row, truth in zip(padded, truths, strict=True):
        row[: len(truth)] = truth
    return padded


def batches(samples: Samples, batch: int, flip: bool, key: tuple[int, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch: images (batch, h, w, 3) and truth (batch, M, 5) in a random order; with flip every second is mirrored.

    Both follow from key. Only whole batches, so that every step costs the same; who is left over changes each time.
    """
    count = len(samples.images)
    rng = np.random.default_rng(key)
    order, turned = rng.permutation(count), rng.random(count) < (0.5 if flip else 0.0)
    width = samples.images.shape[2]
    for start in range(0, count - batch + 1, batch):
        rows = order[start : start + batch]
        images, truth = samples.images[rows], samples.truth[rows]
        turn = turned[rows]
        images[turn] = images[turn, :, ::-1]
        real = turn[:, None] & (truth[..., 4] >= 0)
        x1, x2 = truth[real][:, 0], truth[real][:, 2]
        truth[real, 0], truth[real, 2] = width - x2, width - x1
        yield images, truth
