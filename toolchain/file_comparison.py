"""Two .tflite files on the same pictures, layer by layer: where one of them, quantized or by another maker, goes wrong.

Layers are matched by the name of the tensor that they write: files that come from one float file, in whatever
precision, share it; of others the outputs alone are compared. For every layer

    signal to noise   10 log10 of the reference's variance within its channels over the mean squared difference
    lost              by how much that is less than at the layer's worst input: what the layer itself adds
    clipped           share of the reference's values more than half a step beyond what the layer's integers hold
    used              share of the integers' range that the reference's values span

The files may come from strangers: they run in a process of its own.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy import interpreter, model_file
from deploy.contract import Input, Tensor
from deploy.errors import BackendError, ContractError, ConversionError, InputError
from deploy.picture import read_picture
from deploy.preprocess import Preprocessor
from toolchain import child_process

#: Told how many pictures are done, and of how many.
Progress = Callable[[float, float], object]

#: Beyond it a logit's sigmoid is 0 or 1 to 5e-5: no score can be told from another.
_SATURATED = 10.0
#: A file whose outputs are so much oftener saturated than the reference's says nothing.
_OFTENER = 0.1
#: Fewer of the 256 values of a byte that reach the network are too few to see with.
_LEAST_INPUT_VALUES = 64
_WORST = 12
#: Shown for a difference of nothing.
_MOST_DECIBELS = 150.0


def compare_files(
    path: Path, against: Path, pictures: Sequence[Path], progress: Progress | None = None
) -> dict[str, Any]:
    """How the file at path differs from the reference `against`, as plain JSON.

    Raises InputError for a file that is missing or damaged, inputs of different sizes, files that share no output, and
    pictures none of which can be read.
    """
    with child_process.folder() as place:
        arguments = {
            "path": str(path.absolute()),
            "against": str(against.absolute()),
            "pictures": [str(one) for one in pictures],
            "told": str(place / "told.jsonl"),
        }
        with child_process.followed(place / "told.jsonl", _told(progress)):
            try:
                found: dict[str, Any] = child_process.run(
                    "toolchain.file_comparison:compare_in_child", arguments, place, step=f"run of {path} and {against}"
                )
            except ConversionError as error:
                raise InputError(f"one of {path} and {against} is damaged: {error}") from error
    return {**found, "file": str(path), "against": str(against)}


def _told(progress: Progress | None) -> Callable[[Mapping[str, float]], object] | None:
    return (lambda facts: progress(facts["done"], facts["of"])) if progress else None


@dataclasses.dataclass
class _Sums:
    """What is added up of one layer over the pictures."""

    #: Of the reference beyond its channels' means, and of the difference: mean squares.
    signal: float = 0.0
    noise: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    #: Shares, to be divided by the pictures.
    clipped: float = 0.0
    saturated: float = 0.0
    saturated_reference: float = 0.0


class _File:
    """A .tflite that keeps what all its operations write."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self.path = path
        self.content, self.input = _read(path)
        model = interpreter.Model(self.content, "cpu-builtin")
        if len(model.inputs) != 1:
            raise InputError(f"a detector has one input: {path} has {len(model.inputs)}; give a detector's file")
        self.tensor = model.inputs[0]
        with warnings.catch_warnings():
            # It says that this takes memory, and is meant for finding faults: which this is.
            warnings.filterwarnings("ignore", "Warning: Enabling `experimental_preserve_all_tensors`")
            # The runtime's own kernels show every layer; XNNPACK keeps to itself what is inside.
            self._interpreter = Interpreter(
                model_content=self.content,
                experimental_preserve_all_tensors=True,
                num_threads=2,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
        self._interpreter.allocate_tensors()
        self.details = {int(one["index"]): one for one in self._interpreter.get_tensor_details()}
        self._entry = int(self._interpreter.get_input_details()[0]["index"])
        self.operations = [
            (one["op_name"], [int(index) for index in one["inputs"]], [int(index) for index in one["outputs"]])
            for one in self._interpreter._get_ops_details()
        ]
        self.names = _output_names(self._interpreter)

    def run(self, image: np.ndarray) -> None:
        self._interpreter.set_tensor(self._entry, image)
        self._interpreter.invoke()

    def values(self, index: int) -> np.ndarray:
        """A tensor's values as the real numbers that they stand for, float32."""
        values = self._interpreter.get_tensor(index).astype(np.float32)
        scale, zero_point = self.details[index]["quantization"]
        return (values - np.float32(zero_point)) * np.float32(scale) if scale else values

    def written(self) -> dict[str, int]:
        """Name -> index of each float or quantized tensor that an operation writes, in order."""
        found: dict[str, int] = {}
        for _, _, outputs in self.operations:
            for index in outputs:
                details = self.details[index]
                # Weights that are widened before use stand beside the network.
                if details["dtype"] in (np.float32, np.int8, np.uint8, np.int16) and len(details["shape"]) > 1:
                    found.setdefault(self.names.get(index, details["name"]), index)
        return found


def _read(path: Path) -> tuple[bytes, Input | None]:
    """The file, and how pictures enter it where it says so."""
    try:
        content, contract = model_file.read(path)
        return content, contract.input
    except (ContractError, BackendError):
        return path.read_bytes(), None


def _output_names(model: Any) -> dict[int, str]:
    """Outputs under their names in the signature, which other files share rather than the converter's own; these where
    there is no signature."""
    signatures = model.get_signature_list()
    if not signatures:
        return {int(details["index"]): details["name"] for details in model.get_output_details()}
    runner = model.get_signature_runner(next(iter(signatures)))
    return {int(details["index"]): name for name, details in runner.get_output_details().items()}


def compare_in_child(path: str, against: str, pictures: Sequence[str], told: str) -> dict[str, Any]:
    import json

    mine, theirs = _File(Path(path)), _File(Path(against))
    notes: list[str] = []
    entry = _common_input(mine, theirs, notes)
    pairs = _pairs(mine, theirs)
    sums = {name: _Sums() for name in pairs}
    prepare = [Preprocessor(entry, _named(one.tensor, entry)) for one in (mine, theirs)]
    used, skipped = 0, []
    with open(told, "a", encoding="utf-8") as lines:
        for picture in pictures:
            try:
                pixels = read_picture(Path(picture))
            except InputError as error:
                skipped.append(f"{Path(picture).name}: {error}")
                continue
            for one, preprocess in zip((mine, theirs), prepare, strict=True):
                one.run(preprocess(pixels)[0])
            for name, (first, second) in pairs.items():
                _add(sums[name], mine.values(first), theirs.values(second), _span(mine.details[first]))
            used += 1
            lines.write(json.dumps({"done": used + len(skipped), "of": len(pictures)}) + "\n")
            lines.flush()
    if not used:
        raise InputError(f"files are compared on pictures: none of {len(pictures)} can be read; name others")
    layers = _layers(mine, theirs, pairs, sums, used)
    found = {
        "kind": "comparison",
        "pictures": used,
        "skipped": skipped,
        "layers": layers,
        "outputs": [name for name in (layer["name"] for layer in layers) if name in set(mine.names.values())],
        "not_compared": [name for name in mine.written() if name not in pairs],
        "notes": notes,
    }
    return found | {"warnings": list(_warnings(found, mine, entry))}


def _common_input(mine: _File, theirs: _File, notes: list[str]) -> Input:
    """How pictures enter both, by the reference's own description, or else by the other's."""
    shapes = [one.tensor.shape for one in (mine, theirs)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][3] != 3:
        raise InputError(
            f"files that are compared read pictures of one size: {mine.path} reads {shapes[0]}, {theirs.path} reads"
            f" {shapes[1]}; give two files of one network"
        )
    told = [one.input for one in (theirs, mine) if one.input is not None]
    if told:
        return told[0]
    notes.append("neither file says how pictures enter: they are stretched, RGB, and 0 to 255 becomes 0 to 1")
    return Input("image", shapes[0][1], shapes[0][2], "stretch")


def _named(tensor: Tensor, entry: Input) -> Tensor:
    return dataclasses.replace(tensor, name=entry.name)


def _pairs(mine: _File, theirs: _File) -> dict[str, tuple[int, int]]:
    """Name -> the tensor's index in both files, of all that both write in the same shape, in the first one's order."""
    others = theirs.written()
    found = {
        name: (index, others[name])
        for name, index in mine.written().items()
        if name in others and _shape(mine, index) == _shape(theirs, others[name])
    }
    if not found.keys() & set(mine.names.values()):
        found |= _outputs_by_shape(mine, theirs)
    if not found:
        raise InputError(
            f"files are compared by the outputs that they share: {mine.path} and {theirs.path} have none of the same"
            " name or shape; give two files of one network"
        )
    return found


def _outputs_by_shape(mine: _File, theirs: _File) -> dict[str, tuple[int, int]]:
    """Outputs of other names, where in both files one shape is that of one output alone."""
    first, second = (_indices_by_shape(one) for one in (mine, theirs))
    return {
        mine.names[indices[0]]: (indices[0], second[shape][0])
        for shape, indices in first.items()
        if len(indices) == len(second.get(shape, ())) == 1
    }


def _indices_by_shape(file: _File) -> dict[tuple[int, ...], list[int]]:
    found: dict[tuple[int, ...], list[int]] = {}
    for index in file.names:
        found.setdefault(_shape(file, index), []).append(index)
    return found


def _shape(file: _File, index: int) -> tuple[int, ...]:
    return tuple(int(side) for side in file.details[index]["shape"])


def _span(details: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Least and greatest value that a quantized tensor can hold, and its step; None for float."""
    scale, zero_point = details["quantization"]
    if not scale:
        return None
    limits = np.iinfo(details["dtype"])
    return (limits.min - zero_point) * float(scale), (limits.max - zero_point) * float(scale), float(scale)


def _add(sums: _Sums, found: np.ndarray, expected: np.ndarray, span: tuple[float, float, float] | None) -> None:
    axes = tuple(range(expected.ndim - 1))
    sums.signal += float(np.mean(np.square(expected - expected.mean(axes, dtype=np.float64))))
    sums.noise += float(np.mean(np.square(found - expected, dtype=np.float64)))
    sums.low, sums.high = min(sums.low, float(expected.min())), max(sums.high, float(expected.max()))
    if span is not None:
        low, high, step = span
        sums.clipped += float(np.mean((expected < low - step / 2) | (expected > high + step / 2)))
    sums.saturated += float(np.mean(np.abs(found) > _SATURATED))
    sums.saturated_reference += float(np.mean(np.abs(expected) > _SATURATED))


def _layers(
    mine: _File, theirs: _File, pairs: Mapping[str, tuple[int, int]], sums: Mapping[str, _Sums], pictures: int
) -> list[dict[str, Any]]:
    name_of = {first: name for name, (first, _) in pairs.items()}
    made_by = {index: (op, inputs) for op, inputs, outputs in mine.operations for index in outputs if op != "DELEGATE"}
    decibels: dict[int, float] = {}
    found = []
    for index, name in name_of.items():
        one = sums[name]
        decibels[index] = _decibels(one.signal, one.noise)
        op, inputs = made_by.get(index, ("", []))
        before = [decibels[source] for source in _compared(inputs, decibels, made_by)]
        span = _span(mine.details[index])
        width = (span[1] - span[0]) if span else 0.0
        found.append(
            {
                "name": name,
                "op": op,
                "dtype": np.dtype(mine.details[index]["dtype"]).name,
                "against": np.dtype(theirs.details[pairs[name][1]]["dtype"]).name,
                "shape": list(_shape(mine, index)),
                "decibels": round(decibels[index], 2),
                "lost": round(max(0.0, min(before) - decibels[index]), 2) if before else None,
                "range": [one.low, one.high],
                "holds": [span[0], span[1]] if span else None,
                "step": span[2] if span else None,
                "clipped": one.clipped / pictures if span else None,
                "used": min(1.0, (one.high - one.low) / width) if width else None,
                "saturated": [one.saturated / pictures, one.saturated_reference / pictures],
            }
        )
    return found


def _compared(
    inputs: Iterable[int], known: Mapping[int, float], made_by: Mapping[int, tuple[str, list[int]]]
) -> list[int]:
    """The nearest tensors before a layer whose difference is known: a changed scale has no name in the other file."""
    found = []
    for index in inputs:
        if index in known:
            found.append(index)
        elif index in made_by:
            found += _compared(made_by[index][1], known, made_by)
    return found


def _decibels(signal: float, noise: float) -> float:
    if noise <= 0:
        return _MOST_DECIBELS
    return float(np.clip(10 * math.log10(max(signal, 1e-30) / noise), -_MOST_DECIBELS, _MOST_DECIBELS))


def _warnings(found: Mapping[str, Any], mine: _File, entry: Input) -> Iterable[str]:
    """What is plainly wrong with the file, in words."""
    tensor = mine.tensor
    if tensor.scale:
        ends = [(value - mean) / std for mean, std in zip(entry.mean, entry.std) for value in (0.0, 255.0)]
        distinct = int(round((max(ends) - min(ends)) / tensor.scale)) + 1
        if distinct < _LEAST_INPUT_VALUES:
            yield (
                f"of a pixel's 256 values {distinct} are left at the input {tensor.name!r}: its scale {tensor.scale:g}"
                f" is made for another range than {min(ends):g} to {max(ends):g}; quantize anew with the right pixels"
            )
    outputs = [layer for layer in found["layers"] if layer["name"] in found["outputs"]] or found["layers"]
    for layer in outputs:
        ours, theirs = layer["saturated"]
        if ours > theirs + _OFTENER:
            yield (
                f"the output {layer['name']!r} is saturated: {ours:.0%} of its values are beyond ±{_SATURATED:g}, where"
                f" a sigmoid is 0 or 1, and {theirs:.0%} of the other's"
            )
        if layer["decibels"] < 0:
            yield f"the output {layer['name']!r} says nothing: its noise is louder than the signal"
    for layer in found["layers"]:
        if layer["clipped"] and layer["clipped"] > 0.01:
            low, high = layer["holds"]
            yield (
                f"{layer['name']!r} cuts off {layer['clipped']:.1%} of its values: it holds {low:.3g} to {high:.3g},"
                f" and they reach from {layer['range'][0]:.3g} to {layer['range'][1]:.3g}"
            )


def worst(layers: Sequence[Mapping[str, Any]], count: int = _WORST) -> list[Mapping[str, Any]]:
    """The layers that add most themselves, the worst first."""
    return sorted((one for one in layers if one["lost"]), key=lambda one: -one["lost"])[:count]


def as_text(found: Mapping[str, Any]) -> str:
    """The same for a terminal."""
    from toolchain.inspection import aligned

    rows = [("layer", "op", "type", "dB", "lost", "range", "holds", "clipped", "used")]
    for layer in found["layers"]:
        rows.append(
            (
                layer["name"].partition(";")[0],
                layer["op"],
                layer["dtype"],
                f"{layer['decibels']:.1f}",
                "" if layer["lost"] is None else f"{layer['lost']:.1f}",
                _ends(layer["range"]),
                _ends(layer["holds"]) if layer["holds"] else "float",
                "" if layer["clipped"] is None else f"{layer['clipped']:.2%}",
                "" if layer["used"] is None else f"{layer['used']:.0%}",
            )
        )
    lines = [*aligned(rows, (3, 4, 7, 8)), ""]
    floats = [layer["name"].partition(";")[0] for layer in found["layers"] if layer["dtype"] == "float32"]
    integers = len(found["layers"]) - len(floats)
    lines.append(
        f"{found['file']} against {found['against']} on {found['pictures']} pictures: {len(found['layers'])} layers"
        f" compared, {integers} of integers, {len(floats)} float"
    )
    if integers and floats:
        lines.append(f"stays float: {', '.join(floats[:_WORST])}{', …' if len(floats) > _WORST else ''}")
    if listed := worst(found["layers"], 3):
        told = ", ".join(f"{one['name'].partition(';')[0]} ({one['lost']:.1f} dB)" for one in listed)
        lines.append(f"most is lost at {told}")
    lines += [f"not read: {text}" for text in found["skipped"]]
    return "\n".join([*lines, *found["notes"], *(f"warning: {text}" for text in found["warnings"])])


def _ends(values: Sequence[float]) -> str:
    return f"{values[0]:.3g} to {values[1]:.3g}"


def plot(found: Mapping[str, Any]) -> bytes:
    """A PNG: the signal to noise of every layer in order, and the layers that add most."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, listed = found["layers"], worst(found["layers"])
    figure = Figure(figsize=(11, 5.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    course, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    course.plot([layer["decibels"] for layer in layers], color="#2b6cb0", linewidth=1.2, marker=".", markersize=4)
    places = {layer["name"]: place for place, layer in enumerate(layers)}
    marked = [places[one["name"]] for one in listed]
    course.plot(marked, [layers[place]["decibels"] for place in marked], "o", color="#c53030", markersize=5)
    course.set(xlabel="layer, in the order of the file", ylabel="signal to noise, dB", title="what is left of each")
    course.grid(alpha=0.3)
    names = [one["name"].partition(";")[0][-38:] for one in listed]
    bars.barh(range(len(listed)), [one["lost"] for one in listed], color="#c53030")
    bars.set_yticks(range(len(listed)), names, fontsize=7)
    bars.invert_yaxis()
    bars.set(xlabel="dB lost at the layer itself", title="the layers that add most")
    target = io.BytesIO()
    # Without the version that matplotlib writes otherwise, so that equal figures are equal files.
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()
