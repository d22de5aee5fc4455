"""The contract between a detector's file and whoever runs it: what goes in, what comes out, what it means.

It travels inside the .tflite (see model_file.py) as strict JSON. Everything that is needed to turn a picture into
tensors and tensors into boxes stands here, so that nothing is ever guessed from a shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

#: Version of the JSON form. A reader refuses every other one.
FORMAT = 1

#: How a file computes. All that begin with int8 compute with integers: throughout, but in what writes the outputs, or
#: but in the layers that cost the detections most.
Precision = Literal["float32", "float16", "dynamic", "int8", "int8_float_head", "int8_mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

#: What one scale's outputs hold. Each is a tensor of its own, so that int8 gives each its own scale.
#: With A anchors, C classes: xy and wh are (1, h, w, A*2), objectness (1, h, w, A), classes (1, h, w, A*C),
#: anchor-major, raw logits.
Role = Literal["xy", "wh", "objectness", "classes"]
ROLES: tuple[Role, ...] = ("xy", "wh", "objectness", "classes")

#: Other programs that a file of their own can be written for: MediaPipe Tasks and TensorFlow Lite's Task Library.
Client = Literal["mediapipe", "task-library"]
CLIENTS: tuple[Client, ...] = get_args(Client)

#: How a picture comes to the input's size. letterbox: in its own shape, between bars. stretch: to fill it; the middle
#: of each pixel shows the picture there. stretch_asymmetric: to fill it too, but pixel (x, y) shows the picture at
#: (x * its width / input's width, y * its height / input's height), counted from the middle of the first pixel, as
#: "asymmetric" in ONNX's Resize; so MediaPipe feeds a network on a CPU, and only a file made for it says so.
Resize = Literal["letterbox", "stretch", "stretch_asymmetric"]
RESIZES: tuple[Resize, ...] = get_args(Resize)


@dataclasses.dataclass(frozen=True)
class Input:
    """How a picture becomes the input tensor, (1, height, width, 3).

    A pixel value u in 0..255 of channel c enters as (u - mean[c]) / std[c], then in the tensor's quantization if it has
    one.
    """

    name: str
    height: int
    width: int
    resize: Resize = "letterbox"
    color: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)
    #: Grey level 0..255 of the letterbox's bars (darknet fills 0.5).
    fill: int = 128


@dataclasses.dataclass(frozen=True)
class Scale:
    """One prediction grid of a YOLO head."""

    #: Input pixels per grid cell.
    stride: int
    #: (width, height) of each anchor in pixels of the network's input.
    anchors: tuple[tuple[float, float], ...]
    #: Output name by role. In a file exactly ROLES; in a graph that is not yet split by role one "raw" tensor
    #: (1, h, w, A*(5+C)), anchor-major, each anchor x, y, w, h, objectness, classes.
    outputs: Mapping[str, str]
    #: Widens the sigmoid of x and y: sigmoid(t)*s - (s-1)/2 (YOLOv4, section 3.4: grid sensitivity).
    scale_x_y: float = 1.0


@dataclasses.dataclass(frozen=True)
class YoloHead:
    """Raw YOLO v2 to v4 logits.

    With cell (cx, cy), anchor (pw, ph) and σ the logistic function, in pixels of the network's input:
        x = (σ(tx)*s - (s-1)/2 + cx) * stride        s = scale_x_y
        w = pw * exp(tw)          box "exp"     (YOLOv2, equation 3.1; YOLOv3, section 2.1)
        w = pw * (2*σ(tw))²       box "scaled"  (Scaled-YOLOv4; darknet's new_coords=1)
        score[c] = σ(to) * σ(tc)  class_activation "sigmoid"; σ(to) * softmax(t)[c] with "softmax" (YOLOv2)
    """

    scales: tuple[Scale, ...]
    box: Literal["exp", "scaled"] = "exp"
    class_activation: Literal["sigmoid", "softmax"] = "sigmoid"
    kind: Literal["yolo"] = "yolo"


@dataclasses.dataclass(frozen=True)
class PostprocessHead:
    """The four outputs of TFLite_Detection_PostProcess: decoded boxes (1, N, 4) as ymin, xmin, ymax, xmax in 0..1,
    class indices (1, N), scores (1, N) and the count (1,). NMS has been done inside."""

    boxes: str
    classes: str
    scores: str
    count: str
    kind: Literal["postprocess"] = "postprocess"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor under its name in the signature. scale is 0.0 where it is not quantized."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0


@dataclasses.dataclass(frozen=True)
class Contract:
    """All that a device needs to know of a file, and where it came from."""

    name: str
    labels: tuple[str, ...]
    input: Input
    head: YoloHead | PostprocessHead
    precision: Precision
    #: Every input and output of the signature; a file whose own tensors differ is refused.
    tensors: tuple[Tensor, ...] = ()
    #: Recipe's hash, versions, hashes of what it was made of: plain JSON.
    lineage: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: Measured figures (mAP, latency, verification): plain JSON.
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)
