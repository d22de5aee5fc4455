"""From raw outputs to boxes in pixels of the input, before NMS.

Lazy: a cell is looked at only where its objectness logit can reach the threshold, a class only where its own can.
Both are compared as they come, quantized ones as integers, so that a live frame costs microseconds and never a full
sigmoid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from deploy.contract import Contract, Input, PostprocessHead, Scale, Tensor, YoloHead
from deploy.detections import Detections
from deploy.errors import ContractError

#: Scores are computed in float32; this much below the threshold (some steps of float32 at 1) a logit is still looked
#: at, and the score itself decides.
_SLACK = 4 * 2.0**-23
#: exp(tw) is cut off here. A box of exp(16) = 8.9 million anchors covers the whole input from any cell already, and
#: its area stays finite in float32.
_MOST_EXP = np.float32(16)


def decode(outputs: Mapping[str, np.ndarray], contract: Contract, conf: float) -> Detections:
    """Every class of every box whose score is at least conf, in pixels of the input, not clipped, in the order of the
    scales.

    outputs: raw arrays by output name, with the shapes and dtypes of contract.tensors. conf: 0..1. The equations
    stand at YoloHead. NaN gives no detection. Raises ContractError where a finished detection has a class that no
    label names.
    """
    if isinstance(contract.head, PostprocessHead):
        return _decode_finished(outputs, contract, contract.head, conf)
    tensors = {tensor.name: tensor for tensor in contract.tensors}
    found = [_decode_scale(outputs, tensors, contract, contract.head, scale, conf) for scale in contract.head.scales]
    if len(found) == 1:
        return found[0]
    return Detections(
        np.concatenate([part.boxes for part in found]),
        np.concatenate([part.scores for part in found]),
        np.concatenate([part.class_ids for part in found]),
    )


def _decode_scale(
    outputs: Mapping[str, np.ndarray],
    tensors: Mapping[str, Tensor],
    contract: Contract,
    head: YoloHead,
    scale: Scale,
    conf: float,
) -> Detections:
    least = _logit(conf - _SLACK)

    def rows(role: str, width: int) -> tuple[np.ndarray, Tensor]:
        # Anchor-major: (1, h, w, A*width) is one row a box in the order of cells, then anchors.
        name = scale.outputs[role]
        return outputs[name].reshape(-1, width), tensors[name]

    objectness, tensor = rows("objectness", 1)
    boxes = np.flatnonzero(objectness[:, 0] >= _raw(least, tensor))
    certainty = _sigmoid(_real(objectness[boxes, 0], tensor))

    logits, tensor = rows("classes", len(contract.labels))
    logits = logits[boxes]
    if head.class_activation == "sigmoid":
        box, class_ids = np.nonzero(logits >= _raw(least, tensor))
        scores = certainty[box] * _sigmoid(_real(logits[box, class_ids], tensor))
    else:
        every = certainty[:, None] * _softmax(_real(logits, tensor))
        box, class_ids = np.nonzero(every >= conf)
        scores = every[box, class_ids]

    xy, tensor_xy = rows("xy", 2)
    wh, tensor_wh = rows("wh", 2)
    shifts, sizes = _real(xy[boxes], tensor_xy), _real(wh[boxes], tensor_wh)
    corners = _corners(boxes, shifts, sizes, contract.input, head, scale)[box]
    good = (scores >= conf) & np.isfinite(corners).all(axis=1)
    return Detections(corners[good], scores[good], class_ids[good].astype(np.int32))


def _corners(
    boxes: np.ndarray, xy: np.ndarray, wh: np.ndarray, input: Input, head: YoloHead, scale: Scale
) -> np.ndarray:
    """float32 (n, 4) x1, y1, x2, y2. boxes: (n,) indices in the order of rows, columns, anchors; xy, wh: (n, 2)
    logits."""
    cell, anchor = np.divmod(boxes, len(scale.anchors))
    corner = np.empty((len(boxes), 2), np.float32)
    np.divmod(cell, input.width // scale.stride, out=(corner[:, 1], corner[:, 0]))
    wide = np.float32(scale.scale_x_y)
    center = (_sigmoid(xy) * wide - (wide - 1) / 2 + corner) * np.float32(scale.stride)
    size = np.array(scale.anchors, np.float32)[anchor]
    size *= np.exp(np.minimum(wh, _MOST_EXP)) if head.box == "exp" else np.square(2 * _sigmoid(wh))
    return np.concatenate([center - size / 2, center + size / 2], axis=1)


def _decode_finished(
    outputs: Mapping[str, np.ndarray], contract: Contract, head: PostprocessHead, conf: float
) -> Detections:
    boxes, class_ids, scores = outputs[head.boxes][0], outputs[head.classes][0], outputs[head.scores][0]
    # Rows past the count hold whatever was in memory.
    told = outputs[head.count][0]
    count = int(min(max(told, 0), len(scores))) if told == told else 0
    good = np.flatnonzero(scores[:count] >= conf)
    good = good[np.isfinite(boxes[good]).all(axis=1) & np.isfinite(class_ids[good])]
    found = np.rint(class_ids[good])
    unknown = found[(found < 0) | (found >= len(contract.labels))]
    if unknown.size:
        raise ContractError(
            f"the file names {len(contract.labels)} classes, but detected class {unknown[0]:g}; "
            "put its own label file into it"
        )
    height, width = contract.input.height, contract.input.width
    corners = boxes[good][:, [1, 0, 3, 2]] * np.array([width, height, width, height], np.float32)
    return Detections(corners, scores[good], found.astype(np.int32))


def _logit(probability: float) -> float:
    """ln(p / (1 - p)); -inf for p <= 0."""
    return math.log(probability / (1 - probability)) if probability > 0 else -math.inf


def _raw(least: float, tensor: Tensor) -> int | float:
    """The least value of the tensor whose real value is at least the given one."""
    if tensor.scale == 0:
        return least
    limits = np.iinfo(tensor.dtype)
    return math.ceil(min(max(least / tensor.scale + tensor.zero_point, limits.min), limits.max + 1))


def _real(raw: np.ndarray, tensor: Tensor) -> np.ndarray:
    """float32 logits of raw values."""
    if tensor.scale == 0:
        return raw
    real = raw.astype(np.float32)
    real -= np.float32(tensor.zero_point)
    real *= np.float32(tensor.scale)
    return real


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """The logistic function in float32. Below -80 it stays at 2e-35, so that exp never overflows."""
    powers = np.maximum(logits, np.float32(-80))
    np.exp(np.negative(powers, out=powers), out=powers)
    powers += 1
    return np.reciprocal(powers, out=powers)


def _softmax(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # infinity less infinity: NaN, which gives no detection
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
