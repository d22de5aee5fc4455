"""What removed channels did, given to the channels that stayed: a regression on the network's own activations.

Removed channels r of what a convolution reads go together with kept ones k: with mean m and covariance C over pictures
and positions, x_r is nearest, in the mean square, to m_r + A^T (x_k - m_k) with A = C_kk^-1 C_kr. Put into the
convolution that is
    W_k' = W_k + A W_r (each tap),    b' = b + sum over taps of W_r^T (m_r - A^T m_k)
(He, Zhang, Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section 3.1.1, with the kept
channels given). The mean's part W_r^T m_r is bias_correction.py's, which comes before; here follows what depends on A.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from toolchain.activations import PatchMoments
from toolchain.bias_correction import give_back
from toolchain.graph import Graph, Node

#: Mean (C,) and covariance (C, C) of what a convolution reads, over pictures and positions, and over its taps.
Statistics = tuple[np.ndarray, np.ndarray]

#: Of the kept channels' mean variance, added to each: second moments come in float32, and of channels that hardly vary
#: a regression makes nothing.
RIDGE = 1e-3


def readers(before: Graph, kept: Mapping[str, np.ndarray]) -> list[str]:
    """The convolutions of the network before that read removed channels, and into which they can be folded."""
    return [node.name for node in before.nodes if can_fold(before, node) and _lost_some(node, kept)]


def can_fold(graph: Graph, node: Node) -> bool:
    shared = node.shared_with or any(other.shared_with == node.name for other in graph.nodes)
    return node.op == "Conv2D" and int(node.attributes.get("groups", 1)) == 1 and not shared


def _lost_some(node: Node, kept: Mapping[str, np.ndarray]) -> bool:
    source = node.inputs[0]
    return source in kept and 0 < len(kept[source]) < node.weights["kernel"].shape[2]


def folded(
    before: Graph, after: Graph, kept: Mapping[str, np.ndarray], statistics: Callable[[str], Statistics]
) -> Graph:
    """The network after pruning, its biases corrected, with the removed channels folded into the kept ones.

    kept: by node the (n,) indices of the channels of its output that stayed (pass_report.PassResult.kept). statistics:
    of what each of readers(before, kept) reads.
    """
    changed: dict[str, Node] = {}
    for name in readers(before, kept):
        kernel = before.by_name[name].weights["kernel"].astype(np.float64)
        stays = np.zeros(kernel.shape[2], bool)
        stays[kept[before.by_name[name].inputs[0]]] = True
        mean, covariance = statistics(name)
        inner = covariance[np.ix_(stays, stays)]
        inner[np.diag_indices_from(inner)] += RIDGE * np.trace(inner) / len(inner) or 1.0
        weights = np.linalg.solve(inner, covariance[np.ix_(stays, ~stays)])
        added = np.einsum("kr,hwro->hwko", weights, kernel[:, :, ~stays])[..., kept[name]]
        node = changed.get(name, after.by_name[name])
        new = (node.weights["kernel"] + added).astype(np.float32)
        changed[name] = dataclasses.replace(node, weights={**node.weights, "kernel": new})
        give_back(after, name, -np.einsum("hwko,k->o", added, mean[stays]), 3, changed)
    return dataclasses.replace(after, nodes=tuple(changed.get(node.name, node) for node in after.nodes))


def of_channels(moments: PatchMoments, channels: int) -> Statistics:
    """From a layer's patches, of so many channels, float64."""
    taps = moments.mean.size // channels
    mean = moments.mean.reshape(taps, channels).mean(0)
    second = np.einsum("tatb->ab", moments.second.reshape(taps, channels, taps, channels).astype(np.float64)) / taps
    return mean, second - np.outer(mean, mean)
