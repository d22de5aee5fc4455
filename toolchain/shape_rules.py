"""The output shape of every op, one function for each kind; shapes.py lists the ops and uses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deploy.errors import GraphError
from toolchain.graph import Node

#: Without the batch.
Shape = tuple[int, ...]
#: A node, its input's shape and its weights to its output's shape.
Rule = Callable[[Node, Shape, Mapping[str, np.ndarray]], Shape]


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Keras's (rows, columns) of a setting that may be one number for both."""
    if isinstance(value, int | np.integer):
        return int(value), int(value)
    rows, columns = value
    return int(rows), int(columns)


def padding_of(node: Node) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)) of a ZeroPadding2D, Cropping2D or MirrorPad node."""
    name = "cropping" if node.op == "Cropping2D" else "padding"
    value = node.attributes.get(name, 0 if node.op == "Cropping2D" else 1)
    rows, columns = (value, value) if isinstance(value, int) else value
    return pair(rows), pair(columns)


def kernel_size(node: Node, weights: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """(kh, kw) from the attributes, or from the kernel where they do not say it."""
    if "kernel_size" in node.attributes:
        return pair(node.attributes["kernel_size"])
    for name in ("kernel", "depthwise_kernel"):
        if name in weights:
            return weights[name].shape[0], weights[name].shape[1]
    raise GraphError(
        f"a {node.op} has a kernel: {node.name!r} has neither the attribute kernel_size nor the weight kernel"
    )


def channel_axis(axis: int, rank: int, node: Node) -> int:
    """Keras's axis, which counts the batch as 0, as an index into a shape without the batch."""
    index = axis + rank if axis < 0 else axis - 1
    if not 0 <= index < rank:
        raise GraphError(
            f"an axis lies inside its tensor: {node.op} {node.name!r} has axis {axis}, its input {rank} axes after the"
            " batch"
        )
    return index


def known(node: Node, shape: Sequence[int | None]) -> Shape:
    if any(size is None for size in shape):
        raise GraphError(
            f"all sizes are known: {node.op} {node.name!r} is {tuple(shape)}; give the input size (height, width): in"
            " a HEAD.yaml it is input: {size: [height, width]}"
        )
    return tuple(int(size) for size in shape if size is not None)


def window_output(size: int, kernel: int, stride: int, dilation: int, padding: str) -> int:
    """Length of one axis after a convolution or pooling (Keras: "valid" uses whole windows only, "same" ceil(size /
    stride))."""
    if padding == "same":
        return -(-size // stride)
    return (size - (kernel - 1) * dilation - 1) // stride + 1


def _image(node: Node, shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise GraphError(f"a {node.op} reads (height, width, channels): {node.name!r} gets {shape}")
    return shape[0], shape[1], shape[2]


def _windows(node: Node, shape: Shape, kernel: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    height, width, _ = _image(node, shape)
    dilation = pair(node.attributes.get("dilation_rate", 1))
    padding = node.attributes.get("padding", "valid")
    if padding not in ("valid", "same"):
        raise GraphError(f"padding is valid or same: {node.op} {node.name!r} has {padding!r}")
    if min(*kernel, *stride, *dilation) < 1:
        raise GraphError(
            f"kernel, stride and dilation are at least 1: {node.op} {node.name!r} has {kernel}, {stride}, {dilation}"
        )
    return (
        window_output(height, kernel[0], stride[0], dilation[0], padding),
        window_output(width, kernel[1], stride[1], dilation[1], padding),
    )


def _fits(node: Node, weights: Mapping[str, np.ndarray], expected: Mapping[str, Shape]) -> None:
    for name, shape in expected.items():
        if name in weights and weights[name].shape != shape:
            raise GraphError(
                f"weights fit their input: {name} of {node.op} {node.name!r} is {weights[name].shape}, expected {shape}"
            )


def filters(node: Node, weights: Mapping[str, np.ndarray]) -> int:
    """Output channels of a Conv2D, from the attributes, or from the kernel where they do not say it."""
    return int(node.attributes["filters"] if "filters" in node.attributes else weights["kernel"].shape[-1])


def _conv(node: Node, shape: Shape, weights: Mapping[str, np.ndarray]) -> Shape:
    kernel, channels = kernel_size(node, weights), _image(node, shape)[2]
    out, groups = filters(node, weights), int(node.attributes.get("groups", 1))
    if channels % groups or out % groups:
        raise GraphError(
            f"groups divide the channels: Conv2D {node.name!r} has {groups} groups, {channels} channels in, {out} out"
        )
    _fits(node, weights, {"kernel": (*kernel, channels // groups, out), "bias": (out,)})
    return (*_windows(node, shape, kernel, pair(node.attributes.get("strides", 1))), out)


def _depthwise(node: Node, shape: Shape, weights: Mapping[str, np.ndarray]) -> Shape:
    kernel, channels = kernel_size(node, weights), _image(node, shape)[2]
    multiplier = int(node.attributes.get("depth_multiplier", 1))
    _fits(node, weights, {"kernel": (*kernel, channels, multiplier), "bias": (channels * multiplier,)})
    return (*_windows(node, shape, kernel, pair(node.attributes.get("strides", 1))), channels * multiplier)


def _separable(node: Node, shape: Shape, weights: Mapping[str, np.ndarray]) -> Shape:
    kernel, channels = kernel_size(node, weights), _image(node, shape)[2]
    multiplier, out = int(node.attributes.get("depth_multiplier", 1)), int(node.attributes["filters"])
    depthwise, pointwise = (*kernel, channels, multiplier), (1, 1, channels * multiplier, out)
    _fits(node, weights, {"depthwise_kernel": depthwise, "pointwise_kernel": pointwise, "bias": (out,)})
    return (*_windows(node, shape, kernel, pair(node.attributes.get("strides", 1))), out)


def _transposed(node: Node, shape: Shape, weights: Mapping[str, np.ndarray]) -> Shape:
    height, width, channels = _image(node, shape)
    kernel, stride = kernel_size(node, weights), pair(node.attributes.get("strides", 1))
    dilation, out = pair(node.attributes.get("dilation_rate", 1)), int(node.attributes["filters"])
    extra = node.attributes.get("output_padding")
    _fits(node, weights, {"kernel": (*kernel, out, channels), "bias": (out,)})
    sizes = []
    for axis, size in enumerate((height, width)):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        same = node.attributes.get("padding", "valid") == "same"
        if extra is None:
            sizes.append(size * stride[axis] + (0 if same else max(reach - stride[axis], 0)))
        else:
            sizes.append((size - 1) * stride[axis] + reach + pair(extra)[axis] - (2 * (reach // 2) if same else 0))
    return (*sizes, out)


def _dense(node: Node, shape: Shape, weights: Mapping[str, np.ndarray]) -> Shape:
    units = int(node.attributes["units"] if "units" in node.attributes else weights["kernel"].shape[-1])
    _fits(node, weights, {"kernel": (shape[-1], units), "bias": (units,)})
    return (*shape[:-1], units)


def _batch_norm(node: Node, shape: Shape, weights: Mapping[str, np.ndarray]) -> Shape:
    axis = node.attributes.get("axis", -1)
    channels = shape[channel_axis(axis[0] if isinstance(axis, list | tuple) else axis, len(shape), node)]
    _fits(node, weights, dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (channels,)))
    return shape


def _pool(node: Node, shape: Shape, _: Mapping[str, np.ndarray]) -> Shape:
    size = pair(node.attributes.get("pool_size", 2))
    strides = node.attributes.get("strides")
    return (*_windows(node, shape, size, size if strides is None else pair(strides)), shape[-1])


def _global_pool(node: Node, shape: Shape, _: Mapping[str, np.ndarray]) -> Shape:
    channels = _image(node, shape)[2]
    return (1, 1, channels) if node.attributes.get("keepdims") else (channels,)


def _pad(node: Node, shape: Shape, _: Mapping[str, np.ndarray]) -> Shape:
    height, width, channels = _image(node, shape)
    (top, bottom), (left, right) = padding_of(node)
    sign = -1 if node.op == "Cropping2D" else 1
    reach = {"symmetric": 0, "reflect": 1}.get(node.attributes.get("mode", ""))
    if node.op == "MirrorPad" and (
        reach is None or max(top, bottom) > height - reach or max(left, right) > width - reach
    ):
        raise GraphError(
            f"a mirror pads no more than there is: MirrorPad {node.name!r} gets {shape} and has {dict(node.attributes)}"
        )
    return height + sign * (top + bottom), width + sign * (left + right), channels


def _upsample(node: Node, shape: Shape, _: Mapping[str, np.ndarray]) -> Shape:
    height, width, channels = _image(node, shape)
    rows, columns = pair(node.attributes.get("size", 2))
    return height * rows, width * columns, channels


def _resize(node: Node, shape: Shape, _: Mapping[str, np.ndarray]) -> Shape:
    return int(node.attributes["height"]), int(node.attributes["width"]), _image(node, shape)[2]


def _reorg(node: Node, shape: Shape, _: Mapping[str, np.ndarray]) -> Shape:
    height, width, channels = _image(node, shape)
    stride = int(node.attributes["stride"])
    if stride < 1 or height % stride or width % stride or channels * height % stride**2:
        raise GraphError(
            f"reorg's stride divides height, width and, squared, channels*height: {node.name!r} has {stride} and gets"
            f" {shape}"
        )
    return height // stride, width // stride, channels * stride**2


def _slice(node: Node, shape: Shape, _: Mapping[str, np.ndarray]) -> Shape:
    axis = channel_axis(int(node.attributes.get("axis", -1)), len(shape), node)
    start, stop = int(node.attributes["start"]), int(node.attributes["stop"])
    if not 0 <= start < stop <= shape[axis]:
        raise GraphError(f"a slice lies inside its input: Slice {node.name!r} takes {start}:{stop} of {shape[axis]}")
    return (*shape[:axis], stop - start, *shape[axis + 1 :])


def _reshape(node: Node, shape: Shape, _: Mapping[str, np.ndarray]) -> Shape:
    target = [int(size) for size in node.attributes["target_shape"]]
    known = math.prod(size for size in target if size != -1)
    if target.count(-1) > 1 or known < 1 or (-1 in target and math.prod(shape) % known):
        raise GraphError(
            f"a reshape keeps the number of elements: {node.name!r} gets {shape} and has target_shape {target}"
        )
    result = tuple(math.prod(shape) // known if size == -1 else size for size in target)
    if math.prod(result) != math.prod(shape):
        raise GraphError(f"a reshape keeps the number of elements: {node.name!r} turns {shape} into {result}")
    return result


def _permute(node: Node, shape: Shape, _: Mapping[str, np.ndarray]) -> Shape:
    dims = [int(axis) for axis in node.attributes["dims"]]
    if sorted(dims) != list(range(1, len(shape) + 1)):
        raise GraphError(f"Permute names every axis once, from 1: {node.name!r} has dims {dims} and gets {shape}")
    return tuple(shape[axis - 1] for axis in dims)


def _broadcast(node: Node, sources: list[Shape]) -> Shape:
    try:
        return tuple(np.broadcast_shapes(*sources))
    except ValueError as error:
        raise GraphError(
            f"shapes fit each other: {node.op} {node.name!r} gets {', '.join(map(str, sources))}"
        ) from error


def _concatenate(node: Node, sources: list[Shape]) -> Shape:
    axis = channel_axis(int(node.attributes.get("axis", -1)), len(sources[0]), node)
    rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in sources}
    if len(rests) > 1 or len({len(shape) for shape in sources}) > 1:
        raise GraphError(
            f"all axes but the joined one agree: Concatenate {node.name!r} gets {', '.join(map(str, sources))}"
        )
    return (*sources[0][:axis], sum(shape[axis] for shape in sources), *sources[0][axis + 1 :])


#: Ops whose output has their input's shape.
SAME = frozenset(
    """LayerNormalization GroupNormalization UnitNormalization Normalization Rescaling Activation ReLU LeakyReLU PReLU
    ELU Softmax Identity Dropout SpatialDropout2D GaussianNoise GaussianDropout AlphaDropout""".split()
)

#: Ops whose layer takes a list of tensors.
MERGES: Mapping[str, Callable[[Node, list[Shape]], Shape]] = {
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"), _broadcast),
    "Concatenate": _concatenate,
}
#: All others, which have one input.
RULES: Mapping[str, Rule] = {
    "InputLayer": lambda node, _, __: known(node, node.attributes["shape"]),
    "Conv2D": _conv,
    "DepthwiseConv2D": _depthwise,
    "SeparableConv2D": _separable,
    "Conv2DTranspose": _transposed,
    "Dense": _dense,
    "BatchNormalization": _batch_norm,
    "MaxPooling2D": _pool,
    "AveragePooling2D": _pool,
    "GlobalAveragePooling2D": _global_pool,
    "GlobalMaxPooling2D": _global_pool,
    "ZeroPadding2D": _pad,
    "Cropping2D": _pad,
    "MirrorPad": _pad,
    "UpSampling2D": _upsample,
    "Resize": _resize,
    "DarknetReorg": _reorg,
    "Slice": _slice,
    "Reshape": _reshape,
    "Flatten": lambda node, shape, _: (math.prod(shape),),
    "Permute": _permute,
    "RepeatVector": lambda node, shape, _: (int(node.attributes["n"]), *shape),
}
