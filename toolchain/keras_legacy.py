"""Turns configs that tf.keras (Keras 2) wrote, and .h5 files of any Keras, into what Keras 3 builds, and reads .h5
weights.

What differs, and would be refused or, worse, computed differently:
    DepthwiseConv2D and others name `groups` and kernel_* settings that the layer never had
    LeakyReLU's alpha, batch_input_shape, axis as a list of one, dtype policies, initializers of old names
    hard_sigmoid is clip(0.2 x + 0.5, 0, 1) in Keras 2 and relu6(x + 3) / 6 in Keras 3
    TFOpLambda and SlicingOpLambda, which `a + b` or tf.nn.relu(x) became, are keras.ops now (keras_legacy_calls.py)
    a nested model's calls are counted from 1
    in .h5 files of Keras 3, `a + b` is an Add without a module, as the layer Add is
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.errors import GraphError, InputError
from toolchain.keras_legacy_calls import operation_of_function, reference

_RENAMED = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "Model": "Functional",
}
#: Functions that files name by their Python name, under the names that Keras 3 knows.
_ACTIVATIONS = {
    "swish": "silu",
    "swish_v2": "silu",
    "silu_v2": "silu",
    "hard_swish": "hard_silu",
    "h_swish": "hard_silu",
    "hswish": "hard_silu",
    "leaky_relu_v2": "leaky_relu",
    "softmax_v2": "softmax",
}
#: Settings that a layer's class inherited from Conv2D and never used.
_UNUSED = {
    "DepthwiseConv2D": ("groups", "filters", "kernel_initializer", "kernel_regularizer", "kernel_constraint"),
    "SeparableConv2D": ("groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint"),
    "Conv2DTranspose": ("groups",),
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN"), ("time_major",)),
    "Lambda": ("function_type", "module", "output_shape_type", "output_shape_module"),
}
#: Layers of Keras 3 whose operation has the same name but is called with several tensors instead of a list.
_AMBIGUOUS = frozenset(("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Average", "Dot"))
_OPERATION_MODULES = ("keras.src.ops.numpy", "keras.src.ops.nn", "keras.src.ops.image", "keras.src.ops.core")


def to_keras_3(config: Mapping[str, Any], *, before_3: bool) -> dict[str, Any]:
    """The config of a model or layer as Keras 3 writes it: {"module", "class_name", "config", "registered_name", …}.

    Args:
        config: plain JSON; left unchanged.
        before_3: written by Keras 2, whose functions of the same names are not all the same.

    Raises GraphError, by name, for layers and functions that Keras does not have.
    """
    import keras

    name = _RENAMED.get(str(config["class_name"]), str(config["class_name"]))
    if name in ("Functional", "Sequential"):
        inner = (
            _sequential(config["config"], before_3) if name == "Sequential" else _functional(config["config"], before_3)
        )
        module = "keras" if name == "Sequential" else "keras.src.models.functional"
        return {"module": module, "class_name": name, "config": inner, "registered_name": name}
    if config.get("module") is not None and not str(config["module"]).startswith("tf_keras") and not before_3:
        return dict(config)
    if config.get("registered_name") is not None and ">" in str(config["registered_name"]):
        return dict(config)
    if not isinstance(getattr(keras.layers, name, None), type):
        label = f"{config.get('name') or config['config'].get('name')!r}"
        raise GraphError(f"only Keras's own layers are read: layer {label} is a {name!r}, which Keras does not have")
    return {
        "module": "keras.layers",
        "class_name": name,
        "config": _layer(name, config["config"], before_3),
        "registered_name": None,
    }


def _layer(kind: str, config: Mapping[str, Any], before_3: bool) -> dict[str, Any]:
    unused = _UNUSED.get(kind, ())
    if "groups" in unused and config.get("groups", 1) != 1:
        raise GraphError(f"a {kind} has no groups: {config.get('name')!r} has {config['groups']}")
    # Old names of initializers; the weights come from the file anyway.
    kept = {key: value for key, value in config.items() if key not in unused and not key.endswith("_initializer")}
    if isinstance(kept.get("name"), str):
        kept["name"] = _name(kept["name"])
    if "dtype" in kept and kind != "InputLayer":
        kept["dtype"] = "float32"
    if kind == "InputLayer" and "batch_input_shape" in kept:
        kept["batch_shape"] = kept.pop("batch_input_shape")
    kept.pop("batch_input_shape", None)
    if kind == "InputLayer":
        kept = {key: kept[key] for key in ("batch_shape", "dtype", "sparse", "name") if key in kept}
    if kind == "Lambda" and config.get("function_type") == "lambda":
        code, defaults, closure = kept["function"]
        kept["function"] = {
            "class_name": "__lambda__",
            "config": {"code": code, "defaults": defaults, "closure": closure},
        }
    if kind == "LeakyReLU" and "alpha" in kept:
        kept["negative_slope"] = kept.pop("alpha")
    if kind == "BatchNormalization":
        _batch_norm(kept)
    for key in ("activation", "recurrent_activation"):
        if isinstance(kept.get(key), str):
            kept[key] = _activation(kept[key], str(kept.get("name")), before_3)
    return {key: _inner(value, before_3) for key, value in kept.items()}


def _batch_norm(config: dict[str, Any]) -> None:
    if config.pop("renorm", False):
        raise GraphError(f"batch renormalization is not read: {config.get('name')!r} has it")
    for key in ("fused", "virtual_batch_size", "renorm_clipping", "renorm_momentum", "adjustment"):
        config.pop(key, None)
    if isinstance(config.get("axis"), list) and len(config["axis"]) == 1:
        config["axis"] = config["axis"][0]


def _activation(name: str, layer: str, before_3: bool) -> str:
    from keras.activations import get

    known = _ACTIVATIONS.get(name, name)
    if before_3 and known == "hard_sigmoid":
        raise GraphError(
            f"Keras 3 has no hard_sigmoid of Keras 2: {layer!r} has it built in; use a layer Activation('hard_sigmoid')"
            " of its own"
        )
    try:
        get(known)
    except ValueError:
        raise GraphError(
            f"functions of the user's own are not read: {layer!r} uses {name!r}; build it of Keras's layers"
        ) from None
    return known


def _inner(value: Any, before_3: bool) -> Any:
    """A setting with the layers in it (of a Bidirectional, a TimeDistributed) converted as well."""
    import keras

    if isinstance(value, list):
        return [_inner(item, before_3) for item in value]
    if not isinstance(value, Mapping):
        return value
    name = value.get("class_name")
    if isinstance(name, str) and isinstance(value.get("config"), Mapping):
        if name in ("Functional", "Sequential", "Model") or isinstance(getattr(keras.layers, name, None), type):
            return to_keras_3(value, before_3=before_3)
        if name == "function":
            raise GraphError(
                f"functions of the user's own are not read: {value['config']!r} is one; build it of Keras's layers"
            )
    return {key: _inner(item, before_3) for key, item in value.items()}


def _name(name: str) -> str:
    """Keras 3 has no slash in names."""
    return name.replace("/", "_")


def _sequential(config: Any, before_3: bool) -> dict[str, Any]:
    # Before tf 2.0 it was the list of layers alone.
    layers = config if isinstance(config, list) else config["layers"]
    result: dict[str, Any] = {"name": "sequential" if isinstance(config, list) else _name(config["name"]), "layers": []}
    for index, layer in enumerate(layers):
        shape = layer["config"].get("batch_input_shape") if isinstance(layer["config"], Mapping) else None
        if index == 0 and shape is not None and layer["class_name"] != "InputLayer":
            described = {"batch_shape": shape, "dtype": "float32", "name": f"{_name(layer['config']['name'])}_input"}
            result["layers"].append(
                {"module": "keras.layers", "class_name": "InputLayer", "config": described, "registered_name": None}
            )
        result["layers"].extend(_converted_layers(layer, before_3))
    return result


def _converted_layers(layer: Mapping[str, Any], before_3: bool) -> Iterator[dict[str, Any]]:
    """One layer's config; a hard_sigmoid of Keras 2 becomes two layers."""
    if _is_old_hard_sigmoid(layer, before_3):
        name = _name(layer["config"]["name"])
        yield _described("Rescaling", {"name": f"{name}_line", "scale": 0.2, "offset": 0.5})
        yield _described("ReLU", {"name": name, "max_value": 1.0})
    else:
        yield to_keras_3(layer, before_3=before_3)


def _is_old_hard_sigmoid(layer: Mapping[str, Any], before_3: bool) -> bool:
    return before_3 and layer["class_name"] == "Activation" and layer["config"].get("activation") == "hard_sigmoid"


def _described(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}


def _functional(config: Mapping[str, Any], before_3: bool) -> dict[str, Any]:
    kinds = {_name(layer["name"]): _RENAMED.get(layer["class_name"], layer["class_name"]) for layer in config["layers"]}
    layers: list[dict[str, Any]] = []
    for layer in config["layers"]:
        name = _name(layer["name"])
        calls = [_call(call, kinds) for call in layer.get("inbound_nodes", [])]
        if layer["class_name"] in ("TFOpLambda", "SlicingOpLambda"):
            function = layer["config"]["function"]
            described, calls = operation_of_function(str(function), name, calls)
            layers.append({**described, "name": name, "inbound_nodes": calls})
            continue
        if _is_operation(layer, calls):
            layers.append({**_operation(layer), "name": name, "inbound_nodes": calls})
            continue
        *before, last = _converted_layers(layer, before_3)
        for extra in before:
            layers.append({**extra, "name": extra["config"]["name"], "inbound_nodes": calls})
            calls = [{"args": [reference(extra["config"]["name"], index)], "kwargs": {}} for index in range(len(calls))]
        layers.append({**last, "name": name, "inbound_nodes": calls})
    ends = {key: _ends(config[key], kinds) for key in ("input_layers", "output_layers")}
    return {"name": _name(config["name"]), "trainable": config.get("trainable", True), "layers": layers, **ends}


def _is_operation(layer: Mapping[str, Any], calls: list[dict[str, Any]]) -> bool:
    """Whether an entry without a module is one of keras.ops."""
    import keras

    if layer.get("module") is not None:
        return str(layer["module"]).startswith("keras.src.ops")
    name = layer["class_name"]
    if name in _AMBIGUOUS:
        return any(len(call["args"]) > 1 for call in calls)
    return (name == "Reshape" and "newshape" in layer["config"]) or not (
        isinstance(getattr(keras.layers, name, None), type) or name in _RENAMED or name in ("Functional", "Sequential")
    )


def _operation(layer: Mapping[str, Any]) -> dict[str, Any]:
    from toolchain.keras_writer import operation_class

    name = str(layer["class_name"])
    modules = [layer["module"]] if layer.get("module") else _OPERATION_MODULES
    for module in modules:
        try:
            operation_class(module, name)
        except GraphError:
            continue
        return {"module": module, "class_name": name, "config": dict(layer["config"]), "registered_name": name}
    label = layer.get("name") or layer["config"].get("name")
    raise GraphError(f"only Keras's own layers are read: layer {label!r} is a {name!r}, which Keras does not have")


def _call(call: Any, kinds: Mapping[str, str]) -> dict[str, Any]:
    """One call as {"args", "kwargs"} with references to tensors."""
    if isinstance(call, Mapping):
        return dict(call)
    # A function's single tensor stands alone, a layer's in a list.
    alone = bool(call) and isinstance(call[0], str)
    entries = [call] if alone else list(call)
    keywords = {
        key: value for key, value in (entries[0][3] if entries and len(entries[0]) > 3 else {}).items() if key != "name"
    }
    tensors = [_tensor(entry, kinds) for entry in entries]
    single = alone or len(tensors) == 1
    return {
        "args": [tensors[0] if single else tensors],
        "kwargs": {key: _keyword(value, kinds) for key, value in keywords.items()},
    }


def _keyword(value: Any, kinds: Mapping[str, str]) -> Any:
    is_tensor = (
        isinstance(value, list) and len(value) in (3, 4) and isinstance(value[0], str) and isinstance(value[1], int)
    )
    if is_tensor and (_name(value[0]) in kinds or value[0] == "_CONSTANT_VALUE"):
        return _tensor(value, kinds)
    return value


def _tensor(entry: list[Any], kinds: Mapping[str, str]) -> Any:
    """The reference to a tensor, or the constant in its place."""
    if entry[0] == "_CONSTANT_VALUE":
        return entry[2]
    name = _name(entry[0])
    # Keras 2 counts a nested model's calls from 1: its own construction is the first.
    first = 1 if kinds.get(name) in ("Functional", "Sequential") else 0
    return reference(name, int(entry[1]) - first, int(entry[2]))


def _ends(ends: Any, kinds: Mapping[str, str]) -> Any:
    """input_layers or output_layers. Keras 3 still counts a nested Functional's calls from 1 here, but not a
    Sequential's."""
    if isinstance(ends, list) and len(ends) == 3 and isinstance(ends[0], str):
        name = _name(ends[0])
        return [name, ends[1] - (1 if kinds.get(name) == "Sequential" else 0), ends[2]]
    if isinstance(ends, Mapping):
        return {key: _ends(value, kinds) for key, value in ends.items()}
    return [_ends(value, kinds) for value in ends]


def set_legacy_weights(model: Any, stored: Any, path: Path) -> None:
    """Sets a model's weights from the group model_weights of an .h5 file, by the layers' names.

    Raises InputError where a layer's weights are missing, too many, or of another shape.
    """
    groups = {_name(name): stored[name] for name in stored_names(stored, "layer_names")}
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    filled = {name for name, group in groups.items() if stored_names(group, "weight_names")}
    if filled != layers.keys():
        missing, extra = sorted(layers.keys() - filled), sorted(filled - layers.keys())
        raise InputError(
            f"a file has the weights of every layer: {path} lacks those of {missing[:3]} and has others for {extra[:3]}"
        )
    for name, layer in layers.items():
        arrays = [(weight, groups[name][weight][()]) for weight in stored_names(groups[name], "weight_names")]
        variables = _variables_in_file_order(layer, [weight for weight, _ in arrays])
        found, expected = [array.shape for _, array in arrays], [tuple(variable.shape) for variable in variables]
        if found != expected:
            raise InputError(
                f"stored weights fit their layer: {name!r} in {path} has {found}, its config wants {expected}"
            )
        for variable, (_, array) in zip(variables, arrays, strict=True):
            variable.assign(array)
    for layer in model._flatten_layers():
        if type(layer).__name__ == "Normalization" and layer.built:
            layer.finalize_state()


def _variables_in_file_order(layer: Any, names: list[str]) -> list[Any]:
    """The layer's variables in the order of the file: trainable ones first. In a nested model by its layers' names."""
    variables = [*layer.trainable_weights, *layer.non_trainable_weights]
    inner = {leaf.name: [*leaf.trainable_weights, *leaf.non_trainable_weights] for leaf in _leaves(layer)}
    owners = [next((part for part in reversed(name.split("/")[:-1]) if part in inner), "") for name in names]
    if len(inner) < 2 or any(owners.count(name) != len(found) for name, found in inner.items()):
        return variables
    waiting = {name: iter(found) for name, found in inner.items()}
    return [next(waiting[owner]) for owner in owners]


def _leaves(layer: Any) -> list[Any]:
    """The layers with weights inside nested models; the layer itself where it is none."""
    import keras

    if not isinstance(layer, keras.Model):
        return [layer] if layer.weights else []
    return [leaf for inner in layer.layers for leaf in _leaves(inner)]


def stored_names(group: Any, attribute: str) -> list[str]:
    """A list of names in an attribute; a long one stands in pieces, NAME0, NAME1 and so on."""
    if attribute in group.attrs:
        pieces = [group.attrs[attribute]]
    else:
        pieces, index = [], 0
        while f"{attribute}{index}" in group.attrs:
            pieces.append(group.attrs[f"{attribute}{index}"])
            index += 1
    return [name.decode() if isinstance(name, bytes) else str(name) for piece in pieces for name in piece]


def written_before_3(version: Any) -> bool:
    """Whether the attribute keras_version names a Keras before 3; files without one are older."""
    text = version.decode() if isinstance(version, bytes) else str(version or "")
    return not text.startswith("3.")


def metadata_version(text: bytes) -> str:
    """keras_version in the metadata.json of a .keras file."""
    try:
        metadata = json.loads(text)
    except ValueError:
        return ""
    return str(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""
