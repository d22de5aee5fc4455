"""Standard TFLite Model Metadata: what a tensor holds, how pixels enter, which file names the classes.

It is a flatbuffer of its own (identifier M001) in a buffer of the model that the entry TFLITE_METADATA names; the files
that it speaks of stand in the zip archive behind the model. TensorFlow Lite's Task Library, MediaPipe Tasks, Android
Studio and Netron read it. No installed package has classes for its schema (tensorflow/tflite-support,
tensorflow_lite_support/metadata/metadata_schema.fbs), so its tables are written here by their fields' places in that; a
field that is left out has its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flatbuffers
import numpy as np

from deploy.contract import Contract, Input, YoloHead
from toolchain.flatbuffer_graph import packed, unpacked

#: The archive's member that names the classes, one a line (deploy.model_file writes it).
LABEL_FILE = "labels.txt"

_ENTRY = b"TFLITE_METADATA"
_IDENTIFIER = b"M001"
#: The oldest version of the schema that has every field written here.
_PARSER = "1.0.0"
#: Values of the schema's enumerations and unions. BGR has none: its colour space is said to be unknown.
_COLOR_SPACES = {"RGB": 1, "BGR": 0}
_IMAGE, _BOXES = 2, 3
_NORMALIZATION, _SCORE_THRESHOLD = 1, 3
_LABELS = {"axis": 2, "value": 3}
_BOUNDARIES, _RATIO = 1, 0
_RGB = {"RGB": "red, green, blue", "BGR": "blue, green, red"}


@dataclasses.dataclass(frozen=True)
class Output:
    """What the metadata says of one output."""

    #: As the reader knows it: MediaPipe finds its tensors by this name, whatever the signature calls them.
    name: str
    description: str
    #: Places of left, top, right and bottom in the last axis, in 0..1, where the output holds boxes.
    boxes: tuple[int, int, int, int] | None = None
    #: Whether the classes that the label file names lie along the last axis, or are the output's values.
    labels: Literal["axis", "value"] | None = None
    #: Least score that counts, 0..1, where the output holds scores.
    threshold: float | None = None


def with_metadata(
    tflite: bytes,
    name: str,
    description: str,
    input: Input,
    outputs: Mapping[str, Output],
) -> bytes:
    """The flatbuffer with standard metadata in it, in place of an earlier one; the same input gives the same bytes.

    outputs: by name in the file's signature, every one that the file has.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = unpacked(tflite)
    (signature,) = model.signatureDefs
    names = {entry.tensorIndex: entry.name.decode() for entry in signature.outputs}
    ordered = [outputs[names[index]] for index in model.subgraphs[0].outputs]
    kept = [entry for entry in model.metadata or [] if entry.name != _ENTRY]
    # The earlier one's content goes with its entry.
    for entry in model.metadata or []:
        if entry.name == _ENTRY:
            model.buffers[entry.buffer].data = None
    content = np.frombuffer(_model_metadata(name, description, input, ordered), np.uint8)
    model.buffers.append(schema.BufferT(data=content))
    model.metadata = [*kept, schema.MetadataT(name=_ENTRY.decode(), buffer=len(model.buffers) - 1)]
    return packed(model)


def with_own_metadata(tflite: bytes, contract: Contract) -> bytes:
    """Our own file, which ends in raw logits, with standard metadata: how pixels enter, the classes, and what each
    output holds."""
    head = contract.head
    assert isinstance(head, YoloHead)
    outputs = {}
    for scale in head.scales:
        where = f"of each of {len(scale.anchors)} anchors in each cell of {scale.stride} pixels, anchor-major"
        for role, what in _RAW.items():
            labels: Literal["axis"] | None = "axis" if role == "classes" else None
            text = f"Raw logits: {what} {where}."
            outputs[scale.outputs[role]] = Output(scale.outputs[role], text, labels=labels)
    description = (
        "Detector that ends in raw YOLO logits, a box's x and y, width and height, objectness and classes apart. "
        "slimdet.json in the archive behind the model says how they become boxes."
    )
    return with_metadata(tflite, contract.name, description, contract.input, outputs)


_RAW = {"xy": "centre x, y", "wh": "width, height", "objectness": "objectness", "classes": "the classes in turn"}


def _model_metadata(name: str, description: str, input: Input, outputs: Sequence[Output]) -> bytes:
    subgraph = {2: [_input(input)], 3: [_output(output) for output in outputs]}
    builder = flatbuffers.Builder(1024)
    builder.Finish(_written(builder, {0: name, 1: description, 3: [subgraph], 7: _PARSER}), _IDENTIFIER)
    return bytes(builder.Output())


def _input(input: Input) -> dict[int, Any]:
    values = [np.array(numbers, np.float32) for numbers in (input.mean, input.std)]
    low, high = ([(value - m) / s for m, s in zip(input.mean, input.std)] for value in (0.0, 255.0))
    size = {0: np.uint32(input.width), 1: np.uint32(input.height)}
    placed = "keeps its shape between grey bars" if input.resize == "letterbox" else "is stretched to this size"
    return {
        0: input.name,
        1: f"Picture, {_RGB[input.color]}; one of another shape {placed}.",
        3: {0: np.uint8(_IMAGE), 1: {0: np.int8(_COLOR_SPACES[input.color]), 1: size}},
        4: [{0: np.uint8(_NORMALIZATION), 1: {0: values[0], 1: values[1]}}],
        5: {0: np.array(high, np.float32), 1: np.array(low, np.float32)},
    }


def _output(output: Output) -> dict[int, Any]:
    table: dict[int, Any] = {0: output.name, 1: output.description}
    if output.boxes is not None:
        properties = {0: np.array(output.boxes, np.uint32), 1: np.int8(_BOUNDARIES), 2: np.int8(_RATIO)}
        last = {0: np.int32(2), 1: np.int32(2)}
        table[3] = {0: np.uint8(_BOXES), 1: properties, 2: last}
    if output.threshold is not None:
        table[4] = [{0: np.uint8(_SCORE_THRESHOLD), 1: {0: np.float32(output.threshold)}}]
    if output.labels is not None:
        table[6] = [{0: LABEL_FILE, 1: "Class names, one a line.", 2: np.int8(_LABELS[output.labels])}]
    return table


_PREPEND = {
    np.dtype(np.uint8): flatbuffers.Builder.PrependUint8Slot,
    np.dtype(np.int8): flatbuffers.Builder.PrependInt8Slot,
    np.dtype(np.int32): flatbuffers.Builder.PrependInt32Slot,
    np.dtype(np.uint32): flatbuffers.Builder.PrependUint32Slot,
    np.dtype(np.float32): flatbuffers.Builder.PrependFloat32Slot,
}


def _written(builder: flatbuffers.Builder, value: Any) -> int:
    """Writes a text, a vector of numbers (an array), a vector of tables (a list), or a table: a mapping from a field's
    place to its value, where a number is one of numpy's, whose type is the field's. Returns its offset."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, list):
        offsets = [_written(builder, item) for item in value]
        builder.StartVector(4, len(value), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    parts = {place: part if isinstance(part, np.generic) else _written(builder, part) for place, part in value.items()}
    builder.StartObject(max(parts) + 1)
    for place, part in parts.items():
        if isinstance(part, np.generic):
            _PREPEND[part.dtype](builder, place, part.item(), None)
        else:
            builder.PrependUOffsetTRelativeSlot(place, part, 0)
    return builder.EndObject()
