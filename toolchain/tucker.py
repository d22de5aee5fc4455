"""Tucker-2 decomposition of convolutions: NAME becomes a 1x1, a small k x k and another 1x1 convolution.

    NAME_tucker_0   1x1, no bias: zeros that pad its output are then what zeros that pad its input would give
    NAME_tucker_1   k x k with NAME's strides, padding and dilation, no bias
    NAME_tucker_2   1x1 with NAME's activation, and a bias whether NAME has one or not
The algebra is in tucker_factors.py, the ranks are in ranks.py. With moments of what the layers read the error of their
outputs is least, as the batch norm behind them scales it, and the bias makes up for what their means lose. A batch norm
behind it takes it in at conversion.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from deploy.errors import GraphError, InputError
from toolchain.activations import PatchMoments
from toolchain.cost import cost, node_costs
from toolchain.criteria import following_batch_norms
from toolchain.graph import Graph, Node, owner, replace_layers
from toolchain.layer_timing import Candidate
from toolchain.nearest import nearest
from toolchain.pass_report import LayerReport, PassResult
from toolchain.ranks import Ranks, layer_ranks
from toolchain.shapes import shapes
from toolchain.tucker_factors import Factors, factorize, unfold

#: Gives the moments of what a layer reads, by its name.
Moments = Callable[[str], PatchMoments]
#: Times candidates: milliseconds before and after by their names.
Timer = Callable[[Sequence[Candidate]], Mapping[str, tuple[float, float]]]
#: Told how many layers are done, and of how many.
Progress = Callable[[float, float], object]

#: A convolution of at most as many input channels reads colours: little to win, and everything behind it depends on it.
_FEW_CHANNELS = 4
#: Attributes of a convolution that hold for each of the three in its place. Initializers have no use, and a constraint
#: on the kernel is none on its factors.
_KEPT = ("trainable", "kernel_regularizer")
_OUT_OF_SCOPE = "left out by the scope"


@dataclasses.dataclass(frozen=True, eq=False)
class _Split:
    """What stands in a layer's place."""

    #: The three convolutions.
    chain: tuple[Node, ...]
    ranks: tuple[int, int]
    error: float
    candidate: Candidate


def decompose(
    graph: Graph,
    chosen: Collection[str],
    ranks: Ranks,
    *,
    pointwise: bool = False,
    moments: Moments | None = None,
    timer: Timer | None = None,
    progress: Progress | None = None,
) -> PassResult:
    """The graph with every convolution in scope that gains by it decomposed.

    Args:
        graph: any graph.
        chosen: names of the nodes in scope (scope.select).
        ranks: how each layer's ranks are found. A layer that it names is decomposed whatever it gains, a 1x1 or one
            that reads the picture too.
        pointwise: decompose 1x1 convolutions too.
        moments: of candidates(graph, chosen, pointwise, ranks.layers), asked for one at a time; None minimizes the
            error of the kernels instead of that of the outputs.
        timer: a layer stays whole unless this finds the decomposed one faster.
        progress: told how many candidates are done.

    Raises InputError where ranks name a layer that cannot be decomposed or are above its channels, and GraphError where
    weights are not finite, or nothing is decomposed for other reasons than time.
    """
    _check_named(graph, chosen, ranks)
    reasons = {node.name: _reason(graph, node, chosen, pointwise, ranks.layers) for node in _with_kernel(graph)}
    names = [name for name, reason in reasons.items() if not reason]
    splits: dict[str, _Split] = {}
    found = shapes(graph)
    for index, name in enumerate(names):
        node = graph.by_name[name]
        split = _split(graph, node, found[node.inputs[0]], ranks, moments)
        if isinstance(split, str):
            reasons[name] = split
        else:
            splits[name] = split
        if progress is not None:
            progress(index + 1, len(names))
    if not splits:
        raise GraphError(_nothing(graph, reasons))
    times = {} if timer is None else timer([split.candidate for split in splits.values()])
    for name, (before, after) in times.items():
        if after >= before:
            reasons[name] = f"not faster: {after:.3f} ms decomposed, {before:.3f} ms whole"
    changed = replace_layers(graph, {name: split.chain for name, split in splits.items() if not reasons[name]})
    what = "kernel" if moments is None else "output on the pictures, about its mean"
    error = f"that of the layer's {what}, Frobenius norm, relative"
    return PassResult(changed, _reports(graph, reasons, splits, times), error=error)


def candidates(graph: Graph, chosen: Collection[str], pointwise: bool, named: Collection[str] = ()) -> list[str]:
    """Names of the convolutions in scope that can be decomposed, in graph order; named: those with ranks of their
    own."""
    return [node.name for node in _with_kernel(graph) if not _reason(graph, node, chosen, pointwise, named)]


def why_not(graph: Graph, node: Node, *, pointwise: bool = False, named: bool = False) -> str:
    """Why a node cannot be decomposed, whatever the scope; "" where it can.

    named: ranks are given for this very layer, which then may be a 1x1 or read the picture.
    """
    if node.op == "DepthwiseConv2D":
        return "depthwise: every filter reads one channel already"
    if node.op != "Conv2D":
        return f"{node.op}: only Conv2D are decomposed"
    if node.shared_with or any(other.shared_with == node.name for other in graph.nodes):
        return "its weights are used twice"
    if int(node.attributes.get("groups", 1)) != 1:
        return f"grouped: {node.attributes['groups']} groups"
    kernel = node.weights["kernel"]
    if named:
        return ""
    if kernel.shape[:2] == (1, 1) and not pointwise:
        return "1x1: decomposed only on request (pointwise)"
    if graph.by_name[node.inputs[0]].op == "InputLayer" or kernel.shape[2] <= _FEW_CHANNELS:
        return f"reads the picture, or as few channels: {kernel.shape[2]}"
    return ""


def low_rank_kernel(kernel: np.ndarray, ranks: tuple[int, int], moments: PatchMoments | None) -> np.ndarray:
    """A kernel (kh, kw, cin, cout) as its decomposition to ranks (input, output) has it, in the same shape and
    dtype; ranks from 1 to the channels."""
    return factorize(unfold(kernel, moments), ranks).kernel.astype(kernel.dtype)


def _with_kernel(graph: Graph) -> list[Node]:
    kernels = ("kernel", "depthwise_kernel")
    return [node for node in graph.nodes if any(name in owner(graph, node).weights for name in kernels)]


def _reason(graph: Graph, node: Node, chosen: Collection[str], pointwise: bool, named: Collection[str]) -> str:
    if node.name not in chosen:
        return _OUT_OF_SCOPE
    return why_not(graph, node, pointwise=pointwise, named=node.name in named)


def _check_named(graph: Graph, chosen: Collection[str], ranks: Ranks) -> None:
    for name in ranks.layers:
        if name not in graph.by_name:
            near = nearest(name, list(graph.by_name)) or "; `slimdet inspect` lists them"
            raise InputError(f"ranks are those of a layer: {name!r} is none of {graph.name!r}'s{near}")
        reason = _reason(graph, graph.by_name[name], chosen, True, ranks.layers)
        if reason:
            raise InputError(
                f"ranks are given to layers that can be decomposed: {name!r} cannot ({reason}); leave it out or widen"
                " the scope"
            )


def _nothing(graph: Graph, reasons: Mapping[str, str]) -> str:
    """The sentence on a graph in which nothing was decomposed, with the commonest reason of what was in scope."""
    in_scope = [reason for reason in reasons.values() if reason != _OUT_OF_SCOPE]
    if not in_scope:
        return (
            f"a decomposition has layers with a kernel in its scope: it takes none of {graph.name!r}'s {len(reasons)};"
            " widen it"
        )
    kinds = [reason.partition(":")[0] for reason in in_scope]
    commonest, count = Counter(kinds).most_common(1)[0]
    example = next(reason for reason, kind in zip(in_scope, kinds, strict=True) if kind == commonest)
    return (
        f"a decomposition changes something: none of {graph.name!r}'s {len(in_scope)} layers in scope was, {count} of"
        f" them because: {example}; widen the scope or change the ranks"
    )


def _split(graph: Graph, node: Node, shape: tuple[int, ...], ranks: Ranks, moments: Moments | None) -> _Split | str:
    """What stands in a layer's place, or the reason that it stays; shape is that of what it reads."""
    kernel = node.weights["kernel"]
    bias = node.weights.get("bias", np.zeros(kernel.shape[3], np.float32))
    if not all(np.isfinite(array).all() for array in node.weights.values()):
        raise GraphError(f"weights are finite: {node.name!r} has some that are not; read or train it again")
    if ranks.only_layers and node.name not in ranks.layers:
        return "no ranks are given for it"
    scale = np.ones(kernel.shape[3]) if moments is None else _scale_behind(graph, node)
    unfolded = functools.cache(lambda: unfold(kernel * scale, None if moments is None else moments(node.name)))
    pair = layer_ranks(ranks, node.name, kernel.shape, lambda: (unfolded().of_input, unfolded().of_output))
    before = _alone((node,), shape)
    if node.name not in ranks.layers:
        reason = _no_gain(before, _alone(_chain(node, _blank(kernel.shape, pair), bias), shape))
        if reason:
            return reason
    factors = factorize(unfolded(), pair)
    factors = dataclasses.replace(factors, last=factors.last / scale[:, None])
    if factors.lost_mean is not None:
        bias = (bias + factors.lost_mean / scale).astype(np.float32)
    chain = _chain(node, factors, bias)
    return _Split(chain, pair, factors.error, Candidate(node.name, before, _alone(chain, shape)))


def _scale_behind(graph: Graph, node: Node) -> np.ndarray:
    """(cout,): what a batch norm that alone reads the layer multiplies each channel with, so that errors count as they
    are passed on; 1 where there is none. A channel that is nearly switched off still counts a little."""
    norms = following_batch_norms(graph, node.name, 3)
    if node.name in graph.outputs or len(graph.readers[node.name]) != 1 or not norms:
        return np.ones(node.weights["kernel"].shape[3])
    weights = norms[0].weights
    epsilon = float(norms[0].attributes.get("epsilon", 1e-3))
    gamma = weights.get("gamma", np.ones(1))
    scale = np.abs(gamma.astype(np.float64)) / np.sqrt(weights["moving_variance"].astype(np.float64) + epsilon)
    return np.asarray(np.maximum(scale, 1e-3 * scale.max())) if scale.any() else np.ones_like(scale)


def _chain(node: Node, factors: Factors, bias: np.ndarray) -> tuple[Node, ...]:
    """The three convolutions in a layer's place."""
    core = factors.core.astype(np.float32)
    kept = {key: node.attributes[key] for key in _KEPT if key in node.attributes}
    whole = {key: node.attributes[key] for key in ("strides", "padding", "dilation_rate") if key in node.attributes}
    ends = {key: node.attributes[key] for key in ("activation", "bias_regularizer") if key in node.attributes}
    names = [f"{node.name}_tucker_{index}" for index in range(3)]

    def convolution(index: int, kernel: np.ndarray, source: str, **more: object) -> Node:
        weights = {"kernel": kernel, "bias": bias} if index == 2 else {"kernel": kernel}
        attributes = {
            "filters": kernel.shape[3],
            "kernel_size": list(kernel.shape[:2]),
            "strides": [1, 1],
            "padding": "valid",
            "use_bias": "bias" in weights,
            **kept,
            **more,
        }
        return Node(names[index], "Conv2D", (source,), attributes, weights)

    return (
        convolution(0, factors.first.astype(np.float32)[None, None], node.inputs[0]),
        convolution(1, core, names[0], **whole),
        convolution(2, np.ascontiguousarray(factors.last.T, np.float32)[None, None], names[1], **ends),
    )


def _blank(kernel: tuple[int, ...], ranks: tuple[int, int]) -> Factors:
    """Factors of the right shapes that take no memory."""
    sizes = (kernel[2], ranks[0]), (kernel[0], kernel[1], *ranks), (kernel[3], ranks[1])
    first, core, last = (np.broadcast_to(np.float32(0), size) for size in sizes)
    return Factors(first, core, last, 0.0, None)


def _alone(chain: Sequence[Node], shape: tuple[int, ...]) -> Graph:
    """A network of these nodes, each of which reads the one before."""
    entry = Node(f"{chain[0].name}_input", "InputLayer", (), {"shape": list(shape)})
    first = dataclasses.replace(chain[0], inputs=(entry.name,))
    return Graph(chain[0].name, (entry, first, *chain[1:]), (chain[-1].name,))


def _no_gain(before: Graph, after: Graph) -> str:
    whole, split = cost(before), cost(after)
    for count, there, here in (
        ("parameters", whole.total, split.total),
        ("operations", whole.flops, split.flops),
    ):
        if here >= there:
            return f"no gain: {here:,} {count} decomposed, {there:,} whole"
    return ""


def _reports(
    graph: Graph,
    reasons: Mapping[str, str],
    splits: Mapping[str, _Split],
    times: Mapping[str, tuple[float, float]],
) -> tuple[LayerReport, ...]:
    costs = node_costs(graph)
    reports = []
    for node in _with_kernel(graph):
        weights = owner(graph, node).weights
        before = costs[node.name]
        split = None if reasons[node.name] else splits[node.name]
        after = before if split is None else cost(split.candidate.after)
        reports.append(
            LayerReport(
                name=node.name,
                op=node.op,
                kernel=weights["kernel" if "kernel" in weights else "depthwise_kernel"].shape,
                parameters=(before.total, after.total),
                flops=(before.flops, after.flops),
                reason=reasons[node.name],
                ranks=None if split is None else split.ranks,
                error=None if split is None else split.error,
                milliseconds=times.get(node.name),
            )
        )
    return tuple(reports)
