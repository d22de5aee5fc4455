"""Makes, of a file of ours, one that other people's programs open: decoding and suppression go into the graph.

The verified body stays as it is, whatever its precision: floats go in and come out by a QUANTIZE in front of its input
and a DEQUANTIZE behind each output where these are integers. The decoding follows in float, built here operation by
operation: no tensor has more than four dimensions or 64-bit numbers, so XNNPACK takes all of it.
TFLite_Detection_PostProcess follows, the one operation that is not built in; TensorFlow Lite's Task Library and
MediaPipe Tasks both bring it. It gives boxes (1, LIMIT, 4) as ymin, xmin, ymax, xmax in 0..1, classes, scores and their
count, suppressed in each class by itself, as deploy.nms does it. At last the boxes are clipped to the picture. The
equations stand at deploy.contract.YoloHead.

MediaPipe would take boxes and scores without that operation too and suppress by itself, but all classes together and
whatever overlaps by more than 0.3, neither of which its interface lets one change: on 50 pictures of VOC2007 it then
lost 13 to 19 % of the detections.

Both programs stretch a picture to the input's size, MediaPipe in a way of its own that its file's contract tells, so
that slimdet detects with that file what MediaPipe does. Both hand in red, green, blue with one mean and standard
deviation. What a network wants beyond that, other colours' order or values of its own for each channel, becomes
operations in front of the body; a network that is fed between grey bars is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deploy import interpreter, model_file
from deploy.contract import Client, Contract, Input, PostprocessHead, Scale, Tensor, YoloHead
from deploy.decode import decode
from deploy.detections import Detections
from deploy.errors import ConversionError
from deploy.preprocess import Preprocessor
from toolchain.flatbuffer_graph import FlatbufferGraph
from toolchain.package import write_opened
from toolchain.tflite_metadata import Output, with_metadata

NAMES: Mapping[Client, str] = {"mediapipe": "MediaPipe Tasks", "task-library": "TensorFlow Lite's Task Library"}

#: Fixed in the graph: least score, overlap beyond which the better of two boxes stays, most detections; those of
#: deploy.Detector.
CONF, IOU, LIMIT = 0.25, 0.45, 300
#: Sizes are cut off where deploy.decode cuts them.
_MOST_EXP = 16.0
#: Float roundings between two ways to compute a corner of a box or a score, in steps of 2^-23 of 1 plus the box's side:
#: a logistic function and an exponential of some 4 each, and a product or sum of half a step for each of 8 others.
_STEPS = 16


def client_file(file: str, client: str) -> str:
    """What the file that another program opens is called, beside NAME.tflite."""
    return f"{file.removesuffix('.tflite')}_{client}.tflite"


def write_decoded(source: Path, client: Client, destination: Path) -> tuple[str, ...]:
    """Writes the file for the client, atomically, after its decoding was held against deploy's on a picture; returns
    what its user must know.

    Raises ConversionError where the source's network cannot serve the client or the new file decodes otherwise; what
    deploy raises for a source that it cannot read; InputError when the file cannot be written.
    """
    body, contract = model_file.read(source)
    write_opened(destination, decoded(body, contract, client))
    return (
        f"for {NAMES[client]}, decoded and suppressed inside: scores from {CONF}, overlap up to {IOU}, at most {LIMIT} "
        "detections are fixed in it",
    )


def refuse_letterbox(input: Input, client: Client) -> None:
    """Raises ConversionError where the network is fed what the client never feeds."""
    if input.resize == "letterbox":
        raise ConversionError(
            f"{NAMES[client]} stretches pictures to the input's size, but this network is fed between grey bars "
            "(letterbox): its boxes would be wrong; convert it with resize stretch, which costs what a network loses "
            "that was trained with bars, or run slimdet's own file with slimdet detect"
        )


def decoded(body: bytes, contract: Contract, client: Client) -> bytes:
    """The client's file, with standard metadata, labels and a contract, of our file's flatbuffer and contract. Raises
    ConversionError."""
    head = contract.head
    if not isinstance(head, YoloHead):
        raise ConversionError(f"a file that ends in raw YOLO outputs is decoded, not {head.kind}: give slimdet's own")
    refuse_letterbox(contract.input, client)
    outside = _outside(contract.input)
    joined = _joined(body, contract, head, outside)
    _check(body, joined, contract)
    finished = _with_postprocess(joined, _boxes(contract.input, head), len(contract.labels))
    text = f"YOLO detector for {NAMES[client]}, decoded and suppressed inside."
    content = with_metadata(finished, contract.name, text, outside, _OUTPUTS)
    model = interpreter.Model(content)
    new = dataclasses.replace(
        contract,
        input=dataclasses.replace(outside, resize="stretch_asymmetric") if client == "mediapipe" else outside,
        head=PostprocessHead("boxes", "classes", "scores", "count"),
        tensors=(*model.inputs, *model.outputs),
    )
    return model_file.write(content, new)


#: What the metadata says of the outputs, by their names in the signature, in the operation's order.
_OUTPUTS = {
    "boxes": Output("location", "ymin, xmin, ymax, xmax of each detection in 0..1.", boxes=(1, 0, 3, 2)),
    "classes": Output("category", "Class of each detection.", labels="value"),
    "scores": Output("score", "Score of each detection in 0..1, best first.", threshold=CONF),
    "count": Output("number of detections", "How many detections count."),
}


def _outside(input: Input) -> Input:
    """The input that a client sees: red, green, blue, with one mean and deviation for all channels."""
    if _is_plain(input):
        return dataclasses.replace(input, name="image")
    return dataclasses.replace(input, name="image", color="RGB", mean=(0.0,) * 3, std=(1.0,) * 3)


def _is_plain(input: Input) -> bool:
    return input.color == "RGB" and len(set(input.mean)) == len(set(input.std)) == 1


def _boxes(input: Input, head: YoloHead) -> int:
    return sum((input.height // s.stride) * (input.width // s.stride) * len(s.anchors) for s in head.scales)


def _joined(body: bytes, contract: Contract, head: YoloHead, outside: Input) -> bytes:
    """The body between a float input "image" and float outputs "boxes" (1, N, 4) as yc, xc, ln h, ln w, the input's
    sides being 1, and "scores" (1, N, C). N counts every anchor of every cell of all scales, in deploy.decode's order.

    The operation that follows computes a height as exp(h) * anchor height, hence the logarithms."""
    graph = FlatbufferGraph(body)
    raw = graph.outputs
    _feed(graph, contract.input, outside)
    boxes, scores = [], []
    for scale in head.scales:
        place = {role: graph.as_float(raw[name]) for role, name in scale.outputs.items()}
        boxes.append(_scale_boxes(graph, place, contract.input, head, scale))
        scores.append(_scale_scores(graph, place, contract.input, head, scale, len(contract.labels)))
    every = _stacked(graph, boxes)
    count = _boxes(contract.input, head)
    columns = [graph.slice(every, (0, 0, column), (1, count, 1)) for column in (1, 0, 3, 2)]
    graph.outputs = {"boxes": graph.concatenate(columns, axis=2), "scores": _stacked(graph, scores)}
    return graph.content()


def _feed(graph: FlatbufferGraph, inside: Input, outside: Input) -> None:
    """A float input in front of the body's own."""
    ((_, body_input),) = graph.inputs.items()
    size = (1, inside.height, inside.width, 3)
    if _is_plain(inside) and graph.is_float(body_input):
        graph.inputs = {outside.name: body_input}
        return
    image = graph.tensor(outside.name, size)
    with graph.in_front():
        value = image
        if not _is_plain(inside):
            if inside.color == "BGR":
                planes = [graph.slice(value, (0, 0, 0, channel), (*size[:3], 1)) for channel in (2, 1, 0)]
                value = graph.concatenate(planes, axis=3)
            value = graph.binary("SUB", value, graph.constant("mean", np.array(inside.mean, np.float32)))
            value = graph.binary("DIV", value, graph.constant("std", np.array(inside.std, np.float32)))
        graph.feed(value, body_input)
    graph.inputs = {outside.name: image}


def _scale_boxes(
    graph: FlatbufferGraph, raw: Mapping[str, int], input: Input, head: YoloHead, scale: Scale
) -> int:
    """(1, n, 4) as xc, yc, ln w, ln h, where whole sides are 1."""
    rows, columns, anchors = input.height // scale.stride, input.width // scale.stride, len(scale.anchors)
    cells, sides = rows * columns, np.array([input.width, input.height], np.float64)
    wide = scale.scale_x_y

    def constant(name: str, values: np.ndarray) -> int:
        return graph.constant(f"{name}_{scale.stride}", values.astype(np.float32))

    # (cells, anchors, 2): the grid is the same for all anchors, and the anchors in all cells.
    corners = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(1, cells, 1, 2)
    xy = graph.unary("LOGISTIC", graph.reshape(raw["xy"], (1, cells, anchors, 2)))
    xy = graph.binary("MUL", xy, constant("wide", wide * scale.stride / sides))
    xy = graph.binary("ADD", xy, constant("grid", (corners - (wide - 1) / 2) * scale.stride / sides))

    sizes = np.array(scale.anchors, np.float64) / sides
    wh = graph.reshape(raw["wh"], (1, cells, anchors, 2))
    if head.box == "exp":
        wh = graph.binary("MINIMUM", wh, constant("most", np.array([_MOST_EXP])))
        wh = graph.binary("ADD", wh, constant("anchors", np.log(sizes)))
    else:
        wh = graph.unary("LOGISTIC", wh)
        wh = graph.unary("LOG", graph.binary("MUL", graph.binary("MUL", wh, wh), constant("anchors", 4 * sizes)))
    return graph.reshape(graph.concatenate([xy, wh], axis=3), (1, cells * anchors, 4))


def _scale_scores(
    graph: FlatbufferGraph, raw: Mapping[str, int], input: Input, head: YoloHead, scale: Scale, classes: int
) -> int:
    """(1, n, C) in 0..1."""
    count = (input.height // scale.stride) * (input.width // scale.stride) * len(scale.anchors)
    objectness = graph.unary("LOGISTIC", graph.reshape(raw["objectness"], (1, count, 1)))
    each = graph.reshape(raw["classes"], (1, count, classes))
    activation = "LOGISTIC" if head.class_activation == "sigmoid" else "SOFTMAX"
    return graph.binary("MUL", objectness, graph.unary(activation, each))


def _stacked(graph: FlatbufferGraph, parts: list[int]) -> int:
    return parts[0] if len(parts) == 1 else graph.concatenate(parts, axis=1)


def _with_postprocess(joined: bytes, boxes: int, classes: int) -> bytes:
    """The joined file with TFLite_Detection_PostProcess at its end (tensorflow/lite/kernels/detection_postprocess.cc).
    Its anchors are (0, 0, 1, 1): decoded already. The boxes are clipped to the picture behind it: MediaPipe
    would move a box that begins outside to the picture's edge, and keep its size."""
    from flatbuffers import flexbuffers

    options: dict[str, object] = dict.fromkeys(("x_scale", "y_scale", "w_scale", "h_scale"), 1.0)
    options |= {"max_detections": LIMIT, "detections_per_class": LIMIT, "max_classes_per_detection": 1}
    options |= {"num_classes": classes, "use_regular_nms": True, "nms_score_threshold": CONF, "nms_iou_threshold": IOU}
    graph = FlatbufferGraph(joined)
    anchors = graph.constant("anchors", np.tile(np.array([0, 0, 1, 1], np.float32), (boxes, 1)))
    shapes = {"boxes": (1, LIMIT, 4), "classes": (1, LIMIT), "scores": (1, LIMIT), "count": (1,)}
    made = {name: graph.tensor(name, shape) for name, shape in shapes.items()}
    inputs = [graph.outputs["boxes"], graph.outputs["scores"], anchors]
    graph.custom("TFLite_Detection_PostProcess", inputs, list(made.values()), bytes(flexbuffers.Dumps(options)))
    corners = graph.binary("MAXIMUM", made["boxes"], graph.constant("first", np.array([0], np.float32)))
    corners = graph.binary("MINIMUM", corners, graph.constant("last", np.array([1], np.float32)))
    graph.outputs = made | {"boxes": corners}
    return graph.content()


def _check(body: bytes, joined: bytes, contract: Contract) -> None:
    """Holds every box and score of the joined file on one drawn picture against deploy.decode of the body's outputs.

    Both bodies get the same values, so that only the decoding's own roundings differ.
    """
    from toolchain.scenes import draw_scene

    picture, _, _ = draw_scene((0,), 0, max(64, contract.input.height, contract.input.width))
    own, new = interpreter.Model(body), interpreter.Model(joined)
    outside = _outside(contract.input)
    values = Preprocessor(outside, new.inputs[0])(picture)[0]
    outputs = own.run({contract.input.name: _as_fed(values, contract.input, own.inputs[0])})
    expected = decode(outputs, contract, 0.0)
    found = new.run({outside.name: values})
    wrong = _off(found["boxes"][0], found["scores"][0], expected, contract.input)
    if not wrong <= 1:
        raise ConversionError(
            f"a decoded file gives deploy's boxes and scores, at most {_STEPS} float roundings off, but this one is "
            f"{wrong * _STEPS:.3g} of them off; deploy slimdet's own file, and report this network"
        )


def _off(boxes: np.ndarray, scores: np.ndarray, expected: Detections, input: Input) -> float:
    """Greatest error of a corner or score over what _STEPS roundings allow; NaN where one is none.

    boxes: (N, 4) yc, xc, ln h, ln w; scores: (N, C); expected: deploy's, one for each class of a box, in the order of
    boxes, then classes.
    """
    half = np.exp(boxes[:, 2:]) / 2
    corners = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)[:, [1, 0, 3, 2]]
    sides = np.array([input.width, input.height] * 2, np.float32)
    wanted = expected.boxes.reshape(len(boxes), -1, 4)[:, 0] / sides
    step = _STEPS * 2.0**-23
    errors = [
        np.abs(corners - wanted) / (step * (1 + 2 * half[:, [1, 0, 1, 0]])),
        np.abs(scores - expected.scores.reshape(scores.shape)) / step,
    ]
    return float(np.max([each.max() for each in errors]))


def _as_fed(values: np.ndarray, input: Input, tensor: Tensor) -> np.ndarray:
    """What the operations in front of the body make of the outer input's values, in XNNPACK's float32 arithmetic."""
    if not _is_plain(input):
        ordered = values[..., ::-1] if input.color == "BGR" else values
        values = (ordered - np.array(input.mean, np.float32)) / np.array(input.std, np.float32)
    if tensor.dtype == "float32":
        return np.ascontiguousarray(values)
    limits = np.iinfo(tensor.dtype)
    steps = np.rint(values * (1 / np.float32(tensor.scale))) + tensor.zero_point
    return np.ascontiguousarray(np.clip(steps, limits.min, limits.max).astype(tensor.dtype))
