"""What removed channels gave to their readers on average, given to the readers' biases instead.

A layer computes W x + b. Without the channels r of x it lacks W_r x_r, whose average over pictures and positions is
W_r E[x_r] (W_r summed over its taps): that is added to b. Where there is no b and a batch norm alone follows, it is
taken off the batch norm's moving mean, which is the same; else the layer gets a bias. Padding is not seen: at an
output's edge fewer taps read the channel than were counted.
Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, for pruning.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deploy.errors import InputError
from toolchain.channel_rules import KERNEL_OPS, is_per_channel
from toolchain.channels import Channels
from toolchain.criteria import following_batch_norms
from toolchain.graph import Graph, Node
from toolchain.shape_rules import Shape
from toolchain.shapes import shapes

#: Names of nodes to (C,), for each the mean of its output's channels over pictures and positions.
Means = Callable[[Sequence[str]], Mapping[str, np.ndarray]]


def correct_biases(graph: Graph, pruned: Graph, channels: Channels, removed: Sequence[int], means: Means) -> Graph:
    """The pruned graph with the averages of the removed channels in its biases and moving means.

    Args:
        graph, channels: before pruning.
        removed: symbols that pruned lacks.
        means: asked once, for outputs of graph.

    Raises InputError where means gives something else than (C,) finite numbers.
    """
    gone = {name: np.isin(symbols, removed) for name, symbols in channels.symbols.items()}
    readers = [
        node
        for node in graph.nodes
        if node.op in KERNEL_OPS
        and gone[node.inputs[0]].any()
        and not is_per_channel(node, len(channels.symbols[node.inputs[0]]))
    ]
    if not readers:
        return pruned
    extents = shapes(graph)
    averages = means(tuple(dict.fromkeys(node.inputs[0] for node in readers)))
    changed: dict[str, Node] = {}
    for node in readers:
        source = node.inputs[0]
        average = _checked(averages, source, len(gone[source]))
        lost = lost_mean(node, np.where(gone[source], average, 0.0), extents[source], extents[node.name])
        give_back(pruned, node.name, lost[~gone[node.name]], len(extents[node.name]), changed)
    return dataclasses.replace(pruned, nodes=tuple(changed.get(node.name, node) for node in pruned.nodes))


def lost_mean(node: Node, average: np.ndarray, source: Shape, shape: Shape) -> np.ndarray:
    """(n_out,) float64: the average output, without bias, of a layer whose input's channels have the averages (C,).

    Args:
        source, shape: of the layer's input and output.
    """
    weights = {name: np.asarray(array, np.float64) for name, array in node.weights.items() if name != "bias"}
    if node.op == "Dense":
        return np.asarray(average @ weights["kernel"])
    if node.op == "SeparableConv2D":
        depthwise = weights["depthwise_kernel"].sum((0, 1)) * average[:, None]
        return np.asarray(depthwise.reshape(-1) @ weights["pointwise_kernel"][0, 0])
    taps = weights["kernel"].sum((0, 1))
    if node.op == "Conv2DTranspose":
        # Every input reaches all taps, but an output gets only the inputs there are for it.
        return np.asarray(taps @ average) * math.prod(source[:-1]) / math.prod(shape[:-1])
    by_group = average.reshape(int(node.attributes.get("groups", 1)), 1, -1)
    filters = taps.reshape(len(taps), len(by_group), -1).transpose(1, 0, 2)
    return np.asarray((by_group @ filters).reshape(-1))


def _checked(averages: Mapping[str, np.ndarray], node: str, channels: int) -> np.ndarray:
    average = np.asarray(averages.get(node, ()), np.float64)
    if average.shape != (channels,) or not np.isfinite(average).all():
        raise InputError(
            f"a bias is corrected with the finite mean of every channel: {node!r} has {channels} channels and gets"
            f" means of shape {average.shape}; measure them on the network before pruning, on pictures that it can read"
        )
    return average


def give_back(graph: Graph, name: str, lost: np.ndarray, rank: int, changed: dict[str, Node]) -> None:
    node = changed.get(name, graph.by_name[name])
    norms = following_batch_norms(graph, name, rank)
    linear = node.attributes.get("activation") in (None, "linear")
    if "bias" not in node.weights and linear and norms == graph.readers[name] and name not in graph.outputs:
        for norm in norms:
            weights = changed.get(norm.name, norm).weights
            mean = (weights["moving_mean"] - lost).astype(np.float32)
            changed[norm.name] = dataclasses.replace(norm, weights={**weights, "moving_mean": mean})
        return
    bias = (node.weights.get("bias", 0) + lost).astype(np.float32)
    attributes = {**node.attributes, "use_bias": True}
    changed[name] = dataclasses.replace(node, attributes=attributes, weights={**node.weights, "bias": bias})
