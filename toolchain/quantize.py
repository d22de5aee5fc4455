"""float16, dynamic-range and int8 files from the one float .tflite, by litert-quantizer, without TensorFlow.

An affine int8 value q stands for (q - zero_point) * scale. Weights are symmetric, with a scale for each output channel;
activations have one scale for each tensor, laid over a range that calibration.py finds (Jacob et al. 2018,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", equations 1 and 4),
after equalization.py has brought the channels to one size.

| precision       | computes                                                                                  |
|-----------------|-------------------------------------------------------------------------------------------|
| float16         | in float, on weights of 16 bits                                                            |
| dynamic         | with int8 weights and inputs quantized anew in each run; float between                     |
| int8            | with integers throughout                                                                   |
| int8_float_head | with integers, but the convolutions that write the outputs, which are float32              |
| int8_mixed      | with integers, but the layers that cost the detections most: see mixed_precision.py        |

litert-quantizer has no rule for some operations whose int8 kernels exist and take free scales, and would leave a float
island around each. They are shown to it under the name of an operation with the same tensors, and get their own name
back afterwards. So one float file with plain LEAKY_RELU serves all precisions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.command_line import write_atomically
from deploy.contract import Input
from deploy.errors import ConversionError, InputError
from toolchain import child_process, graph_file
from toolchain.calibration import Calibration, Observed, Rule, observe, ranges, written
from toolchain.equalization import equalized, scalable
from toolchain.graph import Graph

#: As many pictures, evenly spaced in the folder, are a fair choice: one already gives most of the accuracy, and over 64
#: the ranges have settled.
CALIBRATION_PICTURES = 64
#: Pictures that a loss of mAP is measured on, at most. More take longer; 200 are too hopeful (the standard deviation of
#: voc-yolo-fastest's estimate over resampled pictures is 0.5 points with 200).
PICTURES_TO_MEASURE = 500

#: Operation -> the one that the quantizer takes it for.
_ALIASES = {"LEAKY_RELU": "RELU", "ELU": "RELU", "RELU6": "RELU"}

#: In a dynamic-range file a convolution quantizes its input anew in each run. That pays only where it has work enough:
#: with less than this many weights, and in depthwise convolutions (which also fall to slow built-in kernels), weights
#: stay float. On voc-yolo-fastest: 5.6 ms and 558 kB, against 13.5 ms and 538 kB with all but depthwise, and 5.4 ms in
#: float.
_LEAST_DYNAMIC_WEIGHTS = 1024


@dataclasses.dataclass(frozen=True)
class Int8:
    """How an int8 file is made. Plain JSON by dataclasses.asdict."""

    #: Which range is laid over a tensor's values.
    ranges: Rule = "mean"
    #: Whether channels are brought to one size first.
    equalize: bool = True
    #: Whether the file takes and gives float32, and converts by itself.
    float_io: bool = False
    #: Of int8_mixed: what mAP may be lost, 0 to 1.
    max_map_loss: float = 0.005


def evenly_spaced(items: Iterable[Path], limit: int) -> list[Path]:
    """At most limit of the items, in order and evenly spaced; all of them when there are no more."""
    everything = list(items)
    if len(everything) <= limit:
        return everything
    return [everything[index * len(everything) // limit] for index in range(limit)]


def to_calibrate_and_measure(pictures: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Of a folder's pictures those to calibrate on and, of the rest, those to measure a loss on, both evenly spaced."""
    everything = list(pictures)
    chosen = evenly_spaced(everything, CALIBRATION_PICTURES)
    used = set(chosen)
    return chosen, evenly_spaced([path for path in everything if path not in used], PICTURES_TO_MEASURE)


def quantize(
    float_file: Path, precision: str, destination: Path, *, graph: Graph | None = None, original: Path | None = None,
    pictures: Iterable[Path] = (), validation: Iterable[Path] = (), int8: Int8 = Int8(),
    progress: Callable[[float, float], object] | None = None,
) -> Calibration:  # fmt: skip
    """Writes the float .tflite in another precision, atomically, by a process of its own.

    The int8 precisions need the graph, for its input, and pictures to calibrate on; those that cannot be read are
    skipped and counted. int8_mixed is measured against original, the float32 file where int8 has another float graph,
    on validation, or on the same pictures where there are no others; it calls progress with the trials done and the
    most there can be.

    Raises InputError when int8 has no readable picture or the file cannot be written, ConversionError when the
    quantizer refuses the model or dies, when a value is not finite, when an operation would stay float in an int8 file,
    or when no mixture keeps the loss.
    """
    chosen = list(pictures) if precision.startswith("int8") else []
    if precision.startswith("int8") and not chosen:
        raise InputError("int8 needs calibration pictures: none were given; name a folder of them")
    with child_process.folder() as place:
        result = place / "quantized.tflite"
        if chosen and graph is not None:
            graph_file.save(graph, place / "graph")
        arguments = {
            "float_file": str(float_file),
            "precision": precision,
            "result": str(result),
            "original": str(original or float_file),
            "graph": str(place / "graph"),
            "pictures": [str(path) for path in chosen],
            "validation": [str(path) for path in validation],
            "int8": dataclasses.asdict(int8),
            "told": str(place / "told.jsonl"),
        }
        with child_process.followed(place / "told.jsonl", _told(progress)):
            made = child_process.run(
                "toolchain.quantize:quantize_in_child",
                arguments,
                place,
                step=f"quantization of {float_file.name} to {precision}",
            )
        write_atomically(destination, result.read_bytes())
    lists = ("skipped", "notes")
    made |= {key: tuple(made[key]) for key in lists}
    return Calibration(**{**made, "pictures": tuple((name, digest) for name, digest in made["pictures"])})


def _told(progress: Callable[[float, float], object] | None) -> Callable[[Mapping[str, float]], object] | None:
    return (lambda facts: progress(facts["done"], facts["of"])) if progress else None


def quantize_in_child(
    float_file: str, precision: str, result: str, original: str, graph: str, pictures: Sequence[str],
    validation: Sequence[str], int8: dict[str, Any], told: str,
) -> dict[str, Any]:  # fmt: skip
    content = Path(float_file).read_bytes()
    if not precision.startswith("int8"):
        Path(result).write_bytes(quantized(content, precision))
        return dataclasses.asdict(Calibration())
    from toolchain.mixed_precision import mixed

    network, settings = graph_file.load(Path(graph)), Int8(**int8)
    assert network.input is not None
    prepared = prepare(content, network.input, [Path(name) for name in pictures], settings)
    calibration = prepared.calibration
    if precision == "int8_mixed":
        looked = [Path(name) for name in validation or pictures]
        found, notes = mixed(Path(original).read_bytes(), prepared, network, looked, settings.max_map_loss, Path(told))
        if not validation:
            notes = (*notes, "the loss was measured on the calibration's own pictures, for want of others")
        calibration = dataclasses.replace(calibration, notes=(*calibration.notes, *notes))
    else:
        found = prepared.quantized(output_writers(content) if precision == "int8_float_head" else frozenset())
        if precision == "int8_float_head":
            notes = tuple(f"{name}: stays float, it writes an output" for name in _output_names(content))
            calibration = dataclasses.replace(calibration, notes=(*calibration.notes, *notes))
    Path(result).write_bytes(found)
    return dataclasses.asdict(calibration)


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A float .tflite ready for int8: its channels of one size, and a range for every tensor."""

    content: bytes
    ranges: Mapping[str, Any]
    float_io: bool
    calibration: Calibration

    def quantized(self, floats: frozenset[str]) -> bytes:
        """The int8 file whose operations that write tensors of these names stay float."""
        return quantized(self.content, "int8", self.ranges, floats=floats, float_io=self.float_io)

    def quantized_alone(self, names: frozenset[str]) -> bytes:
        """A file that computes with integers in the operations that write tensors of these names, and nowhere else."""
        scopes = tuple(_scope(name) for name in sorted(names))
        return _with(self.content, _settings("int8", scopes), self.ranges)


def prepare(content: bytes, input: Input, pictures: Sequence[Path], int8: Int8) -> Prepared:
    """Runs the pictures through the file. Raises InputError and ConversionError as observe does."""
    by_channel = scalable(content) if int8.equalize else frozenset()
    observed: Observed = observe(content, input, pictures, by_channel)
    layers: tuple[str, ...] = ()
    if int8.equalize:
        greatest, highest = ({index: of(index) for index in by_channel} for of in (observed.greatest, observed.highest))
        made = equalized(content, greatest, highest)
        content, observed, layers = made.content, observed.scaled(made.scales), made.layers
    notes: tuple[str, ...] = ()
    if layers:
        notes = (f"channels of {len(layers)} convolutions brought to one size: int8 has one step for all of a tensor",)
    found = ranges(content, observed, input, pictures, int8.ranges)
    calibration = dataclasses.replace(
        observed.calibration, rule=int8.ranges, scaled_convolutions=len(layers), notes=notes
    )
    return Prepared(content, found, int8.float_io, calibration)


def quantized(
    content: bytes, precision: str, ranges: Mapping[str, Any] | None = None, *, floats: frozenset[str] = frozenset(),
    float_io: bool = False,
) -> bytes:  # fmt: skip
    """The float .tflite in another precision, of int8's only the plain one. It can die: for a child process.

    ranges, for int8: {"min": (1,), "max": (1,)} float32 by name, of the input and of every tensor that an operation
    writes. floats: names of tensors that stay float with the operations that write them. float_io: inputs and outputs
    are float32; outputs are it too where all that writes them stays float. Raises ConversionError where another
    operation would stay float in an int8 file.
    """
    # Otherwise the quantizer rounds what the last layers computed in float to int8 again.
    float_outputs = float_io or (precision == "int8" and output_writers(content) <= floats)
    settings = _settings(precision, floats=floats, float_input=float_io, float_outputs=float_outputs)
    final = _with(content, settings, ranges)
    if precision == "int8":
        _refuse_floats(final, floats)
    return final


def _with(content: bytes, settings: list[dict[str, Any]], ranges: Mapping[str, Any] | None) -> bytes:
    from litert_quantizer import quantizer

    aliased, own_codes = _aliased(content)
    work = quantizer.Quantizer(aliased, settings)
    made = work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False).quantized_model
    # The quantizer only adds to the end of the operator table.
    return _with_codes(bytes(made), own_codes)


def _scope(name: str) -> str:
    """A pattern for the operation that writes the tensor: its scope is the names of what it writes, each with a
    semicolon behind it."""
    return f"^{re.escape(name)};?$"


def output_writers(content: bytes) -> frozenset[str]:
    """Names of the file's outputs, inside it."""
    graph = _model(content).Subgraphs(0)
    return frozenset(graph.Tensors(int(index)).Name().decode() for index in graph.OutputsAsNumpy())


def _output_names(content: bytes) -> list[str]:
    """Names of the file's outputs in its signature, sorted."""
    signature = _model(content).SignatureDefs(0)
    return sorted(signature.Outputs(place).Name().decode() for place in range(signature.OutputsLength()))


def _settings(
    precision: str, scopes: Sequence[str] = (".*",), *, floats: frozenset[str] = frozenset(),
    float_input: bool = False, float_outputs: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """litert-quantizer's recipe: what is done to which operations. All but the precision: of int8."""
    from litert_quantizer import qtyping, recipe_manager
    from litert_quantizer.algorithm_manager import AlgorithmName

    everything = qtyping.TFLOperationName.ALL_SUPPORTED
    manager = recipe_manager.RecipeManager()
    if precision == "int8":
        for scope in scopes:
            manager.add_static_config(scope, everything, activation_num_bits=8, weight_num_bits=8)
        ends = {qtyping.TFLOperationName.INPUT: float_input, qtyping.TFLOperationName.OUTPUT: float_outputs}
        for operation in (operation for operation, is_float in ends.items() if is_float):
            manager.add_quantization_config(".*", operation, algorithm_key=AlgorithmName.NO_QUANTIZE)
        for name in sorted(floats):
            manager.add_quantization_config(_scope(name), everything, algorithm_key=AlgorithmName.NO_QUANTIZE)
        return manager.get_quantization_recipe()
    if precision == "dynamic":
        weights = qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(8, granularity=qtyping.QuantGranularity.CHANNELWISE),
            compute_precision=qtyping.ComputePrecision.INTEGER,
            explicit_dequantize=False,
            min_weight_elements=_LEAST_DYNAMIC_WEIGHTS,
        )
        manager.add_quantization_config(".*", everything, weights, AlgorithmName.MIN_MAX_UNIFORM_QUANT)
        manager.add_quantization_config(
            ".*", qtyping.TFLOperationName.DEPTHWISE_CONV_2D, algorithm_key=AlgorithmName.NO_QUANTIZE
        )
    elif precision == "float16":
        half = qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(16, dtype=qtyping.TensorDataType.FLOAT),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        manager.add_quantization_config(".*", everything, half, AlgorithmName.FLOAT_CASTING)
    else:
        raise ConversionError(f"a file is quantized to float16, dynamic or int8, not to {precision!r}; choose one")
    return manager.get_quantization_recipe()


def same_ranges(content: bytes, low: float, high: float) -> dict[str, Any]:
    """One range for the inputs and every tensor that an operation writes, for `quantized` where time alone counts."""
    subgraph = _model(content).Subgraphs(0)
    inputs = [subgraph.Tensors(int(index)).Name().decode() for index in subgraph.InputsAsNumpy()]
    ends = {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
    return {name: ends for name in (*inputs, *written(content).values())}


def _refuse_floats(content: bytes, allowed: frozenset[str]) -> None:
    """Raises ConversionError when an operation of an int8 file reads or writes a float tensor, but those that write one
    of the allowed names, and changes of type."""
    from ai_edge_litert.tools.flatbuffer_utils import opcode_to_name, read_model_from_bytearray
    from litert_quantizer.qtyping import TensorType

    model = read_model_from_bytearray(bytearray(content))
    (subgraph,) = model.subgraphs
    floats: dict[str, str] = {}
    for operator in subgraph.operators:
        name = subgraph.tensors[operator.outputs[0]].name.decode()
        operation = opcode_to_name(model, operator.opcodeIndex)
        if name in allowed or operation in ("QUANTIZE", "DEQUANTIZE"):
            continue
        for index in (*operator.inputs, *operator.outputs):
            if index >= 0 and subgraph.tensors[index].type == TensorType.FLOAT32:
                floats.setdefault(operation, name)
    if floats:
        listed = ", ".join(f"{operation} at {tensor!r}" for operation, tensor in floats.items())
        raise ConversionError(
            f"an int8 file computes with integers throughout: {listed} would stay float; take dynamic or float16, or "
            "another layer"
        )


def _model(content: bytes | bytearray) -> Any:
    from litert_quantizer.qtyping import Model

    return Model.GetRootAs(content, 0)


def _aliased(content: bytes) -> tuple[bytes, dict[int, int]]:
    """The file with the operations of _ALIASES under the other's name, and by place in the operator table their own
    codes."""
    from litert_quantizer.qtyping import BuiltinOperator

    codes = {getattr(BuiltinOperator, name): getattr(BuiltinOperator, other) for name, other in _ALIASES.items()}
    model = _model(content)
    own = {place: model.OperatorCodes(place).BuiltinCode() for place in range(model.OperatorCodesLength())}
    own = {place: code for place, code in own.items() if code in codes}
    return _with_codes(content, {place: codes[code] for place, code in own.items()}), own


def _with_codes(content: bytes, codes: dict[int, int]) -> bytes:
    """The file with other codes, none of them 0, at places of its operator table, changed where they stand."""
    changed = bytearray(content)
    model = _model(changed)
    for place, code in codes.items():
        table = model.OperatorCodes(place)._tab
        # The schema's fields deprecated_builtin_code (a byte) and builtin_code (32 bits) hold codes below 127 both.
        changed[table.Pos + table.Offset(4)] = code
        start = table.Pos + table.Offset(10)
        changed[start : start + 4] = code.to_bytes(4, "little")
    return bytes(changed)
