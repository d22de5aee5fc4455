"""float16, dynamic-range and int8 files from the one float .tflite, by litert-quantizer, without TensorFlow.

An affine int8 value q stands for (q - zero_point) * scale. Weights are symmetric, with a scale for each output channel;
activations have one scale for each tensor, laid over the range that they took on the calibration pictures (Jacob et al.
2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", equations 1 and
4). The input's range is not measured but computed from what a pixel 0..255 becomes: pictures that never reach black or
white keep the exact grid.

litert-quantizer has no rule for some operations whose int8 kernels exist and take free scales, and would leave a float
island around each. They are shown to it under the name of an operation with the same tensors, and get their own name
back afterwards. So one float file with plain LEAKY_RELU serves all precisions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.command_line import write_atomically
from deploy.contract import Input, Tensor
from deploy.errors import ConversionError, InputError
from toolchain import child_process

#: As many pictures, evenly spaced in the folder, are a fair choice: one already gives most of the accuracy, and over 64
#: the ranges have settled.
CALIBRATION_PICTURES = 64

#: Operation -> the one that the quantizer takes it for.
_ALIASES = {"LEAKY_RELU": "RELU", "ELU": "RELU", "RELU6": "RELU"}

#: In a dynamic-range file a convolution quantizes its input anew in each run. That pays only where it has work enough:
#: with less than this many weights, and in depthwise convolutions (which also fall to slow built-in kernels), weights
#: stay float. On voc-yolo-fastest: 5.6 ms and 558 kB, against 13.5 ms and 538 kB with all but depthwise, and 5.4 ms in
#: float.
_LEAST_DYNAMIC_WEIGHTS = 1024


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Which pictures made an int8 file."""

    used: int = 0
    #: "name: reason" of each picture that could not be read.
    skipped: tuple[str, ...] = ()


def evenly_spaced(items: Iterable[Path], limit: int) -> list[Path]:
    """At most limit of the items, in order and evenly spaced; all of them when there are no more."""
    everything = list(items)
    if len(everything) <= limit:
        return everything
    return [everything[index * len(everything) // limit] for index in range(limit)]


def quantize(
    float_file: Path, precision: str, destination: Path, *, input: Input | None = None, pictures: Iterable[Path] = ()
) -> Calibration:
    """Writes the float .tflite in another precision ("float16", "dynamic", "int8"), atomically, by a process of its
    own.

    int8 needs the graph's input and pictures to calibrate on; those that cannot be read are skipped and counted.

    Raises InputError when int8 has no readable picture or the file cannot be written, ConversionError when the
    quantizer refuses the model or dies, or when an operation would stay float in an int8 file.
    """
    chosen = list(pictures) if precision == "int8" else []
    if precision == "int8" and not chosen:
        raise InputError("int8 needs calibration pictures: none were given; name a folder of them")
    with child_process.folder() as place:
        result = place / "quantized.tflite"
        calibration = child_process.run(
            "toolchain.quantize:_quantize",
            {
                "float_file": str(float_file),
                "precision": precision,
                "result": str(result),
                "input": None if input is None else dataclasses.asdict(input),
                "pictures": [str(path) for path in chosen],
            },
            place,
            step=f"quantization of {float_file.name} to {precision}",
        )
        write_atomically(destination, result.read_bytes())
    return Calibration(calibration["used"], tuple(calibration["skipped"]))


def _quantize(
    float_file: str, precision: str, result: str, input: dict[str, Any] | None, pictures: Sequence[str]
) -> dict[str, Any]:
    """Runs in the child."""
    content = Path(float_file).read_bytes()
    ranges, calibration = None, Calibration()
    if precision == "int8":
        assert input is not None
        # JSON has lists where the dataclass has tuples.
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in input.items()}
        ranges, calibration = _calibrate(content, Input(**fields), pictures)  # type: ignore[arg-type]
    Path(result).write_bytes(quantized(content, precision, ranges))
    return dataclasses.asdict(calibration)


def quantized(content: bytes, precision: str, ranges: dict[str, Any] | None = None) -> bytes:
    """The float .tflite in another precision. It can die: for a child process.

    ranges, for int8: {"min": (1,), "max": (1,)} float32 by name, of the input and of every tensor that an operation
    writes. Raises ConversionError where an operation would stay float in an int8 file.
    """
    from litert_quantizer import quantizer

    aliased, own_codes = _aliased(content)
    work = quantizer.Quantizer(aliased, _settings(precision))
    made = work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False).quantized_model
    # The quantizer only adds to the end of the operator table.
    final = _with_codes(bytes(made), own_codes)
    if precision == "int8":
        _refuse_floats(final)
    return final


def _settings(precision: str) -> list[dict[str, Any]]:
    """litert-quantizer's recipe: what is done to which operations."""
    from litert_quantizer import qtyping, recipe, recipe_manager
    from litert_quantizer.algorithm_manager import AlgorithmName

    if precision == "int8":
        return recipe.static_wi8_ai8()
    everything = qtyping.TFLOperationName.ALL_SUPPORTED
    manager = recipe_manager.RecipeManager()
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


def _calibrate(content: bytes, input: Input, pictures: Sequence[str]) -> tuple[dict[str, Any], Calibration]:
    """Runs the pictures, one in memory at a time, through the float file: range by tensor, {"min": (1,), "max": (1,)}
    float32."""
    from ai_edge_litert.interpreter import Interpreter

    from deploy.picture import read_picture
    from deploy.preprocess import Preprocessor

    interpreter = Interpreter(model_content=content, experimental_preserve_all_tensors=True, num_threads=2)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    preprocess = Preprocessor(input, Tensor(input.name, tuple(int(n) for n in entry["shape"]), "float32"))
    written = _written(content)
    extremes: dict[str, list[tuple[float, float]]] = {name: [] for name in written.values()}
    used, skipped = 0, []
    for name in pictures:
        try:
            picture = read_picture(Path(name))
        except InputError as error:
            skipped.append(f"{Path(name).name}: {error}")
            continue
        interpreter.set_tensor(entry["index"], preprocess(picture)[0])
        interpreter.invoke()
        for index, tensor_name in written.items():
            values = interpreter.get_tensor(index)
            extremes[tensor_name].append((float(values.min()), float(values.max())))
        used += 1
    if not used:
        first = skipped[0]
        raise InputError(f"int8 needs calibration pictures: none of {len(pictures)} can be read; the first: {first}")
    ranges = _ranges(extremes, {details["name"] for details in interpreter.get_output_details()})
    pixels = [(value - mean) / std for mean, std in zip(input.mean, input.std) for value in (0.0, 255.0)]
    ranges[entry["name"]] = {"min": np.array([min(pixels)], np.float32), "max": np.array([max(pixels)], np.float32)}
    return ranges, Calibration(used, tuple(skipped))


def _ranges(extremes: dict[str, list[tuple[float, float]]], outputs: set[str]) -> dict[str, Any]:
    """{"min": (1,), "max": (1,)} float32 by tensor, from its smallest and greatest value on each picture.

    Inside the network the mean over the pictures: one picture's outlier would coarsen the steps of all the others. An
    output keeps the whole range, because its rare great values are the detections. Against the whole range everywhere,
    on 840 trainval pictures of VOC2007 that were not calibrated on: +3.3 (voc-yolo-fastest-xl), +0.5 (MobileNetV2-
    YOLOv3-Nano), +6.2 (voc-yolo-fastest), +1.1 (yolov4-tiny) and -0.7 (yolo-lite) points of mAP.
    """
    ranges = {}
    for name, seen in extremes.items():
        low, high = zip(*seen)
        ends = (min(low), max(high)) if name in outputs else (np.mean(low), np.mean(high))
        ranges[name] = {key: np.array([end], np.float32) for key, end in zip(("min", "max"), ends)}
    return ranges


def same_ranges(content: bytes, low: float, high: float) -> dict[str, Any]:
    """One range for the inputs and every tensor that an operation writes, for `quantized` where time alone counts."""
    subgraph = _model(content).Subgraphs(0)
    inputs = [subgraph.Tensors(int(index)).Name().decode() for index in subgraph.InputsAsNumpy()]
    ends = {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
    return {name: ends for name in (*inputs, *_written(content).values())}


def _written(content: bytes) -> dict[int, str]:
    """Index and name of every tensor that an operation writes."""
    subgraph = _model(content).Subgraphs(0)
    return {
        int(index): subgraph.Tensors(int(index)).Name().decode()
        for place in range(subgraph.OperatorsLength())
        for index in subgraph.Operators(place).OutputsAsNumpy()
    }


def _refuse_floats(content: bytes) -> None:
    """Raises ConversionError when an operation of an int8 file reads or writes a float tensor."""
    from ai_edge_litert.tools.flatbuffer_utils import opcode_to_name, read_model_from_bytearray
    from litert_quantizer.qtyping import TensorType

    model = read_model_from_bytearray(bytearray(content))
    (subgraph,) = model.subgraphs
    floats: dict[str, str] = {}
    for operator in subgraph.operators:
        for index in (*operator.inputs, *operator.outputs):
            if index >= 0 and subgraph.tensors[index].type == TensorType.FLOAT32:
                name = subgraph.tensors[operator.outputs[0]].name.decode()
                floats.setdefault(opcode_to_name(model, operator.opcodeIndex), name)
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
