"""Times layers as they are against what would stand in their place, on the interpreter that they are built for.

Fewer operations are not always less time: a decomposed convolution is three kernels, two of them with tensors of their
own to write and to read. So both ways become a .tflite each, by the way of every conversion (lower.py, convert.py,
quantize.py), and are timed in alternation by benchmarks.alternate, alone, on random inputs.

Weights are the real ones, since denormal numbers can change the time of a kernel. Alone, a layer finds its weights and
its input in the cache more often than in a whole network, before and after alike.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from benchmarks.alternate import alternate
from deploy.errors import GraphError, InputError, SlimdetError
from toolchain import child_process
from toolchain.graph import Graph, plain
from toolchain.graph_file import load, save

#: Of one pair: least number of rounds, least seconds of them, where they end, and seconds of rounds before that are not
#: counted. A layer of some 10 microseconds to some 100 milliseconds gets a steady median of it.
ROUNDS, LEAST_SECONDS, MOST_SECONDS, WARMUP_SECONDS = 10, 0.15, 2.0, 0.05

#: Of every activation in int8. A scale changes what integer kernels compute, but not how long they take.
ASSUMED_RANGE = (-1.0, 1.0)

#: What changes nothing that is computed.
_TIMELESS = frozenset(("name", "trainable"))


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A layer as it is, and what would stand in its place, each as a network of its own: one InputLayer with the shape
    that the layer reads, and its output. Neither needs an input or a head."""

    #: The layer in question.
    name: str
    before: Graph
    after: Graph


def time_candidates(
    candidates: Sequence[Candidate],
    *,
    precision: Literal["float32", "int8"],
    threads: int = 1,
    progress: Callable[[float, float], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Milliseconds of one inference by XNNPACK, before and after, by the candidates' names: medians of one alternating
    measurement for each pair. Pairs of the same structure (operations, attributes, shapes) are timed once.

    One process of its own converts and times them all: TensorFlow starts once, and a converter or an interpreter that
    dies becomes an error. progress is told how many pairs are done, and of how many.

    Raises InputError for another precision, GraphError for a candidate that is no such network or comes twice,
    ConversionError where one cannot be converted or the process dies, BackendError where XNNPACK cannot run one.
    """
    if precision not in ("float32", "int8"):
        raise InputError(f"layers are timed in float32 or int8, not in {precision!r}; choose one of them")
    for index, candidate in enumerate(candidates):
        if candidate.name in {earlier.name for earlier in candidates[:index]}:
            raise GraphError(f"a layer is timed once: {candidate.name!r} comes twice; give each its own name")
    places: dict[tuple[str, str], int] = {}
    keys = [(structure(candidate.before), structure(candidate.after)) for candidate in candidates]
    pairs: list[Candidate] = []
    for key, candidate in zip(keys, candidates):
        if key not in places:
            places[key] = len(pairs)
            pairs.append(candidate)
    if not pairs:
        return {}
    times = _time_pairs(pairs, precision, threads, progress)
    return {candidate.name: times[places[key]] for key, candidate in zip(keys, candidates)}


def structure(graph: Graph) -> str:
    """What the time of a graph depends on, as text: the same for graphs that differ in names and weights alone."""
    places = {node.name: index for index, node in enumerate(graph.nodes)}
    nodes = [
        {
            "op": node.op,
            "attributes": {name: plain(value) for name, value in node.attributes.items() if name not in _TIMELESS},
            "weights": {name: array.shape for name, array in node.weights.items()},
            "inputs": [places[source] for source in node.inputs],
            "shared_with": places.get(node.shared_with),
        }
        for node in graph.nodes
    ]
    return json.dumps([nodes, [places[name] for name in graph.outputs]], sort_keys=True)


def _time_pairs(
    pairs: Sequence[Candidate], precision: str, threads: int, progress: Callable[[float, float], None] | None
) -> list[tuple[float, float]]:
    """Milliseconds before and after of each pair, in their order."""
    # Of the build side, which the types above do not need: a device that lists layers has none of it.
    from toolchain.lower import lower_layers

    with child_process.folder() as place:
        for index, pair in enumerate(pairs):
            for side, graph in (("before", pair.before), ("after", pair.after)):
                _check_input(graph, pair.name)
                save(lower_layers(graph, precision).graph, place / f"{side}_{index}")
        told = place / "told.jsonl"
        with child_process.followed(told, None if progress is None else lambda done: progress(done, len(pairs))):
            times = child_process.run(
                "toolchain.layer_timing:time_pairs",
                {
                    "folder": str(place),
                    "names": [pair.name for pair in pairs],
                    "told": str(told),
                    "precision": precision,
                    "threads": threads,
                },
                place,
                step=f"timing of {len(pairs)} layers in {precision}",
            )
    return [(before, after) for before, after in times]


def _check_input(graph: Graph, name: str) -> None:
    sizes = [node.attributes["shape"] for node in graph.nodes if node.op == "InputLayer"]
    if len(sizes) != 1 or not all(sizes[0]) or not graph.outputs:
        raise GraphError(
            f"a layer is timed with one input of known size and an output: that of {name!r} has inputs of {sizes} and "
            f"{len(graph.outputs)} outputs; cut it out with its InputLayer"
        )


def time_pairs(folder: str, names: Sequence[str], told: str, precision: str, threads: int) -> list[list[float]]:
    """Runs in the child: milliseconds before and after of each pair of graphs in the folder; tells how many are
    done."""
    times = []
    with open(told, "a", encoding="utf-8") as lines:
        for index, name in enumerate(names):
            try:
                models = {side: _tflite(Path(folder, f"{side}_{index}"), precision) for side in ("before", "after")}
                measured = alternate(
                    models,
                    threads=threads,
                    runs=ROUNDS,
                    min_secs=LEAST_SECONDS,
                    max_secs=MOST_SECONDS,
                    warmup_secs=WARMUP_SECONDS,
                )
            except SlimdetError as error:
                raise type(error)(f"layer {name!r} cannot be timed: {error}") from error
            times.append([statistics.median(measured[side]) / 1e6 for side in ("before", "after")])
            lines.write(f"{index + 1}\n")
            lines.flush()
    return times


def _tflite(path: Path, precision: str) -> bytes:
    from toolchain.convert import float_tflite
    from toolchain.quantize import quantized, same_ranges

    graph = load(path)
    path.unlink()  # all the layers of a network take as much room as the network
    (entry,) = (node for node in graph.nodes if node.op == "InputLayer")
    names = {output: f"output_{index}" for index, output in enumerate(graph.outputs)}
    content = float_tflite(graph, names, (1, *entry.attributes["shape"]))
    if precision == "float32":
        return content
    return quantized(content, precision, same_ranges(content, *ASSUMED_RANGE))
