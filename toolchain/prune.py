"""Structured pruning: whole channels go, wherever they are, and what is left is an ordinary smaller network.

The groups in which channels can go are those of channels.py. A share of the filters is chosen by their scores
(criteria.py, pruning_cuts.py), a share of the FLOPs by what the layers that read them lose (reconstruction.py). With a
timer a group loses its channels only where the layers that make it get faster; with the means of the network's own
outputs on pictures the readers' biases are corrected (bias_correction.py). What a recipe's stage does after that stands
in least_squares_correction.py and batch_norm_correction.py.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from deploy.errors import GraphError, InputError
from toolchain.activations import ChannelMoments
from toolchain.bias_correction import Means, correct_biases
from toolchain.channel_rules import KERNEL_OPS
from toolchain.channels import Channels, Group, analyse, remove
from toolchain.cost import node_costs
from toolchain.criteria import Criterion, check_finite, layer_scores
from toolchain.graph import Graph, Node
from toolchain.layer_timing import Candidate
from toolchain.pass_report import LayerReport, PassResult
from toolchain.pruning_cuts import Choice, Cut, Policy, choose, to_multiple
from toolchain.reconstruction import Curve, removal_curves, within_flops
from toolchain.shape_rules import Shape
from toolchain.shapes import shapes

#: Times candidates: milliseconds before and after by their names.
Timer = Callable[[Sequence[Candidate]], Mapping[str, tuple[float, float]]]


@dataclasses.dataclass(frozen=True)
class Pruning:
    """What is to go. Raises InputError for a setting outside its range."""

    #: Share of the filters in scope that go, 0 to below 1; None: flops says how many.
    ratio: float | None = None
    #: Share of the graph's FLOPs that stays, above 0 to 1, in place of ratio, criterion, cut and policy.
    flops: float | None = None
    criterion: Criterion = "l2"
    cut: Cut = "slamp"
    #: How layers that share channels decide together.
    policy: Policy = "average"
    #: The number of a layer's channels ends on it; 1 rounds nothing.
    multiple: int = 8

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.flops is None):
            raise InputError("pruning takes a share of the filters or leaves one of the FLOPs; give ratio or flops")
        if self.flops is not None and not (isinstance(self.flops, int | float) and 0 < self.flops <= 1):
            raise InputError(f"pruning leaves a share of the FLOPs above 0, at most 1: {self.flops!r} came; 0.5 halves")
        if self.ratio is not None and not (isinstance(self.ratio, int | float) and 0 <= self.ratio < 1):
            raise InputError(f"pruning's ratio is at least 0 and below 1: {self.ratio!r} came; 0.5 removes half")
        if isinstance(self.multiple, bool) or not isinstance(self.multiple, int) or self.multiple < 1:
            raise InputError(
                f"channels end on a multiple of at least 1: {self.multiple!r} came; 8 suits the kernels, 1 rounds"
                " nothing"
            )
        for field, known in (("criterion", Criterion), ("cut", Cut), ("policy", Policy)):
            if (value := getattr(self, field)) not in typing.get_args(known):
                raise InputError(f"pruning's {field} is one of {', '.join(typing.get_args(known))}: {value!r} came")


def prune(
    graph: Graph,
    chosen: Collection[str],
    settings: Pruning,
    *,
    taylor: Mapping[str, np.ndarray] | None = None,
    moments: Mapping[str, ChannelMoments] | None = None,
    means: Means | None = None,
    timer: Timer | None = None,
) -> PassResult:
    """Removes channels of the chosen layers and of what is tied to them. A ratio of 0 returns the graph itself.

    Args:
        chosen: names of the nodes in scope; others lose no channels of their own, but may read fewer.
        taylor: for the criterion "taylor", by layer (n_out,): see criteria.scored_nodes.
        moments: for flops, of what reconstruction.measured_sources names.
        means: measures the mean of named nodes' channels, to correct biases; None corrects nothing.
        timer: measures layers; with it a group stays pruned only if the layers that make it get faster together.

    Raises InputError where what the criterion needs is not given, and GraphError where no channel can be removed or a
    weight is no finite number.
    """
    channels = analyse(graph, chosen)
    if not channels.free:
        raise GraphError(_nothing_to_prune(graph, channels))
    layers = _makers(channels.free)
    scores: dict[str, np.ndarray] = {}
    curves: dict[Group, Curve] = {}
    if settings.flops is not None:
        if moments is None:
            raise InputError("pruning to a share of the FLOPs looks at pictures: none are given; give some or a ratio")
        check_finite(graph, layers)
        curves = removal_curves(graph, channels, moments)
        choices = within_flops(graph, channels, curves, settings.flops, settings.multiple)
    else:
        assert settings.ratio is not None
        scores = layer_scores(graph, layers, settings.criterion, taylor)
        if settings.ratio == 0:
            reports = _reports(graph, graph, channels, scores, (), {}, {})
            return PassResult(graph, reports, ("a ratio of 0 removes nothing",), _error(settings))
        scale_free = settings.criterion in ("l1", "l2", "geometric_median")
        exact = choose(channels, scores, settings.ratio, settings.cut, settings.policy, scale_free=scale_free)
        choices = tuple(to_multiple(choice, settings.multiple) for choice in exact)
    times: Mapping[str, tuple[float, float]] = {}
    if timer is not None:
        choices, times = _only_faster(graph, channels, choices, timer)
    removed = _removed(choices)
    pruned = remove(graph, channels, removed)
    if means is not None and removed.size:
        pruned = correct_biases(graph, pruned, channels, removed.tolist(), means)
    lost = {layer: 0.0 for group in curves for layer in group.layers}
    for choice in choices:
        if choice.group in curves:
            for layer in choice.group.layers:
                lost[layer] += float(curves[choice.group].errors[int(choice.gone.sum())])
    reports = _reports(graph, pruned, channels, scores, choices, times, lost)
    kept = {name: np.flatnonzero(~np.isin(symbols, removed)) for name, symbols in channels.symbols.items()}
    return PassResult(pruned, reports, _notes(choices, settings), _error(settings), kept)


def _makers(groups: Sequence[Group]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for group in groups for layer in group.layers))


def _nothing_to_prune(graph: Graph, channels: Channels) -> str:
    layers = _makers(channels.groups)
    if not layers:
        return f"pruning needs a layer with filters: {graph.name!r} has none of {', '.join(sorted(KERNEL_OPS))}"
    reason, times = Counter(channels.reason(layer) for layer in layers).most_common(1)[0]
    return (
        f"pruning needs a channel that may go: of {graph.name!r} all {len(layers)} layers that make channels must"
        f" stay, {times} of them because: {reason}; widen the scope"
    )


def _removed(choices: Sequence[Choice]) -> np.ndarray:
    return np.concatenate([choice.group.symbols[choice.gone] for choice in choices])


def _only_faster(
    graph: Graph, channels: Channels, choices: tuple[Choice, ...], timer: Timer
) -> tuple[tuple[Choice, ...], Mapping[str, tuple[float, float]]]:
    """The choices without those whose layers, all together, get no faster; and what was measured of every layer."""
    pruned, extents = remove(graph, channels, _removed(choices)), shapes(graph)
    smaller = shapes(pruned)

    candidates = []
    for layer in _makers([choice.group for choice in choices if choice.gone.any()]):
        (source,) = graph.by_name[layer].inputs
        whole, cut = _alone(graph, layer, extents[source]), _alone(pruned, layer, smaller[source])
        candidates.append(Candidate(layer, whole, cut))
    times = timer(candidates) if candidates else {}
    kept = []
    for choice in choices:
        if choice.gone.any():
            before, after = (math.fsum(times[layer][side] for layer in choice.group.layers) for side in (0, 1))
            if not after < before:
                reason = f"not faster: {after:.3f} ms pruned, {before:.3f} ms whole"
                choice = dataclasses.replace(choice, gone=np.zeros(len(choice.gone), bool), reason=reason)
        kept.append(choice)
    return tuple(kept), times


def _alone(graph: Graph, layer: str, shape: Shape) -> Graph:
    """One layer as a network of its own, which reads an input of the given shape."""
    image = Node(f"{layer}_input", "InputLayer", (), {"shape": list(shape)})
    node = dataclasses.replace(graph.by_name[layer], inputs=(image.name,))
    return Graph(layer, (image, node), (layer,))


def _notes(choices: Sequence[Choice], settings: Pruning) -> tuple[str, ...]:
    def filters(choice: Choice, symbols: int) -> int:
        return symbols * sum(choice.group.widths)

    everything = sum(filters(choice, len(choice.gone)) for choice in choices)
    gone = sum(filters(choice, int(choice.gone.sum())) for choice in choices)
    note = f"{gone:,} of {everything:,} filters that may go are removed, {gone / everything:.1%}"
    if settings.ratio is None or abs(gone / everything - settings.ratio) < 5e-4:
        return (note,)
    return (f"{note}; {settings.ratio:.1%} was asked for, before multiples, equal scores and what stays for its time",)


def _error(settings: Pruning) -> str:
    """What the reports' error is."""
    if settings.flops is None:
        return f"the removed filters' share of the sum of the layer's scores by {settings.criterion}"
    return (
        "to first order, by how much all scores of a picture, and its box logits times their objectness, change when"
        " what reads the removed channels has taken over what it can, squared and summed; layers that lose channels"
        " together share it"
    )


def _reports(
    graph: Graph,
    pruned: Graph,
    channels: Channels,
    scores: Mapping[str, np.ndarray],
    choices: Sequence[Choice],
    times: Mapping[str, tuple[float, float]],
    lost: Mapping[str, float],
) -> tuple[LayerReport, ...]:
    costs, smaller = node_costs(graph), node_costs(pruned)
    reasons = {choice.group: choice.reason for choice in choices}
    removed = _removed(choices) if choices else np.zeros(0, np.int64)
    reports = []
    for node in graph.nodes:
        if node.op not in KERNEL_OPS or not node.weights:
            continue
        name, gone = node.name, np.isin(channels.symbols[node.name], removed)
        reason = channels.reason(name)
        if not gone.any() and not reason:
            said = [reasons.get(group, "the ratio is 0") for group in channels.groups_of(name) if not group.frozen]
            reason = said[0]
        total = float(scores[name].sum()) if name in scores else 0.0
        kernel = node.weights["pointwise_kernel" if node.op == "SeparableConv2D" else _kernel_name(node.weights)]
        reports.append(
            LayerReport(
                name=name,
                op=node.op,
                kernel=tuple(kernel.shape),
                parameters=(costs[name].total, smaller[name].total),
                flops=(costs[name].flops, smaller[name].flops),
                reason="" if gone.any() else reason,
                channels=(len(gone), int((~gone).sum())),
                error=float(scores[name][gone].sum()) / total if total else lost.get(name),
                milliseconds=times.get(name),
            )
        )
    return tuple(reports)


def _kernel_name(weights: Mapping[str, np.ndarray]) -> str:
    return "kernel" if "kernel" in weights else "depthwise_kernel"
