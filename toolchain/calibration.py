"""What the tensors of a float .tflite hold on pictures, and which range int8 lays over each of them.

| rule           | ends of a tensor's range                                                                       |
|----------------|------------------------------------------------------------------------------------------------|
| mean           | the means over the pictures of its least and its greatest value: one picture's outlier would   |
|                | coarsen the steps of all the others                                                             |
| minmax         | the least and the greatest value on any picture                                                 |
| moving_average | as mean, later pictures counting more: new = 0.9 old + 0.1 picture (Jacob et al. 2018,          |
|                | section 3.1, with a share that forgets in tens of pictures)                                     |
| percentile     | 0.005 % of the values lie beyond either end                                                     |
| mse            | the least mean squared error of rounding within, and cutting off beyond                         |

An output keeps its whole range by every rule: its rare great values are the detections. The input's range is not
measured but computed from what a pixel 0..255 becomes: pictures that never reach black or white keep the exact grid.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from deploy.contract import Input, Tensor
from deploy.errors import ConversionError, InputError
from deploy.picture import read_picture
from deploy.preprocess import Preprocessor

Rule = Literal["mean", "minmax", "moving_average", "percentile", "mse"]
RULES: tuple[Rule, ...] = get_args(Rule)

_MEMORY = 0.9
#: Share of the values beyond either end.
_BEYOND = 5e-5
_BINS = 2048
#: Of the bins, those that a range may end at.
_ENDS = 128
#: How the values are spread is settled on as many pictures.
_PICTURES_FOR_SPREAD = 32
_STEPS = 255


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Which pictures made an int8 file."""

    used: int = 0
    #: "name: reason" of each picture that could not be read.
    skipped: tuple[str, ...] = ()
    #: (name, SHA-256) of each picture that was used.
    pictures: tuple[tuple[str, str], ...] = ()
    #: One of RULES.
    rule: str = ""
    #: How many convolutions' channels were brought to one size.
    scaled_convolutions: int = 0
    #: What was done for int8's sake, in words.
    notes: tuple[str, ...] = ()


def lineage_of(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """What an int8 file itself tells of its calibration, whose fields as plain JSON are given."""
    return {
        "calibrated_on": calibration["used"],
        "ranges": calibration["rule"],
        "scaled_convolutions": calibration["scaled_convolutions"],
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """The least and greatest values of tensors on each of n pictures."""

    #: By tensor index, (n, C) float32 with C channels, or (n, 1) of a whole tensor.
    low: Mapping[int, np.ndarray]
    high: Mapping[int, np.ndarray]
    names: Mapping[int, str]
    calibration: Calibration

    def greatest(self, index: int) -> np.ndarray:
        """(C,) float64: the greatest absolute value of each channel of a tensor, ends averaged over the pictures."""
        return np.maximum(-self.low[index].mean(0), self.high[index].mean(0)).astype(np.float64)

    def highest(self, index: int) -> np.ndarray:
        """(C,): the greatest value of each channel of a tensor on any picture."""
        return np.asarray(self.high[index].max(0))

    def scaled(self, scales: Mapping[int, np.ndarray]) -> Observed:
        """As if every channel of some tensors were divided by its scale; a negative one exchanges its ends."""
        low, high = dict(self.low), dict(self.high)
        for index in scales.keys() & low.keys():
            ends = low[index] / scales[index], high[index] / scales[index]
            low[index], high[index] = np.minimum(*ends), np.maximum(*ends)
        return dataclasses.replace(self, low=low, high=high)


def observe(content: bytes, input: Input, pictures: Sequence[Path], by_channel: frozenset[int]) -> Observed:
    """Runs pictures, one in memory at a time, through the float .tflite.

    by_channel: tensors of which every channel's ends are wanted.

    Raises InputError where no picture can be read, ConversionError, naming the layer, where a value is not finite.
    """
    run = _Run(content, input)
    low: dict[int, list[np.ndarray]] = {index: [] for index in run.written}
    high: dict[int, list[np.ndarray]] = {index: [] for index in run.written}
    used, skipped = [], []
    for path in pictures:
        try:
            picture = read_picture(path)
        except InputError as error:
            skipped.append(f"{path.name}: {error}")
            continue
        for index, values in run(picture):
            flat = values.reshape(-1, values.shape[-1] if index in by_channel else 1)
            ends = flat.min(0), flat.max(0)
            if not np.isfinite(ends).all():
                raise ConversionError(
                    f"int8 ranges are finite: {run.written[index]!r} computes {_not_finite(values)} on {path.name}; "
                    "train or read the weights anew"
                )
            low[index].append(ends[0])
            high[index].append(ends[1])
        used.append((path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    if not used:
        first = f"; the first: {skipped[0]}" if skipped else ""
        raise InputError(f"int8 needs calibration pictures: none of {len(pictures)} can be read{first}")
    return Observed(
        {index: np.array(values) for index, values in low.items()},
        {index: np.array(values) for index, values in high.items()},
        run.written,
        Calibration(len(used), tuple(skipped), tuple(used)),
    )


def _not_finite(values: np.ndarray) -> str:
    return "NaN" if np.isnan(values).any() else "infinity"


def ranges(
    content: bytes, observed: Observed, input: Input, pictures: Sequence[Path], rule: Rule
) -> dict[str, dict[str, np.ndarray]]:
    """{"min": (1,), "max": (1,)} float32 by name, of the input and of every tensor that an operation writes.

    content: the float .tflite that observed tells of; it runs again on some of the pictures where the rule asks how
    values are spread.
    """
    run = _Run(content, input)
    asks = rule in ("percentile", "mse")
    wanted = [index for index in run.written if asks and index not in run.outputs]
    whole = {index: (float(observed.low[index].min()), float(observed.high[index].max())) for index in run.written}
    some = pictures[:: -(-len(pictures) // _PICTURES_FOR_SPREAD)]
    spread = _spread(run, {index: whole[index] for index in wanted}, some)
    found = {}
    for index, name in run.written.items():
        low, high = whole[index]
        if index in run.outputs or rule == "minmax":
            pass
        elif rule == "percentile":
            low, high = _percentile(spread[index], low, high)
        elif rule == "mse":
            low, high = _least_squares(spread[index], low, high)
        else:
            low, high = _averaged(observed.low[index].min(1), observed.high[index].max(1), rule)
        found[name] = _ends(low, high)
    pixels = [(value - mean) / std for mean, std in zip(input.mean, input.std) for value in (0.0, 255.0)]
    return found | {run.entry: _ends(min(pixels), max(pixels))}


def _ends(low: float, high: float) -> dict[str, np.ndarray]:
    return {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}


class _Run:
    """A float .tflite that shows what its operations write."""

    def __init__(self, content: bytes, input: Input) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=content, experimental_preserve_all_tensors=True, num_threads=2)
        self._interpreter.allocate_tensors()
        details = self._interpreter.get_input_details()[0]
        self._index, self.entry = details["index"], str(details["name"])
        shape = tuple(int(side) for side in details["shape"])
        self._preprocess = Preprocessor(input, Tensor(input.name, shape, "float32"))
        self.outputs = {int(one["index"]) for one in self._interpreter.get_output_details()}
        #: Name by index of every float tensor that an operation writes.
        self.written = written(content)

    def __call__(self, picture: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        self._interpreter.set_tensor(self._index, self._preprocess(picture)[0])
        self._interpreter.invoke()
        for index in self.written:
            yield index, self._interpreter.get_tensor(index)


def written(content: bytes) -> dict[int, str]:
    """Index and name of every tensor that an operation writes."""
    graph = _graph(content)
    return {
        int(index): graph.Tensors(int(index)).Name().decode()
        for place in range(graph.OperatorsLength())
        for index in graph.Operators(place).OutputsAsNumpy()
    }


def _graph(content: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.Model.GetRootAs(content, 0).Subgraphs(0)


def _spread(run: _Run, whole: Mapping[int, tuple[float, float]], pictures: Sequence[Path]) -> dict[int, np.ndarray]:
    """By tensor index, (_BINS,) how many values lie in each equal part between its two ends."""
    counts = {index: np.zeros(_BINS, np.int64) for index in whole}
    for path in pictures if whole else ():
        try:
            picture = read_picture(path)
        except InputError:
            continue  # observe has told of it
        for index, values in run(picture):
            if index in whole:
                low, high = whole[index]
                places = ((values.reshape(-1) - low) * (_BINS / max(high - low, 1e-30))).astype(np.int32)
                counts[index] += np.bincount(np.clip(places, 0, _BINS - 1), minlength=_BINS)
    return counts


def _averaged(low: np.ndarray, high: np.ndarray, rule: Rule) -> tuple[float, float]:
    if rule == "mean":
        return float(low.mean()), float(high.mean())
    count = len(low)
    shares = (1 - _MEMORY) * _MEMORY ** np.arange(count - 1, -1, -1.0)
    shares[0] = _MEMORY ** (count - 1)
    return float(shares @ low), float(shares @ high)


def _percentile(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    share = np.cumsum(counts) / max(counts.sum(), 1)
    first = int(np.searchsorted(share, _BEYOND, side="right"))
    last = int(np.searchsorted(share, 1 - _BEYOND))
    width = (high - low) / _BINS
    return low + first * width, low + (last + 1) * width


def _moments(counts: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Edges (_BINS + 1,) and, of the values below each edge, their number, sum, and sum of squares."""
    edges = np.linspace(low, high, _BINS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    sums = [np.concatenate([[0.0], np.cumsum(counts * power)]) for power in (np.ones(_BINS), middle, middle**2)]
    return edges, sums[0], sums[1], sums[2]


def _below(edges: np.ndarray, number: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of every edge e the sum of (e - x)² over the values x below it."""
    return edges**2 * number - 2 * edges * first + second


def _least_squares(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Both ends of the range that costs least: with step d and N values inside d²/12 N, and beyond an end e the sum of
    (e - x)²."""
    edges, number, first, second = _moments(counts, low, high)
    under = _below(edges, number, first, second)
    total = [one[-1] for one in (number, first, second)]
    over = _below(edges, *(whole - one for whole, one in zip(total, (number, first, second), strict=True)))
    places = np.unique(np.linspace(0, _BINS, _ENDS + 1).astype(int))
    lows, highs = places[edges[places] <= 0], places[edges[places] >= 0]
    lows = lows if len(lows) else places[:1]
    highs = highs if len(highs) else places[-1:]
    step = (np.maximum(edges[highs], 0)[None] - np.minimum(edges[lows], 0)[:, None]) / _STEPS
    error = step**2 / 12 * (number[highs][None] - number[lows][:, None]) + under[lows][:, None] + over[highs][None]
    first_place, last_place = np.unravel_index(np.argmin(error), error.shape)
    return float(edges[lows[first_place]]), float(edges[highs[last_place]])
