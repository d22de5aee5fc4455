"""How much each output channel of a layer matters: (n_out,) float64, at least 0, larger is more.

    l1, l2            norm of the filter                                  Li et al. 2017, "Pruning Filters for ConvNets"
    bn_scale          |gamma| of the batch norms that follow              Liu et al. 2017, "Network Slimming"
    geometric_median  sum of the distances to the layer's other filters   He et al. 2019, "Filter Pruning via Geometric
                      Median" (FPGM)
    taylor            what the outputs change to first order without it   Molchanov et al. 2019, "Importance Estimation"

The first four need weights alone. Taylor comes from activations.taylor_scores, at the nodes that scored_nodes names.
A filter is what makes one output channel: of a convolution's kernel all taps and inputs, of a separable one its
pointwise part, of a Dense layer one column. Its bias does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from deploy.errors import GraphError, InputError
from toolchain.channel_rules import is_elementwise, normalizes_channels
from toolchain.graph import Graph, Node
from toolchain.shapes import shapes

Criterion = Literal["l1", "l2", "bn_scale", "geometric_median", "taylor"]

#: Ops that give every channel a value of its own and that removing a channel takes along.
_CHANNELWISE = frozenset(("BatchNormalization", "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Rescaling"))


def layer_scores(
    graph: Graph, layers: Sequence[str], criterion: Criterion, taylor: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """For every named layer the score of each output channel.

    Args:
        layers: Conv2D, SeparableConv2D, Conv2DTranspose and Dense nodes.
        taylor: for the criterion "taylor": by layer (n_out,), of layers at least these.

    Raises InputError where the criterion needs what is not there, naming the layers, and GraphError, naming the layer,
    for weights that are no finite numbers.
    """
    check_finite(graph, layers)
    if criterion == "taylor":
        return _given(graph, layers, taylor)
    if criterion == "bn_scale":
        return _batch_norm_scales(graph, layers)
    rule = {"l1": _l1, "l2": _l2, "geometric_median": geometric_median}[criterion]
    return {name: rule(filters_of(graph.by_name[name])) for name in layers}


def check_finite(graph: Graph, layers: Iterable[str]) -> None:
    """Raises GraphError, naming the layer, for weights that are no finite numbers."""
    for name in layers:
        for weight, array in graph.by_name[name].weights.items():
            wrong = array.size - int(np.count_nonzero(np.isfinite(array)))
            if wrong:
                raise GraphError(
                    f"weights are finite numbers: {wrong} of {array.size} values of {weight} of {name!r} are NaN or"
                    " infinite; read the weights again or train anew"
                )


def filters_of(node: Node) -> np.ndarray:
    """(n_out, length) float64: one row for each output channel of a layer."""
    if node.op == "Conv2DTranspose":
        kernel = np.moveaxis(node.weights["kernel"], 2, -1)
    else:
        kernel = node.weights["pointwise_kernel" if node.op == "SeparableConv2D" else "kernel"]
    return np.asarray(kernel.reshape(-1, kernel.shape[-1]).T, np.float64)


def geometric_median(filters: np.ndarray) -> np.ndarray:
    """(n,): for each row of (n, length) the sum of its Euclidean distances to the others.

    The row with the smallest sum is nearest to the geometric median: the others stand for it best. The distances come
    from the Gram matrix, |a - b|² = aa + bb - 2ab, with the mean taken out first, which changes no distance but keeps
    the difference exact where filters are alike.
    """
    centred = filters - filters.mean(0)
    gram = centred @ centred.T
    squares = np.diag(gram)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0))
    # By rounding a row's distance to itself may be a little more than 0.
    np.fill_diagonal(distances, 0)
    return np.asarray(distances.sum(1))


def scored_nodes(graph: Graph, layers: Iterable[str]) -> dict[str, str]:
    """For every layer the node at which a channel is judged by its effect: the last of the batch norm and activations
    behind it, where nothing else reads in between. There a channel that is set to zero is a channel removed."""
    return {layer: _last_channelwise(graph, layer) for layer in dict.fromkeys(layers)}


def _last_channelwise(graph: Graph, name: str) -> str:
    while name not in graph.outputs and len(graph.readers[name]) == 1:
        (reader,) = graph.readers[name]
        shared = reader.shared_with or len(reader.inputs) != 1
        if shared or reader.op not in _CHANNELWISE or not is_elementwise(reader.attributes.get("activation")):
            break
        name = reader.name
    return name


def following_batch_norms(graph: Graph, name: str, rank: int) -> tuple[Node, ...]:
    """The batch norms that read a node's output, of the given rank without the batch, and have parameters for each of
    its channels."""
    norms = [reader for reader in graph.readers[name] if reader.op == "BatchNormalization" and not reader.shared_with]
    return tuple(norm for norm in norms if normalizes_channels(norm, rank))


def _l1(filters: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(filters).sum(1))


def _l2(filters: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(filters).sum(1))


def _batch_norm_scales(graph: Graph, layers: Sequence[str]) -> dict[str, np.ndarray]:
    found, without, extents = {}, [], shapes(graph)
    for name in layers:
        norms = following_batch_norms(graph, name, len(extents[name]))
        gammas = [norm.weights["gamma"] for norm in norms if "gamma" in norm.weights]
        if gammas:
            found[name] = np.mean(np.abs(np.asarray(gammas, np.float64)), 0)
        else:
            without.append(name)
    if without:
        shown = ", ".join(map(repr, without[:8])) + (f" and {len(without) - 8} more" if len(without) > 8 else "")
        raise InputError(
            f"the criterion bn_scale needs a batch norm with a scale right behind every layer: {len(without)} of"
            f" {len(layers)} have none, {shown}; exclude them or take another criterion"
        )
    return found


def _given(graph: Graph, layers: Sequence[str], taylor: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    if taylor is None:
        raise InputError("the criterion taylor is measured on pictures: none are given; give pictures or take l2")
    found = {}
    for name in layers:
        scores = np.asarray(taylor.get(name, ()), np.float64)
        channels = len(filters_of(graph.by_name[name]))
        if scores.shape != (channels,) or not np.isfinite(scores).all() or scores.min() < 0:
            raise InputError(
                f"Taylor scores are one finite number of at least 0 for each channel: {name!r} has {channels} channels"
                f" and gets scores of shape {scores.shape}; measure them on this network"
            )
        found[name] = scores
    return found
