"""The sections of a darknet cfg as values. line is where the section begins in its file.

Layer numbers are as written: from 0 at the first section after [net], or negative, back from the reading section.
"""

from __future__ import annotations

import dataclasses

#: darknet's activations that have an exact counterpart in a graph.
ACTIVATIONS = ("linear", "leaky", "relu", "relu6", "swish", "mish", "logistic", "tanh", "elu", "relie")


@dataclasses.dataclass(frozen=True)
class Net:
    line: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Convolutional:
    line: int
    filters: int
    size: int
    #: Vertical, horizontal.
    stride: tuple[int, int]
    #: Zeros on each side, in kernel cells: times the dilation it is pixels.
    padding: int
    dilation: int
    groups: int
    batch_normalize: bool
    activation: str


@dataclasses.dataclass(frozen=True)
class MaxPool:
    line: int
    size: int
    #: Vertical, horizontal.
    stride: tuple[int, int]
    #: Pixels by which windows may stand out on both sides together; half of it, rounded down, before the first pixel.
    padding: int


@dataclasses.dataclass(frozen=True)
class AvgPool:
    line: int


@dataclasses.dataclass(frozen=True)
class Upsample:
    line: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Reorg:
    line: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Route:
    line: int
    layers: tuple[int, ...]
    #: Of every layer only the group_id-th of so many equal parts of its channels.
    groups: int
    group_id: int


@dataclasses.dataclass(frozen=True)
class Shortcut:
    line: int
    layers: tuple[int, ...]
    activation: str


@dataclasses.dataclass(frozen=True)
class Scale:
    """[scale_channels] and [sam]: another layer's output times this one's input."""

    line: int
    layer: int
    #: "channel": the input is (1, 1, c); "pixel": it is (h, w, 1); "element": it has the layer's own shape.
    by: str
    activation: str


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Does nothing in inference."""

    line: int


@dataclasses.dataclass(frozen=True)
class Detection:
    """[yolo], or [region] where in_cells."""

    line: int
    #: (width, height) of the anchors of this scale, in mask order: in input pixels, or in grid cells where in_cells.
    anchors: tuple[tuple[float, float], ...]
    classes: int
    scale_x_y: float
    new_coords: bool
    in_cells: bool


Section = Convolutional | MaxPool | AvgPool | Upsample | Reorg | Route | Shortcut | Scale | Dropout | Detection
