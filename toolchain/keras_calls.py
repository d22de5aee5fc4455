"""The arguments of a layer's call as plain JSON, and back.

Tensors are {"input": index into the node's inputs}; None, bools, numbers, text and lists are themselves; the rest is
a mapping of one key, "tuple", "dict", "slice", "ellipsis" or "array".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy.errors import GraphError
from toolchain.shape_rules import MERGES

#: More elements than this in a constant inside a call are refused: it belongs into a weight.
_LARGEST_CONSTANT = 65536


def name_of(tensor: Any, names: Mapping[int, str], place: str) -> str:
    if id(tensor) not in names:
        raise GraphError(f"every tensor is made by a layer that is read: {tensor.name!r} in {place!r} is not")
    return names[id(tensor)]


def is_plain_call(call: Any, op: str) -> bool:
    """Whether the call has positional tensors only: one list of them for a merge, single ones else."""
    import keras

    arguments = call.arguments.args
    if op in MERGES:
        return (
            len(arguments) == 1
            and isinstance(arguments[0], list | tuple)
            and all(isinstance(item, keras.KerasTensor) for item in arguments[0])
        )
    return all(isinstance(item, keras.KerasTensor) for item in arguments)


def encode_call(call: Any, names: Mapping[int, str], name: str) -> tuple[list[str], dict[str, Any]]:
    """The names of the tensors that a call reads, in order, and {"call": {"args", "kwargs"}} with {"input": index}
    for each."""
    inputs: list[str] = []

    def encode(value: Any) -> Any:
        return encode_argument(value, inputs, names, name)

    args = [encode(value) for value in call.arguments.args]
    kwargs = {key: encode(value) for key, value in call.arguments.kwargs.items() if value is not None}
    return inputs, {"call": {"args": args, "kwargs": kwargs}}


def encode_argument(value: Any, inputs: list[str], names: Mapping[int, str], name: str) -> Any:
    """The JSON form of a call's argument; tensors are appended to inputs. decode_argument is the
    inverse."""
    import keras

    def encode(item: Any) -> Any:
        return encode_argument(item, inputs, names, name)

    if isinstance(value, keras.KerasTensor):
        inputs.append(name_of(value, names, name))
        return {"input": len(inputs) - 1}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): encode(item) for key, item in value.items()}}
    if isinstance(value, slice):
        return {"slice": [encode(item) for item in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, np.generic | np.ndarray) or (keras.ops.is_tensor(value) and not hasattr(value, "assign")):
        array = np.asarray(keras.ops.convert_to_numpy(value))
        if array.size > _LARGEST_CONSTANT:
            raise GraphError(
                f"a constant in a call has at most {_LARGEST_CONSTANT} elements: {name!r} has {array.size}"
            )
        return {"array": {"values": array.tolist(), "dtype": array.dtype.name}}
    raise GraphError(
        f"arguments of a call are tensors, slices, arrays and plain values: {name!r} gets a {type(value).__name__}"
    )


def decode_argument(value: Any, sources: list[Any]) -> Any:
    """The argument of a call from its JSON form, see encode_argument."""
    if isinstance(value, list):
        return [decode_argument(item, sources) for item in value]
    if not isinstance(value, Mapping):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "input":
            return sources[content]
        case "tuple":
            return tuple(decode_argument(item, sources) for item in content)
        case "dict":
            return {key: decode_argument(item, sources) for key, item in content.items()}
        case "slice":
            return slice(*(decode_argument(item, sources) for item in content))
        case "ellipsis":
            return Ellipsis
        case "array":
            return np.array(content["values"], content["dtype"])
    raise GraphError(f"an argument is a tensor, slice, array, tuple or plain value: {kind!r} is unknown")
