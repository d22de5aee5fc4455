"""What a YOLO head is trained with: boxes by CIoU, objectness and classes by cross-entropy, as YOLOv4 defines them.

Every truth is given to the anchor, among those of all scales, whose shape fits it best, and to every other anchor
whose shape has an IoU above 0.213 with it (YOLOv4, section 3.4: multiple anchors for one truth), always in the cell
that holds its centre. A predicted box that overlaps any truth by more than 0.7 but was given none is neither object nor
background.

    L_CIoU = 1 - IoU + ρ²(b, g)/c² + α·v      v = 4/π²·(atan(w_g/h_g) - atan(w_b/h_b))²      α = v / (1 - IoU + v)

with ρ the distance of the centres and c the diagonal of the smallest box around both (Zheng et al. 2020, Distance-IoU
Loss, equations 8 to 11; α is a constant to the gradient). Everything is in pixels of the network's input.

Every tensor has the same shape in every step: what is not assigned counts with weight 0. So the step is compiled once,
on any of Keras's backends. Only the process that trains imports this module: it needs Keras.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from keras import ops

from deploy.contract import Scale, YoloHead

#: A log-width beyond this (a box e⁸ times its anchor) is cut, so that no exponential overflows.
_LARGEST_LOG = 8.0
_TINY = 1e-7

#: A tensor of Keras's backend, or what it makes one of.
Tensor = Any


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """How the parts are added up, and the two thresholds of YOLOv4's cfg (iou_thresh, ignore_thresh)."""

    box: float = 2.0
    objectness: float = 1.0
    classes: float = 1.0
    anchor_iou: float = 0.213
    ignore_iou: float = 0.7


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One scale's output, taken apart, with n = h*w*A in the order of rows, columns, anchors: values (batch, n, 4), the
    logits of x, y, w, h; objectness (batch, n) and classes (batch, n, C), logits."""

    values: Tensor
    objectness: Tensor
    classes: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Where the boxes of one scale stand: float32 (n, 2) each, cells as column and row, anchors as width and height."""

    rows: int
    columns: int
    cells: np.ndarray
    anchors: np.ndarray


def grid(raw: Tensor, scale: Scale) -> Grid:
    """The boxes of a scale whose raw output is (batch, h, w, A*(5+C))."""
    rows, columns, count = raw.shape[1], raw.shape[2], len(scale.anchors)
    y, x, anchor = np.indices((rows, columns, count)).reshape(3, -1)
    sizes = np.array(scale.anchors, np.float32)[anchor]
    return Grid(rows, columns, np.stack([x, y], axis=-1).astype(np.float32), sizes)


def take_apart(raw: Tensor, scale: Scale) -> Prediction:
    """Splits one scale's raw logits, (batch, h, w, A*(5+C)), anchor-major."""
    width = raw.shape[3] // len(scale.anchors)
    values = ops.reshape(ops.cast(raw, "float32"), (-1, raw.shape[1] * raw.shape[2] * len(scale.anchors), width))
    return Prediction(values[..., :4], values[..., 4], values[..., 5:])


def boxes_of(values: Tensor, cells: Tensor, anchors: Tensor, head: YoloHead, scale: Scale) -> Tensor:
    """Boxes (…, 4) as x1, y1, x2, y2 in input pixels by the formulas of YoloHead. values: logits (…, 4); cells and
    anchors: (…, 2) as in Grid."""
    widen = scale.scale_x_y
    center = (ops.sigmoid(values[..., :2]) * widen - (widen - 1) / 2 + cells) * scale.stride
    if head.box == "exp":
        size = ops.exp(ops.clip(values[..., 2:4], -_LARGEST_LOG, _LARGEST_LOG))
    else:
        size = ops.square(2 * ops.sigmoid(values[..., 2:4]))
    half = size * anchors / 2
    return ops.concatenate([center - half, center + half], axis=-1)


def yolo_loss(head: YoloHead, truth: Tensor, outputs: list[Tensor], weights: LossWeights) -> Tensor:
    """The loss of a batch, a scalar: the sum over everything in a picture, averaged over the pictures.

    truth: float32 (batch, M, 5), x1, y1, x2, y2 in input pixels and the class; rows of class -1 are padding. outputs:
    the raw tensors in the order of head.scales.
    """
    truth = ops.convert_to_tensor(truth, "float32")
    total = 0.0
    for scale, raw, given in zip(head.scales, outputs, assign(head, truth, weights.anchor_iou), strict=True):
        total += _scale_loss(head, scale, raw, truth, given, weights)
    return ops.mean(total)


def assign(head: YoloHead, truth: Tensor, anchor_iou: float) -> list[Tensor]:
    """Which anchors of each scale a truth is given to: for every scale a bool tensor (batch, M, A)."""
    shapes = [anchor for scale in head.scales for anchor in scale.anchors]
    anchors = np.array(shapes, np.float32)
    size = ops.maximum(truth[..., 2:4] - truth[..., 0:2], 0.0)[:, :, None, :]
    least = ops.minimum(size, anchors)
    shared = least[..., 0] * least[..., 1]
    iou = shared / (size[..., 0] * size[..., 1] + np.prod(anchors, axis=-1) - shared)
    best = ops.argmax(iou, axis=-1)[..., None] == np.arange(len(shapes))
    given = ops.logical_and(ops.logical_or(best, iou > anchor_iou), truth[..., 4:5] >= 0)
    ends = np.cumsum([0, *(len(scale.anchors) for scale in head.scales)])
    return [given[..., first:last] for first, last in zip(ends[:-1], ends[1:], strict=True)]


def _scale_loss(
    head: YoloHead, scale: Scale, raw: Tensor, truth: Tensor, given: Tensor, weights: LossWeights
) -> Tensor:
    """One scale's loss of every picture, (batch,). given: bool (batch, M, A)."""
    places, count, most = grid(raw, scale), len(scale.anchors), truth.shape[1]
    prediction = take_apart(raw, scale)
    center = (truth[..., 0:2] + truth[..., 2:4]) / 2 / scale.stride
    limit = np.array([places.columns - 1, places.rows - 1], np.float32)
    cell = ops.clip(ops.floor(center), 0.0, limit)
    # Every pair of a truth and an anchor, M*A of them, and the box that the pair is about.
    first = (ops.cast(cell[..., 1], "int32") * places.columns + ops.cast(cell[..., 0], "int32")) * count
    place = ops.reshape(first[..., None] + np.arange(count, dtype=np.int32), (-1, most * count))
    weight = ops.cast(ops.reshape(given, (-1, most * count)), "float32")

    def chosen(values: Tensor) -> Tensor:
        return ops.take_along_axis(values, place[..., None], axis=1)

    mine = ops.repeat(truth, count, axis=1)
    anchors = np.tile(np.array(scale.anchors, np.float32), (most, 1))
    found = boxes_of(chosen(prediction.values), ops.repeat(cell, count, axis=1), anchors, head, scale)
    box = ops.sum(weight * ciou_loss(found, mine[..., :4]), axis=1)

    logits = chosen(prediction.classes)
    wanted = ops.cast(ops.cast(mine[..., 4:5], "int32") == np.arange(logits.shape[-1], dtype=np.int32), "float32")
    if head.class_activation == "softmax":
        entropies = -ops.sum(wanted * ops.log_softmax(logits), axis=-1)
    else:
        entropies = ops.sum(cross_entropy(wanted, logits), axis=-1)
    classes = ops.sum(weight * entropies, axis=1)

    boxes = ops.stop_gradient(boxes_of(prediction.values, places.cells, places.anchors, head, scale))
    objects = _marked(place, weight, len(places.cells))
    counted = ops.cast(_best_overlap(boxes, truth) <= weights.ignore_iou, "float32")
    entropy = cross_entropy(objects, prediction.objectness)
    objectness = ops.sum(entropy * ops.maximum(objects, counted), axis=1)
    return weights.box * box + weights.objectness * objectness + weights.classes * classes


def _marked(place: Tensor, weight: Tensor, count: int) -> Tensor:
    """(batch, count), 1 at every place (batch, k) whose weight is 1, else 0."""
    batch, width = ops.shape(place)[0], place.shape[1]
    rows = ops.repeat(ops.arange(batch, dtype="int32"), width)
    flat = rows * count + ops.reshape(place, (-1,))
    marks = ops.segment_max(ops.reshape(weight, (-1,)), flat, num_segments=batch * count)
    # An empty segment's maximum is the least number that there is.
    return ops.reshape(ops.maximum(marks, 0.0), (-1, count))


def cross_entropy(wanted: Tensor, logits: Tensor) -> Tensor:
    """Of every value its own, -p log σ(t) - (1 - p) log(1 - σ(t)), without overflow. wanted: p in 0..1."""
    return ops.maximum(logits, 0.0) - logits * wanted + ops.log1p(ops.exp(-ops.abs(logits)))


def ciou_loss(boxes: Tensor, truth: Tensor) -> Tensor:
    """1 - CIoU of boxes with boxes, both (…, 4) as x1, y1, x2, y2: (…), 0 for equal boxes. Widths of 0 are allowed."""
    overlap = iou(boxes, truth)
    around = ops.maximum(boxes[..., 2:], truth[..., 2:]) - ops.minimum(boxes[..., :2], truth[..., :2])
    diagonal = ops.sum(ops.square(around), axis=-1)
    apart = ops.sum(ops.square(boxes[..., :2] + boxes[..., 2:] - truth[..., :2] - truth[..., 2:]), axis=-1) / 4
    size, wanted = boxes[..., 2:] - boxes[..., :2], truth[..., 2:] - truth[..., :2]
    slant = ops.arctan2(wanted[..., 0], wanted[..., 1] + _TINY) - ops.arctan2(size[..., 0], size[..., 1] + _TINY)
    v = 4 / math.pi**2 * ops.square(slant)
    alpha = ops.stop_gradient(v / (1 - overlap + v + _TINY))
    return 1 - overlap + apart / (diagonal + _TINY) + alpha * v


def iou(one: Tensor, other: Tensor) -> Tensor:
    """IoU along the last axis (4) of two tensors that broadcast."""
    # Coordinate by coordinate: tensors whose last axis is 2 or 4 take several times as long.
    width = ops.minimum(one[..., 2], other[..., 2]) - ops.maximum(one[..., 0], other[..., 0])
    height = ops.minimum(one[..., 3], other[..., 3]) - ops.maximum(one[..., 1], other[..., 1])
    inter = ops.maximum(width, 0.0) * ops.maximum(height, 0.0)
    area, other_area = ((box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (one, other))
    return inter / (area + other_area - inter + _TINY)


def _best_overlap(boxes: Tensor, truth: Tensor) -> Tensor:
    """For every predicted box (batch, n, 4) its greatest IoU with any truth of the picture: (batch, n)."""
    real = ops.cast(truth[..., 4] >= 0, "float32")[:, None, :]
    return ops.max(iou(boxes[:, :, None, :], truth[:, None, :, :4]) * real, axis=-1)
