"""What a network itself computes on pictures: the statistics that passes over its graph ask for.

Patch moments, for Tucker. Of a convolution's input patches p (patches.py) over pictures and output positions
    mean = E[p] (d,),  second = E[p p^T] (d, d)
so that for a kernel W and one W' that stands in its place, both (d, cout), the squared error of the output is
    E ‖(W - W')^T p‖² = trace((W - W')^T second (W - W'))

Channel means, for the biases of what reads removed channels.

Taylor scores, for pruning. To first order the outputs y change by Δ_j = -Σ_hw a_c ∂y_j/∂a_c when channel c of an
activation a is set to zero. With a weight w_j for each output and signs e_j = ±1, the score of c is
    E over pictures of Σ_j w_j² Δ_j²  =  E over pictures and signs of (Σ_hw a_c ∂L/∂a_c)²,  L = Σ_j e_j w_j y_j
since E[e_i e_j] is 1 for i = j, else 0: one gradient stands for all outputs, and no truth is needed. The criterion is
that of Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019 (equation 8), with the outputs in
place of a loss; the random signs are Hutchinson's (Communications in Statistics 19(2), 1990).

Batch norm statistics: those of its own input on the pictures, after the network was changed.

Every function runs the network in a process of its own, as deploy feeds it: pictures are resized and normalized by its
input's description. Those that cannot be read are left out. The same network, pictures and seed give the same result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deploy.contract import YoloHead
from deploy.errors import GraphError
from toolchain import child_process
from toolchain.graph import Graph, Node
from toolchain.graph_file import save

#: Told how many pictures are done, and of how many; each counts as often as it passes through the network.
Progress = Callable[[float, float], object]


@dataclasses.dataclass(frozen=True, eq=False)
class PatchMoments:
    """First and second moments of a convolution's input patches, over sampled output positions of the pictures.

    A patch is x[tap_row, tap_column, cin] flattened in that order, d = kh * kw * cin, zero padding included: exactly
    what the kernel (kh, kw, cin, cout) reshaped to (d, cout) is multiplied with.
    """

    #: (d,) float64.
    mean: np.ndarray
    #: (d, d) float32, E[p p^T], not centred.
    second: np.ndarray
    #: Patches that were sampled.
    rows: int


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelMoments:
    """What a node's channels hold, x, and what the detections mind in them, a = ∂L/∂x, over all positions of pictures.

    With L as Taylor's scores have it, an error e of the channels changes the detections by (Σ a·e)² to first order.
    """

    #: (C, C) float64, E[a a^T], summed over a picture's positions.
    slopes: np.ndarray
    #: (C, C) and (C,) float64, E[x x^T] and E[x], each position with the weight |a|²: where detections are made.
    second: np.ndarray
    mean: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        return np.asarray(self.second - np.outer(self.mean, self.mean))


@contextmanager
def patch_moments(
    graph: Graph,
    layers: Sequence[str],
    pictures: Sequence[Path],
    *,
    seed: int = 0,
    allow_lambda: bool = False,
    progress: Progress | None = None,
) -> Iterator[Callable[[str], PatchMoments]]:
    """Gives a function from a layer's name to its moments, for use inside the with: they are read from a file one at a
    time, since those of a large network take hundreds of megabytes a layer.

    layers are Conv2D without groups. Positions are drawn at random without replacement, equally many of each picture,
    some max(8 * d, 4096) in all or all that there are.

    Raises GraphError for another layer, an input that is not described, and values that are not finite; InputError when
    no picture can be read; ConversionError when Keras cannot run the network or its process dies.
    """
    places = {name: index for index, name in enumerate(dict.fromkeys(layers))}
    for name in places:
        node = _node(graph, name)
        if node.op != "Conv2D" or int(node.attributes.get("groups", 1)) != 1:
            raise GraphError(
                f"patches are those of a Conv2D without groups: {name!r} is a {node.op} with"
                f" {node.attributes.get('groups', 1)} groups; leave it out"
            )
    with child_process.folder() as place:
        rows: list[int] = []
        if places:
            rows = _run(
                "toolchain.activation_runs:run_patch_moments",
                graph,
                pictures,
                place,
                {"layers": list(places), "seed": seed, "allow_lambda": allow_lambda},
                progress,
            )

        def moments(layer: str) -> PatchMoments:
            if layer not in places:
                raise GraphError(
                    f"moments are had of the layers that were asked for: {layer!r} is none of these {len(places)}"
                )
            index = places[layer]
            mean, second = (np.load(place / f"{kind}_{index}.npy") for kind in ("mean", "second"))
            return PatchMoments(mean, second, rows[index])

        yield moments


def channel_means(
    graph: Graph,
    nodes: Sequence[str],
    pictures: Sequence[Path],
    *,
    allow_lambda: bool = False,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Node -> mean of each channel (last axis) of its output over pictures and positions, float64 (C,).

    Raises as patch_moments does; GraphError for a node that the graph does not have.
    """
    return _by_node("toolchain.activation_runs:run_channel_means", graph, nodes, pictures, {}, allow_lambda, progress)


def taylor_scores(
    graph: Graph,
    nodes: Sequence[str],
    pictures: Sequence[Path],
    *,
    seed: int = 0,
    allow_lambda: bool = False,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Node -> score of each channel (last axis) of its output, float64 (C,), >= 0: how much the detections change, to
    first order, when the channel is set to zero. Squared, and weighted by taylor.output_weights.

    The signs are drawn from seed, taylor.DRAWS times for each picture. Raises as channel_means does; GraphError for a
    graph without a YoloHead.
    """
    _check_head(graph)
    function = "toolchain.taylor:run_taylor_scores"
    return _by_node(function, graph, nodes, pictures, {"seed": seed}, allow_lambda, progress)


def channel_moments(
    graph: Graph,
    nodes: Sequence[str],
    pictures: Sequence[Path],
    *,
    seed: int = 0,
    allow_lambda: bool = False,
    progress: Progress | None = None,
) -> dict[str, ChannelMoments]:
    """Node -> the moments of its output's channels (last axis). Raises as taylor_scores does."""
    _check_head(graph)
    function = "toolchain.taylor:run_channel_moments"
    found = _by_node(function, graph, nodes, pictures, {"seed": seed}, allow_lambda, progress)
    moments = {}
    for name, array in found.items():
        channels = array.shape[1]
        moments[name] = ChannelMoments(array[:channels], array[channels:-1], array[-1])
    return moments


def _check_head(graph: Graph) -> None:
    if not isinstance(graph.head, YoloHead):
        raise GraphError(
            f"a channel is scored by what it does to detections: {graph.name!r} has no head; describe it with a head"
            " file"
        )


def reestimate_batch_norms(
    graph: Graph, pictures: Sequence[Path], *, allow_lambda: bool = False, progress: Progress | None = None
) -> Graph:
    """The graph with moving_mean and moving_variance of every BatchNormalization those of its own input over the
    pictures, in the network whose earlier batch norms have the new statistics too. Nothing else is changed; a graph
    without batch norms comes back as it is. The variance is that of the population, divided by n, as in Keras's
    training.

    This is exact where all pictures pass at once, each batch norm normalizing by what it sees. Where their activations
    do not fit into activation_runs.ACTIVATION_BYTES they pass in batches of equal size: a mean is then that of the
    batches' means, a variance the mean of the batches' variances plus the variance of their means, which is exact for
    the first batch norm of each path. Those behind it see an input that was normalized by its batch's statistics in
    place of all pictures'. With two real networks and 32 pictures, batches of 16 put the raw outputs off by 5 to 6 % of
    their standard deviation, batches of 4 by 20 to 24 %.

    Raises as patch_moments does; InputError where a batch norm would see one value a channel alone.
    """
    if not any(node.op == "BatchNormalization" for node in graph.nodes):
        return graph
    with child_process.folder() as place:
        arguments = {"allow_lambda": allow_lambda}
        function = "toolchain.batch_norm_statistics:run_batch_norms"
        names = _run(function, graph, pictures, place, arguments, progress)
        with np.load(place / "statistics.npz", allow_pickle=False) as found:
            new = {
                name: {"moving_mean": found[f"mean_{index}"], "moving_variance": found[f"variance_{index}"]}
                for index, name in enumerate(names)
            }
    nodes = [
        dataclasses.replace(node, weights={**node.weights, **new[node.name]}) if node.name in new else node
        for node in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _by_node(
    function: str,
    graph: Graph,
    nodes: Sequence[str],
    pictures: Sequence[Path],
    arguments: dict[str, Any],
    allow_lambda: bool,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """Runs a function of the child that writes an array for each node."""
    names = list(dict.fromkeys(nodes))
    for name in names:
        _node(graph, name)
    if not names:
        return {}
    with child_process.folder() as place:
        arguments = {**arguments, "nodes": names, "allow_lambda": allow_lambda}
        _run(function, graph, pictures, place, arguments, progress)
        with np.load(place / "by_node.npz", allow_pickle=False) as found:
            return {name: found[str(index)] for index, name in enumerate(names)}


def _run(
    function: str,
    graph: Graph,
    pictures: Collection[Path],
    place: Path,
    arguments: dict[str, Any],
    progress: Progress | None,
) -> Any:
    if graph.input is None:
        raise GraphError(
            f"pictures enter by the input's description: {graph.name!r} has none; describe it with a head file"
        )
    entries = [node for node in graph.nodes if node.op == "InputLayer"]
    if len(entries) != 1 or entries[0].attributes.get("batch_size") not in (None, 1):
        sizes = [node.attributes.get("batch_size") for node in entries]
        raise GraphError(
            f"a network that is run on pictures has one input, of a free batch or of 1: {graph.name!r} has"
            f" {len(entries)} of {sizes}; write it anew so"
        )
    save(graph, place / "graph")
    arguments = {**arguments, "folder": str(place), "pictures": [str(path) for path in pictures]}
    with child_process.followed(place / "told.jsonl", None if progress is None else lambda told: progress(*told)):
        return child_process.run(function, arguments, place, step=f"run of {graph.name!r} in Keras")


def _node(graph: Graph, name: str) -> Node:
    if name not in graph.by_name:
        raise GraphError(
            f"statistics are those of a node: {name!r} is none of {graph.name!r}'s {len(graph.nodes)} nodes"
        )
    return graph.by_name[name]
