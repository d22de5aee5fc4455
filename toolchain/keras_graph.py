"""Makes a graph of a Keras model, exactly: to_keras(from_keras(model)) computes the same to the last bit, under the
same names.

Nested models are flattened, their nodes' names begin with the nested model's. A layer with weights that is called
again becomes a node with shared_with; one without weights simply becomes another node. Keras's operations (`a + b`,
keras.ops) become nodes too (keras_operations.py). The graph is float32 whatever the model's dtype policy.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploy.errors import GraphError
from toolchain.graph import Graph, Node, plain, reachable
from toolchain.keras_calls import encode_call, is_plain_call, name_of
from toolchain.keras_config import OWN_LAYERS, refuse_foreign_objects
from toolchain.keras_operations import canonical, split_slices
from toolchain.keras_writer import OPERATION
from toolchain.shapes import has_rule

#: Ops that do something else in training: `training=False` at the call of a nested model reaches them.
_KNOW_TRAINING = frozenset(
    ("BatchNormalization", "Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout")
)


@dataclasses.dataclass
class _Reading:
    """What has been read so far."""

    allow_lambda: bool
    nodes: list[Node] = dataclasses.field(default_factory=list)
    used: set[str] = dataclasses.field(default_factory=set)
    #: Name of the first node of every layer, by the layer's id.
    first: dict[int, str] = dataclasses.field(default_factory=dict)

    def add(self, name: str, op: str, inputs: Sequence[str], attributes: Mapping[str, Any], **more: Any) -> str:
        unique, count = name, 1
        while unique in self.used:
            count += 1
            unique = f"{name}_call_{count}"
        self.used.add(unique)
        self.nodes.append(Node(unique, op, tuple(inputs), attributes, **more))
        return unique


def from_keras(model: Any, *, allow_lambda: bool = False) -> Graph:
    """The graph of a Keras 3 Functional or Sequential model.

    Raises GraphError, naming the layer, for what a graph cannot hold: layers that are not Keras's own, Lambda (unless
    allowed), channels-first data, several outputs of one layer, quantized layers.
    """
    functional = _functional(model)
    reading = _Reading(allow_lambda)
    names: dict[int, str] = {}
    _read_model(functional, names, "", None, reading)
    outputs = [name_of(tensor, names, model.name) for tensor in functional.outputs]
    # Of a split, parts that nobody reads.
    return reachable(Graph(model.name, tuple(reading.nodes), tuple(outputs)))


def _functional(model: Any) -> Any:
    """The Functional model of a model."""
    import keras

    if isinstance(model, keras.Sequential):
        if not model.built or model._functional is None:
            raise GraphError(
                f"a model's input size is known: Sequential {model.name!r} has none; give it an Input layer"
            )
        return model._functional
    if not isinstance(model, keras.Model) or not hasattr(model, "_nodes_by_depth"):
        raise GraphError(
            f"a model is Functional or Sequential: {type(model).__name__!r} is a class of its own; rebuild it"
            " functionally"
        )
    return model


def _read_model(model: Any, names: dict[int, str], prefix: str, training: bool | None, reading: _Reading) -> None:
    """Reads a functional model's nodes; names maps the id of every Keras tensor to its node's name."""
    # Keras orders nodes by their distance from the outputs: every input stands before its reader.
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for call in model._nodes_by_depth[depth]:
            if call.is_input:
                if not prefix:
                    names[id(call.outputs[0])] = _read_input(call.operation, reading)
                continue
            _read_call(call, names, prefix, training, reading)


def _read_input(layer: Any, reading: _Reading) -> str:
    shape = layer.batch_shape
    attributes: dict[str, Any] = {"shape": list(shape[1:])}
    if layer.sparse or getattr(layer, "ragged", False):
        raise GraphError(f"inputs are dense: {layer.name!r} is sparse or ragged")
    if shape[0] is not None:
        attributes["batch_size"] = shape[0]
    if layer.dtype != "float32":
        attributes["dtype"] = layer.dtype
    return reading.add(layer.name, "InputLayer", (), attributes)


def _read_call(call: Any, names: dict[int, str], prefix: str, training: bool | None, reading: _Reading) -> None:
    import keras

    operation = call.operation
    if isinstance(operation, keras.Model):
        _read_nested(call, names, prefix, training, reading)
        return
    name = prefix + operation.name
    outputs = keras.tree.flatten(call.outputs)
    if isinstance(operation, keras.layers.Layer):
        names[id(outputs[0])] = _read_layer(call, names, name, training, reading)
    elif type(operation).__name__ == "Split" and len(outputs) > 1:
        _read_split(call, names, name, reading)
        return
    else:
        names[id(outputs[0])] = _read_operation(call, names, name, reading)
    if len(outputs) != 1:
        raise GraphError(f"a node has one output: {type(operation).__name__} {name!r} has {len(outputs)}")


def _read_nested(call: Any, names: dict[int, str], prefix: str, training: bool | None, reading: _Reading) -> None:
    import keras

    model = _functional(call.operation)
    given = [value for value in keras.tree.flatten(call.arguments.args) if isinstance(value, keras.KerasTensor)]
    if len(given) != len(model.inputs) or any(isinstance(argument, dict) for argument in call.arguments.args):
        raise GraphError(f"a nested model gets its inputs as positional tensors: {call.operation.name!r} does not")
    inner = {id(own): name_of(tensor, names, prefix) for own, tensor in zip(model.inputs, given, strict=True)}
    told = call.arguments.kwargs.get("training")
    _read_model(model, inner, f"{prefix}{call.operation.name}_", training if told is None else told, reading)
    for tensor, own in zip(keras.tree.flatten(call.outputs), model.outputs, strict=True):
        names[id(tensor)] = name_of(own, inner, call.operation.name)


def _read_split(call: Any, names: dict[int, str], name: str, reading: _Reading) -> None:
    tensor = call.input_tensors[0]
    slices = split_slices(call.operation, tensor)
    if slices is None:
        raise GraphError(f"a split leaves the batch whole and knows its axis: {name!r} does not")
    for index, (output, attributes) in enumerate(zip(call.outputs, slices, strict=True)):
        names[id(output)] = reading.add(f"{name}_{index}", "Slice", [name_of(tensor, names, name)], attributes)


def _read_operation(call: Any, names: Mapping[int, str], name: str, reading: _Reading) -> str:
    operation = call.operation
    kind, module = type(operation).__name__, type(operation).__module__
    if module.split(".")[:3] != ["keras", "src", "ops"]:
        raise GraphError(f"only Keras's own operations are read: {name!r} is a {kind} of {module!r}")
    bound = inspect.signature(operation.call).bind(*call.arguments.args, **call.arguments.kwargs)
    found = canonical(operation, bound.arguments)
    if found is not None:
        op, tensors, attributes = found
        return reading.add(name, op, [name_of(tensor, names, name) for tensor in tensors], plain(attributes))
    inputs, attributes = encode_call(call, names, name)
    try:
        config = plain({key: value for key, value in operation.get_config().items() if key != "name"})
    except (NotImplementedError, TypeError) as error:
        raise GraphError(f"an operation's settings are plain values: {kind} {name!r} has others") from error
    attributes |= {"module": module, "config": config, "recorded_shape": list(_output_shape(call))}
    return reading.add(name, OPERATION + kind, inputs, attributes)


def _output_shape(call: Any) -> Sequence[int | None]:
    shape: Sequence[int | None] = call.outputs[0].shape[1:]
    return shape


def _read_layer(call: Any, names: Mapping[int, str], name: str, training: bool | None, reading: _Reading) -> str:
    import keras

    layer = call.operation
    op = _op_of(layer, name)
    attributes = _settings(layer, op, name, reading.allow_lambda)
    inputs, made = encode_call(call, names, name)
    keywords = made["call"]["kwargs"]
    if training is not None and op in _KNOW_TRAINING:
        keywords.setdefault("training", training)
    if keywords or not is_plain_call(call, op):
        attributes |= made
    variables, shared = list(layer.weights), reading.first.get(id(layer), "")
    own = _weight_names(variables)
    if not has_rule(op):
        attributes["recorded_shape"] = list(_output_shape(call))
        fixed = [weight for weight, variable in zip(own, variables, strict=True) if not variable.trainable]
        if fixed and layer.trainable:
            attributes["non_trainable_weights"] = fixed
    arrays = (
        {}
        if shared
        else {
            weight: _float32(keras.ops.convert_to_numpy(variable))
            for weight, variable in zip(own, variables, strict=True)
        }
    )
    added = reading.add(name, op, inputs, attributes, weights=arrays, shared_with=shared)
    if arrays:
        reading.first[id(layer)] = added
    return added


def _op_of(layer: Any, name: str) -> str:
    """The layer's class name, if it is Keras's own class or one of ours."""
    import keras

    kind = type(layer)
    if keras.saving.get_registered_name(kind) in OWN_LAYERS:
        return str(kind.__name__)
    if getattr(keras.layers, kind.__name__, None) is not kind:
        raise GraphError(
            f"only Keras's own layers are read: {name!r} is a {kind.__module__}.{kind.__name__}; rebuild it of Keras's"
            " layers"
        )
    return str(kind.__name__)


def _settings(layer: Any, op: str, name: str, allow_lambda: bool) -> dict[str, Any]:
    """The layer's config as attributes: without name and dtype, and, where the op has a rule, without initializers."""
    if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
        raise GraphError(
            f"weights are plain floats: {op} {name!r} is quantized or has LoRA; read the model before that"
        )
    config = {key: value for key, value in layer.get_config().items() if key not in ("name", "dtype")}
    if has_rule(op):
        config = {key: value for key, value in config.items() if not key.endswith("_initializer")}
    if config.pop("trainable", True) is False:
        config["trainable"] = False
    if config.get("data_format") == "channels_first":
        raise GraphError(
            f"data is channels-last: {op} {name!r} has channels_first; rebuild the model with channels_last"
        )
    refuse_foreign_objects(
        {"class_name": op, "module": "keras.layers", "config": config},
        allow_lambda=allow_lambda,
        place=f"{op} {name!r}",
    )
    try:
        return dict(_float32_policies(plain(config)))
    except TypeError as error:
        raise GraphError(f"a layer's settings are plain values: {op} {name!r} has others: {error}") from error


def _float32_policies(config: Any) -> Any:
    """The config with every dtype policy inside (layers within layers) replaced by float32."""
    if isinstance(config, list):
        return [_float32_policies(item) for item in config]
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return "float32"
        return {key: _float32_policies(value) for key, value in config.items()}
    return config


def _weight_names(variables: Sequence[Any]) -> list[str]:
    """The variables' own names; numbered where a composite layer has one several times."""
    names = [str(variable.name) for variable in variables]
    if len(set(names)) == len(names):
        return names
    return [f"{index}_{name}" for index, name in enumerate(names)]


def _float32(array: np.ndarray) -> np.ndarray:
    """A copy; floats of every width as float32."""
    # bfloat16 is no float to numpy's own hierarchy.
    is_float = np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"
    return np.array(array, np.float32 if is_float else array.dtype)
