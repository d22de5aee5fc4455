"""Which nodes of a file an accelerator computes, and which ones it left."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

#: The node that stands for those that a delegate took.
_STAND_IN = "DELEGATE"


@dataclasses.dataclass(frozen=True)
class Left:
    """Nodes of one type that the accelerator does not compute."""

    op: str
    count: int
    #: In the runtime's own words; None where it tells none.
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Delegated:
    """What XNNPACK, a GPU or an external delegate computes of a file."""

    #: How many of the file's nodes the accelerator computes, and how many there are.
    nodes: int
    total: int
    left: tuple[Left, ...] = ()
    #: Of a GPU its name, "unavailable" where the runtime does not tell; None elsewhere.
    adapter: str | None = None
    #: Whether the GPU is a program on the processor, whose time says nothing of a GPU; None where that is not known.
    software: bool | None = None

    @property
    def state(self) -> Literal["all", "part", "none"]:
        return "none" if not self.nodes else "all" if self.nodes == self.total else "part"

    def as_json(self) -> dict[str, Any]:
        """{"state", "left": [{"op", "count", "reason"}], "adapter", "software"}; "unavailable" for what a GPU or a
        delegate does not tell, null where there is no GPU."""
        left = [{"op": one.op, "count": one.count, "reason": one.reason or "unavailable"} for one in self.left]
        software = "unavailable" if self.adapter is not None and self.software is None else self.software
        return {"state": self.state, "left": left, "adapter": self.adapter, "software": software}

    def __str__(self) -> str:
        words = f"{self.nodes} of {self.total} nodes"
        if self.adapter is not None:
            words += f" on {self.adapter}{' (software)' if self.software else ''}"
        return f"{words}; left: {listed(self.left)}" if self.left else words


def listed(left: Sequence[Left]) -> str:
    """For a reader: TILE x2 (its reason), ADD."""
    counted = ((one, f"{one.op} x{one.count}" if one.count > 1 else one.op) for one in left)
    return ", ".join(f"{words} ({one.reason})" if one.reason else words for one, words in counted)


def delegated(operations: Sequence[Mapping[str, Any]], stand_ins: Collection[int] | None = None) -> Delegated:
    """What delegates took of the interpreter's operations, by its own list of them. stand_ins: indices of the nodes
    that stand for what was taken; those of every delegate where None."""
    # A node named DELEGATE stands for those between its inputs and its outputs, which stay in the list.
    own = [operation for operation in operations if operation["op_name"] != _STAND_IN]
    maker = {int(output): operation for operation in own for output in operation["outputs"]}
    taken: set[int] = set()
    for node in operations:
        if node["op_name"] != _STAND_IN or (stand_ins is not None and node["index"] not in stand_ins):
            continue
        border = {int(tensor) for tensor in node["inputs"]}
        waiting = [int(tensor) for tensor in node["outputs"]]
        while waiting:
            tensor = waiting.pop()
            if tensor in maker and tensor not in border and maker[tensor]["index"] not in taken:
                taken.add(maker[tensor]["index"])
                waiting += [int(source) for source in maker[tensor]["inputs"]]
    rest = collections.Counter(operation["op_name"] for operation in own if operation["index"] not in taken)
    return Delegated(len(taken), len(own), tuple(Left(name, count) for name, count in rest.items()))


def stand_ins(operations: Sequence[Mapping[str, Any]]) -> frozenset[int]:
    """Indices of the nodes that stand for what delegates took so far."""
    return frozenset(operation["index"] for operation in operations if operation["op_name"] == _STAND_IN)
