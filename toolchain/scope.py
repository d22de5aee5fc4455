"""Which nodes a pass may change: names, shell patterns, regular expressions, types and ranges, to include and exclude.

    conv2d_36                             a node's name
    conv2d_*_tucker_?                     a shell pattern: * any letters, ? one, [ab] one of these
    re:conv2d_(20|28|36)                  a regular expression that matches the whole name
    type:DepthwiseConv2D                  every node of that op
    block1a_se_reduce ~ block7b_add       from one node to another in the graph's order, both included

In scope is what an include pattern takes (everything, where there is none) and no exclude pattern does. A pattern that
takes nothing is an error and never passed over: a misspelt exclusion would compress what must stay.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from deploy.errors import InputError
from toolchain.graph import Graph
from toolchain.nearest import nearest

#: Longer regular expressions are no names any more.
_LONGEST = 500


def select(graph: Graph, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> frozenset[str]:
    """Names of the nodes in scope.

    Raises InputError for a pattern that is malformed or takes nothing, and where nothing is left.
    """
    names = [node.name for node in graph.nodes]
    chosen = set[str]().union(*(_matches(graph, pattern) for pattern in include)) if include else set(names)
    chosen -= set[str]().union(*(_matches(graph, pattern) for pattern in exclude))
    if not chosen:
        raise InputError(
            f"a scope leaves something to work on: include {list(include) or 'everything'} without exclude"
            f" {list(exclude)} is none of {graph.name!r}'s {len(names)} nodes; exclude less"
        )
    return frozenset(chosen)


def _matches(graph: Graph, pattern: str) -> set[str]:
    names = [node.name for node in graph.nodes]
    first, separator, last = pattern.partition(" ~ ")
    if separator:
        return _range(graph, first.strip(), last.strip(), pattern)
    if pattern.startswith("type:"):
        op = pattern.removeprefix("type:").strip()
        ops = sorted({node.op for node in graph.nodes})
        found = {node.name for node in graph.nodes if node.op == op}
        return _something(found, pattern, nearest(op, ops) or f"; its types are {', '.join(ops)}", graph)
    if pattern.startswith("re:"):
        expression = _compiled(pattern)
        found = {name for name in names if expression.fullmatch(name)}
        return _something(found, pattern, "; it must match a whole name", graph)
    if any(letter in pattern for letter in "*?["):
        return _something({name for name in names if fnmatch.fnmatchcase(name, pattern)}, pattern, "", graph)
    return _something({pattern} & set(names), pattern, nearest(pattern, names), graph)


def _something(found: set[str], pattern: str, advice: str, graph: Graph) -> set[str]:
    if not found:
        raise InputError(
            f"a pattern of a scope takes at least one node: {pattern!r} is none of {graph.name!r}'s"
            f" {len(graph.nodes)}{advice or '; `slimdet inspect` lists them'}"
        )
    return found


def _range(graph: Graph, first: str, last: str, pattern: str) -> set[str]:
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    for end in (first, last):
        if end not in places:
            raise InputError(
                f"a range `A ~ B` is between two nodes: {end!r} of {pattern!r} is none of"
                f" {graph.name!r}'s{nearest(end, list(places)) or '; `slimdet inspect` lists them'}"
            )
    if places[first] > places[last]:
        raise InputError(
            f"a range `A ~ B` follows the graph's order: in {graph.name!r} {last!r} stands before {first!r}; write"
            f" {last} ~ {first}"
        )
    return {node.name for node in graph.nodes[places[first] : places[last] + 1]}


def _compiled(pattern: str) -> re.Pattern[str]:
    text = pattern.removeprefix("re:").strip()
    if len(text) > _LONGEST:
        raise InputError(
            f"a regular expression has at most {_LONGEST} letters: {text[:40]}… has {len(text)}; shorten it"
        )
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(
            f"a pattern after re: is a regular expression: {text!r} is not ({error}); correct it"
        ) from error
