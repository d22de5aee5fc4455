"""How much a detector's outputs change, to first order, without one of a layer's channels, or by what goes wrong in
them: activations.py's Taylor scores and channel moments, in the child process.

A raw logit counts by what it does to the score σ(o) σ(t_c) of a detection, so that boxes where nothing is do not: with
o the objectness and t the classes of the same anchor in the same cell, the weight w of
    objectness   σ'(o) = σ(o) (1 - σ(o))
    class c      σ(o) p_c (1 - p_c),  p = σ(t) or softmax(t), as the head has it
    x, y, w, h   σ(o)
The weights are constants: no gradient flows through them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.contract import Scale, YoloHead
from toolchain.activation_runs import batch_size, part, read_pictures, start_keras, told_batches, write_by_node
from toolchain.graph import Graph
from toolchain.graph_file import load
from toolchain.shapes import shapes

#: Signs for each picture, a backward run each. One draw's variance is at most twice the square of its mean: over a
#: hundred pictures alike the standard deviation of a score is at most sqrt(2 / 400), 7 % of it.
DRAWS = 4


def run_taylor_scores(
    folder: str, pictures: Sequence[str], nodes: Sequence[str], seed: int, allow_lambda: bool
) -> None:
    """Writes by_node.npz: for each node's index the scores of its channels, float64 (C,)."""
    place = Path(folder)
    graph = load(place / "graph")
    assert isinstance(graph.head, YoloHead)
    pixels, ends, network, model, batch = _ready(graph, graph.head, nodes, pictures, place, allow_lambda)
    sums: dict[str, Any] = dict.fromkeys(nodes, 0.0)
    for first, images in told_batches(graph, pixels, batch, place):
        changes = squared_changes(model, network.outputs, graph.head, nodes, ends, images, (seed, first))
        sums = {name: total + changes[name] for name, total in sums.items()}
    write_by_node(place, {name: total / len(pixels) for name, total in sums.items()})


def run_channel_moments(
    folder: str, pictures: Sequence[str], nodes: Sequence[str], seed: int, allow_lambda: bool
) -> None:
    """Writes by_node.npz: for each node's index (2 C + 1, C) float64, activations.ChannelMoments' arrays stacked."""
    place = Path(folder)
    graph = load(place / "graph")
    assert isinstance(graph.head, YoloHead)
    pixels, ends, network, model, batch = _ready(graph, graph.head, nodes, pictures, place, allow_lambda)
    sides = {name: shape[-1] for name, shape in shapes(network).items()}
    slopes = {name: np.zeros((sides[name],) * 2) for name in nodes}
    seconds = {name: np.zeros((sides[name],) * 2) for name in nodes}
    means = {name: np.zeros(sides[name]) for name in nodes}
    weights = dict.fromkeys(nodes, 0.0)
    for first, images in told_batches(graph, pixels, batch, place):
        drawn = signed_gradients(model, network.outputs, graph.head, nodes, ends, images, (seed, first))
        for name, value, gradient in drawn:
            flat, slope = (np.asarray(one).reshape(-1, sides[name]) for one in (value, gradient))
            slopes[name] += slope.T @ slope
            weight = np.square(slope).sum(1)
            means[name] += weight @ flat
            seconds[name] += flat.T @ (weight[:, None] * flat)
            weights[name] += float(weight.sum(dtype=np.float64))
    arrays = {}
    for name in nodes:
        total = max(weights[name], 1e-30)
        parts = (slopes[name] / (DRAWS * len(pixels)), seconds[name] / total, means[name][None] / total)
        arrays[name] = np.concatenate(parts)
    write_by_node(place, arrays)


def _ready(
    graph: Graph, head: YoloHead, nodes: Sequence[str], pictures: Sequence[str], place: Path, allow_lambda: bool
) -> tuple[np.ndarray, list[str], Graph, Any, int]:
    """Pixels, the head's outputs, the part of the graph that makes these and the nodes, its model, and how many
    pictures pass at once."""
    pixels = read_pictures(graph, pictures, place)
    ends = list(dict.fromkeys(name for scale in head.scales for name in scale.outputs.values()))
    network = part(graph, [*nodes, *ends])
    model = start_keras(network, allow_lambda)
    # A gradient needs every activation until the end.
    return pixels, ends, network, model, batch_size(network, kept=network.by_name)


def squared_changes(
    model: Any,
    names: Sequence[str],
    head: YoloHead,
    nodes: Sequence[str],
    ends: Sequence[str],
    images: np.ndarray,
    key: tuple[int, int],
) -> dict[str, np.ndarray]:
    """Node -> the mean over signs of (Σ_hw a_c ∂L/∂a_c)², summed over images (n, h, w, 3): float64 (C,).

    names are those of the model's outputs, among them the nodes and ends, the head's raw outputs. key is the seed and
    the first image's number: signs follow from each image's own.
    """
    import tensorflow as tf

    found = {name: 0.0 for name in nodes}
    for name, value, gradient in signed_gradients(model, names, head, nodes, ends, images, key):
        products = tf.reduce_sum(value * gradient, list(range(1, len(value.shape) - 1)))
        found[name] = found[name] + np.square(np.asarray(products, np.float64)).sum(0) / DRAWS
    return {name: np.asarray(values) for name, values in found.items()}


def signed_gradients(
    model: Any,
    names: Sequence[str],
    head: YoloHead,
    nodes: Sequence[str],
    ends: Sequence[str],
    images: np.ndarray,
    key: tuple[int, int],
) -> Iterator[tuple[str, Any, Any]]:
    """DRAWS times for each node its name, value and ∂L/∂value; arguments as squared_changes has them."""
    import keras
    import tensorflow as tf

    given = tf.constant(images)
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(given)
        values = dict(zip(names, keras.tree.flatten(model(given, training=False)), strict=True))
    sources, targets = [values[name] for name in nodes], [values[name] for name in ends]
    weights = output_weights(head, {name: np.asarray(values[name]) for name in ends})
    randoms = [np.random.default_rng((key[0], key[1] + index)) for index in range(len(images))]
    for _ in range(DRAWS):
        signed = []
        for name in ends:
            signs = [random.choice((np.float32(-1), np.float32(1)), weights[name].shape[1:]) for random in randoms]
            signed.append(tf.constant(weights[name] * np.stack(signs)))
        # A node behind which no output lies has no gradient.
        gradients = tape.gradient(targets, sources, signed, unconnected_gradients="zero")
        yield from zip(nodes, sources, gradients, strict=True)


def output_weights(head: YoloHead, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weight of every raw logit, 0..1, float32 of each output's own shape. outputs: (n, h, w, channels) float32 by
    name, split by role or not."""
    weights: dict[str, np.ndarray] = {}
    for scale in head.scales:
        weights |= _scale_weights(scale, head.class_activation, outputs)
    return weights


def _scale_weights(scale: Scale, activation: str, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    anchors = len(scale.anchors)
    by_anchor = {
        role: outputs[name].reshape(*outputs[name].shape[:3], anchors, -1) for role, name in scale.outputs.items()
    }
    raw = by_anchor.get("raw")
    objectness = _sigmoid(by_anchor["objectness"] if raw is None else raw[..., 4:5])
    classes = by_anchor["classes"] if raw is None else raw[..., 5:]
    share = _softmax(classes) if activation == "softmax" else _sigmoid(classes)
    by_role = {
        "xy": np.repeat(objectness, 2, -1),
        "wh": np.repeat(objectness, 2, -1),
        "objectness": objectness * (1 - objectness),
        "classes": objectness * share * (1 - share),
    }
    if raw is not None:
        by_role["raw"] = np.concatenate([by_role[role] for role in ("xy", "wh", "objectness", "classes")], -1)
    return {name: by_role[role].reshape(outputs[name].shape) for role, name in scale.outputs.items()}


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    # By its tangent: no exponential that overflows.
    half = np.float32(0.5)
    return half + half * np.tanh(half * logits)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
