"""EfficientNet B0 to B7 without its classifier, as nodes: keras.applications.EfficientNetB*(include_top=False).

Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", table 1 and section 3.3:
seven stages of inverted residual blocks with squeeze-and-excite; a variant widens all channels by one factor (rounded
to multiples of 8) and repeats the blocks of a stage by another. A block is
    x -> 1x1 expand, BN, swish -> k x k depthwise, BN, swish -> excite -> 1x1 project, BN [-> + x]
    excite(y) = y * sigmoid(1x1(swish(1x1(mean of y over rows and columns))))

Layers, names, settings and weights' shapes are Keras's, so that weight files of keras.applications fit and ranges such
as `block1a_se_reduce ~ block7b_add` mean what they mean there. Left out are the Rescaling and Normalization layers in
front: how pictures are normalized stands in the detector's Input. The Dropout layers of the residual blocks, which do
nothing in inference, are there: the published count of 457 nodes of YOLOv4 on B1 includes them, and fine-tuning uses
them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from deploy.errors import InputError
from toolchain.graph import Node
from toolchain.initial_weights import batch_norm, he_normal_fan_out

Variant = Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"]

#: (width, depth) of every variant: factors of the channels and of the blocks in a stage.
_FACTORS: dict[Variant, tuple[float, float]] = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
}
#: Pixels for each cell of the coarsest grid.
_STRIDE = 32
#: Share of the pictures of which the last block would be dropped in training; it rises evenly from the first block's 0.
_DROP_RATE = 0.2
#: Channels inside the squeeze-and-excite of a block for each of its input channels.
_SQUEEZE = 0.25


@dataclasses.dataclass(frozen=True)
class _Stage:
    """Blocks that are alike, as they stand in B0; the first has the stride."""

    kernel: int
    repeats: int
    filters: int
    #: Channels inside a block for each of its input channels.
    expand: int
    stride: int


_STAGES = (
    _Stage(kernel=3, repeats=1, filters=16, expand=1, stride=1),
    _Stage(kernel=3, repeats=2, filters=24, expand=6, stride=2),
    _Stage(kernel=5, repeats=2, filters=40, expand=6, stride=2),
    _Stage(kernel=3, repeats=3, filters=80, expand=6, stride=2),
    _Stage(kernel=5, repeats=3, filters=112, expand=6, stride=1),
    _Stage(kernel=5, repeats=4, filters=192, expand=6, stride=2),
    _Stage(kernel=3, repeats=1, filters=320, expand=6, stride=1),
)


def check_size(size: tuple[int, int]) -> None:
    """Raises InputError where a picture's size (height, width) is not two multiples of 32."""
    if len(size) != 2 or any(not isinstance(side, int) or side < _STRIDE or side % _STRIDE for side in size):
        raise InputError(
            f"height and width are multiples of {_STRIDE}, the stride of the coarsest grid, but {tuple(size)} came;"
            " give for instance (512, 512)"
        )


def efficientnet(variant: Variant, size: tuple[int, int], *, seed: int) -> tuple[Node, ...]:
    """The nodes from the InputLayer "image" (height, width, 3) to "top_activation", with random weights.

    Args:
        variant: b0 to b7.
        size: (height, width) of the picture, multiples of 32.
        seed: at least 0; the same seed gives the same weights.

    Raises InputError for any other size.
    """
    check_size(size)
    width, depth = _FACTORS[variant]
    nodes = [Node("image", "InputLayer", (), {"shape": [*size, 3]})]
    filters = _rounded(32, width)
    nodes += _padded("stem_conv_pad", "image", 3)
    nodes += _convolution("stem_conv", "stem_conv_pad", 3, filters, seed, kernel=3, stride=2)
    nodes += _normalized("stem_bn", "stem_conv", filters, "stem_activation")
    repeats = [math.ceil(depth * stage.repeats) for stage in _STAGES]
    done = 0
    for number, (stage, count) in enumerate(zip(_STAGES, repeats, strict=True), start=1):
        for index in range(count):
            block = _Block(
                name=f"block{number}{chr(ord('a') + index)}_",
                kernel=stage.kernel,
                stride=stage.stride if index == 0 else 1,
                filters_in=filters,
                filters_out=_rounded(stage.filters, width),
                expand=stage.expand,
                drop_rate=_DROP_RATE * done / sum(repeats),
            )
            nodes += _block_nodes(block, nodes[-1].name, seed)
            filters = block.filters_out
            done += 1
    top = _rounded(1280, width)
    nodes += _convolution("top_conv", nodes[-1].name, filters, top, seed)
    nodes += _normalized("top_bn", "top_conv", top, "top_activation")
    return tuple(nodes)


def _rounded(filters: int, width: float) -> int:
    """The nearest multiple of 8 to the widened channels, at least nine tenths of them."""
    exact = filters * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


@dataclasses.dataclass(frozen=True)
class _Block:
    """One inverted residual block."""

    name: str
    kernel: int
    stride: int
    filters_in: int
    filters_out: int
    expand: int
    drop_rate: float


def _block_nodes(block: _Block, source: str, seed: int) -> list[Node]:
    name, filters = block.name, block.filters_in * block.expand
    nodes: list[Node] = []
    inside = source
    if block.expand != 1:
        nodes += _convolution(f"{name}expand_conv", source, block.filters_in, filters, seed)
        nodes += _normalized(f"{name}expand_bn", f"{name}expand_conv", filters, f"{name}expand_activation")
        inside = f"{name}expand_activation"
    if block.stride == 2:
        nodes += _padded(f"{name}dwconv_pad", inside, block.kernel)
        inside = f"{name}dwconv_pad"
    attributes = {
        "kernel_size": [block.kernel, block.kernel],
        "strides": [block.stride, block.stride],
        "padding": "valid" if block.stride == 2 else "same",
        "depth_multiplier": 1,
        "use_bias": False,
    }
    kernel = he_normal_fan_out(seed, f"{name}dwconv", (block.kernel, block.kernel, filters, 1))
    nodes.append(Node(f"{name}dwconv", "DepthwiseConv2D", (inside,), attributes, {"kernel": kernel}))
    nodes += _normalized(f"{name}bn", f"{name}dwconv", filters, f"{name}activation")
    nodes += _excited(block, filters, seed)
    nodes += _convolution(f"{name}project_conv", f"{name}se_excite", filters, block.filters_out, seed)
    nodes += _normalized(f"{name}project_bn", f"{name}project_conv", block.filters_out)
    if block.stride == 1 and block.filters_in == block.filters_out:
        # Whole pictures are dropped: one random number for each of the batch.
        drop = {"rate": block.drop_rate, "noise_shape": [None, 1, 1, 1]}
        nodes.append(Node(f"{name}drop", "Dropout", (f"{name}project_bn",), drop))
        nodes.append(Node(f"{name}add", "Add", (f"{name}drop", source)))
    return nodes


def _excited(block: _Block, filters: int, seed: int) -> list[Node]:
    """Squeeze-and-excite: from NAME_activation to NAME_se_excite."""
    name, inner = block.name, max(1, int(block.filters_in * _SQUEEZE))
    return [
        Node(f"{name}se_squeeze", "GlobalAveragePooling2D", (f"{name}activation",)),
        Node(f"{name}se_reshape", "Reshape", (f"{name}se_squeeze",), {"target_shape": [1, 1, filters]}),
        *_convolution(f"{name}se_reduce", f"{name}se_reshape", filters, inner, seed, activation="silu"),
        *_convolution(f"{name}se_expand", f"{name}se_reduce", inner, filters, seed, activation="sigmoid"),
        Node(f"{name}se_excite", "Multiply", (f"{name}activation", f"{name}se_expand")),
    ]


def _padded(name: str, source: str, kernel: int) -> list[Node]:
    """The padding in front of a stride of 2, for sizes that are even; here all are, down to the coarsest grid."""
    half = kernel // 2
    return [Node(name, "ZeroPadding2D", (source,), {"padding": [[half - 1, half], [half - 1, half]]})]


def _convolution(
    name: str,
    source: str,
    channels: int,
    filters: int,
    seed: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    activation: str = "",
) -> list[Node]:
    """A Conv2D; one with an activation has a bias, the others are followed by batch norm."""
    attributes: dict[str, Any] = {
        "filters": filters,
        "kernel_size": [kernel, kernel],
        "strides": [stride, stride],
        "padding": "same" if stride == 1 else "valid",
        "use_bias": bool(activation),
    }
    weights = {"kernel": he_normal_fan_out(seed, name, (kernel, kernel, channels, filters))}
    if activation:
        attributes["activation"] = activation
        weights["bias"] = np.zeros(filters, np.float32)
    return [Node(name, "Conv2D", (source,), attributes, weights)]


def _normalized(name: str, source: str, channels: int, activation: str = "") -> list[Node]:
    """A batch norm, and after it, where it has a name, the swish."""
    nodes = [Node(name, "BatchNormalization", (source,), {"axis": -1, "epsilon": 1e-3}, batch_norm(channels))]
    if activation:
        nodes.append(Node(activation, "Activation", (name,), {"activation": "silu"}))
    return nodes
