"""What the operations of keras.ops are as ops of a graph, where that is exact to the last bit; all others stay opaque.

An operation's class often has the name of a layer (`a + b` is an Add of keras.src.ops.numpy, `layers.add` an Add of
keras.src.layers): only operations come here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

#: An op, the Keras tensors that it reads, its attributes.
Canonical = tuple[str, list[Any], dict[str, Any]]

#: Operations that the layer Activation does under another name.
_ACTIVATIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Silu": "silu",
    "Tanh": "tanh",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "HardTanh": "hard_tanh",
    "Selu": "selu",
    "LogSigmoid": "log_sigmoid",
}


def canonical(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    """The op that computes the same as a call of an operation, bit by bit; None where there is none.

    Args:
        operation: a keras.Operation that is no layer.
        arguments: the call's arguments by the names of the operation's `call`.
    """
    name = type(operation).__name__
    if name in _ACTIVATIONS and _is_float_tensor(arguments.get("x")):
        return "Activation", [arguments["x"]], {"activation": _ACTIVATIONS[name]}
    rule = _RULES.get(name)
    return rule(operation, arguments) if rule else None


def _is_tensor(value: Any) -> bool:
    import keras

    return isinstance(value, keras.KerasTensor)


def _is_float_tensor(value: Any) -> bool:
    return _is_tensor(value) and "float" in value.dtype


def _is_image(value: Any) -> bool:
    return _is_float_tensor(value) and len(value.shape) == 4


def _number(value: Any) -> float | None:
    """A finite constant that enters a float32 computation as itself."""
    # numpy's float64 is a float too, but makes Keras compute in float64.
    if type(value) in (int, float) and math.isfinite(value):
        return float(value)
    return None


def _elementwise(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    name, (first, second) = type(operation).__name__, (arguments["x1"], arguments["x2"])
    if _is_float_tensor(first) and _is_float_tensor(second):
        same_rank = len(first.shape) == len(second.shape)
        return (name, [first, second], {}) if same_rank and name not in ("TrueDivide", "Divide") else None
    tensor, constant = (first, _number(second)) if _is_tensor(first) else (second, _number(first))
    if constant is None or not _is_float_tensor(tensor):
        return None
    rescaling = _rescaling(name, constant, tensor is first)
    return (
        None if rescaling is None else ("Rescaling", [tensor], dict(zip(("scale", "offset"), rescaling, strict=True)))
    )


def _rescaling(name: str, constant: float, tensor_first: bool) -> tuple[float, float] | None:
    """(scale, offset) with x*scale + offset the same as the operation."""
    match name:
        case "Multiply":
            return constant, 0.0
        case "Add":
            return 1.0, constant
        case "Subtract":
            return (1.0, -constant) if tensor_first else (-1.0, constant)
        case "TrueDivide" | "Divide":
            # Only a power of two has an exact reciprocal.
            exact = tensor_first and constant != 0 and abs(math.frexp(constant)[0]) == 0.5 and abs(constant) < 2.0**100
            return (1.0 / constant, 0.0) if exact else None
    return None


def _negative(_: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    return ("Rescaling", [arguments["x"]], {"scale": -1.0, "offset": 0.0}) if _is_float_tensor(arguments["x"]) else None


def _slice(_: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    """x[..., a:b] on one axis that is not the batch."""
    tensor, key = arguments["x"], arguments["key"]
    if not _is_tensor(tensor):
        return None
    entries = list(key) if isinstance(key, tuple | list) else [key]
    if (
        any(entry is None or not isinstance(entry, slice | type(Ellipsis)) for entry in entries)
        or entries.count(Ellipsis) > 1
    ):
        return None
    if Ellipsis not in entries:
        entries.append(Ellipsis)
    at, rank = entries.index(Ellipsis), len(tensor.shape)
    whole = [slice(None)] * (rank - len(entries) + 1)
    cuts = []
    for axis, entry in enumerate([*entries[:at], *whole, *entries[at + 1 :]]):
        size = tensor.shape[axis]
        if entry == slice(None):
            continue
        if axis == 0 or size is None or entry.step not in (None, 1):
            return None
        start, stop, _step = entry.indices(size)
        cuts.append({"axis": axis - rank, "start": start, "stop": stop})
    if len(cuts) != 1 or cuts[0]["start"] >= cuts[0]["stop"]:
        return None
    return "Slice", [tensor], cuts[0]


def _concatenate(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    tensors = list(arguments["xs"])
    if not all(_is_float_tensor(tensor) for tensor in tensors) or operation.axis == 0:
        return None
    return "Concatenate", tensors, {"axis": operation.axis}


def _reshape(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    """Only where the batch stays what it is."""
    tensor, target = arguments["x"], list(operation.newshape)
    if (
        not _is_tensor(tensor)
        or not target
        or any(not isinstance(size, int) for size in target)
        or None in tensor.shape[1:]
    ):
        return None
    keeps_batch = target[0] == -1 and math.prod(target[1:]) == math.prod(tensor.shape[1:]) and -1 not in target[1:]
    return ("Reshape", [tensor], {"target_shape": target[1:]}) if keeps_batch else None


def _transpose(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    tensor, axes = arguments["x"], operation.axes
    if not _is_tensor(tensor) or axes is None:
        return None
    dims = [axis % len(tensor.shape) for axis in axes]
    return ("Permute", [tensor], {"dims": dims[1:]}) if dims[0] == 0 else None


def _pad(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    tensor, padding = arguments["x"], [list(pair) for pair in operation.pad_width]
    if not _is_image(tensor) or len(padding) != 4 or any(padding[0] + padding[3]):
        return None
    if operation.mode == "constant" and arguments.get("constant_values") in (None, 0):
        return "ZeroPadding2D", [tensor], {"padding": padding[1:3]}
    return (
        ("MirrorPad", [tensor], {"padding": padding[1:3], "mode": operation.mode})
        if operation.mode != "constant"
        else None
    )


def _global_pool(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    tensor, axes = arguments["x"], operation.axis
    axes = [axes] if isinstance(axes, int) else list(axes or [])
    if (
        not _is_image(tensor)
        or sorted(axis % 4 for axis in axes) != [1, 2]
        or getattr(operation, "initial", None) is not None
    ):
        return None
    kind = "GlobalAveragePooling2D" if type(operation).__name__ == "Mean" else "GlobalMaxPooling2D"
    return kind, [tensor], {"keepdims": bool(operation.keepdims)}


def _pool(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    tensor = arguments["inputs"]
    if not _is_image(tensor) or operation.data_format == "channels_first":
        return None
    strides = operation.pool_size if operation.strides is None else operation.strides
    sizes = [[value, value] if isinstance(value, int) else list(value) for value in (operation.pool_size, strides)]
    kind = "MaxPooling2D" if type(operation).__name__ == "MaxPool" else "AveragePooling2D"
    return kind, [tensor], {"pool_size": sizes[0], "strides": sizes[1], "padding": operation.padding}


def _resize(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    tensor = arguments["images"]
    special = operation.antialias or operation.crop_to_aspect_ratio or operation.pad_to_aspect_ratio
    if not _is_image(tensor) or special or operation.data_format == "channels_first":
        return None
    height, width = operation.size
    return "Resize", [tensor], {"height": height, "width": width, "interpolation": operation.interpolation}


def _leaky_relu(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    tensor = arguments["x"]
    return ("LeakyReLU", [tensor], {"negative_slope": operation.negative_slope}) if _is_float_tensor(tensor) else None


def _softmax(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    tensor = arguments["x"]
    return (
        ("Softmax", [tensor], {"axis": operation.axis})
        if _is_float_tensor(tensor) and isinstance(operation.axis, int)
        else None
    )


def _gelu(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    exact = not operation.approximate and _is_float_tensor(arguments["x"])
    return ("Activation", [arguments["x"]], {"activation": "gelu"}) if exact else None


def _elu(operation: Any, arguments: Mapping[str, Any]) -> Canonical | None:
    tensor = arguments["x"]
    return ("ELU", [tensor], {"alpha": float(operation.alpha)}) if _is_float_tensor(tensor) else None


_RULES: Mapping[str, Callable[[Any, Mapping[str, Any]], Canonical | None]] = {
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Maximum", "Minimum", "TrueDivide", "Divide"), _elementwise),
    "Negative": _negative,
    "GetItem": _slice,
    "Concatenate": _concatenate,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Pad": _pad,
    "Mean": _global_pool,
    "Max": _global_pool,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Resize": _resize,
    "LeakyRelu": _leaky_relu,
    "Softmax": _softmax,
    "Gelu": _gelu,
    "Elu": _elu,
}


def split_slices(operation: Any, tensor: Any) -> list[dict[str, Any]] | None:
    """The attributes of the Slices that do what a Split does, one for each output; None where it cuts the batch."""
    rank = len(tensor.shape)
    axis, size = operation.axis % rank, tensor.shape[operation.axis]
    if axis == 0 or size is None:
        return None
    cuts = operation.indices_or_sections
    stops = [size // cuts * (i + 1) for i in range(cuts)] if isinstance(cuts, int) else [*np.array(cuts).tolist(), size]
    return [
        {"axis": axis - rank, "start": start, "stop": stop} for start, stop in zip([0, *stops], stops, strict=False)
    ]
