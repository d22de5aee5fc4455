"""A net that learns two colours in seconds, and pictures to learn them on."""

from pathlib import Path

import cv2
import numpy as np

from toolchain.darknet_reader import read_darknet
from toolchain.graph import Graph
from toolchain.training import PictureFolder, TrainingData
from voc_folder import xml

#: A net small enough to learn two colours in seconds.
CFG = """
[net]
width=64
height=64
channels=3
{layers}
[convolutional]
size=1
stride=1
filters=14
activation=linear
[yolo]
mask=0,1
anchors=14,14, 24,24
classes=2
num=2
scale_x_y=1.05
"""
LAYER = """
[convolutional]
batch_normalize=1
filters={filters}
size=3
stride={stride}
pad=1
activation=relu
"""
#: The last cell sees 15 + 2 * 8 pixels: more than the largest square.
LAYERS = ((8, 2), (16, 2), (24, 2), (32, 1))


def toy_graph(folder: Path, layers: tuple[tuple[int, int], ...] = LAYERS, seed: int = 1) -> Graph:
    """layers: filters and stride of each."""
    text = CFG.format(layers="".join(LAYER.format(filters=count, stride=stride) for count, stride in layers))
    (folder / "toy.cfg").write_text(text)
    (folder / "toy.names").write_text("red\nblue\n")
    return read_darknet(folder / "toy.cfg", None, folder / "toy.names", seed=seed)


Object = tuple[str, tuple[float, ...], int]


def add(folder: Path, split: str, name: str, picture: np.ndarray, objects: list[Object]) -> None:
    for part in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "JPEGImages" / f"{name}.png"), picture)
    (folder / "Annotations" / f"{name}.xml").write_text(xml(picture.shape[1::-1], objects))
    with open(folder / "ImageSets" / "Main" / f"{split}.txt", "a") as names:
        names.write(f"{name}\n")


def write_squares(folder: Path, counts: dict[str, int]) -> None:
    """Pictures, 64 x 64, with one red or blue square on grey each."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for index in range(count):
            picture = np.full((64, 64, 3), 100, np.uint8)
            side = int(rng.integers(12, 26))
            x, y = rng.integers(0, 64 - side, 2).tolist()
            color = index % 2
            picture[y : y + side, x : x + side] = [(0, 0, 230), (230, 0, 0)][color]
            truth = [(("red", "blue")[color], (x + 1, y + 1, x + side, y + side), 0)]
            add(folder, split, f"{split}_{index}", picture, truth)


def squares_data(folder: Path) -> TrainingData:
    return TrainingData((PictureFolder(folder, "train"),), (PictureFolder(folder, "val"),))
