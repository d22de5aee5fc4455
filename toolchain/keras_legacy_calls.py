"""The TensorFlow functions in old Keras files (layers TFOpLambda and SlicingOpLambda) as operations of Keras 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deploy.errors import GraphError

#: {"args", "kwargs"} with references to tensors, as Keras 3 writes a call.
Call = dict[str, Any]
#: Module of keras.src.ops, class, config.
Operation = tuple[str, str, dict[str, Any]]


def reference(layer: str, call: int, output: int = 0) -> dict[str, Any]:
    """A tensor as Keras 3 writes it: output of a layer's call."""
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": [], "dtype": "float32", "keras_history": [layer, call, output]},
    }


def operation_of_function(function: str, name: str, calls: list[Call]) -> tuple[dict[str, Any], list[Call]]:
    """The config of the operation that does what a function did, and its calls.

    Args:
        function: TensorFlow's name of it without "tf.", as in "math.multiply".
        name: the layer's.
        calls: with the function's first argument in args and TensorFlow's names in kwargs.

    Raises GraphError for a function without a counterpart, by name.
    """
    if function not in _FUNCTIONS:
        raise GraphError(
            f"a TensorFlow function in a model has a counterpart in Keras: {name!r} calls tf.{function}, which is not"
            " known"
        )
    try:
        converted = [_FUNCTIONS[function](call["args"][0], dict(call["kwargs"])) for call in calls]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise GraphError(
            f"a TensorFlow function's arguments are known: those of tf.{function} in {name!r} are not ({error!r})"
        ) from error
    operations = [operation for operation, _ in converted]
    if any(operation != operations[0] for operation in operations):
        raise GraphError(f"a function is called with the same settings each time: {name!r} (tf.{function}) is not")
    (module, kind, config), path = operations[0], "keras.src.ops."
    described = {
        "module": path + module,
        "class_name": kind,
        "config": {"name": name, **config},
        "registered_name": kind,
    }
    return described, [{"args": arguments, "kwargs": {}} for _, arguments in converted]


_Converted = tuple[Operation, list[Any]]
_Function = Callable[[Any, dict[str, Any]], _Converted]


def _binary(kind: str) -> _Function:
    return lambda x, keywords: (("numpy", kind, {}), [x, keywords["y"]])


def _unary(module: str, kind: str) -> _Function:
    return lambda x, _: ((module, kind, {}), [x])


def _silu(x: Any, keywords: dict[str, Any]) -> _Converted:
    if keywords.get("beta", 1.0) != 1.0:
        raise ValueError("beta is 1")
    return ("nn", "Silu", {}), [x]


def _leaky_relu(x: Any, keywords: dict[str, Any]) -> _Converted:
    return ("nn", "LeakyRelu", {"negative_slope": keywords.get("alpha", 0.2)}), [x]


def _softmax(x: Any, keywords: dict[str, Any]) -> _Converted:
    return ("nn", "Softmax", {"axis": -1 if keywords.get("axis") is None else keywords["axis"]}), [x]


def _concat(values: Any, keywords: dict[str, Any]) -> _Converted:
    return ("numpy", "Concatenate", {"axis": keywords["axis"]}), [values if isinstance(values, list) else [values]]


def _reshape(x: Any, keywords: dict[str, Any]) -> _Converted:
    return ("numpy", "Reshape", {"newshape": keywords["shape"]}), [x]


def _transpose(x: Any, keywords: dict[str, Any]) -> _Converted:
    return ("numpy", "Transpose", {"axes": keywords["perm"]}), [x]


def _reduction(kind: str) -> _Function:
    def convert(x: Any, keywords: dict[str, Any]) -> _Converted:
        return ("numpy", kind, {"axis": keywords.get("axis"), "keepdims": bool(keywords.get("keepdims", False))}), [x]

    return convert


def _pad(x: Any, keywords: dict[str, Any]) -> _Converted:
    if keywords.get("constant_values", 0):
        raise ValueError("constant_values is 0")
    return ("numpy", "Pad", {"pad_width": keywords["paddings"], "mode": keywords.get("mode", "CONSTANT").lower()}), [x]


def _resize(x: Any, keywords: dict[str, Any]) -> _Converted:
    if keywords.get("preserve_aspect_ratio") or keywords.get("antialias"):
        raise ValueError("neither preserve_aspect_ratio nor antialias")
    settings = {
        "size": keywords["size"],
        "interpolation": keywords.get("method", "bilinear"),
        "data_format": "channels_last",
    }
    return ("image", "Resize", settings), [x]


def _clip(x: Any, keywords: dict[str, Any]) -> _Converted:
    return ("numpy", "Clip", {"x_min": keywords["clip_value_min"], "x_max": keywords["clip_value_max"]}), [x]


def _cast(x: Any, keywords: dict[str, Any]) -> _Converted:
    return ("core", "Cast", {"dtype": keywords["dtype"]}), [x]


def _blocks(kind: str) -> _Function:
    def convert(x: Any, keywords: dict[str, Any]) -> _Converted:
        if keywords.get("data_format", "NHWC") != "NHWC":
            raise ValueError("data_format is NHWC")
        return ("nn", kind, {"block_size": keywords["block_size"], "data_format": "channels_last"}), [x]

    return convert


def _split(x: Any, keywords: dict[str, Any]) -> _Converted:
    sizes = keywords["num_or_size_splits"]
    cuts = sizes if isinstance(sizes, int) else [sum(sizes[: index + 1]) for index in range(len(sizes) - 1)]
    return ("numpy", "Split", {"indices_or_sections": cuts, "axis": keywords.get("axis", 0)}), [x]


def _getitem(x: Any, keywords: dict[str, Any]) -> _Converted:
    spec = keywords["slice_spec"]
    entries = spec["items"] if isinstance(spec, Mapping) and "items" in spec else spec
    return ("numpy", "GetItem", {}), [
        x,
        [_slice_entry(entry) for entry in (entries if isinstance(entries, list) else [entries])],
    ]


def _slice_entry(entry: Any) -> Any:
    if isinstance(entry, Mapping) and entry.get("class_name") == "__ellipsis__":
        return {"class_name": "__ellipsis__", "config": {}}
    if isinstance(entry, Mapping):
        return {"class_name": "__slice__", "config": {key: entry[key] for key in ("start", "stop", "step")}}
    if entry is None or isinstance(entry, int):
        return entry
    raise ValueError(f"slice {entry!r}")


_FUNCTIONS: Mapping[str, _Function] = {
    **dict.fromkeys(("math.multiply", "__operators__.mul", "multiply"), _binary("Multiply")),
    **dict.fromkeys(("math.add", "__operators__.add", "add"), _binary("Add")),
    **dict.fromkeys(("math.subtract", "__operators__.sub", "subtract"), _binary("Subtract")),
    **dict.fromkeys(("math.truediv", "math.divide", "__operators__.truediv", "realdiv"), _binary("TrueDivide")),
    **dict.fromkeys(("math.maximum", "maximum"), _binary("Maximum")),
    **dict.fromkeys(("math.minimum", "minimum"), _binary("Minimum")),
    **dict.fromkeys(("math.pow", "pow"), _binary("Power")),
    **dict.fromkeys(("math.negative", "__operators__.neg"), _unary("numpy", "Negative")),
    "nn.relu": _unary("nn", "Relu"),
    "nn.relu6": _unary("nn", "Relu6"),
    "nn.elu": _unary("nn", "Elu"),
    "nn.selu": _unary("nn", "Selu"),
    **dict.fromkeys(("math.sigmoid", "nn.sigmoid", "sigmoid"), _unary("nn", "Sigmoid")),
    **dict.fromkeys(("math.softplus", "nn.softplus"), _unary("nn", "Softplus")),
    **dict.fromkeys(("math.tanh", "nn.tanh", "tanh"), _unary("numpy", "Tanh")),
    **dict.fromkeys(("math.exp", "exp"), _unary("numpy", "Exp")),
    **dict.fromkeys(("math.square", "square"), _unary("numpy", "Square")),
    **dict.fromkeys(("math.sqrt", "sqrt"), _unary("numpy", "Sqrt")),
    **dict.fromkeys(("nn.silu", "nn.swish"), _silu),
    "nn.leaky_relu": _leaky_relu,
    **dict.fromkeys(("nn.softmax", "nn.softmax_v2"), _softmax),
    **dict.fromkeys(("concat",), _concat),
    **dict.fromkeys(("reshape", "compat.v1.reshape"), _reshape),
    **dict.fromkeys(("transpose", "compat.v1.transpose"), _transpose),
    **dict.fromkeys(("math.reduce_mean", "reduce_mean"), _reduction("Mean")),
    **dict.fromkeys(("math.reduce_max", "reduce_max"), _reduction("Max")),
    **dict.fromkeys(("math.reduce_sum", "reduce_sum"), _reduction("Sum")),
    **dict.fromkeys(("pad", "compat.v1.pad"), _pad),
    **dict.fromkeys(("image.resize", "image.resize_v2", "image.resize_images_v2"), _resize),
    "clip_by_value": _clip,
    "cast": _cast,
    **dict.fromkeys(("nn.space_to_depth", "compat.v1.space_to_depth"), _blocks("SpaceToDepth")),
    **dict.fromkeys(("nn.depth_to_space", "compat.v1.depth_to_space"), _blocks("DepthToSpace")),
    "split": _split,
    **dict.fromkeys(("__operators__.getitem", "strided_slice"), _getitem),
}
