"""Runs a network on pictures, in a child process: what activations.py asks for.

A child gets a folder with the graph ("graph"), leaves its arrays there, and tells, a line in "told.jsonl" each time,
how many pictures are done and of how many.

Pictures pass in batches whose activations fit into ACTIVATION_BYTES. What one picture takes is counted in graph order:
an activation stands in memory until its last reader has run.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.contract import Input, Tensor
from deploy.errors import GraphError, InputError
from deploy.picture import read_picture
from deploy.preprocess import Preprocessor, pixel_table
from toolchain.graph import Graph, owner, reachable
from toolchain.graph_file import load
from toolchain.patches import Windows, gather, windows
from toolchain.shapes import shapes

#: Most memory that a batch's activations may take, in bytes, and most that its gathered patches may.
ACTIVATION_BYTES = 2 << 30
_PATCH_BYTES = 256 << 20
#: Most that the second moments of the layers of one round may take, in bytes: what does not fit waits for another.
MOMENT_BYTES = 2 << 30
#: Kernels take memory of their own beside input and output, and TensorFlow runs two at once.
_WORKSPACE = 3
#: Least patches of a layer: for each of a patch's values, and in all. Eight rows a column leave the eigenvalues of a
#: second moment within a factor (1 ± sqrt(1/8))², 0.42 to 1.83 (Marchenko and Pastur, 1967).
_ROWS_PER_VALUE, _LEAST_ROWS = 8, 4096


def run_patch_moments(
    folder: str, pictures: Sequence[str], layers: Sequence[str], seed: int, allow_lambda: bool
) -> list[int]:
    """Writes mean_INDEX.npy (d,) float64 and second_INDEX.npy (d, d) float32 of each layer; returns the number of
    patches of each."""
    place = Path(folder)
    graph = load(place / "graph")
    pixels = read_pictures(graph, pictures, place)
    sizes = shapes(graph)
    views = []
    for name in layers:
        node = graph.by_name[name]
        views.append(windows(node, owner(graph, node).weights, sizes[node.inputs[0]]))
    counts = [_sample_size(view, len(pixels)) for view in views]
    rounds = list(_rounds([4 * view.length**2 for view in views]))
    for number, chosen in enumerate(rounds):
        sources = {index: graph.by_name[layers[index]].inputs[0] for index in chosen}
        network = part(graph, sources.values())
        forward = compiled(network, allow_lambda, lambda values: values)
        most = _PATCH_BYTES // max(4 * counts[index] * views[index].length for index in chosen)
        batch = min(batch_size(network, kept=network.outputs), max(1, most))
        means = {index: np.zeros(views[index].length) for index in chosen}
        seconds = {index: np.zeros((views[index].length,) * 2, np.float32) for index in chosen}
        for first, images in told_batches(graph, pixels, batch, place, number, len(rounds)):
            inputs = dict(zip(network.outputs, (np.asarray(value) for value in forward(images)), strict=True))
            for index in chosen:
                patches = _sampled(inputs[sources[index]], views[index], counts[index], seed, first)
                means[index] += patches.sum(0, dtype=np.float64)
                # The product of a matrix with itself transposed costs half of another. A sum of some ten batches in
                # float32 is off by as many epsilons at most, far below what sampling leaves open.
                seconds[index] += patches.T @ patches
        for index in chosen:
            rows = counts[index] * len(pixels)
            check_finite(means[index] + seconds[index].diagonal(), f"input of {layers[index]!r}")
            np.save(place / f"mean_{index}.npy", means[index] / rows)
            np.save(place / f"second_{index}.npy", seconds.pop(index) / np.float32(rows))
    return [count * len(pixels) for count in counts]


def _sample_size(view: Windows, pictures: int) -> int:
    """Positions of each picture."""
    wanted = max(_ROWS_PER_VALUE * view.length, _LEAST_ROWS)
    return min(view.positions[0] * view.positions[1], -(-wanted // pictures))


def _sampled(inputs: np.ndarray, view: Windows, count: int, seed: int, first: int) -> np.ndarray:
    """Patches (n * count, d) of inputs (n, h, w, c), at random positions that follow from the seed and each picture's
    number, first for the first: not from the batches, nor from what other layers are asked for."""
    everywhere = view.positions[0] * view.positions[1]
    patches = np.empty((len(inputs) * count, view.length), np.float32)
    for place, one in enumerate(inputs):
        random = np.random.default_rng((seed, first + place))
        # Sorted, memory is walked through in its order.
        positions = np.sort(random.choice(everywhere, count, replace=False, shuffle=False))
        patches[place * count : (place + 1) * count] = gather(one, view, positions)
    return patches


def _rounds(sizes: Sequence[int]) -> Iterator[list[int]]:
    """The indices of sizes in order, in lists whose sum is at most MOMENT_BYTES, or of one."""
    current: list[int] = []
    for index, size in enumerate(sizes):
        if current and sum(sizes[other] for other in current) + size > MOMENT_BYTES:
            yield current
            current = []
        current.append(index)
    yield current


def run_channel_means(folder: str, pictures: Sequence[str], nodes: Sequence[str], allow_lambda: bool) -> None:
    """Writes by_node.npz: for each node's index the mean of its channels, float64 (C,)."""
    place = Path(folder)
    graph = load(place / "graph")
    pixels = read_pictures(graph, pictures, place)
    network = part(graph, nodes)

    def means(values: list[Any]) -> list[Any]:
        import tensorflow as tf

        return [tf.reduce_mean(value, list(range(1, len(value.shape) - 1))) for value in values]

    forward = compiled(network, allow_lambda, means)
    sums: dict[str, Any] = dict.fromkeys(nodes, 0.0)
    for _, images in told_batches(graph, pixels, batch_size(network), place):
        for name, found in zip(network.outputs, forward(images), strict=True):
            sums[name] = sums[name] + np.asarray(found, np.float64).sum(0)
    write_by_node(place, {name: total / len(pixels) for name, total in sums.items()})


def part(graph: Graph, nodes: Collection[str]) -> Graph:
    """The part of the graph that makes the nodes, which become its outputs, each once."""
    return reachable(dataclasses.replace(graph, outputs=tuple(dict.fromkeys(nodes)), head=None))


def read_pictures(graph: Graph, names: Sequence[str], place: Path) -> np.ndarray:
    """The pictures that can be read, resized, in the network's colours: uint8 (n, height, width, 3), kept in a file.

    Raises InputError when there are none.
    """
    assert graph.input is not None
    # Mean 0 and standard deviation 1 keep the pixels whole.
    plain = dataclasses.replace(graph.input, mean=(0.0,) * 3, std=(1.0,) * 3)
    size = (graph.input.height, graph.input.width, 3)
    preprocess = Preprocessor(plain, Tensor(plain.name, (1, *size), "uint8", scale=1.0))
    if not names:
        raise InputError("statistics of a network are taken on pictures: none were given; name a folder with some")
    pixels = np.lib.format.open_memmap(place / "pixels.npy", "w+", np.uint8, (len(names), *size))
    count, first_reason = 0, ""
    for name in names:
        try:
            pixels[count] = preprocess(read_picture(Path(name)))[0][0]
            count += 1
        except InputError as error:
            first_reason = first_reason or str(error)
    if not count:
        raise InputError(
            f"statistics of a network are taken on pictures: none of the {len(names)} given can be read; first"
            f" {first_reason}"
        )
    return pixels[:count]


def values_of(pixels: np.ndarray, input: Input) -> np.ndarray:
    """What the input tensor holds of pixels, uint8 (n, h, w, 3): float32 of the same shape."""
    table = pixel_table(input, Tensor(input.name, (1, *pixels.shape[1:]), "float32"))
    return table[pixels, np.arange(3)]


def batch_size(network: Graph, kept: Collection[str] = ()) -> int:
    """How many pictures at once; kept names the nodes whose values stand in memory until the end."""
    entry = next(node for node in network.nodes if node.op == "InputLayer")
    if entry.attributes.get("batch_size"):
        return int(entry.attributes["batch_size"])
    return max(1, ACTIVATION_BYTES // (_WORKSPACE * peak_bytes(network, kept)))


def peak_bytes(network: Graph, kept: Collection[str] = ()) -> int:
    """The most bytes of float32 activations that stand in memory at once while one picture passes in graph order."""
    sizes = {name: 4 * math.prod(shape) for name, shape in shapes(network).items()}
    last = {source: index for index, node in enumerate(network.nodes) for source in node.inputs}
    standing = peak = 0
    for index, node in enumerate(network.nodes):
        standing += sizes[node.name]
        peak = max(peak, standing)
        ended = {name for name in (node.name, *node.inputs) if last.get(name, index) == index}
        standing -= sum(sizes[name] for name in ended.difference(kept))
    return peak


def told_batches(
    graph: Graph, pixels: np.ndarray, batch: int, place: Path, number: int = 0, rounds: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """Batches of nearly equal size, at most `batch`: the number of the first picture, and the input tensor's values.
    After each is told how far this is, as the round `number` of `rounds`."""
    assert graph.input is not None
    with open(place / "told.jsonl", "a", encoding="utf-8") as lines:
        for part in np.array_split(np.arange(len(pixels)), -(-len(pixels) // batch)):
            yield int(part[0]), values_of(pixels[part[0] : part[-1] + 1], graph.input)
            lines.write(json.dumps([number * len(pixels) + int(part[-1]) + 1, rounds * len(pixels)]) + "\n")
            lines.flush()


def start_keras(network: Graph, allow_lambda: bool) -> Any:
    """The Keras model of a graph, in a process whose results are the same each time."""
    import tensorflow as tf

    from toolchain.keras_writer import to_keras

    tf.config.experimental.enable_op_determinism()
    return to_keras(network, allow_lambda=allow_lambda)


def compiled(
    network: Graph, allow_lambda: bool, then: Callable[[list[Any]], list[Any]], training: bool | None = False
) -> Callable[[np.ndarray], list[Any]]:
    """A function from a batch of inputs to `then` of the network's outputs. It is traced once, for every size of batch;
    unlike an eager run, it frees an activation after its last reader."""
    import keras
    import tensorflow as tf

    model = start_keras(network, allow_lambda)

    @tf.function(input_signature=[tf.TensorSpec(model.inputs[0].shape, tf.float32)], jit_compile=False)
    def forward(images: Any) -> list[Any]:
        return then(keras.tree.flatten(model(images, training=training)))

    return forward


def check_finite(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        raise GraphError(f"what a network computes is finite: the {what} is not on these pictures; mend its weights")


def write_by_node(place: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes by_node.npz, one array for each node under its index."""
    for name, array in arrays.items():
        check_finite(array, f"output of {name!r}")
    indexed = {str(index): array for index, array in enumerate(arrays.values())}
    np.savez(place / "by_node.npz", **indexed)  # type: ignore[arg-type]
