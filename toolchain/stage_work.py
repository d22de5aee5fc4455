"""What a stage of a build is given, and the network that it leaves.

Little stands here, since every stage's result depends on it: a change of it makes all of them anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from toolchain import graph_file
from toolchain.cache import Checkpoint, Result, Source
from toolchain.graph import Graph

#: Plain JSON.
Facts = Mapping[str, Any]

GRAPH = "graph.zip"
SCENES = "scenes"
#: Of a pruned network: by batch norm, the indices of its channels in the network before.
KEPT = "kept.npz"


class Progress(Protocol):
    """Told while a stage works."""

    def __call__(self, done: float, total: float, text: str = "", /) -> None:
        """How much is done, and of how much, 0 where that is not known; text in place of the share and the time left
        that follow from it."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What one run of a stage has, and where it writes."""

    #: Plain JSON.
    settings: Mapping[str, Any]
    inputs: Mapping[str, Source]
    out: Path
    progress: Progress
    #: Of a stage that trains.
    checkpoint: Checkpoint | None = None

    def path(self, name: str) -> Path:
        """An input that is one file or folder."""
        source = self.inputs[name]
        assert isinstance(source, Path)
        return source

    def paths(self, name: str) -> tuple[Path, ...]:
        """An input that is several files; () where the job has none of that name."""
        source = self.inputs.get(name, ())
        assert isinstance(source, tuple)
        return source

    def file(self, name: str, inside: str) -> Path:
        """A file of an input that is an earlier result."""
        source = self.inputs[name]
        assert isinstance(source, Result)
        return source.file(inside)

    def graph(self, name: str = "graph") -> Graph:
        """The network that an earlier stage left."""
        return graph_file.load(self.file(name, GRAPH))


def save(graph: Graph, out: Path) -> dict[str, Any]:
    """Writes the graph and returns what the report says of it."""
    graph_file.save(graph, out / GRAPH)
    return graph_facts(graph)


def graph_facts(graph: Graph) -> dict[str, Any]:
    """Name, input, class count, parameters and FLOPs of a graph as plain JSON."""
    from toolchain.cost import cost

    found = cost(graph)
    return {
        "model": graph.name,
        "trainable": found.trainable,
        "non_trainable": found.non_trainable,
        "flops": found.flops,
        "flops_unknown": list(found.flops_unknown),
        "input": [graph.input.height, graph.input.width] if graph.input else None,
        "classes": len(graph.labels),
    }
