"""The statistics of every batch norm's input on pictures, in the child process: activations.reestimate_batch_norms.

The network runs with its batch norms as in training, each normalizing by the batch that it sees, and everything else as
in use. Of the parts of a population, the batches, with sizes n_i, means m_i and variances v_i,
    m = Σ n_i m_i / n,  v = Σ n_i (v_i + (m_i - m)²) / n
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import InputError
from toolchain.activation_runs import batch_size, check_finite, compiled, part, read_pictures, told_batches
from toolchain.graph import Graph, Node, owner
from toolchain.graph_file import load
from toolchain.shape_rules import channel_axis
from toolchain.shapes import shapes


def run_batch_norms(folder: str, pictures: Sequence[str], allow_lambda: bool) -> list[str]:
    """Writes statistics.npz, mean_INDEX and variance_INDEX float32 (C,); returns the names of the batch norms that they
    belong to: those that own weights."""
    place = Path(folder)
    graph = load(place / "graph")
    norms = [node for node in graph.nodes if node.op == "BatchNormalization"]
    pixels = read_pictures(graph, pictures, place)
    sizes = shapes(graph)
    axes = [_reduced_axes(node, len(sizes[node.name])) for node in norms]
    positions = [math.prod(sizes[node.name][axis - 1] for axis in reduced[1:]) for node, reduced in zip(norms, axes)]
    for node, each in zip(norms, positions, strict=True):
        if len(pixels) * each < 2:
            raise InputError(f"a variance needs two values: {node.name!r} sees one a channel; give more pictures")
    network = part(_normalizing_by_batch(graph), [node.inputs[0] for node in norms])

    def moments(values: list[Any]) -> list[Any]:
        import tensorflow as tf

        by_name = dict(zip(network.outputs, values, strict=True))
        return [tf.nn.moments(by_name[node.inputs[0]], reduced) for node, reduced in zip(norms, axes, strict=True)]

    forward = compiled(network, allow_lambda, moments, training=None)
    # A batch of one picture would have no variance where a layer has one position: in nearly equal batches of three at
    # most there are always two.
    batch = max(3, batch_size(network))
    found: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}
    for _, images in told_batches(graph, pixels, batch, place):
        for node, each, (mean, variance) in zip(norms, positions, forward(images), strict=True):
            entry = (len(images) * each, np.asarray(mean, np.float64), np.asarray(variance, np.float64))
            # The calls of a layer that is called twice see one population together.
            found.setdefault(owner(graph, node).name, []).append(entry)
    arrays: dict[str, np.ndarray] = {}
    for index, (name, parts) in enumerate(found.items()):
        mean, variance = pooled(parts)
        check_finite(mean + variance, f"input of {name!r}")
        arrays |= {f"mean_{index}": mean.astype(np.float32), f"variance_{index}": variance.astype(np.float32)}
    np.savez(place / "statistics.npz", **arrays)  # type: ignore[arg-type]
    return list(found)


def pooled(parts: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of a population from the (size, mean, variance) of its parts, by the law of total variance."""
    sizes = np.array([size for size, _, _ in parts], np.float64)[:, None]
    means, variances = np.stack([mean for _, mean, _ in parts]), np.stack([variance for _, _, variance in parts])
    mean = (sizes * means).sum(0) / sizes.sum()
    return mean, (sizes * (variances + (means - mean) ** 2)).sum(0) / sizes.sum()


def _reduced_axes(node: Node, rank: int) -> list[int]:
    """All axes of a batch norm's input, the batch as 0, but that of the channels."""
    axis = node.attributes.get("axis", -1)
    channels = channel_axis(axis[0] if isinstance(axis, list | tuple) else axis, rank, node)
    return [other for other in range(rank + 1) if other != channels + 1]


def _normalizing_by_batch(graph: Graph) -> Graph:
    """The graph of a free batch, with every batch norm, and nothing else, as in training; Keras would hold those that
    are not trainable back."""
    nodes = []
    for node in graph.nodes:
        if node.op == "InputLayer":
            free = {key: value for key, value in node.attributes.items() if key != "batch_size"}
            node = dataclasses.replace(node, attributes=free)
        if node.op == "BatchNormalization":
            call = node.attributes.get("call", {"args": [{"input": 0}], "kwargs": {}})
            call = {**call, "kwargs": {**call.get("kwargs", {}), "training": True}}
            node = dataclasses.replace(node, attributes={**node.attributes, "trainable": True, "call": call})
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes))
