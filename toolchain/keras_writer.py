"""Makes a Keras model of a graph: the same layers under the same names, with the same settings and weights.

Ops of ours become plain Keras operations (Slice: GetItem, Resize: image.resize, MirrorPad: pad), so that the model
can be saved and loaded anywhere; DarknetReorg alone is a layer of ours. keras_reader.from_keras turns all of them
back.

Initializers are zeros: every weight is given, and Keras's own would draw from Python's global random state.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deploy.errors import GraphError
from toolchain.graph import Graph, Node, owner
from toolchain.keras_calls import decode_argument
from toolchain.keras_config import refuse_foreign_objects
from toolchain.shape_rules import MERGES, filters, kernel_size, padding_of
from toolchain.shapes import has_rule

#: Attributes of ours, which Keras's layers don't know.
_OWN = frozenset(("recorded_shape", "call", "non_trainable_weights", "trainable"))
#: Names of activations that graphs know beside Keras's own.
_ACTIVATIONS = {"logistic": "sigmoid"}
#: Prefix of the op of an opaque node that is a Keras operation (keras.ops) and no layer.
OPERATION = "ops."


def to_keras(graph: Graph, *, allow_lambda: bool = False, layers: dict[str, Any] | None = None) -> Any:
    """A keras.Model that computes the graph in float32; its outputs are in the order of graph.outputs, a list where
    there are several.

    Every input keeps its size; the batch is free unless an InputLayer has the attribute "batch_size". A node that
    shares weights becomes another call of the same layer. allow_lambda lets a Lambda's Python code run: only for
    files that are trusted. layers: those of models made before, by name, which this model shares; grows.

    Raises GraphError, naming the node, where Keras has no such layer, refuses its settings, or a weight does not fit.
    """
    import keras

    layers = {} if layers is None else layers
    tensors: dict[str, Any] = {}
    for node in graph.nodes:
        try:
            tensors[node.name] = call_node(node, owner(graph, node), layers, tensors, allow_lambda)
        except (TypeError, ValueError, AttributeError, KeyError, NotImplementedError) as error:
            raise GraphError(
                f"Keras builds every node: {node.op} {node.name!r} was refused: {first_line(error)}"
            ) from error
    return model_of(keras.Model, graph, tensors)


def model_of(kind: Any, graph: Graph, tensors: Mapping[str, Any]) -> Any:
    """The model between the graph's inputs and outputs. kind: keras.Model or tf_keras.Model. tensors: symbolic ones, by
    the names of the nodes that make them."""
    inputs = [tensors[node.name] for node in graph.nodes if node.op == "InputLayer"]
    outputs = [tensors[name] for name in graph.outputs]
    if not inputs or not outputs:
        raise GraphError(
            f"a Keras model has inputs and outputs: graph {graph.name!r} has {len(inputs)} and {len(outputs)}"
        )
    return kind(
        inputs if len(inputs) > 1 else inputs[0],
        outputs if len(outputs) > 1 else outputs[0],
        name=graph.name.replace("/", "_") or "graph",
    )


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def call_node(
    node: Node, root: Node, layers: dict[str, Any], tensors: Mapping[str, Any], allow_lambda: bool = False
) -> Any:
    """The tensor that a node makes of those that it reads.

    root: the node whose weights it uses. layers: what was built so far, by the names of such nodes; grows. tensors:
    symbolic ones of Keras, or TensorFlow's, by the names of the nodes that make them.
    """
    import keras

    if node.op == "InputLayer":
        shape = tuple(node.attributes["shape"])
        return keras.Input(
            shape, node.attributes.get("batch_size"), dtype=node.attributes.get("dtype", "float32"), name=node.name
        )
    sources = [tensors[name] for name in node.inputs]
    if node.op in _OPERATIONS:
        return _OPERATIONS[node.op](node, sources[0])
    if root.name not in layers:
        layers[root.name] = _layer(root, allow_lambda)
    layer = layers[root.name]
    arguments, keywords = call_arguments(node, sources)
    tensor = layer(*arguments, **keywords)
    if root is node:
        set_weights(layer, node)
    if not hasattr(tensor, "shape"):
        raise GraphError(f"a node has one output: {node.op} {node.name!r} returns {type(tensor).__name__}")
    return tensor


def call_arguments(node: Node, sources: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a node's call; sources: the tensors that it reads."""
    if "call" in node.attributes:
        call = node.attributes["call"]
        keywords = {name: decode_argument(value, sources) for name, value in call.get("kwargs", {}).items()}
        return [decode_argument(value, sources) for value in call["args"]], keywords
    return ([sources] if node.op in MERGES else sources), {}


def _layer(node: Node, allow_lambda: bool) -> Any:
    import keras

    refuse_foreign_objects(node.attributes, allow_lambda=allow_lambda, place=f"{node.op} {node.name!r}")
    if node.op.startswith(OPERATION):
        return _opaque_operation(node)
    if node.op == "Lambda" and not allow_lambda:
        raise GraphError(
            f"a Lambda runs code from the file: {node.name!r} is one; "
            "allow it (--allow-lambda, or allow_lambda: true in a recipe) only if you trust the"
            " file"
        )
    if not isinstance(getattr(keras.layers, node.op, None), type):
        raise GraphError(f"a node's op is a layer of Keras or one of ours: {node.op!r} of {node.name!r} is neither")
    config = layer_settings(node)
    if not has_rule(node.op):
        described = {"module": "keras.layers", "class_name": node.op, "registered_name": None}
        config["trainable"] = node.attributes.get("trainable", True)
        return keras.saving.deserialize_keras_object({**described, "config": config}, safe_mode=not allow_lambda)
    layer = getattr(keras.layers, node.op).from_config(config)
    if node.attributes.get("trainable") is False:
        layer.trainable = False
    return layer


#: The initializers of each op, by the weights that have one.
_INITIALIZERS = {
    "Conv2D": ("kernel", "bias"),
    "Conv2DTranspose": ("kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "DepthwiseConv2D": ("depthwise", "bias"),
    "SeparableConv2D": ("depthwise", "pointwise", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "LayerNormalization": ("gamma", "beta"),
    "GroupNormalization": ("gamma", "beta"),
    "PReLU": ("alpha",),
}


def layer_settings(node: Node) -> dict[str, Any]:
    """A Keras layer's config: the node's own settings, completed, its name, and float32."""
    config = {key: value for key, value in node.attributes.items() if key not in _OWN}
    config |= {"name": node.name, "dtype": "float32"}
    return config | _completed(node) if has_rule(node.op) else config


def _completed(node: Node) -> dict[str, Any]:
    """The settings that follow from the weights, Keras's names of ours, and initializers that cost nothing."""
    settings: dict[str, Any] = {f"{weight}_initializer": "zeros" for weight in _INITIALIZERS.get(node.op, ())}
    if node.op in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"):
        settings["kernel_size"] = kernel_size(node, node.weights)
    if node.op == "Conv2D":
        settings["filters"] = filters(node, node.weights)
    if node.op == "Dense" and "units" not in node.attributes:
        settings["units"] = node.weights["kernel"].shape[-1]
    if node.op in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "Dense") and node.weights:
        settings["use_bias"] = "bias" in node.weights
    activation = node.attributes.get("activation")
    if isinstance(activation, str) and activation in _ACTIVATIONS:
        settings["activation"] = _ACTIVATIONS[activation]
    return settings


def set_weights(layer: Any, node: Node) -> None:
    """Sets the weights by their order, after checking names' count and shapes."""
    found = [tuple(variable.shape) for variable in getattr(layer, "weights", ())]
    given = [array.shape for array in node.weights.values()]
    if found != given:
        raise GraphError(
            f"weights fit their layer: {node.op} {node.name!r} has {found} in Keras, the graph gives {given}"
        )
    if given:
        layer.set_weights(list(node.weights.values()))
    if node.op == "Normalization" and given:
        # It computes with constants that it derives from its weights only here.
        layer.finalize_state()


def operation_class(module: str, name: str) -> Any:
    """The class behind a function of keras.ops, by which an operation can be given a name; its functions take none."""
    if module.split(".")[:3] != ["keras", "src", "ops"]:
        raise GraphError(f"an operation comes from keras.ops: {name!r} is of {module!r}")
    import keras

    found = getattr(importlib.import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, keras.Operation)):
        raise GraphError(f"an operation comes from keras.ops: this Keras has no {name!r} in {module!r}")
    return found


def _opaque_operation(node: Node) -> Any:
    operation = operation_class(node.attributes["module"], node.op.removeprefix(OPERATION))(
        **node.attributes.get("config", {})
    )
    operation.name = node.name
    return operation


def _slice(node: Node, tensor: Any) -> Any:
    axis = int(node.attributes.get("axis", -1))
    if not -len(tensor.shape) < axis < 0:
        raise GraphError(
            f"a slice's axis counts from the end: {node.name!r} has {axis} and reads {tuple(tensor.shape)}"
        )
    key = (Ellipsis, slice(node.attributes["start"], node.attributes["stop"]), *(slice(None),) * (-1 - axis))
    return operation_class("keras.src.ops.numpy", "GetItem")(name=node.name)(tensor, key)


def _resize(node: Node, tensor: Any) -> Any:
    size, interpolation = (node.attributes["height"], node.attributes["width"]), node.attributes.get(
        "interpolation", "nearest"
    )
    resize = operation_class("keras.src.ops.image", "Resize")
    return resize(size, interpolation, data_format="channels_last", name=node.name)(tensor)


def _mirror_pad(node: Node, tensor: Any) -> Any:
    padding = ((0, 0), *padding_of(node), (0, 0))
    return operation_class("keras.src.ops.numpy", "Pad")(padding, node.attributes["mode"], name=node.name)(tensor)


def _darknet_reorg(node: Node, tensor: Any) -> Any:
    return darknet_reorg_layer()(node.attributes["stride"], name=node.name, dtype="float32")(tensor)


_OPERATIONS: Mapping[str, Callable[[Node, Any], Any]] = {
    "Slice": _slice,
    "Resize": _resize,
    "MirrorPad": _mirror_pad,
    "DarknetReorg": _darknet_reorg,
}


@functools.cache
def darknet_reorg_layer() -> Any:
    """The Keras layer of darknet's reorg, for any batch, with tensors of at most four dimensions.

    With s the stride, darknet views the buffer of (c, h, w) as (c*h/s², s, w, s), permutes that to (s, s, c*h/s², w)
    and calls it (c*s², h/s, w/s): reorg_cpu of darknet's blas.c. Here with the batch in front of c*h/s².
    """
    import keras

    @keras.saving.register_keras_serializable("slimdet")
    class DarknetReorg(keras.layers.Layer):
        def __init__(self, stride: int, **settings: Any) -> None:
            super().__init__(**settings)
            self.stride = stride

        def call(self, x: Any) -> Any:
            (_, height, width, channels), s = x.shape, self.stride
            rows = channels * height // s**2
            x = keras.ops.transpose(x, (0, 3, 1, 2))
            x = keras.ops.transpose(keras.ops.reshape(x, (-1, s, width, s)), (1, 3, 0, 2))
            x = keras.ops.transpose(keras.ops.reshape(x, (s * s, -1, rows * width)), (1, 0, 2))
            x = keras.ops.reshape(x, (-1, channels * s**2, height // s, width // s))
            return keras.ops.transpose(x, (0, 2, 3, 1))

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "stride": self.stride}

    return DarknetReorg


def with_weights_of(graph: Graph, model: Any) -> Graph:
    """The graph with the weights that its model, of Keras or tf_keras, has now: layers by their names, their weights by
    their order."""
    return dataclasses.replace(graph, nodes=tuple(_with_weights_of(node, model) for node in graph.nodes))


def _with_weights_of(node: Node, model: Any) -> Node:
    if not node.weights:
        return node
    values = model.get_layer(node.name).get_weights()
    weights = {
        name: np.asarray(value, array.dtype)
        for (name, array), value in zip(node.weights.items(), values, strict=True)
    }
    return dataclasses.replace(node, weights=weights)
