"""What a pass over the graph gives back: the new graph, and for every layer what was done or why it was left alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from toolchain.graph import Graph


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What a pass did with one layer that has a kernel. dataclasses.asdict makes it plain JSON."""

    name: str
    op: str
    #: The kernel's shape before the pass, in Keras's layout.
    kernel: tuple[int, ...]
    #: Of the layer with its bias, or of all that stands in its place: before and after.
    parameters: tuple[int, int]
    #: Operations for one picture, before and after.
    flops: tuple[int, int]
    #: Why it was left alone; "" where it was changed.
    reason: str = ""
    #: Tucker ranks of the input and the output channels.
    ranks: tuple[int, int] | None = None
    #: Output channels before and after.
    channels: tuple[int, int] | None = None
    #: What was lost with the change, in the pass's own measure: PassResult.error.
    error: float | None = None
    #: keep_if_faster: median time of the layer alone on the interpreter, before and after.
    milliseconds: tuple[float, float] | None = None
    #: Share of the kernel's values that are exactly 0, before and after.
    zeros: tuple[float, float] | None = None
    #: How many different values the kernel has, before and after.
    values: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class PassResult:
    """The graph after a pass, a report for every layer with a kernel in graph order, and what else must be known."""

    graph: Graph
    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...] = ()
    #: What the layers' error is, in words for the report; "" where no layer has one.
    error: str = ""
    #: Pruning: by node, (n,) indices of the channels of its output that stayed.
    kept: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    #: What else was measured, as plain JSON.
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def to_json(result: PassResult) -> Mapping[str, Any]:
    """The report of a pass without the graph, as plain JSON."""
    return {
        "layers": [dataclasses.asdict(layer) for layer in result.layers],
        "notes": list(result.notes),
        **({"error": result.error} if result.error else {}),
        **({"facts": dict(result.facts)} if result.facts else {}),
    }
