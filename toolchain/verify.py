"""Holds a .tflite against the model that it was made of, on real pictures, output by output.

Units. float32 errors are counted in float epsilons (2^-23) of the output's norm: two correct evaluations differ by the
order of their sums and by the folding of batch norms. float16 errors are counted in roundings (2^-11) of the weights.
Integer arithmetic adds noise in every layer; it is counted in decibels of signal to noise, where the signal is what an
output says beyond each channel's mean over all cells and pictures. Of both the median over the pictures counts: a
single one may drive a network beyond all ranges. An int8 output's error is told in its quantization steps as well.

Bounds. With L the greatest number of convolutions on a way from the input to the output, and an error that each of them
adds to the relative norm and passes on at about its size:
    float32         ‖error‖ / ‖reference‖ <= FLOAT32_STEPS * L * 2^-23
    float16         ‖error‖ / ‖reference‖ <= FLOAT16_STEPS * L * 2^-11
    dynamic, int8   signal / noise >= the decibels below
An output that is dead, swapped with another, or fed with a wrong input scale has an error as large as its signal, which
is 0 dB or less: the bounds for integers lie between that and the worst that was measured on sane files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy import interpreter
from deploy.contract import Contract, Tensor, YoloHead
from deploy.errors import VerificationError
from deploy.picture import read_picture
from deploy.preprocess import Preprocessor
from toolchain import child_process
from toolchain.first_difference import first_difference
from toolchain.graph import Graph
from toolchain.reference import write_reference

#: Each convolution sums its products in another order and has its batch norm folded in: a few epsilons each. Six real
#: networks of 7 to 84 convolutions have 0.05 to 2.0 of them a convolution; a wrong padding has 10,000 in all.
FLOAT32_STEPS = 8.0
#: A weight is off by one rounding at most. The same networks have 0.02 to 0.3 of them a convolution.
FLOAT16_STEPS = 2.0
#: The six networks have 19 dB and more.
DYNAMIC_DECIBELS = 10.0
#: The six networks, most of them depthwise, have 6.4 to 24 dB.
INT8_DECIBELS = 3.0

_CONVOLUTIONS = ("Conv2D", "Conv2DTranspose", "Dense", "DepthwiseConv2D", "SeparableConv2D")


@dataclasses.dataclass(frozen=True)
class OutputDifference:
    """How far one output is off, over all pictures."""

    output: str
    #: The node of the graph that makes it.
    layer: str
    #: Greatest difference of one value, in logits.
    max_abs: float
    #: ‖error‖ / ‖reference‖, Frobenius norms.
    relative: float
    #: 10 log10 of the reference's variance within channels over the mean squared error, medians over the pictures.
    decibels: float
    #: What is held against the bound, and the unit of both.
    measured: float
    bound: float
    unit: str
    #: Root mean square of the error in the output's quantization steps; 0.0 where it is not quantized.
    steps: float = 0.0


@dataclasses.dataclass(frozen=True)
class Verification:
    """All outputs of one file; every one of them is inside its bound. dataclasses.asdict makes it plain JSON."""

    precision: str
    pictures: int
    outputs: tuple[OutputDifference, ...]


def verify(
    graph: Graph, tflite: bytes, contract: Contract, pictures: Iterable[Path] = (), *, reference: Path | None = None
) -> Verification:
    """Compares the .tflite (its content, with or without metadata) with the graph as it was before lowering.

    pictures are real ones, reference.VERIFICATION_PICTURES of them are enough. reference is what convert wrote about
    them, in place of running the model again.

    Raises VerificationError, naming output and layer, when an output is outside its bound, constant, or not finite;
    ContractError when the contract is not the file's; InputError when no picture can be read.
    """
    if reference is None:
        with child_process.folder() as place:
            write_reference(graph, pictures, place / "reference.npz")
            expected = _load(place / "reference.npz")
    else:
        expected = _load(reference)
    names = [str(name) for name in expected.pop("pictures")]
    found, tensors = run_file(tflite, contract, [Path(name) for name in names])
    layers, depth = _layers(graph), _depth(graph)
    differences = tuple(
        _difference(tensors[name], layers[name], contract.precision, depth[layers[name]], expected[name], found[name])
        for name in expected
    )
    wrong = [difference for difference in differences if not _inside(difference)]
    if wrong:
        parted = functools.partial(_parted, contract.precision, max(depth.values()))
        parting = first_difference(graph, tflite, contract, Path(names[0]), parted)
        raise VerificationError(_sentence(wrong, len(differences), contract.precision, parting))
    return Verification(contract.precision, len(names), differences)


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def run_file(
    tflite: bytes, contract: Contract, pictures: list[Path]
) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    """The file's outputs on pictures by name, (n, h, w, channels) float32, and the tensors that they came from."""
    model = interpreter.Model(tflite, threads=2)
    interpreter.check(model, contract)
    preprocess = Preprocessor(contract.input, model.inputs[0])
    tensors = {tensor.name: tensor for tensor in model.outputs}
    found: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    for path in pictures:
        outputs = model.run({contract.input.name: preprocess(read_picture(path))[0]})
        for name, values in outputs.items():
            found[name].append(_dequantized(values, tensors[name]))
    return {name: np.concatenate(arrays) for name, arrays in found.items()}, tensors


def _dequantized(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    if not tensor.scale:
        return values.astype(np.float32)
    return (values.astype(np.float32) - np.float32(tensor.zero_point)) * np.float32(tensor.scale)


def _difference(
    tensor: Tensor, layer: str, precision: str, depth: int, expected: np.ndarray, found: np.ndarray
) -> OutputDifference:
    name = tensor.name
    for whose, values in (("the model", expected), ("the .tflite", found)):
        if not np.isfinite(values).all():
            raise VerificationError(
                f"outputs are finite numbers: {whose} gives NaN or infinity at {name!r} (layer {layer!r}); look for "
                "weights or "
                "activations beyond the range of this precision"
            )
        if (values == values[:1, :1, :1]).all():
            raise VerificationError(
                f"an output depends on the picture: {whose} gives the same everywhere at {name!r} (layer {layer!r}); "
                "the network is "
                "dead there, or was converted or calibrated wrongly"
            )
    relative, decibels, noise = _distance(expected, found)
    measured, bound, unit = _held(precision, relative, decibels, depth)
    steps = float(np.sqrt(noise) / tensor.scale) if tensor.scale else 0.0
    max_abs = float(np.abs(found - expected).max())
    return OutputDifference(name, layer, max_abs, relative, decibels, measured, bound, unit, steps)


def _distance(expected: np.ndarray, found: np.ndarray) -> tuple[float, float, float]:
    """Relative Frobenius error, signal to noise in decibels, mean squared error."""
    error = found.astype(np.float64) - expected
    inside = tuple(range(1, expected.ndim))
    noises = np.mean(error**2, axis=inside)
    channel_means = expected.mean(axis=tuple(range(expected.ndim - 1)), dtype=np.float64)
    signal = float(np.median(np.mean((expected - channel_means) ** 2, axis=inside)))
    norm = float(np.linalg.norm(expected.astype(np.float64)))
    # Perfect matches and dead signals have finite values too, for JSON.
    decibels = float(10 * np.log10(max(signal, 1e-30) / max(float(np.median(noises)), 1e-30)))
    return float(np.linalg.norm(error)) / max(norm, 1e-30), decibels, float(np.mean(noises))


def _parted(precision: str, depth: int, expected: np.ndarray, found: np.ndarray) -> bool:
    """Whether a layer inside is as far off as no output may be."""
    relative, decibels, _ = _distance(expected, found)
    measured, bound, unit = _held(precision, relative, decibels, depth)
    return measured < bound if unit.startswith("dB") else measured > bound


def _held(precision: str, relative: float, decibels: float, depth: int) -> tuple[float, float, str]:
    if precision == "float32":
        return relative * 2**23, FLOAT32_STEPS * depth, "float epsilons"
    if precision == "float16":
        return relative * 2**11, FLOAT16_STEPS * depth, "half-precision roundings"
    return decibels, INT8_DECIBELS if precision.startswith("int8") else DYNAMIC_DECIBELS, "dB of signal to noise"


def _inside(difference: OutputDifference) -> bool:
    if difference.unit.startswith("dB"):
        return difference.measured >= difference.bound
    return difference.measured <= difference.bound


def _sentence(wrong: list[OutputDifference], total: int, precision: str, place: str) -> str:
    worst = max(wrong, key=lambda difference: difference.relative)
    side = "at least" if worst.unit.startswith("dB") else "at most"
    others = ", ".join(difference.output for difference in wrong if difference is not worst)
    return (
        f"a .tflite computes what its model computes: {worst.output!r} (layer {worst.layer!r}) of the {precision} "
        "file has "
        f"{worst.measured:.3g} {worst.unit}, {side} {worst.bound:.3g} are allowed, greatest difference "
        f"{worst.max_abs:.3g}; "
        + (f"also wrong: {others} ({len(wrong)} of {total} outputs); " if others else "all others are right; ")
        + (f"file and model part at layer {place!r}" if place else "inside, file and model agree")
        + _advice(worst)
    )


def _advice(worst: OutputDifference) -> str:
    """What a user can do about an output that is off; nothing for float, whose errors are the conversion's own."""
    if not worst.unit.startswith("dB"):
        return ""
    # The signal's root mean square in quantization steps; below one, rounding alone is as large.
    signal = worst.steps * 10 ** (worst.decibels / 20)
    if worst.steps and signal < 1:
        return (
            f"; the model's own signal there is {signal:.2g} of a quantization step, as of an output that is not"
            " trained or was calibrated on other pictures: train it, calibrate on pictures like these, or take float16"
        )
    return "; calibrate on pictures like those it was trained on, or take float16" if worst.steps else "; take float16"


def _layers(graph: Graph) -> Mapping[str, str]:
    """Name of an output in the file -> node of the graph that makes it."""
    assert isinstance(graph.head, YoloHead)
    return {
        f"{role}_{scale.stride}": scale.outputs.get(role, scale.outputs.get("raw", ""))
        for scale in graph.head.scales
        for role in ("xy", "wh", "objectness", "classes")
    }


def _depth(graph: Graph) -> dict[str, int]:
    """Greatest number of convolutions on a way from the input to each node, that node's own included."""
    depth: dict[str, int] = {}
    for node in graph.nodes:
        before = max((depth[name] for name in node.inputs), default=0)
        depth[node.name] = before + (node.op in _CONVOLUTIONS)
    return depth


def to_json(verification: Verification) -> dict[str, Any]:
    """Plain JSON, for the contract's `measured`."""
    outputs = [dataclasses.asdict(output) for output in verification.outputs]
    return {"precision": verification.precision, "pictures": verification.pictures, "outputs": outputs}
