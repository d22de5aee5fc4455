"""HEAD.yaml: what the outputs of a Keras detector mean, which its file does not say; and the head's way into the graph.

    labels: voc.names               # one a line, relative to this file; or a list: [person, car]
    input:
      # size: [416, 416]            # height, width; for a model that leaves them open, or instead of its own
      resize: letterbox             # or stretch
      color: RGB                    # or BGR
      mean: [0, 0, 0]               # a pixel value u in 0..255 enters as (u - mean) / std
      std: [255, 255, 255]
      fill: 128                     # grey of the letterbox's bars
    box: exp                        # w = pw * exp(tw); or scaled: w = pw * (2 sigmoid(tw))²
    class_activation: sigmoid       # or softmax
    anchors_in: pixels              # of the network's input; or cells of each grid
    scales:
      - output: predict_conv_1      # a layer's name, or the index of one of the model's outputs
        stride: 32                  # input pixels per grid cell
        anchors: [[116, 90], [156, 198], [373, 326]]
        scale_x_y: 1.0              # grid sensitivity
        layout: [xy, wh, objectness, classes]   # each anchor's channels, in this order; anchors one after the other
      - output: predict_conv_2
        stride: 16
        anchors: [[30, 61], [62, 45], [59, 119]]

Only labels and scales are required, and of each scale output, stride and anchors; the values above are the defaults
of the rest. The outputs are raw logits: no sigmoid, no softmax, no decoding. A model may end in a reshape of them; it
is traced back.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deploy.contract import ROLES, Input, Role, Scale, YoloHead
from deploy.errors import GraphError, InputError
from deploy.strict_yaml import read_yaml
from toolchain.graph import Graph, Node, reachable, replace_nodes
from toolchain.nearest import nearest
from toolchain.shape_rules import Shape
from toolchain.shapes import shapes

_LARGEST_NAMES = 2**20
_Anchor = tuple[Annotated[float, Field(gt=0, le=1e5)], Annotated[float, Field(gt=0, le=1e5)]]
_Colors = tuple[float, float, float]
_Side = Annotated[int, Field(ge=1, le=8192)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class HeadInput(_Settings):
    """How pictures enter, see deploy.contract.Input."""

    #: (height, width) in pixels; None: the model's own.
    size: tuple[_Side, _Side] | None = None
    resize: Literal["letterbox", "stretch"] = "letterbox"
    color: Literal["RGB", "BGR"] = "RGB"
    mean: _Colors = (0.0, 0.0, 0.0)
    std: _Colors = (255.0, 255.0, 255.0)
    fill: Annotated[int, Field(ge=0, le=255)] = 128

    @field_validator("std")
    @classmethod
    def _positive(cls, value: _Colors) -> _Colors:
        if min(value) <= 0:
            raise ValueError(f"std divides and is positive, but {list(value)} came; give three numbers above 0")
        return value


class HeadScale(_Settings):
    """One prediction grid."""

    output: Annotated[str, Field(min_length=1)] | Annotated[int, Field(ge=0)]
    stride: Annotated[int, Field(ge=1, le=1024)]
    anchors: Annotated[tuple[_Anchor, ...], Field(min_length=1, max_length=100)]
    scale_x_y: Annotated[float, Field(ge=1, le=10)] = 1.0
    layout: tuple[Role, ...] = ROLES

    @field_validator("layout")
    @classmethod
    def _every_role(cls, value: tuple[Role, ...]) -> tuple[Role, ...]:
        if sorted(value) != sorted(ROLES):
            raise ValueError(
                f"layout names each of {', '.join(ROLES)} once, but {', '.join(value) or 'nothing'} came; correct it"
            )
        return value


class HeadFile(_Settings):
    """A HEAD.yaml, with the labels themselves."""

    labels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...], Field(min_length=1, max_length=10_000)
    ]
    input: HeadInput = HeadInput()
    box: Literal["exp", "scaled"] = "exp"
    class_activation: Literal["sigmoid", "softmax"] = "sigmoid"
    anchors_in: Literal["pixels", "cells"] = "pixels"
    scales: Annotated[tuple[HeadScale, ...], Field(min_length=1, max_length=16)]

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        again, times = Counter(value).most_common(1)[0]
        if times > 1:
            raise ValueError(f"every class has a name of its own, but {again!r} stands {times} times; rename it")
        return value

    @model_validator(mode="after")
    def _scales_differ(self) -> HeadFile:
        for key in ("stride", "output"):
            values = [getattr(scale, key) for scale in self.scales]
            if len(set(values)) < len(values):
                raise ValueError(f"every scale has a {key} of its own, but {values} came; correct it")
        return self


def read_head(path: Path) -> HeadFile:
    """Reads a HEAD.yaml and the names file in it.

    Raises InputError with file, line and column for anything that is not a head file, and where the names cannot be
    read.
    """
    try:
        _, value, places = read_yaml(path, "head file", "toolchain/head.py")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give an existing HEAD.yaml") from error
    if isinstance(value.get("labels"), str):
        value = {**value, "labels": _labels(path.parent / value["labels"], places.text(path, ("labels",)))}
    try:
        # JSON's rules, not Python's: exact types, but lists become tuples.
        return HeadFile.model_validate_json(pydantic.TypeAdapter(Any).dump_json(value))
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False)
    places_of = [_place(one) for one in problems]
    # A list with a bad item is also said to be too short without it.
    inner = [
        one
        for one, place in zip(problems, places_of, strict=True)
        if not any(len(other) > len(place) and other[: len(place)] == place for other in places_of)
    ]
    # A key that is not known is why another is missing.
    problem = min(inner, key=lambda one: (one["type"] != "extra_forbidden", places.line_and_column(_place(one))))
    more = f" (and {len(inner) - 1} more)" if len(inner) > 1 else ""
    raise InputError(f"{places.text(path, _place(problem))}: {_sentence(problem)}{more}") from None


def _labels(file: Path, place: str) -> list[str]:
    try:
        with open(file, "rb") as opened:
            content = opened.read(_LARGEST_NAMES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{place}: cannot read the labels {file}: {error.strerror or error}; give an existing file or a list"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: labels are UTF-8 text, one a line; {file} is not") from error
    if len(content) > _LARGEST_NAMES:
        raise InputError(f"{place}: labels are at most {_LARGEST_NAMES} bytes; {file} is longer")
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines or "" in lines:
        raise InputError(
            f"{place}: labels stand one a line, without blank lines; {file} has {'a blank one' if lines else 'none'}"
        )
    return lines


def _place(problem: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The keys and indices to a value; pydantic adds the kinds that it tried (str, int) at the end."""
    return tuple(
        part
        for part in problem["loc"]
        if not (isinstance(part, str) and part.startswith(("constrained-", "function-")))
    )


def _sentence(problem: Mapping[str, Any]) -> str:
    """One of pydantic's errors in words."""
    *parents, last = _place(problem) or ("the head",)
    where = f"in {_dotted(parents)}" if parents else "in a head file"
    if problem["type"] == "extra_forbidden":
        known = _keys_at(parents)
        return (
            f"unknown key {str(last)!r} {where}{nearest(str(last), known) or f'; known keys are ' + ', '.join(known)}"
        )
    if problem["type"] == "missing" and isinstance(last, int):
        return f"{_dotted(parents)} is too short: it has no item {last + 1}; add it"
    if problem["type"] == "missing":
        return f"the key {str(last)!r} is missing {where}; add it"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    text = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{_dotted([*parents, last])}: {text}, but {problem['input']!r:.80} came; change it"


def _dotted(place: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".") or "the head"


def _keys_at(place: Sequence[str | int]) -> list[str]:
    kinds: dict[str | int, type[BaseModel]] = {"input": HeadInput, "scales": HeadScale}
    return list(kinds.get(place[0], HeadFile).model_fields if place else HeadFile.model_fields)


def attach_head(graph: Graph, headfile: HeadFile) -> Graph:
    """The graph as a detector: with input, head and labels, and one output {"raw": node} a scale, in the file's order.

    Nodes behind the raw logits (a reshape of them, decoding that no output needs) are dropped. Another layout than
    the default is put in order in the prediction's own kernel.

    Raises GraphError where an output is not there, is no raw logits, or has not the channels, anchors * (5 +
    classes), or the size that stride and input size demand.
    """
    found = shapes(graph)
    height, width = _picture_size(graph)
    classes = len(headfile.labels)
    scales = []
    for settings in headfile.scales:
        raw = _raw_node(graph, found, settings)
        _check_grid(raw, found[raw.name], settings, (height, width), classes)
        if settings.layout != ROLES:
            ordered = _channels(graph, raw, _in_canonical_order(settings, classes), f"{raw.name}_ordered")
            graph = replace_nodes(graph, {raw.name: (raw, *ordered)})
            raw = ordered[-1]
        unit = settings.stride if headfile.anchors_in == "cells" else 1
        anchors = tuple((w * unit, h * unit) for w, h in settings.anchors)
        scales.append(Scale(settings.stride, anchors, {"raw": raw.name}, settings.scale_x_y))
    entry = headfile.input
    described = dataclasses.replace(
        graph,
        outputs=tuple(scale.outputs["raw"] for scale in scales),
        input=Input("image", height, width, entry.resize, entry.color, entry.mean, entry.std, entry.fill),
        head=YoloHead(tuple(scales), headfile.box, headfile.class_activation),
        labels=headfile.labels,
    )
    return reachable(described)


def _picture_size(graph: Graph) -> tuple[int, int]:
    inputs = [node for node in graph.nodes if node.op == "InputLayer"]
    sizes = [tuple(node.attributes["shape"]) for node in inputs]
    if len(inputs) != 1 or len(sizes[0]) != 3 or sizes[0][2] != 3:
        raise GraphError(f"a detector has one input (height, width, 3): {graph.name!r} has {sizes}")
    return sizes[0][0], sizes[0][1]


def _raw_node(graph: Graph, found: Mapping[str, Shape], settings: HeadScale) -> Node:
    """The node that makes a scale's (h, w, channels) logits: the output itself, or what it only reshapes."""
    node = graph.by_name[_output_name(graph, settings.output)]
    raw: Node | None = None
    while True:
        _refuse_activation(node, settings)
        if len(found[node.name]) == 3:
            raw = node
        if not _only_reshapes(node):
            break
        node = graph.by_name[node.inputs[0]]
    if raw is None:
        raise GraphError(
            f"a YOLO output is (height, width, channels) or a reshape of it: {settings.output!r} is {found[node.name]};"
            " name the convolution that predicts"
        )
    return raw


def _output_name(graph: Graph, output: str | int) -> str:
    if isinstance(output, int):
        if output >= len(graph.outputs):
            raise GraphError(
                f"an output's index is below the model's {len(graph.outputs)} outputs: {output} came; or name a layer"
            )
        return graph.outputs[output]
    if output not in graph.by_name:
        near = nearest(output, list(graph.by_name)) or f"; the model's outputs are {', '.join(graph.outputs)}"
        raise GraphError(f"an output is a layer of the model: {graph.name!r} has no layer {output!r}{near}")
    return output


def _only_reshapes(node: Node) -> bool:
    """Whether a node's output has the same values in the same order as its input."""
    if node.op == "Activation":
        return node.attributes.get("activation") == "linear"
    return node.op in ("Reshape", "Flatten", "ops.Reshape", "Identity", "Dropout") and len(node.inputs) == 1


def _refuse_activation(node: Node, settings: HeadScale) -> None:
    activation = "softmax" if node.op == "Softmax" else node.attributes.get("activation")
    if activation not in ("sigmoid", "logistic", "softmax"):
        return
    if node.op in ("Activation", "Softmax"):
        advice = f"name the layer before it, {node.inputs[0]!r}, as the output"
    else:
        advice = "build the model with activation='linear' there and the same weights"
    raise GraphError(
        f"outputs are raw logits, to which the device applies each role's own function: {settings.output!r} ends in a"
        f" {activation} over all channels ({node.op} {node.name!r}); {advice}"
    )


def _check_grid(raw: Node, shape: Shape, settings: HeadScale, size: tuple[int, int], classes: int) -> None:
    anchors, channels = len(settings.anchors), len(settings.anchors) * (5 + classes)
    if shape[2] != channels:
        raise GraphError(
            f"a scale has anchors * (5 + classes) channels: {raw.name!r} has {shape[2]}, and {anchors} * (5 +"
            f" {classes}) is {channels}; correct anchors or labels"
        )
    if (shape[0] * settings.stride, shape[1] * settings.stride) != size:
        raise GraphError(
            f"a grid's cells times its stride is the input size: {raw.name!r} has {shape[0]}x{shape[1]} cells of"
            f" {settings.stride}, the input is {size[0]}x{size[1]}; correct the stride, or give an"
            f" input.size of multiples of {settings.stride}"
        )


def _role_channels(layout: Sequence[Role], anchors: int, classes: int) -> dict[Role, list[list[int]]]:
    """For every role and every anchor its channels in a raw output of that layout."""
    sizes: dict[Role, int] = {"xy": 2, "wh": 2, "objectness": 1, "classes": classes}
    starts = dict(zip(layout, itertools.accumulate((sizes[role] for role in layout), initial=0), strict=False))
    return {
        role: [[a * (5 + classes) + starts[role] + i for i in range(sizes[role])] for a in range(anchors)]
        for role in ROLES
    }


def _in_canonical_order(settings: HeadScale, classes: int) -> list[int]:
    anchors = len(settings.anchors)
    channels = _role_channels(settings.layout, anchors, classes)
    return [index for anchor in range(anchors) for role in ROLES for index in channels[role][anchor]]


def split_by_role(graph: Graph) -> Graph:
    """The graph with every "raw" output split into one output for each role, NAME_xy, NAME_wh, NAME_objectness,
    NAME_classes.

    Exact: a linear Conv2D becomes four with its kernel's own columns; of anything else the channels are sliced.
    Anchor-major, as deploy.contract says. A graph that is split already comes back as it is.

    Raises GraphError where the graph has no head, or a raw output no whole number of classes.
    """
    if graph.head is None:
        raise GraphError(f"only a detector is split by role: {graph.name!r} has no head; describe it first")
    found = shapes(graph)
    head, scales = graph.head, list[Scale]()
    renamed: dict[str, list[str]] = {}
    for scale in head.scales:
        if "raw" not in scale.outputs:
            scales.append(scale)
            continue
        raw = graph.by_name[scale.outputs["raw"]]
        parts = _role_channels(ROLES, len(scale.anchors), _classes(found[raw.name], raw.name, scale))
        outputs, added = {}, []
        for role, channels in parts.items():
            added += _channels(graph, raw, list(itertools.chain.from_iterable(channels)), f"{raw.name}_{role}")
            outputs[role] = added[-1].name
        graph = replace_nodes(graph, {raw.name: (raw, *added)})
        renamed[raw.name] = [outputs[role] for role in ROLES]
        scales.append(dataclasses.replace(scale, outputs=typing.cast(Mapping[str, str], outputs)))
    names = tuple(itertools.chain.from_iterable(renamed.get(name, [name]) for name in graph.outputs))
    return reachable(dataclasses.replace(graph, outputs=names, head=dataclasses.replace(head, scales=tuple(scales))))


def _classes(shape: Shape, name: str, scale: Scale) -> int:
    classes, rest = divmod(shape[-1], len(scale.anchors))
    if rest or classes < 6:
        raise GraphError(
            f"a scale has anchors * (5 + classes) channels: {name!r} has {shape[-1]} for {len(scale.anchors)} anchors;"
            " correct the head"
        )
    return classes - 5


def _channels(graph: Graph, source: Node, channels: list[int], name: str) -> list[Node]:
    """Nodes whose last, of that name, gives the source's channels of those indices in that order."""
    linear = source.attributes.get("activation") in (None, "linear") and source.attributes.get("groups", 1) == 1
    shared = source.shared_with or any(node.shared_with == source.name for node in graph.nodes)
    if source.op == "Conv2D" and linear and not shared:
        weights = {key: array[..., channels] for key, array in source.weights.items()}
        return [
            dataclasses.replace(
                source, name=name, attributes={**source.attributes, "filters": len(channels)}, weights=weights
            )
        ]
    runs = [list(run) for _, run in itertools.groupby(enumerate(channels), key=lambda pair: pair[1] - pair[0])]
    bounds = [(run[0][1], run[-1][1] + 1) for run in runs]
    if len(bounds) == 1:
        return [_slice(source, bounds[0], name)]
    slices = [_slice(source, bound, f"{name}_{index}") for index, bound in enumerate(bounds)]
    return [*slices, Node(name, "Concatenate", tuple(node.name for node in slices), {"axis": -1})]


def _slice(source: Node, bounds: tuple[int, int], name: str) -> Node:
    return Node(name, "Slice", (source.name,), {"axis": -1, "start": bounds[0], "stop": bounds[1]})
