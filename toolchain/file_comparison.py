"""Two .tflite files on the same pictures, layer by layer: where one of them, quantized or by another maker, goes wrong.

Layers are matched by the name of the tensor that they write: files that come from one float file, in whatever
precision, share it; of others the outputs alone are compared. For every layer

    signal to noise   10 log10 of the reference's variance within its channels over the mean squared difference
    added             noise as a share of the signal, less that at the layer's worst input: what the layer itself adds
    clipped           share of the reference's values more than half a step beyond what the layer's integers hold
    used              share of the integers' range that the reference's values span

Layers are ranked by what they add: noises of layers add up in their energies and are passed on at about their share of
the signal, while decibels count most where there was hardly any noise before, as behind an exact copy of the picture.

Where the file's channels were scaled (equalization.py; its lineage says so) the reference's inner channels are scaled
alike, by what fits them best on the first picture; ranges are those of the file then. Outputs are never scaled.

The files may come from strangers: they run in a process of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy import model_file
from deploy.contract import Input, Tensor
from deploy.errors import BackendError, ContractError, ConversionError, InputError
from deploy.picture import read_picture
from deploy.preprocess import Preprocessor
from toolchain import child_process
from toolchain.intermediates import Intermediates, channel_factors, short_name

#: Told how many pictures are done, and of how many.
Progress = Callable[[float, float], object]

#: Beyond it a logit's sigmoid is 0 or 1 to 5e-5: no score can be told from another.
_SATURATED = 10.0
#: A file whose outputs are so much oftener saturated than the reference's says nothing.
_OFTENER = 0.1
#: Fewer of the 256 values of a byte that reach the network are too few to see with.
_LEAST_INPUT_VALUES = 64
#: More of a layer's values cut off is worth a warning.
MUCH_CLIPPED = 0.01
#: Shown for a difference of nothing.
_MOST_DECIBELS = 150.0


def compare_files(
    path: Path,
    against: Path,
    pictures: Sequence[Path],
    progress: Progress | None = None,
    *,
    input: Input | None = None,
    scaled: bool = False,
) -> dict[str, Any]:
    """How the file at path differs from the reference `against`, as plain JSON.

    input: how pictures enter both, where it is known; otherwise the files say it, or it is guessed and noted.
    scaled: whether the file's inner channels were scaled, where it does not say so itself.

    Raises InputError for a file that is missing or damaged, inputs of different sizes, files that share no output, and
    pictures none of which can be read.
    """
    with child_process.folder() as place:
        arguments = {
            "path": str(path.absolute()),
            "against": str(against.absolute()),
            "pictures": [str(one) for one in pictures],
            "told": str(place / "told.jsonl"),
            "input": None if input is None else dataclasses.asdict(input),
            "scaled": scaled,
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


@dataclasses.dataclass(frozen=True, eq=False)
class _File:
    path: Path
    #: How pictures enter, where the file says so.
    input: Input | None
    #: Whether it says that its channels were scaled.
    scaled: bool
    inside: Intermediates

    @property
    def tensor(self) -> Tensor:
        return self.inside.inputs[0]

    def written(self) -> dict[str, int]:
        """Name -> index of each float or quantized tensor that an operation writes, in order."""
        found: dict[str, int] = {}
        for index in self.inside.written():
            found.setdefault(self.inside.output_names.get(index, self.inside.details[index]["name"]), index)
        return found


def _open(path: Path) -> _File:
    content, entry, scaled = _read(path)
    file = _File(path, entry, scaled, Intermediates(content))
    if len(file.inside.inputs) != 1:
        raise InputError(f"a detector has one input: {path} has {len(file.inside.inputs)}; give a detector's file")
    return file


def _read(path: Path) -> tuple[bytes, Input | None, bool]:
    """The file, how pictures enter it where it says so, and whether it says that its channels were scaled."""
    try:
        content, contract = model_file.read(path)
        return content, contract.input, bool(contract.lineage.get("scaled_convolutions"))
    except (ContractError, BackendError):
        return path.read_bytes(), None, False


def compare_in_child(
    path: str, against: str, pictures: Sequence[str], told: str, input: Mapping[str, Any] | None, scaled: bool
) -> dict[str, Any]:
    import json

    mine, theirs = _open(Path(path)), _open(Path(against))
    notes: list[str] = []
    # JSON has lists where the dataclass has tuples.
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in (input or {}).items()
    }
    entry = _common_input(mine, theirs, Input(**fields) if fields else None, notes)
    pairs = _pairs(mine, theirs)
    sums = {name: _Sums() for name in pairs}
    unscaled = set(mine.inside.output_names.values()) if scaled or mine.scaled else set(pairs)
    factors: dict[str, np.ndarray] = {}
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
                one.inside.run(preprocess(pixels)[0])
            for name, (first, second) in pairs.items():
                values, expected = mine.inside.values(first), theirs.inside.values(second)
                if name not in unscaled:
                    factor = factors.setdefault(name, channel_factors(values, expected))
                    expected = expected * factor
                _add(sums[name], values, expected, mine.inside.span(first), factors.get(name))
            used += 1
            lines.write(json.dumps({"done": used + len(skipped), "of": len(pictures)}) + "\n")
            lines.flush()
    if not used:
        raise InputError(f"files are compared on pictures: none of {len(pictures)} can be read; name others")
    finite = {name: pair for name, pair in pairs.items() if math.isfinite(sums[name].signal + sums[name].noise)}
    layers = _layers(mine.inside, theirs.inside, finite, sums, used)
    outputs = set(mine.inside.output_names.values())
    # What changes a scale or a type between layers is none.
    changes = ("QUANTIZE", "DEQUANTIZE")
    between = {index for op, _, written in mine.inside.operations if op in changes for index in written}
    found = {
        "kind": "comparison",
        "pictures": used,
        "skipped": skipped,
        "layers": layers,
        "outputs": [layer["name"] for layer in layers if layer["name"] in outputs],
        "not_compared": [
            name for name, index in mine.written().items() if name not in pairs and index not in between
        ],
        "notes": notes,
    }
    infinite = sorted(short_name(name) for name in pairs.keys() - finite)
    warnings = [f"{name!r} is not finite in one of the files: it is not compared" for name in infinite]
    return found | {"warnings": [*warnings, *_warnings(found, mine.tensor, entry)]}


def _common_input(mine: _File, theirs: _File, given: Input | None, notes: list[str]) -> Input:
    """How pictures enter both: as given, or by the reference's own description, or else by the other's."""
    shapes = [one.tensor.shape for one in (mine, theirs)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][3] != 3:
        raise InputError(
            f"files that are compared read pictures of one size: {mine.path} reads {shapes[0]}, {theirs.path} reads"
            f" {shapes[1]}; give two files of one network"
        )
    told = [one for one in (given, theirs.input, mine.input) if one is not None]
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
        if name in others and mine.inside.shape(index) == theirs.inside.shape(others[name])
    }
    if not found.keys() & set(mine.inside.output_names.values()):
        found |= _outputs_by_shape(mine.inside, theirs.inside)
    if not found:
        raise InputError(
            f"files are compared by the outputs that they share: {mine.path} and {theirs.path} have none of the same"
            " name or shape; give two files of one network"
        )
    return found


def _outputs_by_shape(mine: Intermediates, theirs: Intermediates) -> dict[str, tuple[int, int]]:
    """Outputs of other names, where in both files one shape is that of one output alone."""
    first, second = (_indices_by_shape(one) for one in (mine, theirs))
    return {
        mine.output_names[indices[0]]: (indices[0], second[shape][0])
        for shape, indices in first.items()
        if len(indices) == len(second.get(shape, ())) == 1
    }


def _indices_by_shape(file: Intermediates) -> dict[tuple[int, ...], list[int]]:
    found: dict[tuple[int, ...], list[int]] = {}
    for index in file.output_names:
        found.setdefault(file.shape(index), []).append(index)
    return found


def _add(
    sums: _Sums, found: np.ndarray, expected: np.ndarray, span: tuple[float, float, float] | None,
    factor: np.ndarray | None,
) -> None:  # fmt: skip
    """factor: (C,) by which expected's channels were scaled; signal and noise count as they are without."""
    axes = tuple(range(expected.ndim - 1))
    plain, got = (expected, found) if factor is None else (expected / factor, found / factor)
    # Mish in float overflows inside, and is finite again after it.
    with np.errstate(invalid="ignore", over="ignore"):
        sums.signal += float(np.mean(np.square(plain - plain.mean(axes, dtype=np.float64))))
        sums.noise += float(np.mean(np.square(got - plain, dtype=np.float64)))
    sums.low, sums.high = min(sums.low, float(expected.min())), max(sums.high, float(expected.max()))
    if span is not None:
        low, high, step = span
        sums.clipped += float(np.mean((expected < low - step / 2) | (expected > high + step / 2)))
    sums.saturated += float(np.mean(np.abs(found) > _SATURATED))
    sums.saturated_reference += float(np.mean(np.abs(expected) > _SATURATED))


def _layers(
    mine: Intermediates,
    theirs: Intermediates,
    pairs: Mapping[str, tuple[int, int]],
    sums: Mapping[str, _Sums],
    pictures: int,
) -> list[dict[str, Any]]:
    made_by = {index: (op, inputs) for op, inputs, outputs in mine.operations for index in outputs if op != "DELEGATE"}
    decibels: dict[int, float] = {}
    found = []
    for name, (index, other) in pairs.items():
        one = sums[name]
        decibels[index] = _decibels(one.signal, one.noise)
        op, inputs = made_by.get(index, ("", []))
        before = [decibels[source] for source in _compared(inputs, decibels, made_by)]
        span = mine.span(index)
        width = (span[1] - span[0]) if span else 0.0
        found.append(
            {
                "name": name,
                "op": op,
                "dtype": np.dtype(mine.details[index]["dtype"]).name,
                "against": np.dtype(theirs.details[other]["dtype"]).name,
                "shape": list(mine.shape(index)),
                "decibels": round(decibels[index], 2),
                "added": max(0.0, _noise(decibels[index]) - max(map(_noise, before), default=0.0)),
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
    inputs: Sequence[int], known: Mapping[int, float], made_by: Mapping[int, tuple[str, Sequence[int]]]
) -> list[int]:
    """The nearest tensors before a layer whose difference is known: a changed scale has no name in the other file."""
    found, seen, waiting = [], set(inputs), list(inputs)
    for index in waiting:
        if index in known:
            found.append(index)
        elif index in made_by:
            more = set(made_by[index][1]) - seen
            waiting += more
            seen |= more
    return found


def _noise(decibels: float) -> float:
    """Noise as a share of the signal."""
    return 0.0 if decibels >= _MOST_DECIBELS else float(10 ** (-decibels / 10))


def _decibels(signal: float, noise: float) -> float:
    if noise <= 0:
        return _MOST_DECIBELS
    return float(np.clip(10 * math.log10(max(signal, 1e-30) / noise), -_MOST_DECIBELS, _MOST_DECIBELS))


def _warnings(found: Mapping[str, Any], tensor: Tensor, entry: Input) -> Iterable[str]:
    """What is plainly wrong with the file, in words."""
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
        if layer["clipped"] and layer["clipped"] > MUCH_CLIPPED:
            low, high = layer["holds"]
            yield (
                f"{short_name(layer['name'])!r} cuts off {layer['clipped']:.1%} of its values: it holds {low:.3g} to"
                f" {high:.3g}, and they reach from {layer['range'][0]:.3g} to {layer['range'][1]:.3g}"
            )
