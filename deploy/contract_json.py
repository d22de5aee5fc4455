"""The contract as JSON values, and back: strict, because what is read here came from outside.

Every key must be there and none may be unknown, every number finite and in its range; the error names the place, such
as `contract.head.scales[1].stride`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploy.contract import PRECISIONS, RESIZES, ROLES, Contract, Input, PostprocessHead, Scale, Tensor, YoloHead
from deploy.errors import ContractError

#: Larger sides, counts and lists than these are no detector that a device runs; they bound what is allocated later.
_MOST_PIXELS = 16384
_MOST_ENTRIES = 10_000
_MOST_TEXT = 1000
_MOST_DEPTH = 32
_DTYPES = ("float32", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")


def to_json(contract: Contract) -> dict[str, Any]:
    """The contract as dicts, lists, strings and numbers that `json` writes and `from_json` reads back equal.

    Raises ContractError where lineage or measured hold anything but plain finite JSON.
    """
    head = contract.head
    return {
        "name": contract.name,
        "labels": list(contract.labels),
        "input": {
            "name": contract.input.name,
            "height": contract.input.height,
            "width": contract.input.width,
            "resize": contract.input.resize,
            "color": contract.input.color,
            "mean": list(contract.input.mean),
            "std": list(contract.input.std),
            "fill": contract.input.fill,
        },
        "head": _yolo_to_json(head) if isinstance(head, YoloHead) else _postprocess_to_json(head),
        "precision": contract.precision,
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
                "scale": tensor.scale,
                "zero_point": tensor.zero_point,
            }
            for tensor in contract.tensors
        ],
        "lineage": _plain(contract.lineage, "contract.lineage"),
        "measured": _plain(contract.measured, "contract.measured"),
    }


def _yolo_to_json(head: YoloHead) -> dict[str, Any]:
    scales = [
        {
            "stride": scale.stride,
            "anchors": [list(anchor) for anchor in scale.anchors],
            "outputs": dict(scale.outputs),
            "scale_x_y": scale.scale_x_y,
        }
        for scale in head.scales
    ]
    return {"kind": "yolo", "scales": scales, "box": head.box, "class_activation": head.class_activation}


def _postprocess_to_json(head: PostprocessHead) -> dict[str, Any]:
    return {
        "kind": "postprocess",
        "boxes": head.boxes,
        "classes": head.classes,
        "scores": head.scores,
        "count": head.count,
    }


def from_json(value: object) -> Contract:
    """The contract that `to_json` wrote. Raises ContractError naming the place of the first fault."""
    keys = ("name", "labels", "input", "head", "precision", "tensors", "lineage", "measured")
    fields = _object(value, "contract", keys)
    labels = _items(fields["labels"], "contract.labels", 1)
    tensors = _items(fields["tensors"], "contract.tensors", 0)
    return Contract(
        name=_text(fields["name"], "contract.name"),
        labels=tuple(_text(label, f"contract.labels[{i}]") for i, label in enumerate(labels)),
        input=_input(fields["input"], "contract.input"),
        head=_head(fields["head"], "contract.head"),
        precision=_choice(fields["precision"], "contract.precision", PRECISIONS),
        tensors=tuple(_tensor(tensor, f"contract.tensors[{i}]") for i, tensor in enumerate(tensors)),
        lineage=_plain_object(fields["lineage"], "contract.lineage"),
        measured=_plain_object(fields["measured"], "contract.measured"),
    )


def _input(value: object, place: str) -> Input:
    fields = _object(value, place, ("name", "height", "width", "resize", "color", "mean", "std", "fill"))
    return Input(
        name=_text(fields["name"], f"{place}.name"),
        height=_integer(fields["height"], f"{place}.height", 1, _MOST_PIXELS),
        width=_integer(fields["width"], f"{place}.width", 1, _MOST_PIXELS),
        resize=_choice(fields["resize"], f"{place}.resize", RESIZES),
        color=_choice(fields["color"], f"{place}.color", ("RGB", "BGR")),
        mean=_per_channel(fields["mean"], f"{place}.mean", -1e6),
        std=_per_channel(fields["std"], f"{place}.std", 1e-6),
        fill=_integer(fields["fill"], f"{place}.fill", 0, 255),
    )


def _head(value: object, place: str) -> YoloHead | PostprocessHead:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if _choice(kind, f"{place}.kind", ("yolo", "postprocess")) == "postprocess":
        outputs = ("boxes", "classes", "scores", "count")
        fields = _object(value, place, ("kind", *outputs))
        boxes, classes, scores, count = (_text(fields[output], f"{place}.{output}") for output in outputs)
        return PostprocessHead(boxes, classes, scores, count)
    fields = _object(value, place, ("kind", "scales", "box", "class_activation"))
    scales = _items(fields["scales"], f"{place}.scales", 1)
    return YoloHead(
        scales=tuple(_scale(scale, f"{place}.scales[{i}]") for i, scale in enumerate(scales)),
        box=_choice(fields["box"], f"{place}.box", ("exp", "scaled")),
        class_activation=_choice(fields["class_activation"], f"{place}.class_activation", ("sigmoid", "softmax")),
    )


def _scale(value: object, place: str) -> Scale:
    fields = _object(value, place, ("stride", "anchors", "outputs", "scale_x_y"))
    outputs = _object(fields["outputs"], f"{place}.outputs", ROLES)
    return Scale(
        stride=_integer(fields["stride"], f"{place}.stride", 1, _MOST_PIXELS),
        anchors=tuple(
            _anchor(anchor, f"{place}.anchors[{i}]")
            for i, anchor in enumerate(_items(fields["anchors"], f"{place}.anchors", 1))
        ),
        outputs={role: _text(outputs[role], f"{place}.outputs.{role}") for role in ROLES},
        scale_x_y=_number(fields["scale_x_y"], f"{place}.scale_x_y", 0.5, 4),
    )


def _anchor(value: object, place: str) -> tuple[float, float]:
    sides = _items(value, place, 2, 2)
    width, height = (_number(side, f"{place}[{i}]", 1e-6, 1e6) for i, side in enumerate(sides))
    return width, height


def _tensor(value: object, place: str) -> Tensor:
    fields = _object(value, place, ("name", "shape", "dtype", "scale", "zero_point"))
    shape = _items(fields["shape"], f"{place}.shape", 0, 8)
    return Tensor(
        name=_text(fields["name"], f"{place}.name"),
        shape=tuple(_integer(side, f"{place}.shape[{i}]", 0, 2**31 - 1) for i, side in enumerate(shape)),
        dtype=_choice(fields["dtype"], f"{place}.dtype", _DTYPES),
        scale=_number(fields["scale"], f"{place}.scale", 0, 1e30),
        zero_point=_integer(fields["zero_point"], f"{place}.zero_point", -(2**15), 2**15 - 1),
    )


def _fault(place: str, expected: str, got: object) -> ContractError:
    shown = repr(got)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ContractError(f"the metadata's {place} is {expected}, not {shown}; build the file anew")


def _object(value: object, place: str, keys: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _fault(place, "an object", value)
    for key in keys:
        if key not in value:
            raise ContractError(f"the metadata's {place} has a {key!r}, but this file's has none; build the file anew")
    for key in value:
        if key not in keys:
            raise ContractError(
                f"the metadata's {place} knows {', '.join(keys)}, not {key!r}; "
                "read the file with the version of slimdet that wrote it"
            )
    return value


def _items(value: object, place: str, least: int, most: int = _MOST_ENTRIES) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not least <= len(value) <= most:
        raise _fault(place, f"a list of {least if least == most else f'{least} to {most}'} entries", value)
    return value


def _text(value: object, place: str) -> str:
    # One line each, because labels.txt and error messages hold them; a lone surrogate cannot be written as UTF-8.
    if (
        not isinstance(value, str)
        or len(value) > _MOST_TEXT
        or value.splitlines() != [value]
        or any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value)
    ):
        raise _fault(place, f"one line of 1 to {_MOST_TEXT} characters", value)
    return value


def _choice(value: object, place: str, known: Sequence[str]) -> Any:
    if not isinstance(value, str) or value not in known:
        raise _fault(place, f"one of {', '.join(known)}", value)
    return value


def _integer(value: object, place: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _fault(place, f"a whole number from {least} to {most}", value)
    return value


def _number(value: object, place: str, least: float, most: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise _fault(place, f"a number from {least:g} to {most:g}", value)
    return float(value)


def _per_channel(value: object, place: str, least: float) -> tuple[float, float, float]:
    entries = _items(value, place, 3, 3)
    first, second, third = (_number(entry, f"{place}[{i}]", least, 1e6) for i, entry in enumerate(entries))
    return first, second, third


def _plain_object(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _fault(place, "an object", value)
    return _plain(value, place)


def _plain(value: object, place: str, depth: int = 0) -> Any:
    """A deep copy that holds only what JSON knows; numpy's scalars become Python's."""
    if depth > _MOST_DEPTH:
        raise _fault(place, f"nested at most {_MOST_DEPTH} deep", "…")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise _fault(place, "an object whose keys are texts", key)
        return {key: _plain(entry, f"{place}.{key}", depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{place}[{i}]", depth + 1) for i, entry in enumerate(value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise _fault(place, "a finite number, a text, a list or an object", value)
