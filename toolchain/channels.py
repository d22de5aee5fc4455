"""Which channels of a network go or stay together, and the network without some of them.

Every channel of every output is a symbol (channel_rules.py); symbols that a sum, a product or a grouped convolution
ties are one. Removing a symbol removes that channel wherever it is: the filter that makes it, its parameters in batch
norms and depthwise convolutions, and the slice of every kernel that reads it. This is exact: the pruned network
computes what the old one would with those slices zeroed. Concatenations, residual sums, squeeze-excite, SPP, PAN
and routes of a part of the channels need no case of their own.
Structured pruning of such dependency groups: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from deploy.errors import GraphError
from toolchain.channel_rules import (
    KERNEL_OPS,
    Symbols,
    Tracing,
    is_per_channel,
    normalizes_channels,
    slices_channels,
    trace,
)
from toolchain.graph import Graph, Node, owner
from toolchain.shape_rules import Shape
from toolchain.shapes import shapes


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Symbols that the same layers make, and that pass through the same slices of channels."""

    #: The layers that make them, in graph order.
    layers: tuple[str, ...]
    #: For each layer, how many of its channels one symbol is: as many as there are groups, for the input or output
    #: of a grouped convolution, else 1.
    widths: tuple[int, ...]
    #: (n,) int64, ascending.
    symbols: Symbols
    #: The node that keeps them from being removed, and why, as in "'conv_3' is an output of the network"; "" where
    #: nothing does.
    blocker: str = ""
    why: str = ""

    @property
    def name(self) -> str:
        """Its first layer's; a layer whose channels are sliced is in several groups."""
        return self.layers[0]

    @property
    def channels(self) -> int:
        """Channels of its first layer in this group."""
        return len(self.symbols) * self.widths[0]

    @property
    def frozen(self) -> str:
        """Why none of it can be removed; "" where some can."""
        return f"{self.blocker!r} is {self.why}" if self.why else ""


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """The symbols of a graph's nodes and the groups in which they can be removed."""

    #: Of every node's output, (C,) int64.
    symbols: Mapping[str, Symbols]
    #: In the graph order of their first layers.
    groups: tuple[Group, ...]
    #: Nodes that keep channels from being removed, with the reason.
    blockers: Mapping[str, str]

    @property
    def free(self) -> tuple[Group, ...]:
        """The groups of which something can be removed."""
        return tuple(group for group in self.groups if not group.frozen)

    @functools.cached_property
    def _group_of(self) -> Mapping[int, Group]:
        return {symbol: group for group in self.groups for symbol in group.symbols.tolist()}

    def groups_of(self, node: str) -> tuple[Group, ...]:
        """The groups of the channels of a node's output, in the order of the channels."""
        found = (self._group_of.get(symbol) for symbol in self.symbols[node].tolist())
        return tuple(dict.fromkeys(group for group in found if group is not None))

    def reason(self, node: str) -> str:
        """Why no channel of a node's output can be removed; "" where one can."""
        if node in self.blockers:
            return self.blockers[node]
        groups = self.groups_of(node)
        if not groups:
            return "its channels are those of an input of the network"
        if any(not group.frozen for group in groups):
            return ""
        return f"tied to {groups[0].blocker!r}, which is {groups[0].why}"


def analyse(graph: Graph, chosen: Collection[str]) -> Channels:
    """The groups of channels of a graph; of the layers with a kernel only those in chosen may lose channels.

    A layer that is not chosen may still read fewer channels. Raises GraphError where a shape is not known.
    """
    tracing, outputs, shared = Tracing(shapes(graph)), _outputs(graph), _shared(graph)
    for node in graph.nodes:
        symbols = tracing.symbols[node.name] = trace(node, tracing)
        if node.name in outputs:
            tracing.freeze(node, "an output of the network", symbols)
        if node.op in KERNEL_OPS and node.name not in chosen:
            tracing.freeze(node, "left out by the scope", symbols)
        if node.name in shared:
            read = [tracing.symbols[name] for name in node.inputs]
            tracing.freeze(node, "a layer that is called more than once", *read, symbols)
    roots = _components(tracing)
    # Of what freezes a symbol the first thing counts, and of what a node says of itself.
    blockers: dict[str, str] = {}
    for freeze in tracing.freezes:
        blockers.setdefault(freeze.node, freeze.why)
    found = {name: roots[symbols] for name, symbols in tracing.symbols.items()}
    return Channels(found, _groups(tracing, roots), blockers)


def remove(graph: Graph, channels: Channels, removed: Iterable[int]) -> Graph:
    """The graph without some symbols of its free groups; of no symbols, the graph itself.

    Args:
        channels: what analyse says of this graph.
        removed: symbols of channels.free; of every group at least one stays.

    Raises GraphError for a symbol that must stay.
    """
    gone = np.unique(np.fromiter(removed, np.int64))
    if not gone.size:
        return graph
    _check_removable(graph, channels, gone)
    keeps = {name: ~np.isin(symbols, gone) for name, symbols in channels.symbols.items()}
    extents = shapes(graph)
    nodes = [
        _without(node, [keeps[name] for name in node.inputs], keeps[node.name], extents) for node in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _check_removable(graph: Graph, channels: Channels, gone: Symbols) -> None:
    removable: set[int] = set()
    for group in channels.free:
        symbols = set(group.symbols.tolist())
        if symbols <= set(gone.tolist()):
            raise GraphError(
                f"a layer keeps at least one channel: of {group.name!r} in {graph.name!r} all {group.channels} would"
                " go; remove fewer"
            )
        removable |= symbols
    others = sorted(set(gone.tolist()) - removable)
    if others:
        raise GraphError(
            f"only channels of free groups are removed: {len(others)} of {len(gone)} symbols are none of"
            f" {graph.name!r}; take them from channels.free"
        )


def _outputs(graph: Graph) -> frozenset[str]:
    scales = graph.head.scales if graph.head is not None else ()
    return frozenset(graph.outputs).union(*(scale.outputs.values() for scale in scales))


def _shared(graph: Graph) -> frozenset[str]:
    """Nodes that use one layer's weights together."""
    calls = [node for node in graph.nodes if node.shared_with]
    return frozenset(node.name for node in calls) | {owner(graph, node).name for node in calls}


def _components(tracing: Tracing) -> np.ndarray:
    """For every symbol the smallest one that it is tied to."""
    lowest = np.arange(tracing.count)
    if not tracing.ties:
        return lowest
    first, second = (np.concatenate([tie[side] for tie in tracing.ties]) for side in (0, 1))
    while True:
        low = np.minimum(lowest[first], lowest[second])
        if np.array_equal(lowest[first], lowest[second]):
            return lowest
        np.minimum.at(lowest, lowest[first], low)
        np.minimum.at(lowest, lowest[second], low)
        while not np.array_equal(lowest, lowest[lowest]):
            lowest = lowest[lowest]


def _groups(tracing: Tracing, roots: np.ndarray) -> tuple[Group, ...]:
    makers: dict[int, list[tuple[str, int]]] = {}
    for layer, symbols in tracing.made.items():
        for root, width in zip(*(part.tolist() for part in np.unique(roots[symbols], return_counts=True)), strict=True):
            makers.setdefault(root, []).append((layer, width))
    slices: dict[int, list[str]] = {}
    for name, symbols in tracing.cuts.items():
        for root in np.unique(roots[symbols]).tolist():
            slices.setdefault(root, []).append(name)
    frozen: dict[int, tuple[str, str]] = {}
    for freeze in tracing.freezes:
        for root in np.unique(roots[freeze.symbols]).tolist():
            frozen.setdefault(root, (freeze.node, freeze.why))
    # Through a slice of its own a group never is empty: of every group something stays.
    members: dict[tuple[tuple[tuple[str, int], ...], tuple[str, ...], tuple[str, str]], list[int]] = {}
    for root, made in makers.items():
        key = (tuple(made), tuple(slices.get(root, ())), frozen.get(root, ("", "")))
        members.setdefault(key, []).append(root)
    found = []
    for (layers, _, (blocker, why)), together in members.items():
        names, widths = tuple(name for name, _ in layers), tuple(width for _, width in layers)
        found.append(Group(names, widths, np.array(sorted(together)), blocker, why))
    return tuple(found)


def _without(node: Node, reads: list[np.ndarray], keep: np.ndarray, extents: Mapping[str, Shape]) -> Node:
    """The node with the channels that stay; reads and keep are masks of its inputs' and its output's channels."""
    if keep.all() and all(mask.all() for mask in reads):
        return node
    attributes, weights = dict(node.attributes), dict(node.weights)
    rank = len(extents[node.name])
    match node.op:
        case "Conv2D" | "DepthwiseConv2D" | "SeparableConv2D" | "Conv2DTranspose" | "Dense":
            weights = _kernels(node, reads[0], keep)
            attributes |= {name: int(keep.sum()) for name in ("filters", "units") if name in attributes}
            if node.op == "Conv2D" and is_per_channel(node, len(reads[0])):
                attributes["groups"] = int(reads[0].sum())
        case "BatchNormalization" if normalizes_channels(node, rank):
            weights = {name: np.asarray(array[keep]) for name, array in weights.items()}
        case "PReLU" if weights["alpha"].shape[-1] == len(keep):
            weights["alpha"] = np.ascontiguousarray(weights["alpha"][..., keep])
        case "Slice" if slices_channels(node, rank):
            before = int(reads[0][: int(attributes["start"])].sum())
            attributes |= {"start": before, "stop": before + int(keep.sum())}
        case "Reshape" if attributes["target_shape"][-1] != -1:
            attributes["target_shape"] = [*attributes["target_shape"][:-1], int(keep.sum())]
    return dataclasses.replace(node, attributes=attributes, weights=weights)


def _kernels(node: Node, read: np.ndarray, keep: np.ndarray) -> dict[str, np.ndarray]:
    """The weights of a layer with a kernel."""

    def cut(name: str, array: np.ndarray) -> np.ndarray:
        if name == "bias":
            return np.asarray(array[keep])
        match node.op:
            case "Dense":
                return np.asarray(array[read][:, keep])
            case "Conv2DTranspose":
                return np.asarray(array[:, :, keep][..., read])
            case "SeparableConv2D" if name == "pointwise_kernel":
                return np.asarray(array[:, :, np.repeat(read, array.shape[2] // len(read))][..., keep])
            case "DepthwiseConv2D" | "SeparableConv2D":
                return np.asarray(array[:, :, read])
            case "Conv2D" if is_per_channel(node, len(read)):
                return np.asarray(array[..., keep])
        # Every group loses the same places.
        places = read.reshape(int(node.attributes.get("groups", 1)), -1)[0]
        return np.asarray(array[:, :, places][..., keep])

    return {name: np.ascontiguousarray(cut(name, array)) for name, array in node.weights.items()}
