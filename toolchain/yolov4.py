"""YOLOv4 on EfficientNet, built here: backbone, head and how pictures enter.

Bochkovskiy et al. 2020, "YOLOv4: Optimal Speed and Accuracy of Object Detection", section 3.4: spatial pyramid pooling
on the coarsest grid, then a path aggregation network over three grids of strides 32, 16 and 8, three predictions. The
layers and their names are those of the public keras-YOLOv3-model-set at v1.2.0, whose model was published with its
compressed versions. A grid's head is half as wide as the backbone's output that it reads:
    stride 32: top_activation, 16: block6a_expand_activation, 8: block4a_expand_activation

The full head's Conv2D are conv2d, conv2d_1, … conv2d_37 in the order of the graph: conv2d to _5 with the pooling, _6 to
_19 down to stride 8, _20 and _21 its prediction, _22 to _29 stride 16, _30 to _37 stride 32; _21, _29 and _37 predict.
The lite head has for every 3x3 convolution a depthwise 3x3 and a 1x1 (conv_dw_8_1, conv_pw_8_1, …).

With A anchors a scale and C classes a prediction is (height/stride, width/stride, A*(5+C)): raw logits, anchor-major,
each x, y, w, h, objectness, classes (deploy.contract).
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploy.contract import Input, Scale, YoloHead
from deploy.errors import InputError
from toolchain.efficientnet import Variant, check_size, efficientnet
from toolchain.graph import Graph, Node
from toolchain.initial_weights import batch_norm, glorot_uniform
from toolchain.keras_weights import StoredWeights, open_layer_weights, read_finite, with_stored_weights

Backbone = Literal[
    "efficientnet-b0",
    "efficientnet-b1",
    "efficientnet-b2",
    "efficientnet-b3",
    "efficientnet-b4",
    "efficientnet-b5",
    "efficientnet-b6",
    "efficientnet-b7",
]
Anchors = tuple[tuple[float, float], ...]

#: YOLOv4's own, for COCO at 512: (width, height) in pixels of the network's input.
ANCHORS: Anchors = (
    *((12, 16), (19, 36), (40, 28)),
    *((36, 75), (76, 55), (72, 146)),
    *((142, 110), (192, 243), (459, 401)),
)
#: (stride, grid sensitivity) of YOLOv4's three scales, in the order of the outputs.
_SCALES = ((32, 1.05), (16, 1.1), (8, 1.2))
#: Standard deviations of ImageNet's red, green and blue in 0..1.
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class YoloV4:
    """A YOLOv4 to be built. Raises InputError where the settings contradict each other."""

    #: Names of the classes, each another.
    labels: tuple[str, ...]
    backbone: Backbone = "efficientnet-b1"
    #: "lite" has depthwise-separable convolutions in place of the 3x3 ones.
    head: Literal["full", "lite"] = "full"
    #: (height, width) of the input in pixels, multiples of 32.
    size: tuple[int, int] = (512, 512)
    #: (width, height) in pixels of the input, small to large: the first third for stride 8, the last for stride 32.
    anchors: Anchors = ANCHORS

    def __post_init__(self) -> None:
        for value, kind, what in ((self.backbone, Backbone, "backbone"), (self.head, ("full", "lite"), "head")):
            known = kind if isinstance(kind, tuple) else typing.get_args(kind)
            if value not in known:
                raise InputError(f"a {what} is one of {', '.join(known)}, but {value!r} came; choose one")
        check_size(self.size)
        if not self.labels or not all(label.strip() for label in self.labels):
            raise InputError(
                f"a detector has classes, each with a name, but {list(self.labels)} came; give one label for each"
            )
        again, times = Counter(self.labels).most_common(1)[0]
        if times > 1:
            raise InputError(f"every class has a name of its own, but {again!r} stands {times} times; rename it")
        _check_anchors(self.anchors)


def _check_anchors(anchors: Anchors) -> None:
    if not anchors or len(anchors) % len(_SCALES):
        raise InputError(
            f"every one of the {len(_SCALES)} scales has as many anchors as the others, but {len(anchors)} came; give"
            f" for instance {len(ANCHORS)}"
        )
    if not all(len(anchor) == 2 and all(0 < side < math.inf for side in anchor) for anchor in anchors):
        raise InputError(
            f"an anchor is (width, height) in pixels, both above 0, but {list(anchors)} came; correct them"
        )
    areas = [float(np.mean(np.prod(part, axis=1))) for part in _thirds(anchors)]
    if areas != sorted(areas):
        raise InputError(
            f"anchors stand from small to large, but the thirds' mean areas are {[round(area) for area in areas]}; sort"
            " them"
        )


def _thirds(anchors: Anchors) -> list[Anchors]:
    """The anchors of each scale, finest first."""
    each = len(anchors) // len(_SCALES)
    return [anchors[index : index + each] for index in range(0, len(anchors), each)]


def build_yolov4(settings: YoloV4, *, seed: int, weights: Path | None = None) -> tuple[Graph, tuple[str, ...]]:
    """The detector as a graph, and sentences on where its weights come from and how pictures enter.

    Args:
        settings: what is built.
        seed: of all weights that no file gives, at least 0. A layer's weights depend on the seed and its name alone.
        weights: a Keras file (.h5, .weights.h5 or .keras) with layers of the same names: the backbone's, for instance
            keras.applications' efficientnetb1_notop.h5, or those of the whole network.

    How pictures are normalized follows the file: where its model has a Normalization layer in front, as those of
    keras.applications have, Input.mean and Input.std do what that layer does; else, and without a file, a pixel enters
    as u / 255. Keras stores ImageNet's standard deviations as that layer's variances, and divides by their root once
    more outside of it (keras.applications.efficientnet): with such a file Input.std is 255 times the deviation.

    Raises InputError for a file that cannot be read, that has not all of the backbone or has that of another variant,
    that has a part of the head, or a layer of another shape.
    """
    if seed < 0:
        raise InputError(f"a seed is a whole number from 0 on, but {seed} came; give one")
    variant = typing.cast(Variant, settings.backbone.removeprefix("efficientnet-"))
    backbone = efficientnet(variant, settings.size, seed=seed)
    head, outputs = _head(backbone, settings, seed)
    notes: tuple[str, ...] = (f"weights: random, seed {seed}",)
    mean, std = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
    if weights is not None:
        with open_layer_weights(weights) as stored:
            _check_fit(backbone, stored, weights)
            complete = _has_head(head, stored, weights)
            backbone = with_stored_weights(backbone, stored, weights)
            head = with_stored_weights(head, stored, weights)
            mean, std = _normalization(stored, weights)
        source = f"all weights from {weights.name}"
        if not complete:
            source = f"backbone weights from {weights.name}; head random, seed {seed}"
        notes = (source, f"pictures enter as (u - {list(mean)}) / {list(std)}")
    graph = Graph(
        name=f"yolov4_{'lite_' if settings.head == 'lite' else ''}{settings.backbone.replace('-', '_')}",
        nodes=(*backbone, *head),
        outputs=outputs,
        input=Input("image", *settings.size, mean=mean, std=std),
        head=_described(settings, outputs),
        labels=settings.labels,
    )
    return graph, notes


def _described(settings: YoloV4, outputs: Sequence[str]) -> YoloHead:
    anchors = reversed(_thirds(settings.anchors))
    return YoloHead(
        tuple(
            Scale(stride, tuple((float(w), float(h)) for w, h in own), {"raw": output}, scale_x_y)
            for (stride, scale_x_y), own, output in zip(_SCALES, anchors, outputs, strict=True)
        )
    )


def _weighted(nodes: Sequence[Node]) -> set[str]:
    return {node.name for node in nodes if node.weights}


def _check_fit(backbone: Sequence[Node], stored: StoredWeights, path: Path) -> None:
    """Raises InputError where the file's backbone is not this one, whole."""
    wanted = _weighted(backbone)
    missing = [node.name for node in backbone if node.name in wanted - stored.keys()]
    if missing:
        raise InputError(
            f"a weights file has all of the backbone: {path} lacks {len(missing)} of {len(wanted)} layers, the first"
            f" {missing[0]!r}; give that of this EfficientNet, with Keras's names"
        )
    # The blocks of a smaller variant are a part of those of a larger, some of the same shapes.
    more = sorted(name for name in stored.keys() - wanted if re.match(r"block\d+[a-z]_", name))
    if more:
        raise InputError(
            f"a weights file is of the same EfficientNet: {path} has {more[0]!r}, which this one has not; choose the"
            " backbone that it belongs to"
        )


def _has_head(head: Sequence[Node], stored: StoredWeights, path: Path) -> bool:
    """Whether the file has the head. Raises InputError where it has a part of it."""
    wanted = _weighted(head)
    found = wanted & stored.keys()
    if found and found != wanted:
        missing = next(node.name for node in head if node.name in wanted - found)
        raise InputError(
            f"a weights file has all of the head or nothing: {path} has {len(found)} of {len(wanted)} layers and lacks"
            f" {missing!r}; give one of this network, or of the backbone alone"
        )
    return bool(found)


def _normalization(
    stored: StoredWeights, path: Path
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Input's mean and std that do what the file's model does with a pixel 0..255; see build_yolov4."""
    names = sorted(name for name in stored if re.fullmatch(r"normalization(_\d+)?", name))
    if not names:
        return (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
    # Keras's third array counts the pictures that were seen.
    datasets = stored[names[0]][:2]
    shapes = [dataset.shape for dataset in datasets]
    if len(names) > 1 or shapes != [(3,), (3,)]:
        raise InputError(
            f"one layer at most normalizes pictures, by three means and three variances: {path} has {', '.join(names)}"
            f" with {shapes}; give the weights without"
        )
    mean, variance = (read_finite(dataset, path).astype(np.float64) for dataset in datasets)
    if variance.min() <= 0:
        raise InputError(
            f"variances are above 0: those of {names[0]!r} in {path} are {variance.tolist()}; give the weights without"
        )
    imagenet = np.allclose(variance, _IMAGENET_DEVIATION, rtol=1e-4)
    deviation = variance if imagenet else np.sqrt(variance)
    # To four places of 255: the file's float32 has no more.
    means, deviations = ([round(255 * float(value), 4) for value in values] for values in (mean, deviation))
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])


@dataclasses.dataclass
class _Building:
    """The head's nodes so far."""

    seed: int
    lite: bool
    #: Output channels of every node that a convolution or a concatenation reads.
    channels: dict[str, int]
    nodes: list[Node] = dataclasses.field(default_factory=list)
    #: How many layers have a name that Keras gives by counting, by its first part.
    given: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(
        self,
        name: str,
        op: str,
        sources: Sequence[str],
        channels: int,
        attributes: dict[str, Any],
        weights: dict[str, np.ndarray] | None = None,
    ) -> str:
        self.nodes.append(Node(name, op, tuple(sources), attributes, weights or {}))
        self.channels[name] = channels
        return name

    def counted(self, first: str) -> str:
        """Keras's name for the next layer without one: conv2d, conv2d_1, …"""
        count = self.given[first]
        self.given[first] += 1
        return f"{first}_{count}" if count else first


def _head(backbone: Sequence[Node], settings: YoloV4, seed: int) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """The head's nodes, and the three predictions' names, at strides 32, 16 and 8."""
    taps = {32: "top_activation", 16: "block6a_expand_activation", 8: "block4a_expand_activation"}
    norms = {32: "top_bn", 16: "block6a_expand_bn", 8: "block4a_expand_bn"}
    sizes = {node.name: node.weights["gamma"].size for node in backbone if node.op == "BatchNormalization"}
    building = _Building(seed, settings.head == "lite", {taps[stride]: sizes[norms[stride]] for stride in taps})
    width = {stride: sizes[norms[stride]] // 2 for stride in taps}
    predicted = len(settings.anchors) // len(_SCALES) * (5 + len(settings.labels))

    coarse = _pyramid_pooled(building, taps[32], width[32])
    middle = _joined_from_below(building, coarse, taps[16], width[16])
    middle = _five(building, middle, width[16], "9")
    fine = _joined_from_below(building, middle, taps[8], width[8])
    fine = _five(building, fine, width[8], "10")
    at_8 = _prediction(building, fine, width[8], predicted, "10_3")
    middle = _concatenated(building, _halved(building, fine, width[16], "10_4"), middle)
    middle = _five(building, middle, width[16], "11")
    at_16 = _prediction(building, middle, width[16], predicted, "11_3")
    coarse = _concatenated(building, _halved(building, middle, width[32], "11_4"), coarse)
    coarse = _five(building, coarse, width[32], "12")
    at_32 = _prediction(building, coarse, width[32], predicted, "12_3")
    return tuple(building.nodes), (at_32, at_16, at_8)


def _pyramid_pooled(building: _Building, source: str, width: int) -> str:
    """Three convolutions, max-pooling in windows of 5, 9 and 13 side by side, three convolutions."""
    source = _convolution(building, source, width)
    source = _wide(building, source, 2 * width, "8_1")
    source = _convolution(building, source, width)
    pools = []
    for size in (5, 9, 13):
        attributes = {"pool_size": [size, size], "strides": [1, 1], "padding": "same"}
        pools.append(building.add(building.counted("max_pooling2d"), "MaxPooling2D", [source], width, attributes))
    source = _convolution(building, _concatenated(building, *pools, source), width)
    source = _wide(building, source, 2 * width, "8_2")
    return _convolution(building, source, width)


def _joined_from_below(building: _Building, coarse: str, tap: str, width: int) -> str:
    """The coarser grid, twice as large, beside the backbone's output."""
    narrow = _convolution(building, coarse, width)
    attributes = {"size": [2, 2], "interpolation": "nearest"}
    large = building.add(building.counted("up_sampling2d"), "UpSampling2D", [narrow], width, attributes)
    return _concatenated(building, _convolution(building, tap, width), large)


def _five(building: _Building, source: str, width: int, block: str) -> str:
    """Five convolutions: 1x1 and 3x3 in turn, the 3x3 twice as wide."""
    for index in (1, 2):
        source = _convolution(building, source, width)
        source = _wide(building, source, 2 * width, f"{block}_{index}")
    return _convolution(building, source, width)


def _prediction(building: _Building, source: str, width: int, channels: int, block: str) -> str:
    source = _wide(building, source, 2 * width, block)
    name = building.counted("conv2d")
    attributes = _settings(1, 1, filters=channels, use_bias=True)
    weights = {
        "kernel": glorot_uniform(building.seed, name, (1, 1, 2 * width, channels)),
        "bias": np.zeros(channels, np.float32),
    }
    return building.add(name, "Conv2D", [source], channels, attributes, weights)


def _halved(building: _Building, source: str, filters: int, block: str) -> str:
    """The grid at twice the stride."""
    attributes = {"padding": [[1, 0], [1, 0]]}
    name = building.counted("zero_padding2d")
    padded = building.add(name, "ZeroPadding2D", [source], building.channels[source], attributes)
    return _wide(building, padded, filters, block, stride=2)


def _concatenated(building: _Building, *sources: str) -> str:
    channels = sum(building.channels[source] for source in sources)
    return building.add(building.counted("concatenate"), "Concatenate", sources, channels, {"axis": -1})


def _wide(building: _Building, source: str, filters: int, block: str, *, stride: int = 1) -> str:
    """A 3x3 convolution; in the lite head a depthwise one and a 1x1, whose names have the block in them."""
    if not building.lite:
        return _convolution(building, source, filters, kernel=3, stride=stride)
    name, channels = f"conv_dw_{block}", building.channels[source]
    weights = {"kernel": glorot_uniform(building.seed, name, (3, 3, channels, 1))}
    # A bias in front of a batch norm has no effect that beta has not; the published layers have it, but for stride 2.
    if stride == 1:
        weights["bias"] = np.zeros(channels, np.float32)
    attributes = _settings(3, stride, depth_multiplier=1, use_bias="bias" in weights)
    made = building.add(name, "DepthwiseConv2D", [source], channels, attributes, weights)
    made = _activated(building, made, f"{name}_bn", f"{name}_leaky_relu")
    name = f"conv_pw_{block}"
    weights = {"kernel": glorot_uniform(building.seed, name, (1, 1, channels, filters))}
    made = building.add(name, "Conv2D", [made], filters, _settings(1, 1, filters=filters, use_bias=False), weights)
    return _activated(building, made, f"{name}_bn", f"{name}_leaky_relu")


def _convolution(building: _Building, source: str, filters: int, *, kernel: int = 1, stride: int = 1) -> str:
    """A convolution without bias, batch norm and LeakyReLU, named as Keras counts."""
    name = building.counted("conv2d")
    weights = {"kernel": glorot_uniform(building.seed, name, (kernel, kernel, building.channels[source], filters))}
    attributes = _settings(kernel, stride, filters=filters, use_bias=False)
    made = building.add(name, "Conv2D", [source], filters, attributes, weights)
    return _activated(building, made, building.counted("batch_normalization"), building.counted("leaky_re_lu"))


def _settings(kernel: int, stride: int, **own: Any) -> dict[str, Any]:
    """Attributes of a convolution; at stride 2 a layer in front of it pads."""
    shared = {"kernel_size": [kernel, kernel], "strides": [stride, stride]}
    return {**own, **shared, "padding": "same" if stride == 1 else "valid"}


def _activated(building: _Building, source: str, norm: str, activation: str) -> str:
    channels = building.channels[source]
    attributes = {"axis": -1, "epsilon": 1e-3}
    normal = building.add(norm, "BatchNormalization", [source], channels, attributes, batch_norm(channels))
    return building.add(activation, "LeakyReLU", [normal], channels, {"negative_slope": 0.1})
