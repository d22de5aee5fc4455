"""What stands in a .tflite, by whomever: tensors, operations, quantization, metadata, what XNNPACK takes, and what
looks wrong.

Read from the flatbuffer itself, without TensorFlow. The file may come from strangers: a process of its own looks into
it, since a wrong value can kill the runtime, and the number of things that are looked at is bounded by the file's
size.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy import contract_json, interpreter, model_file
from deploy.errors import BackendError, ContractError, ConversionError, InputError
from toolchain import child_process
from toolchain.text_columns import aligned

_DAMAGE = (struct.error, IndexError, ValueError, TypeError, UnicodeDecodeError, OverflowError)
#: Operations that LiteRT runs without TensorFlow though they are no built-in ones.
_KNOWN_CUSTOM = ("TFLite_Detection_PostProcess",)
_QUANTIZED = ("int8", "uint8")


def inspect_tflite(path: Path) -> dict[str, Any]:
    """All about the file as plain JSON. Raises InputError for one that is missing, damaged or no .tflite."""
    with child_process.folder() as place:
        try:
            found: dict[str, Any] = child_process.run(
                "toolchain.tflite_file:look", {"path": str(path.absolute())}, place, step=f"look into {path}"
            )
        except ConversionError as error:
            # The runtime checks a flatbuffer's frame and not its values: a stride of 0 is a division by zero.
            raise InputError(f"{path} is damaged: {error}") from error
    return {**found, "file": str(path)}


def look(path: str) -> dict[str, Any]:
    """Runs in a child."""
    content = Path(path).read_bytes()
    if content[4:8] != b"TFL3":
        raise InputError(
            f"a .tflite has TFL3 at bytes 4 to 8, but {path} ({len(content)} bytes) has not; give a .tflite"
        )
    warnings: list[str] = []
    delegated = None
    try:
        model = interpreter.Model(content)
        delegated = {"nodes": model.delegated.nodes, "total": model.delegated.total}
    except BackendError as error:
        warnings.append(str(error))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    structure = read_structure(content, path)
    metadata: dict[str, Any] | None = None
    try:
        metadata = contract_json.to_json(model_file.read(path)[1])
    except (ContractError, BackendError) as error:
        warnings.append(str(error))
    return {
        "kind": "tflite",
        "bytes": len(content),
        **structure,
        "delegated": delegated,
        "metadata": metadata,
        "warnings": [*warnings, *_warnings(structure)],
    }


def read_structure(content: bytes, name: str) -> dict[str, Any]:
    """Tensors, operations and signatures of a flatbuffer. Raises InputError with the file's name where it is
    damaged."""
    try:
        return _structure(content)
    except _DAMAGE as error:
        raise InputError(f"{name}: its flatbuffer cannot be followed ({error}); copy or build it anew") from error


class _Bounded:
    """Counts what is looked at, so that a wrong length in a damaged file cannot keep us for hours."""

    def __init__(self, size: int) -> None:
        self.left = 4 * size + 10_000

    def range(self, length: int) -> range:
        self.left -= length
        if self.left < 0:
            raise ValueError("its lists are longer than the file")
        return range(length)


def _structure(content: bytes) -> dict[str, Any]:
    from ai_edge_litert import schema_py_generated as schema

    bounded = _Bounded(len(content))
    model = schema.Model.GetRootAs(content, 0)
    types = {value: name.lower() for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    codes = [_operation(model.OperatorCodes(index), names) for index in bounded.range(model.OperatorCodesLength())]
    if model.SubgraphsLength() < 1:
        raise ValueError("it has no subgraph")
    graph = model.Subgraphs(0)
    tensors = [_tensor(graph.Tensors(index), index, types, bounded) for index in bounded.range(graph.TensorsLength())]
    operations = []
    for index in bounded.range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        operations.append(
            {
                "op": codes[operator.OpcodeIndex()],
                "inputs": [operator.Inputs(place) for place in bounded.range(operator.InputsLength())],
                "outputs": [operator.Outputs(place) for place in bounded.range(operator.OutputsLength())],
            }
        )
    inputs = [tensors[graph.Inputs(place)] for place in bounded.range(graph.InputsLength())]
    outputs = [tensors[graph.Outputs(place)] for place in bounded.range(graph.OutputsLength())]
    return {
        "description": _text(model.Description()),
        "subgraphs": model.SubgraphsLength(),
        "signatures": _signatures(model, tensors, bounded),
        "inputs": [_brief(tensor) for tensor in inputs],
        "outputs": [_brief(tensor) for tensor in outputs],
        "operation_counts": dict(Counter(operation["op"] for operation in operations).most_common()),
        "operations": operations,
        "tensors": tensors,
    }


def _operation(code: Any, names: Mapping[int, str]) -> str:
    # Files from before TensorFlow 2.4 have the number in the older, one-byte field alone.
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = names.get(number, f"operation {number}")
    return f"CUSTOM {_text(code.CustomCode())}" if name == "CUSTOM" else name


def _tensor(tensor: Any, index: int, types: Mapping[int, str], bounded: _Bounded) -> dict[str, Any]:
    quantization = tensor.Quantization()
    scales: list[float] = []
    zero_points: list[int] = []
    if quantization is not None:
        scales = [float(quantization.Scale(place)) for place in bounded.range(quantization.ScaleLength())]
        zero_points = [int(quantization.ZeroPoint(place)) for place in bounded.range(quantization.ZeroPointLength())]
    found: dict[str, Any] = {
        "index": index,
        "name": _text(tensor.Name()),
        "shape": [int(tensor.Shape(place)) for place in bounded.range(tensor.ShapeLength())],
        "dtype": types.get(tensor.Type(), f"type {tensor.Type()}"),
        "quantization": "none" if not scales else "per tensor" if len(scales) == 1 else f"per channel ({len(scales)})",
        # One value, or of a channel-wise one the least and the greatest.
        "scale": sorted({min(scales), max(scales)}) if scales else [],
        "zero_point": sorted({min(zero_points), max(zero_points)}) if zero_points else [],
    }
    signature = [int(tensor.ShapeSignature(place)) for place in bounded.range(tensor.ShapeSignatureLength())]
    return found | {"dynamic": -1 in signature}


def _signatures(model: Any, tensors: list[dict[str, Any]], bounded: _Bounded) -> dict[str, Any]:
    found = {}
    for index in bounded.range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(index)
        sides: dict[str, dict[str, str]] = {}
        for side, length, item in (
            ("inputs", signature.InputsLength(), signature.Inputs),
            ("outputs", signature.OutputsLength(), signature.Outputs),
        ):
            entries = [item(place) for place in bounded.range(length)]
            sides[side] = {_text(entry.Name()): tensors[entry.TensorIndex()]["name"] for entry in entries}
        found[_text(signature.SignatureKey())] = sides
    return found


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _brief(tensor: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tensor[key] for key in ("name", "shape", "dtype", "scale", "zero_point")}


def _warnings(structure: Mapping[str, Any]) -> Iterator[str]:
    """What makes a file useless or slow on devices, in words."""
    tensors, operations = structure["tensors"], structure["operations"]
    for tensor in structure["inputs"]:
        if tensor["dtype"] in _QUANTIZED and tensor["scale"] == [1.0]:
            yield (
                f"the input {tensor['name']!r} has the scale 1.0: pixels enter as 0 to 255. A network that was "
                "trained on 0 to 1 "
                "detects nothing so; it was probably quantized wrongly"
            )
    for tensor in structure["outputs"]:
        if (
            tensor["dtype"] in _QUANTIZED
            and len(structure["outputs"]) == 1
            and len(tensor["shape"]) == 3
            and tensor["shape"][-1] > 5
        ):
            yield (
                f"the output {tensor['name']!r} seems to hold boxes and scores together under one {tensor['dtype']} "
                "scale: that is how int8 "
                "detectors lose their detections"
            )
    custom = sorted(
        {operation["op"].removeprefix("CUSTOM ") for operation in operations if operation["op"].startswith("CUSTOM ")}
    )
    if foreign := [name for name in custom if name not in _KNOWN_CUSTOM]:
        yield f"operations that are not built in, which a device must bring: {', '.join(foreign)}"
    for name in _KNOWN_CUSTOM:
        if name in custom:
            yield f"{name} is no built-in operation: LiteRT runs it on the CPU, other delegates refuse it"
    wide = Counter(
        operation["op"]
        for operation in operations
        if any(
            0 <= index < len(tensors) and len(tensors[index]["shape"]) > 4
            for index in (*operation["inputs"], *operation["outputs"])
        )
    )
    if wide:
        counts = ", ".join(f"{count} {name}" for name, count in wide.items())
        yield f"operations on tensors of more than four dimensions, which XNNPACK and GPUs refuse: {counts}"
    if dynamic := [tensor["name"] for tensor in structure["inputs"] if _by_name(tensors, tensor["name"])["dynamic"]]:
        yield f"inputs without a fixed shape, which delegates refuse: {', '.join(dynamic)}"
    if islands := _float_islands(structure):
        counts = ", ".join(f"{count} {name}" for name, count in islands.items())
        yield f"operations that stay float inside an integer file: {counts}"
    if structure["subgraphs"] > 1:
        yield f"it has {structure['subgraphs']} subgraphs; the first is shown"


def _by_name(tensors: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(tensor for tensor in tensors if tensor["name"] == name)


def _float_islands(structure: Mapping[str, Any]) -> Counter[str]:
    """Operations with float results in a file whose input is quantized, but those at its end."""
    tensors = structure["tensors"]
    found: Counter[str] = Counter()
    if not any(tensor["dtype"] in _QUANTIZED for tensor in structure["inputs"]):
        return found
    ends = {tensor["name"] for tensor in structure["outputs"]}
    for operation in structure["operations"]:
        results = [tensors[index] for index in operation["outputs"] if 0 <= index < len(tensors)]
        if any(tensor["dtype"] == "float32" and tensor["name"] not in ends for tensor in results):
            found[operation["op"]] += 1
    return found


def as_text(found: Mapping[str, Any]) -> str:
    """The same for a terminal."""
    rows = [("tensor", "shape", "type", "quantization", "scale", "zero point")]
    rows += [
        (
            tensor["name"],
            "x".join(map(str, tensor["shape"])) or "scalar",
            tensor["dtype"],
            tensor["quantization"],
            " to ".join(f"{scale:.6g}" for scale in tensor["scale"]),
            " to ".join(map(str, tensor["zero_point"])),
        )
        for tensor in found["tensors"]
    ]
    lines = [
        *aligned(rows),
        "",
        *aligned([("operation", "count"), *((op, str(n)) for op, n in found["operation_counts"].items())], (1,)),
        "",
    ]
    lines.append(f"{found['file']}: {found['bytes'] / 1e6:.2f} MB, {len(found['operations'])} operations")
    # Programs address a tensor by its name in the signature; the converter's own stands in the list above.
    signature: Mapping[str, Any] = next(iter(found["signatures"].values()), {})
    for side in ("inputs", "outputs"):
        names = {tensor: name for name, tensor in signature.get(side, {}).items()}
        for tensor in found[side]:
            name = names.get(tensor["name"], tensor["name"])
            scale = f", scale {tensor['scale'][0]:.6g}, zero point {tensor['zero_point'][0]}" if tensor["scale"] else ""
            lines.append(f"{side[:-1]}: {name} {tensor['dtype']} {'x'.join(map(str, tensor['shape']))}{scale}")
    if found["delegated"]:
        lines.append(f"XNNPACK takes {found['delegated']['nodes']} of {found['delegated']['total']} nodes")
    lines.append(_metadata_line(found["metadata"]))
    return "\n".join([*lines, *(f"warning: {text}" for text in found["warnings"])])


def _metadata_line(metadata: Mapping[str, Any] | None) -> str:
    if metadata is None:
        return "metadata: none"
    labels, entry = metadata["labels"], metadata["input"]
    return (
        f"metadata: {metadata['name']}, {metadata['precision']}, {entry['height']}x{entry['width']} "
        f"{entry['color']} {entry['resize']}, "
        f"{metadata['head']['kind']} head, {len(labels)} labels: "
        f"{', '.join(labels[:5])}{', …' if len(labels) > 5 else ''}"
    )
