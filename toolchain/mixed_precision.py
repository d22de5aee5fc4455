"""Which layers of an int8 file stay float, so that no more mAP is lost than was allowed.

What a layer costs is measured by a file in which it alone is int8: the noise that reaches the outputs, as a share of
their signal. Such noises add up. Of the first K layers in an order, kept float together, the fewest are looked for
whose loss of mAP is small enough: doubling K, then halving the interval. Two orders are tried, by noise and by noise
for each multiplication, and of what they find the mixture stays with the fewest multiplications in float: on some
networks the one finds less, on others the other. The loss is measured on pictures, through the interpreter, decoding
and NMS that the device has, and without labels (expected_loss.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.voc_metric import Found
from deploy import interpreter
from deploy.detector import Detector
from deploy.errors import ConversionError, InputError
from deploy.picture import read_picture
from deploy.preprocess import Preprocessor
from toolchain.expected_loss import expected_loss
from toolchain.graph import Graph
from toolchain.intermediates import Intermediates, node_names

if TYPE_CHECKING:
    from toolchain.quantize import Prepared

#: A network of more convolutions is looked at by several of them together, so that a large one takes minutes too.
_MOST_TRIALS = 128
#: Pictures on which the layers' noise is compared; it is an average over all places of each.
_PICTURES_FOR_NOISE = 8
#: As benchmarks.accuracy measures.
_CONF, _IOU, _LIMIT = 0.005, 0.45, 10_000
_KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def mixed(
    original_file: bytes, prepared: Prepared, graph: Graph, pictures: Sequence[Path], allowed: float, told: Path
) -> tuple[bytes, tuple[str, ...]]:
    """The .tflite with the fewest float layers that loses no more than allowed, and notes for the report.

    Args:
        original_file: the float32 .tflite that it is measured against.
        pictures: to measure the loss on; unreadable ones are left out.
        allowed: of mAP, 0 to 1.
        told: a file that receives a JSON line for each trial.

    Raises InputError where no picture shows anything, ConversionError where even all layers in float lose more.
    """
    detect = _Detecting(graph, pictures, told.parent)
    original = detect(original_file, "float32")
    if not len(original):
        raise InputError(
            f"a loss of mAP is measured on pictures with detections: the float network finds none on {len(pictures)};"
            " give calibration pictures that show its classes"
        )
    layers = _measured(prepared, graph, pictures[:: max(1, len(pictures) // _PICTURES_FOR_NOISE)])
    most = len(layers)
    # Of each order: none, 1, 2, 4 and so on up to all, and the halves of the last interval.
    of = len(_ORDERS) * (1 + max(1, 2 * (most - 1).bit_length()))
    trials: dict[frozenset[str], float] = {}
    asked = 0

    def loss(kept: Sequence[_Layer]) -> float:
        nonlocal asked
        floats = _writes(kept)
        if floats not in trials:
            found = detect(prepared.quantized(floats), "int8_mixed")
            trials[floats] = expected_loss(original, found, len(graph.labels))
        asked += 1
        with told.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"done": asked, "of": of}) + "\n")
        return trials[floats]

    kept = _least_work(layers, loss, most, allowed)
    content, lost = prepared.quantized(_writes(kept)), trials[_writes(kept)]
    floats, every = (sum(len(layer.names) for layer in some) for some in (kept, layers))
    notes = [
        f"{floats} of {every} convolutions stay float, with {100 * _work(kept) / _work(layers):.2g} % of the"
        f" multiplications: int8 throughout loses {100 * trials[frozenset()]:.2f} points of mAP on {detect.count}"
        f" pictures, by the float network's own detections, and so it loses {100 * lost:.2f}; {100 * allowed:g} are"
        " allowed"
    ]
    notes += [
        f"{name}: stays float, in int8 it would add {100 * layer.noise:.2g} % of noise to the outputs"
        for layer in kept
        for name in layer.names
    ]
    return content, tuple(notes)


def _least_work(
    layers: Sequence[_Layer], loss: Callable[[Sequence[_Layer]], float], most: int, allowed: float
) -> Sequence[_Layer]:
    """Of the fewest layers in each order that lose what is allowed at most, those with the least work.

    Raises ConversionError where no order has any.
    """
    found: list[Sequence[_Layer]] = []
    refused = []
    for name, key in _ORDERS.items():
        order = sorted(layers, key=key)
        losses: dict[int, float] = {}

        def of_first(count: int, order: Sequence[_Layer] = order, losses: dict[int, float] = losses) -> float:
            if count not in losses:
                losses[count] = loss(order[:count])
            return losses[count]

        count = _fewest(of_first, most, allowed)
        if count == 0:
            return []
        if count is not None:
            found.append(order[:count])
        refused.append(f"by {name} " + ", ".join(f"{100 * losses[tried]:.2f} with {tried}" for tried in sorted(losses)))
    if not found:
        raise ConversionError(
            f"int8_mixed loses at most {100 * allowed:g} points of mAP: it loses {'; '.join(refused)} of {len(layers)}"
            " layers in float; allow more by max_map_loss, fine-tune by quantization_aware, or take float16"
        )
    return min(found, key=_work)


def _fewest(loss: Callable[[int], float], most: int, allowed: float) -> int | None:
    """The least count found with a loss that is allowed, None where there is none up to most."""
    if loss(0) <= allowed:
        return 0
    low, high = 0, 1
    while loss(min(high, most)) > allowed:
        if high >= most:
            return None
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loss(middle) <= allowed else (middle, high)
    return high


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A convolution, and what reads it alone; or several that follow each other."""

    names: tuple[str, ...]
    #: Tensors that they write, all float with them.
    writes: tuple[str, ...]
    #: Multiplications that they take, and values that they write.
    work: float
    #: Share of noise at the outputs, from them alone.
    noise: float = 0.0


def _work(layers: Sequence[_Layer]) -> float:
    return sum(layer.work for layer in layers)


def _writes(layers: Sequence[_Layer]) -> frozenset[str]:
    return frozenset(name for layer in layers for name in layer.writes)


#: In which layers are kept float, the first ones first.
_ORDERS: Mapping[str, Callable[[_Layer], float]] = {
    "noise": lambda layer: -layer.noise,
    "noise for their work": lambda layer: -layer.noise / layer.work,
}


class _Detecting:
    """Detections of .tflite files of one graph on the same pictures."""

    def __init__(self, graph: Graph, pictures: Sequence[Path], place: Path) -> None:
        self._graph, self._pictures, self._place = graph, list(pictures), place
        self.count = 0

    def __call__(self, content: bytes, precision: str) -> Found:
        from toolchain.package import package

        bare, packed = self._place / "trial.tflite", self._place / "trial_packed.tflite"
        bare.write_bytes(content)
        package(bare, self._graph, precision, packed)
        detector = Detector(packed, threads=2, conf=_CONF, iou=_IOU, limit=_LIMIT)
        found = []
        for path in self._pictures:
            try:
                picture = read_picture(path)
            except InputError:
                continue  # the calibration tells of it
            tensor, placement = detector.preprocess(picture)
            found.append(detector.postprocess(detector.invoke(tensor), placement, clip=False))
        self.count = len(found)
        images = np.repeat(np.arange(len(found)), [len(one) for one in found])
        if not found:
            raise InputError(f"a loss of mAP is measured on pictures: none of {len(self._pictures)} can be read")
        return Found(
            images,
            np.concatenate([one.class_ids for one in found]).astype(np.int64),
            np.concatenate([one.boxes for one in found]),
            np.concatenate([one.scores for one in found]),
        )


def _measured(prepared: Prepared, graph: Graph, pictures: Sequence[Path]) -> list[_Layer]:
    """The convolutions of the file, with the noise that each brings in int8."""
    outputs = _Outputs(graph, pictures)
    expected = outputs(prepared.content)
    layers = _grouped(_layers(Intermediates(prepared.content)))
    noises = [_noise(expected, outputs(prepared.quantized_alone(frozenset(layer.writes)))) for layer in layers]
    return [dataclasses.replace(layer, noise=noise) for layer, noise in zip(layers, noises, strict=True)]


class _Outputs:
    """A file's outputs on the same pictures."""

    def __init__(self, graph: Graph, pictures: Sequence[Path]) -> None:
        assert graph.input is not None
        self._input, self._pictures = graph.input, []
        for path in pictures:
            with contextlib.suppress(InputError):  # the calibration tells of it
                self._pictures.append(read_picture(path))

    def __call__(self, content: bytes) -> dict[str, np.ndarray]:
        model = interpreter.Model(content, threads=2)
        preprocess = Preprocessor(self._input, model.inputs[0])
        found = [
            {name: values.copy() for name, values in model.run({model.inputs[0].name: preprocess(one)[0]}).items()}
            for one in self._pictures
        ]
        return {name: np.stack([one[name] for one in found]) for name in found[0]}


def _noise(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> float:
    """Mean over the outputs of the mean squared error over the variance within channels."""
    shares = []
    for name, values in expected.items():
        axes = tuple(range(values.ndim - 1))
        signal = np.mean(np.square(values - values.mean(axes, dtype=np.float64)))
        shares.append(np.mean(np.square(found[name] - values, dtype=np.float64)) / max(signal, 1e-30))
    return float(np.mean(shares))


def _layers(inside: Intermediates) -> list[_Layer]:
    made = {index for _, _, outputs in inside.operations for index in outputs}
    units: list[list[int]] = []
    work: list[float] = []
    of: dict[int, int] = {}
    for operation, inputs, outputs in inside.operations:
        sources = {of.get(index) for index in inputs if index in made}
        values = float(sum(math.prod(inside.shape(index)) for index in outputs))
        if operation in _KERNELS:
            of |= dict.fromkeys(outputs, len(units))
            units.append(list(outputs))
            channels = inside.shape(outputs[0])[-1]
            work.append(values * (1 + math.prod(inside.shape(inputs[1])) / channels))
        elif len(sources) == 1 and (unit := sources.pop()) is not None and operation != "DELEGATE":
            of |= dict.fromkeys(outputs, unit)
            units[unit] += outputs
            work[unit] += values
    return [
        _Layer((_name(inside, unit[0]),), tuple(str(inside.details[index]["name"]) for index in unit), multiplications)
        for unit, multiplications in zip(units, work, strict=True)
    ]


def _name(inside: Intermediates, index: int) -> str:
    """Of an output its name in the signature, else that of the node."""
    return inside.output_names.get(index, node_names(str(inside.details[index]["name"]))[0])


def _grouped(layers: Sequence[_Layer]) -> list[_Layer]:
    """At most _MOST_TRIALS, each of equally many that follow each other in the file."""
    size = -(-len(layers) // _MOST_TRIALS)
    return [
        _Layer(
            tuple(name for layer in some for name in layer.names),
            tuple(name for layer in some for name in layer.writes),
            _work(some),
        )
        for some in (layers[start : start + size] for start in range(0, len(layers), size))
    ]
