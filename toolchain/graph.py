"""A detector between its reader and its writer: plain nodes with numpy weights, and a head.

Readers (darknet_reader, keras_reader) make a Graph, passes map Graph to Graph, writers (keras_writer, graph_file)
turn it into something else. Nothing here knows TensorFlow. Values are never changed in place: a pass makes new nodes.

Activations are (height, width, channels) without the batch, channels last. Weights are in Keras layout:
Conv2D kernel (kh, kw, cin/groups, cout), DepthwiseConv2D kernel (kh, kw, cin, multiplier), Dense kernel (in, out).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from deploy.contract import Input, YoloHead
from deploy.errors import GraphError


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of one layer."""

    name: str
    #: Keras's class name of the layer (Conv2D, BatchNormalization, Add, …), or one of ours where Keras has no layer:
    #: see shapes.py for the whole list.
    op: str
    #: Names of the nodes that it reads, in order.
    inputs: tuple[str, ...] = ()
    #: The layer's settings under Keras's names, plain JSON values; tuples are lists.
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: Arrays under Keras's variable names (kernel, bias, gamma, beta, moving_mean, …), in Keras's order.
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    #: Name of the earlier node whose weights this call uses too (a layer called twice); "" where it has its own.
    shared_with: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A network: nodes in an order in which every input stands before its reader.

    Raises GraphError when names repeat, an input is unknown or stands later (a cycle), or an output is no node.
    """

    name: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    #: How pictures enter; None for a network that is no detector, or is not yet described.
    input: Input | None = None
    head: YoloHead | None = None
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            if node.name in seen:
                raise GraphError(f"node names are unique: {node.name!r} stands twice in {self.name!r}; rename one")
            for source in (*node.inputs, *filter(None, [node.shared_with])):
                if source not in seen:
                    raise GraphError(
                        f"a node reads earlier nodes: {node.name!r} reads {source!r}, which is missing, later or part"
                        " of a cycle"
                    )
            seen.add(node.name)
        for output in self.outputs:
            if output not in seen:
                raise GraphError(f"an output is a node: {output!r} is none of {self.name!r}'s {len(self.nodes)} nodes")

    @functools.cached_property
    def by_name(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}

    @functools.cached_property
    def readers(self) -> Mapping[str, tuple[Node, ...]]:
        """For every node the nodes that read it, in graph order, once for each node."""
        found: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(node.inputs):
                found[source].append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}


def owner(graph: Graph, node: Node) -> Node:
    """The node whose weights a node uses: itself, or, at the end of shared_with, another."""
    while node.shared_with:
        node = graph.by_name[node.shared_with]
    return node


def reachable(graph: Graph) -> Graph:
    """The graph without the nodes that no output depends on; input layers stay."""
    wanted = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.name in wanted or node.op == "InputLayer":
            wanted.update((node.name, *node.inputs, *filter(None, [node.shared_with])))
    return dataclasses.replace(graph, nodes=tuple(node for node in graph.nodes if node.name in wanted))


def replace_nodes(graph: Graph, replacements: Mapping[str, Iterable[Node]]) -> Graph:
    """The graph with each named node replaced, in place, by the given ones. The last of them must carry the old name,
    or every reader must have been renamed by the caller; Graph's own check tells if not."""
    nodes = [new for node in graph.nodes for new in replacements.get(node.name, (node,))]
    return dataclasses.replace(graph, nodes=tuple(nodes))


def replace_layers(graph: Graph, replacements: Mapping[str, Sequence[Node]]) -> Graph:
    """The graph with each named node replaced, in place, by a chain of new ones: whatever read the old one, or named it
    as an output, of the graph or of its head, has the last of them instead.

    Raises GraphError where a new name is taken, or the weights of a replaced node are shared.
    """
    last = {name: chain[-1].name for name, chain in replacements.items()}
    nodes = []
    for node in graph.nodes:
        for new in replacements.get(node.name, (node,)):
            inputs = tuple(last.get(name, name) for name in new.inputs)
            nodes.append(new if inputs == new.inputs else dataclasses.replace(new, inputs=inputs))
    return with_outputs_renamed(graph, nodes, last)


def with_outputs_renamed(graph: Graph, nodes: Sequence[Node], names: Mapping[str, str]) -> Graph:
    """The graph with other nodes, where outputs, its own and its head's, go by the new names that some have."""
    head = graph.head
    if head is not None:
        scales = [
            dataclasses.replace(scale, outputs={role: names.get(name, name) for role, name in scale.outputs.items()})
            for scale in head.scales
        ]
        head = dataclasses.replace(head, scales=tuple(scales))
    outputs = tuple(names.get(name, name) for name in graph.outputs)
    return dataclasses.replace(graph, nodes=tuple(nodes), outputs=outputs, head=head)


def plain(value: Any) -> Any:
    """The value as plain JSON: tuples and arrays become lists, numpy's scalars Python's. Raises TypeError for all
    else."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    raise TypeError(f"{value!r} is no plain JSON value")
