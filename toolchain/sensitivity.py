"""How much each layer minds being compressed: one layer at a time, at several ratios, without any training.

A case removes a share of one group's channels (pruning: L2 norm, uniform), or of one convolution's ranks (Tucker), and
nothing else. No network is rebuilt for it: a pruned network computes what the whole one does with the removed channels'
slices set to zero in all kernels that read them (channels.py), and a Tucker decomposition what the convolution does
with the kernel that the factors multiply to. So every case is the same Keras model with a few weights changed.

Told is, for each case, the relative error of the outputs, ‖y' - y‖ / ‖y - mean of y's channel‖ over all raw outputs and
pictures, each scale's outputs weighing as much as the others'; or the mAP on labelled pictures.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.contract import Tensor
from deploy.errors import GraphError, InputError
from toolchain import child_process, graph_file
from toolchain.channels import Channels, analyse
from toolchain.graph import Graph, Node
from toolchain.text_columns import aligned

#: Shares that are removed.
RATIOS = (0.25, 0.5, 0.75)
#: Pictures that are looked at together.
_BATCH = 4

Weights = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Truths:
    """Labelled pictures in VOC layout."""

    data: Path
    split: str
    protocol: str = "voc"


def measure_sensitivity(
    graph: Graph,
    pictures: Sequence[Path],
    truths: Truths | None = None,
    *,
    ratios: Sequence[float] = RATIOS,
    allow_lambda: bool = False,
    progress: Callable[[float, float], None] | None = None,
) -> dict[str, Any]:
    """Plain JSON: `metric` ("error" or "map"), `whole` (of the network as it is; 0.0 for the error), `ratios`,
    `pictures`, and `rows`, each with method ("prune" or "tucker"), layer, layers and one value for each ratio.

    pictures are looked at for the error; with truths it is theirs instead and the mAP.

    Raises GraphError for a network without input and head, or in which nothing can be compressed; InputError for
    ratios outside 0 to 1 and pictures that cannot be read; ConversionError when Keras cannot run the model.
    """
    if graph.input is None or graph.head is None:
        raise GraphError(f"a sensitivity is of a detector: {graph.name!r} has no head; a Keras model needs --head")
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise InputError(f"ratios of a sensitivity lie between 0 and 1: {list(ratios)} came; give some, such as 0.5")
    with child_process.folder() as place:
        graph_file.save(graph, place / "graph")
        arguments = {
            "graph_path": str(place / "graph"),
            "pictures": [str(path.absolute()) for path in pictures],
            "truths": None if truths is None else {**dataclasses.asdict(truths), "data": str(truths.data.absolute())},
            "ratios": list(ratios),
            "allow_lambda": allow_lambda,
            "told": str(place / "told"),
        }
        tell = None if progress is None else (lambda line: progress(*line))
        with child_process.followed(place / "told", tell):
            step = f"sensitivity of {graph.name!r}"
            found = child_process.run("toolchain.sensitivity:run_cases", arguments, place, step=step)
    return dict(found)


def run_cases(
    graph_path: str,
    pictures: Sequence[str],
    truths: Mapping[str, str] | None,
    ratios: Sequence[float],
    allow_lambda: bool,
    told: str,
) -> dict[str, Any]:
    """Runs in a child."""
    from toolchain.keras_writer import to_keras

    graph = graph_file.load(Path(graph_path))
    cases = list(_cases(graph, ratios))
    if not cases:
        raise GraphError(f"a sensitivity needs a layer that can be compressed: {graph.name!r} has none")
    model = to_keras(graph, allow_lambda=allow_lambda)
    if truths is None:
        measure, count = _output_error(graph, model, pictures)
    else:
        measure, count = _map(graph, model, truths)
    whole, rows = measure(), list[dict[str, Any]]()
    with open(told, "a", encoding="utf-8") as lines:
        for done, (method, layers, make) in enumerate(cases, 1):
            values = []
            for ratio in ratios:
                with_case = make(ratio)
                _set(model, graph, with_case)
                values.append(measure())
                _set(model, graph, {name: graph.by_name[name].weights for name in with_case})
            rows.append({"method": method, "layer": layers[0], "layers": list(layers), "values": values})
            lines.write(json.dumps([done, len(cases)]) + "\n")
            lines.flush()
    metric = "error" if truths is None else "map"
    return {"metric": metric, "whole": whole, "ratios": list(ratios), "pictures": count, "rows": rows}


def _set(model: Any, graph: Graph, weights: Weights) -> None:
    for name, changed in weights.items():
        model.get_layer(name).set_weights(list({**graph.by_name[name].weights, **changed}.values()))


def _cases(
    graph: Graph, ratios: Sequence[float]
) -> Iterator[tuple[str, tuple[str, ...], Callable[[float], Weights]]]:
    """Method, the layers that are compressed together, and ratio to the weights that change."""
    from toolchain.criteria import layer_scores
    from toolchain.pruning_cuts import choose
    from toolchain.tucker import candidates, low_rank_kernel

    everything = frozenset(node.name for node in graph.nodes)
    channels = analyse(graph, everything)
    makers = tuple(dict.fromkeys(layer for group in channels.free for layer in group.layers))
    scores = layer_scores(graph, makers, "l2", None) if makers else {}
    choices = {
        ratio: choose(channels, scores, ratio, "uniform", "average", scale_free=True) if makers else ()
        for ratio in ratios
    }
    for index, group in enumerate(channels.free):

        def without_channels(ratio: float, index: int = index) -> Weights:
            choice = choices[ratio][index]
            return silenced(graph, channels, choice.group.symbols[choice.gone])

        yield "prune", group.layers, without_channels
    for layer in candidates(graph, everything, False):
        kernel = graph.by_name[layer].weights["kernel"]

        def of_low_rank(ratio: float, layer: str = layer, kernel: np.ndarray = kernel) -> Weights:
            first, second = (max(1, round(channels * (1 - ratio))) for channels in kernel.shape[2:])
            return {layer: {"kernel": low_rank_kernel(kernel, (first, second), None)}}

        yield "tucker", (layer,), of_low_rank


def silenced(graph: Graph, channels: Channels, removed: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Kernels, by node and weight, with zeros where they read removed channels: the network with them computes what
    channels.remove's would."""
    found = {}
    for node in graph.nodes:
        name, axis = _KERNELS.get(node.op, ("", 0))
        if not name or name not in node.weights:
            continue
        gone = np.isin(channels.symbols[node.inputs[0]], removed)
        if gone.any():
            found[node.name] = {name: _zeroed(node, node.weights[name], axis, gone)}
    return found


#: The kernel of each op that mixes channels, and the axis along which it reads them.
_KERNELS = {"Conv2D": ("kernel", 2), "Dense": ("kernel", 0), "Conv2DTranspose": ("kernel", 3)}
_KERNELS |= {"SeparableConv2D": ("pointwise_kernel", 2)}


def _zeroed(node: Node, kernel: np.ndarray, axis: int, gone: np.ndarray) -> np.ndarray:
    if node.op == "SeparableConv2D":
        gone = np.repeat(gone, kernel.shape[axis] // len(gone))
    # Of a grouped convolution the same places go in every group.
    gone = gone[: kernel.shape[axis]]
    shape = [1] * kernel.ndim
    shape[axis] = len(gone)
    return np.where(gone.reshape(shape), np.float32(0), kernel)


def _function(model: Any) -> Callable[[np.ndarray], list[np.ndarray]]:
    import tensorflow as tf

    compiled = tf.function(lambda images: model(images, training=False), reduce_retracing=True)

    def outputs(images: np.ndarray) -> list[np.ndarray]:
        found = compiled(tf.constant(images))
        return [np.asarray(output) for output in (found if isinstance(found, list | tuple) else [found])]

    return outputs


def _output_error(graph: Graph, model: Any, pictures: Sequence[str]) -> tuple[Callable[[], float], int]:
    """A function that tells how far the model's outputs are now from what they were, and the number of pictures."""
    from deploy.picture import read_picture

    preprocess, tensors, reasons = _preprocessor(graph), [], []
    for name in pictures:
        try:
            tensors.append(preprocess(read_picture(Path(name)))[0].copy())
        except InputError as unreadable:
            reasons.append(str(unreadable))
    if not tensors:
        reason = f"none of the {len(reasons)} given can be read; first {reasons[0]}" if reasons else "none were given"
        raise InputError(f"a sensitivity is measured on pictures: {reason}")
    images = np.concatenate(tensors)
    run = _function(model)

    def outputs() -> list[np.ndarray]:
        parts = [run(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    whole = outputs()
    signals = [
        float(np.sum((array - array.mean(axis=tuple(range(array.ndim - 1)))) ** 2, dtype=np.float64)) for array in whole
    ]

    def error() -> float:
        squares = [
            float(np.sum((found - expected) ** 2, dtype=np.float64)) / max(signal, 1e-30)
            for found, expected, signal in zip(outputs(), whole, signals, strict=True)
        ]
        return float(np.sqrt(np.mean(squares)))

    return error, len(images)


def _map(graph: Graph, model: Any, truths: Mapping[str, str]) -> tuple[Callable[[], float], int]:
    """A function that tells the model's mAP now, and the number of pictures."""
    from benchmarks.accuracy import PROTOCOLS, mean_average_precision
    from benchmarks.dataset import read_dataset
    from deploy.detections import Detections
    from toolchain.raw_detections import contract_of, detections

    protocol = next((one for one in PROTOCOLS if one == truths["protocol"]), None)
    if protocol is None:
        raise InputError(f"a protocol is one of {', '.join(PROTOCOLS)}, not {truths['protocol']!r}")
    data, run, preprocess, contract = Path(truths["data"]), _function(model), _preprocessor(graph), contract_of(graph)

    def detect(bgr: np.ndarray) -> Detections:
        tensor, placement = preprocess(bgr)
        return detections(graph, contract, run(tensor), placement)

    def measure() -> float:
        return mean_average_precision(graph.labels, detect, data, truths["split"], protocol)

    return measure, len(read_dataset(data, truths["split"]).pictures)


def _preprocessor(graph: Graph) -> Any:
    from deploy.preprocess import Preprocessor

    assert graph.input is not None
    size = (1, graph.input.height, graph.input.width, 3)
    return Preprocessor(graph.input, Tensor(graph.input.name, size, "float32"))


def as_text(found: Mapping[str, Any]) -> str:
    """The table for a terminal."""
    is_map = found["metric"] == "map"
    what = "mAP in percent" if is_map else "relative error of the outputs"
    whole = f"; {100 * found['whole']:.2f} as it is" if is_map else ""
    lines = [f"{what} on {found['pictures']} pictures, one layer at a time, nothing trained{whole}"]
    header = ("layer", "method", *(f"-{100 * ratio:g} %" for ratio in found["ratios"]))
    rows = [
        (row["layer"], row["method"], *(_value(value, is_map) for value in row["values"])) for row in found["rows"]
    ]
    return "\n".join([*lines, *aligned([header, *rows], right=range(2, len(header)))])


def _value(value: float, is_map: bool) -> str:
    return f"{100 * value:.2f}" if is_map else f"{value:.4f}"


def plot(found: Mapping[str, Any]) -> bytes:
    """A PNG: for each method a map of layers and ratios, dark where it costs most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    is_map = found["metric"] == "map"
    panels = {
        method: rows
        for method in ("prune", "tucker")
        if (rows := [row for row in found["rows"] if row["method"] == method])
    }
    longest = max(len(rows) for rows in panels.values())
    names = max(len(row["layer"]) for row in found["rows"])
    width = len(panels) * (2.2 + 0.085 * names + 0.75 * len(found["ratios"]))
    figure = Figure(figsize=(width, 1.6 + 0.26 * longest), dpi=120, layout="constrained")
    costs = [value for row in found["rows"] for value in row["values"]]
    low, high = (min(costs), max(found["whole"], *costs)) if is_map else (0.0, max(costs))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (method, rows) in zip(axes, panels.items(), strict=True):
        values = np.array([row["values"] for row in rows])
        image = axis.imshow(
            values, aspect="auto", cmap="viridis" if is_map else "viridis_r", vmin=low, vmax=max(high, low + 1e-9)
        )
        axis.set_title({"prune": "channels pruned", "tucker": "Tucker ranks removed"}[method], fontsize=11)
        axis.set_xticks(range(len(found["ratios"])), [f"{100 * ratio:g} %" for ratio in found["ratios"]])
        axis.set_yticks(range(len(rows)), [row["layer"] for row in rows], fontsize=8)
        for place, value in np.ndenumerate(values):
            bright = (value - low) / max(high - low, 1e-9) > 0.5
            axis.text(
                place[1], place[0], _value(value, is_map), ha="center", va="center", fontsize=7,
                color="black" if bright == is_map else "white",
            )  # fmt: skip
    label = "mAP, 0 to 1" if is_map else "relative error of the outputs"
    figure.colorbar(image, ax=list(axes), label=label, shrink=min(1.0, 6 / figure.get_figheight()))
    figure.suptitle(f"One layer at a time, {found['pictures']} pictures, nothing trained", fontsize=11)
    buffer = io.BytesIO()
    # Without the date and version that matplotlib writes otherwise, so that equal figures are equal files.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
