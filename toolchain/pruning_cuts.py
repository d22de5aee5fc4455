"""Which channels go: from the scores of every layer's filters to the symbols that are removed.

    uniform  of every group of channels the same share, to the nearest whole channel
    global   one threshold over all layers. l1, l2 and the geometric median are divided by the layer's root mean square
             first, since kernels of other sizes have other norms (Molchanov et al. 2017, "Pruning Convolutional Neural
             Networks for Resource Efficient Inference"); bn_scale and taylor are compared as they are
    slamp    one threshold over all layers, of each filter's share in what its layer still has when all weaker ones are
             gone: with the scores s of a layer ascending, score(u) = s_u² / sum of s_v² over v >= u. Its strongest
             filter always has 1. Structured form of Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based
             Pruning" (LAMP)

Filters that score as a threshold does stay: of equal ones none is worse. So at most the share that is asked for goes.
Layers that make a group together each have their say: by average, sum or maximum of their scores, or each decides by
itself and a channel goes where any layer (union) or only where all of them (intersection) would let it go. Where
one of a layer's symbols stands for several of its filters (grouped convolutions), its score is their mean.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from toolchain.channels import Channels, Group

Cut = Literal["slamp", "uniform", "global"]
Policy = Literal["average", "sum", "maximum", "union", "intersection"]

#: Scores nearer to each other than this share are equal: sums of squares of equal filters differ by their rounding.
_EQUAL = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """What goes of one group."""

    group: Group
    #: (n,) bool, in the order of the group's symbols; of every group at least one stays.
    gone: np.ndarray
    #: (n,) float64, what the layers say together: the larger, the better a channel.
    scores: np.ndarray
    #: Why nothing goes; "" where something does.
    reason: str = ""


def choose(
    channels: Channels, scores: Mapping[str, np.ndarray], ratio: float, cut: Cut, policy: Policy, *, scale_free: bool
) -> tuple[Choice, ...]:
    """For every group of channels.free what goes.

    Args:
        scores: by layer (n_out,), at least 0, of all layers in channels.free.
        ratio: share of these layers' filters in channels.free, 0 to below 1.
        scale_free: whether the cuts uniform and global divide scores by their layer's root mean square.
    """
    by_symbol = {}
    for layer, values in scores.items():
        symbols, mean = _symbol_means(channels.symbols[layer], values)
        by_symbol[layer] = symbols, lamp(mean) if cut == "slamp" else _scaled(mean) if scale_free else mean
    # (layers, n) of each group.
    said = [np.stack([_looked_up(by_symbol[layer], group) for layer in group.layers]) for group in channels.free]
    if cut == "uniform":
        gone = [_uniform(rows, ratio, policy) for rows in said]
    else:
        gone = _below_threshold(said, [group.widths for group in channels.free], ratio, policy)
    choices = []
    for group, rows, mask in zip(channels.free, said, gone, strict=True):
        together = combined(rows, policy)
        mask = _worst(mask, together, min(int(mask.sum()), len(mask) - 1))
        choices.append(Choice(group, mask, together, "" if mask.any() else "no channel is below the cut"))
    return tuple(choices)


def to_multiple(choice: Choice, multiple: int) -> Choice:
    """The choice with as many channels left as is the nearest multiple, of two the larger, in every layer of the group:
    at least one multiple, and where there are no more channels than that, all of them."""
    group, count = choice.group, len(choice.gone)
    step = math.lcm(*(multiple // math.gcd(multiple, width) for width in group.widths))
    if choice.reason or multiple == 1:
        return choice
    left = count - int(choice.gone.sum())
    rounded = max(1, (2 * left + step) // (2 * step)) * step
    if rounded < count:
        return dataclasses.replace(choice, gone=_worst(choice.gone, choice.scores, count - rounded))
    if count < step:
        reason = f"{group.channels} channels are fewer than the multiple of {multiple} on which they must end"
    else:
        of, width = group.channels, group.widths[0]
        reason = f"{left * width} of {of} channels would be left, which to a multiple of {multiple} are all of them"
    return dataclasses.replace(choice, gone=np.zeros(count, bool), reason=reason)


def lamp(scores: np.ndarray) -> np.ndarray:
    """(n,): of each score's square the share in the sum of those that are not smaller; of equal ones the earlier
    counts as smaller. A layer of zeros has 0 everywhere."""
    order = np.argsort(scores, kind="stable")
    squares = np.square(scores[order])
    left = np.cumsum(squares[::-1])[::-1]
    found = np.empty(len(scores))
    found[order] = np.divide(squares, left, out=np.zeros(len(scores)), where=left > 0)
    return found


def combined(rows: np.ndarray, policy: Policy) -> np.ndarray:
    """(n,) of (layers, n): what tied layers say together; where they decide apart, their average ranks the channels."""
    if policy == "sum":
        return np.asarray(rows.sum(0))
    return np.asarray(rows.max(0) if policy == "maximum" else rows.mean(0))


def _symbol_means(symbols: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The symbols of a layer, ascending, and for each the mean of its channels' scores."""
    found, place, count = np.unique(symbols, return_inverse=True, return_counts=True)
    return found, np.bincount(place, values) / count


def _looked_up(layer: tuple[np.ndarray, np.ndarray], group: Group) -> np.ndarray:
    symbols, values = layer
    return np.asarray(values[np.searchsorted(symbols, group.symbols)])


def _scaled(values: np.ndarray) -> np.ndarray:
    size = math.sqrt(float(np.mean(np.square(values))))
    return values / size if size > 0 else values


def _decided(masks: np.ndarray, policy: Policy) -> np.ndarray:
    """(n,) of (layers, n): what goes where every layer decides by itself."""
    return np.asarray(masks.any(0) if policy == "union" else masks.all(0))


def _uniform(rows: np.ndarray, ratio: float, policy: Policy) -> np.ndarray:
    def lowest(values: np.ndarray) -> np.ndarray:
        return _worst(np.zeros(len(values), bool), values, math.floor(len(values) * ratio + 0.5))

    if policy in ("union", "intersection"):
        return _decided(np.stack([lowest(row) for row in rows]), policy)
    return lowest(combined(rows, policy))


def _below_threshold(
    said: Sequence[np.ndarray], widths: Sequence[tuple[int, ...]], ratio: float, policy: Policy
) -> list[np.ndarray]:
    """Under the one threshold that lets at most the given share of all filters go."""
    if policy in ("union", "intersection"):
        values = [row for rows in said for row in rows]
        weights = [width for group in widths for width in group]
    else:
        values = [combined(rows, policy) for rows in said]
        weights = [sum(group) for group in widths]
    flat = np.concatenate(values)
    order = np.argsort(flat, kind="stable")
    filters = np.cumsum(np.repeat(weights, [len(part) for part in values])[order])
    # The first filter that may not go any more.
    first = int(np.searchsorted(filters, filters[-1] * ratio + 1e-9, "right"))
    threshold = flat[order[min(first, len(flat) - 1)]] * (1 - _EQUAL)
    if policy in ("union", "intersection"):
        return [_decided(rows < threshold, policy) for rows in said]
    return [part < threshold for part in values]


def _worst(gone: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """(n,) bool: count channels, first of those that go, then of the others, the lower scores first."""
    mask = np.zeros(len(gone), bool)
    mask[np.lexsort((scores, ~gone))[:count]] = True
    return mask
