"""What a YOLO head is trained with: boxes by CIoU, objectness and classes by cross-entropy, as YOLOv4 defines them.

Every truth is given to the anchor, among those of all scales, whose shape fits it best, and to every other anchor
whose shape has an IoU above 0.213 with it (YOLOv4, section 3.4: multiple anchors for one truth), always in the cell
that holds its centre. A predicted box that overlaps any truth by more than 0.7 but was given none is neither object nor
background.

    L_CIoU = 1 - IoU + ρ²(b, g)/c² + α·v      v = 4/π²·(atan(w_g/h_g) - atan(w_b/h_b))²      α = v / (1 - IoU + v)

with ρ the distance of the centres and c the diagonal of the smallest box around both (Zheng et al. 2020, Distance-IoU
Loss, equations 8 to 11; α is a constant to the gradient). Everything is in pixels of the network's input.
Only the process that trains imports this module: it needs TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf

from deploy.contract import Scale, YoloHead

#: A log-width beyond this (a box e⁸ times its anchor) is cut, so that no exponential overflows.
_LARGEST_LOG = 8.0
_TINY = 1e-7


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
    """One scale's output, taken apart: boxes (batch, h, w, A, 4) as x1, y1, x2, y2 in input pixels, the logits of
    objectness (batch, h, w, A) and of classes (batch, h, w, A, C)."""

    boxes: tf.Tensor
    objectness: tf.Tensor
    classes: tf.Tensor


def take_apart(raw: tf.Tensor, head: YoloHead, scale: Scale) -> Prediction:
    """Decodes one scale's raw logits, (batch, h, w, A*(5+C)), anchor-major, by the formulas of YoloHead."""
    height, width = raw.shape[1], raw.shape[2]
    count = len(scale.anchors)
    values = tf.reshape(raw, (-1, height, width, count, raw.shape[3] // count))
    columns = tf.range(width, dtype=raw.dtype)[None, None, :, None]
    rows = tf.range(height, dtype=raw.dtype)[None, :, None, None]
    widen = scale.scale_x_y
    x = (tf.sigmoid(values[..., 0]) * widen - (widen - 1) / 2 + columns) * scale.stride
    y = (tf.sigmoid(values[..., 1]) * widen - (widen - 1) / 2 + rows) * scale.stride
    if head.box == "exp":
        size = tf.exp(tf.clip_by_value(values[..., 2:4], -_LARGEST_LOG, _LARGEST_LOG))
    else:
        size = tf.square(2 * tf.sigmoid(values[..., 2:4]))
    half = size * tf.constant(scale.anchors, raw.dtype) / 2
    center = tf.stack([x, y], axis=-1)
    return Prediction(tf.concat([center - half, center + half], axis=-1), values[..., 4], values[..., 5:])


def yolo_loss(head: YoloHead, truth: tf.Tensor, outputs: list[tf.Tensor], weights: LossWeights) -> tf.Tensor:
    """The loss of a batch, a scalar: the sum over everything in a picture, averaged over the pictures.

    truth: float32 (batch, M, 5), x1, y1, x2, y2 in input pixels and the class; rows of class -1 are padding. outputs:
    the raw tensors in the order of head.scales.
    """
    assigned = assign(head, truth, weights.anchor_iou)
    batch = tf.cast(tf.shape(truth)[0], tf.float32)
    total = tf.constant(0.0)
    for scale, raw, given in zip(head.scales, outputs, assigned, strict=True):
        prediction = take_apart(tf.cast(raw, tf.float32), head, scale)
        total += _scale_loss(head, scale, prediction, truth, given, weights)
    return total / batch


def assign(head: YoloHead, truth: tf.Tensor, anchor_iou: float) -> list[tf.Tensor]:
    """Which anchors of each scale a truth is given to: for every scale a bool tensor (batch, M, A)."""
    shapes = [anchor for scale in head.scales for anchor in scale.anchors]
    anchors = tf.constant(shapes, tf.float32)
    size = tf.maximum(truth[..., 2:4] - truth[..., 0:2], 0.0)[:, :, None, :]
    shared = tf.reduce_prod(tf.minimum(size, anchors), axis=-1)
    iou = shared / (tf.reduce_prod(size, axis=-1) + tf.reduce_prod(anchors, axis=-1) - shared)
    best = tf.one_hot(tf.argmax(iou, axis=-1), len(shapes), on_value=True, off_value=False)
    given = tf.logical_and(tf.logical_or(best, iou > anchor_iou), truth[..., 4:5] >= 0)
    return tf.split(given, [len(scale.anchors) for scale in head.scales], axis=-1)


def _scale_loss(
    head: YoloHead, scale: Scale, prediction: Prediction, truth: tf.Tensor, given: tf.Tensor, weights: LossWeights
) -> tf.Tensor:
    """One scale's loss, summed over the batch. given: bool (batch, M, A)."""
    grid = prediction.objectness.shape[1:]
    center = (truth[..., 0:2] + truth[..., 2:4]) / 2 / scale.stride
    limit = tf.constant([grid[1] - 1, grid[0] - 1], tf.int32)
    cell = tf.clip_by_value(tf.cast(tf.floor(center), tf.int32), 0, limit)
    # Every (picture, truth, anchor) that is an assignment, as indices: the few cells that hold an object.
    chosen = tf.cast(tf.where(given), tf.int32)
    pair = chosen[:, :2]
    column_row = tf.gather_nd(cell, pair)
    place = tf.stack([chosen[:, 0], column_row[:, 1], column_row[:, 0], chosen[:, 2]], axis=1)
    mine = tf.gather_nd(truth, pair)

    box = tf.reduce_sum(ciou_loss(tf.gather_nd(prediction.boxes, place), mine[:, :4]))
    logits = tf.gather_nd(prediction.classes, place)
    wanted = tf.one_hot(tf.cast(mine[:, 4], tf.int32), logits.shape[-1])
    if head.class_activation == "softmax":
        classes = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(wanted, logits))
    else:
        classes = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(wanted, logits))

    ones = tf.ones_like(place[:, 0], tf.float32)
    empty = tf.zeros_like(prediction.objectness)
    objects = tf.tensor_scatter_nd_max(empty, place, ones)
    overlap = _best_overlap(tf.stop_gradient(prediction.boxes), truth)
    counted = tf.cast(overlap <= weights.ignore_iou, tf.float32)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(objects, prediction.objectness)
    objectness = tf.reduce_sum(entropy * tf.maximum(objects, counted))
    return weights.box * box + weights.objectness * objectness + weights.classes * classes


def ciou_loss(boxes: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
    """1 - CIoU of boxes with boxes, both (n, 4) as x1, y1, x2, y2: (n,), 0 for equal boxes. Widths of 0 are allowed."""
    iou = _iou(boxes, truth)
    around = tf.maximum(boxes[:, 2:], truth[:, 2:]) - tf.minimum(boxes[:, :2], truth[:, :2])
    diagonal = tf.reduce_sum(tf.square(around), axis=-1)
    apart = tf.reduce_sum(tf.square(boxes[:, :2] + boxes[:, 2:] - truth[:, :2] - truth[:, 2:]), axis=-1) / 4
    size, wanted = boxes[:, 2:] - boxes[:, :2], truth[:, 2:] - truth[:, :2]
    slant = tf.atan2(wanted[:, 0], wanted[:, 1] + _TINY) - tf.atan2(size[:, 0], size[:, 1] + _TINY)
    v = 4 / math.pi**2 * tf.square(slant)
    alpha = tf.stop_gradient(v / (1 - iou + v + _TINY))
    return 1 - iou + apart / (diagonal + _TINY) + alpha * v


def _iou(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """IoU along the last axis (4) of two tensors that broadcast."""
    shared = tf.minimum(one[..., 2:], other[..., 2:]) - tf.maximum(one[..., :2], other[..., :2])
    inter = tf.reduce_prod(tf.maximum(shared, 0.0), axis=-1)
    area, other_area = (tf.reduce_prod(box[..., 2:] - box[..., :2], axis=-1) for box in (one, other))
    return inter / (area + other_area - inter + _TINY)


def _best_overlap(boxes: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
    """For every predicted box (batch, h, w, A, 4) its greatest IoU with any truth of the picture: (batch, h, w, A)."""
    real = tf.cast(truth[..., 4] >= 0, boxes.dtype)[:, None, None, None, :]
    return tf.reduce_max(_iou(boxes[:, :, :, :, None, :], truth[:, None, None, None, :, :4]) * real, axis=-1)
