"""Which channels go so that a network keeps a share of its FLOPs and its detections change least.

Convolutions read channels x with covariance C over pictures and positions. When some are removed, and the others take
over what they can of them by regression (least_squares_correction.py does it), what is read is off by the regression's
rest e. To first order the detections change by Σ a·e, with a their slopes in x (activations.ChannelMoments), and the
mean of its square has a closed form. With S = E[a a^T] and P = C^-1, removing the channels b adds
    ΔE = trace(P_bb^-1 S_bb),    then    S -= P_:b P_bb^-1 S_b: and its transpose's,    P -= P_:b P_bb^-1 P_b:
(Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon", equation 5; channels in
place of single weights: Frantar and Alistarh 2022, "Optimal Brain Compression", section 4; there S is W W^T, and every
output of the layer counts alike). Both moments are those of the places where detections are made. A group of channels
loses one after another, always the one whose ΔE, summed over all that reads it, is the least: that gives its curve of
error against channels. Then channels go where the next multiple of them costs the least error for each operation that
it saves, until the share of the FLOPs is reached.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from deploy.errors import GraphError
from toolchain.activations import ChannelMoments
from toolchain.channel_rules import KERNEL_OPS, is_per_channel
from toolchain.channels import Channels, Group, remove
from toolchain.cost import cost, node_costs
from toolchain.graph import Graph, Node
from toolchain.least_squares_correction import RIDGE, can_fold
from toolchain.pruning_cuts import Choice


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """What the detections lose with a group of channels, by how many of its symbols are gone; prune.py reports it as
    the error of the layers that make them."""

    #: (n - 1,) places in the group's symbols, in the order in which they go.
    order: np.ndarray
    #: (n,) error after that many have gone: E[(Σ a·e)²] above.
    errors: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _Source:
    """What convolutions read."""

    #: Of its channels.
    symbols: np.ndarray
    #: P, (channels, channels).
    inverse: np.ndarray
    #: S, (channels, channels).
    slopes: np.ndarray


def measured_sources(graph: Graph, channels: Channels) -> list[str]:
    """The nodes whose moments removal_curves needs: what convolutions read of channels that may go."""
    free = [group for group in channels.free if not unmeasured(graph, channels, group)]
    symbols = np.concatenate([group.symbols for group in free]) if free else np.zeros(0, np.int64)
    return _sources(graph, channels, symbols)


def unmeasured(graph: Graph, channels: Channels, group: Group) -> str:
    """Why what the group's channels are to their readers cannot be measured; "" where it can."""
    for node in _readers(graph, channels, group.symbols):
        if not can_fold(graph, node):
            return f"read by {node.name!r}, a {node.op} that no regression can make up for"
    return ""


def _readers(graph: Graph, channels: Channels, symbols: np.ndarray) -> list[Node]:
    """The layers with a kernel over the channels that they read."""
    return [
        node
        for node in graph.nodes
        if node.op in KERNEL_OPS
        and not is_per_channel(node, len(channels.symbols[node.inputs[0]]))
        and np.isin(channels.symbols[node.inputs[0]], symbols).any()
    ]


def _sources(graph: Graph, channels: Channels, symbols: np.ndarray) -> list[str]:
    return list(dict.fromkeys(node.inputs[0] for node in _readers(graph, channels, symbols)))


def removal_curves(
    graph: Graph, channels: Channels, moments: Mapping[str, ChannelMoments]
) -> dict[Group, Curve]:
    """The curve of every group in channels.free that can be measured. moments: of measured_sources(graph, channels)."""
    looked = {name: _source(channels.symbols[name], moments[name]) for name in measured_sources(graph, channels)}
    groups = [group for group in channels.free if not unmeasured(graph, channels, group)]
    return {
        group: _curve(group, [looked[name] for name in _sources(graph, channels, group.symbols)]) for group in groups
    }


def _source(symbols: np.ndarray, moments: ChannelMoments) -> _Source:
    covariance = moments.covariance
    covariance[np.diag_indices_from(covariance)] += RIDGE * np.trace(covariance) / len(covariance) or 1.0
    return _Source(symbols, np.linalg.inv(covariance), moments.slopes)


def _curve(group: Group, sources: Sequence[_Source]) -> Curve:
    count = len(group.symbols)
    states = [(_places(group.symbols, one.symbols), one.inverse.copy(), one.slopes.copy()) for one in sources]
    alive = np.ones(count, bool)
    order, errors = np.zeros(count - 1, np.int64), np.zeros(count)
    for step in range(count - 1):
        costs = np.zeros(count)
        for places, inverse, slopes in states:
            costs += _costs(places, alive, inverse, slopes)
        costs[~alive] = np.inf
        gone = order[step] = int(costs.argmin())
        errors[step + 1] = errors[step] + max(float(costs[gone]), 0.0)
        alive[gone] = False
        for places, inverse, slopes in states:
            if len(places[gone]):
                _take_out(places[gone], inverse, slopes)
    return Curve(order, errors)


def _places(symbols: np.ndarray, read: np.ndarray) -> list[np.ndarray]:
    """For every symbol the channels that a layer reads of it: several where it reads a concatenation."""
    return [np.flatnonzero(read == symbol) for symbol in symbols]


def _costs(places: Sequence[np.ndarray], alive: np.ndarray, inverse: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """(n,) ΔE of each symbol that is alive, 0 for the others and for those that are not read."""
    found = np.zeros(len(places))
    widths = np.array([len(one) for one in places])
    for width in np.unique(widths[alive & (widths > 0)]).tolist():
        which = np.flatnonzero(alive & (widths == width))
        block = np.stack([places[index] for index in which.tolist()])
        rows, columns = block[:, :, None], block[:, None, :]
        if width == 1:
            found[which] = (slopes[rows, columns] / inverse[rows, columns])[:, 0, 0]
        else:
            found[which] = np.trace(np.linalg.solve(inverse[rows, columns], slopes[rows, columns]), axis1=1, axis2=2)
    return found


def _take_out(block: np.ndarray, inverse: np.ndarray, slopes: np.ndarray) -> None:
    """Takes channels out of P and S, in place."""
    weights = np.linalg.solve(inverse[np.ix_(block, block)], inverse[block]).T
    gone = slopes[block]
    slopes -= weights @ gone
    slopes -= slopes[:, block] @ weights.T
    inverse -= weights @ inverse[block]
    for array in (inverse, slopes):
        array[block] = 0.0
        array[:, block] = 0.0


def within_flops(
    graph: Graph, channels: Channels, curves: Mapping[Group, Curve], share: float, multiple: int
) -> tuple[Choice, ...]:
    """For every group of channels.free what goes, so that at most this share of the graph's FLOPs is left.

    multiple: the number of a layer's channels ends on it; of every layer at least one multiple stays. Groups without a
    curve stay whole.

    Raises GraphError where the share cannot be reached, naming what can.
    """
    every = cost(graph).flops
    saving = _Saving(graph, channels)
    steps = {group: _step(group, multiple) for group in curves}
    left = {group: len(group.symbols) for group in curves}

    def next_size(group: Group) -> int:
        return (left[group] - 1) // steps[group] * steps[group]

    def choices() -> tuple[Choice, ...]:
        return tuple(_choice(graph, channels, group, curves.get(group), left) for group in channels.free)

    while True:
        if saving.flops(left) <= share * every:
            found = choices()
            removed = np.concatenate([choice.group.symbols[choice.gone] for choice in found])
            exact = cost(remove(graph, channels, removed.tolist())).flops
            if exact <= share * every:
                return found
        best, best_rate = None, math.inf
        for group, curve in curves.items():
            size = next_size(group)
            if size < steps[group]:
                continue
            count = len(group.symbols)
            error = curve.errors[count - size] - curve.errors[count - left[group]]
            rate = error / max(saving.flops(left) - saving.flops({**left, group: size}), 1e-9)
            if rate < best_rate:
                best, best_rate = group, rate
        if best is None:
            raise GraphError(
                f"pruning to a share of the FLOPs leaves at least {multiple} channels of every layer: of {graph.name!r}"
                f" {saving.flops(left) / every:.3f} is the least in this scope, and {share:g} came; widen the scope or"
                " ask for more"
            )
        left[best] = next_size(best)


def _step(group: Group, multiple: int) -> int:
    """Symbols in the smallest number of them that is a multiple of channels in every layer of the group."""
    return math.lcm(*(multiple // math.gcd(multiple, width) for width in group.widths))


def _choice(
    graph: Graph, channels: Channels, group: Group, curve: Curve | None, left: Mapping[Group, int]
) -> Choice:
    count = len(group.symbols)
    gone = np.zeros(count, bool)
    if curve is None:
        return Choice(group, gone, np.zeros(count), unmeasured(graph, channels, group))
    gone[curve.order[: count - left[group]]] = True
    # What stays longest matters most.
    ranks = np.full(count, count - 1.0)
    ranks[curve.order] = np.arange(count - 1)
    return Choice(group, gone, ranks, "" if gone.any() else "others save the same at a smaller error")


class _Saving:
    """The graph's FLOPs with fewer channels: those of a layer go with what it reads times what it makes."""

    def __init__(self, graph: Graph, channels: Channels) -> None:
        self._groups = list(channels.free)
        costs = node_costs(graph)
        nodes = [node for node in graph.nodes if costs[node.name].flops]
        self._flops = np.array([costs[node.name].flops for node in nodes], np.float64)
        self._made = np.stack([self._shares(channels.symbols[node.name]) for node in nodes])
        self._read = np.stack([self._shares(self._reads(node, channels)) for node in nodes])

    @staticmethod
    def _reads(node: Node, channels: Channels) -> np.ndarray:
        """The symbols whose number multiplies the layer's work beside those that it makes."""
        if node.op not in KERNEL_OPS or is_per_channel(node, len(channels.symbols[node.inputs[0]])):
            return np.zeros(0, np.int64)
        return channels.symbols[node.inputs[0]]

    def _shares(self, symbols: np.ndarray) -> np.ndarray:
        """(groups,): which share of the symbols is each group's."""
        counts = [np.isin(symbols, group.symbols).sum() for group in self._groups]
        return np.array(counts, np.float64) / max(len(symbols), 1)

    def flops(self, left: Mapping[Group, int]) -> float:
        """With so many symbols left of some groups and all of the others."""
        gone = np.array([1 - left.get(group, len(group.symbols)) / len(group.symbols) for group in self._groups])
        return float(np.sum(self._flops * (1 - self._made @ gone) * (1 - self._read @ gone)))
