"""How every op passes channels on: one function for each kind; channels.py uses them.

A channel is a symbol, an integer; an output has an array (C,) of them, one for each entry of its last axis. A layer
with a kernel over channels makes new symbols, most ops pass theirs on, and a sum ties the symbols of its operands. What
an op without a rule reads and returns is frozen: never guessed at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from toolchain.graph import Node
from toolchain.shape_rules import MERGES, Shape, channel_axis

#: (C,) int64, one symbol for each channel of an output.
Symbols = np.ndarray

#: Layers with a kernel.
KERNEL_OPS = frozenset(("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "Dense"))
#: Activations that treat every element by itself.
_ELEMENTWISE = frozenset(
    """linear relu relu6 leaky_relu elu selu celu gelu silu swish mish sigmoid logistic hard_sigmoid hard_silu
    hard_swish tanh hard_tanh tanh_shrink softplus softsign soft_shrink hard_shrink squareplus sparse_plus
    sparse_sigmoid threshold exponential log_sigmoid""".split()
)


@dataclasses.dataclass(frozen=True, eq=False)
class Freeze:
    """Symbols that must stay, and why: "'node' is <why>"."""

    node: str
    why: str
    symbols: Symbols


@dataclasses.dataclass
class Tracing:
    """What is known of the nodes so far."""

    extents: Mapping[str, Shape]
    #: Of every node's output.
    symbols: dict[str, Symbols] = dataclasses.field(default_factory=dict)
    #: New symbols by the layer that makes them, in graph order.
    made: dict[str, Symbols] = dataclasses.field(default_factory=dict)
    #: Symbols that a Slice takes of the channels, by its name.
    cuts: dict[str, Symbols] = dataclasses.field(default_factory=dict)
    #: Pairs of arrays of one length, whose symbols are the same channel.
    ties: list[tuple[Symbols, Symbols]] = dataclasses.field(default_factory=list)
    freezes: list[Freeze] = dataclasses.field(default_factory=list)
    count: int = 0

    def new(self, count: int) -> Symbols:
        self.count += count
        return np.arange(self.count - count, self.count)

    def freeze(self, node: Node, why: str, *symbols: Symbols) -> None:
        self.freezes += [Freeze(node.name, why, array) for array in symbols]


def is_per_channel(node: Node, channels: int) -> bool:
    """Whether a convolution gives every one of its input channels filters of its own."""
    return node.op == "DepthwiseConv2D" or (
        node.op == "Conv2D" and int(node.attributes.get("groups", 1)) == channels > 1
    )


def is_elementwise(activation: object) -> bool:
    """Whether an activation, as it stands in a layer's attributes, is known to treat every element by itself."""
    return activation is None or (isinstance(activation, str) and activation in _ELEMENTWISE)


def trace(node: Node, tracing: Tracing) -> Symbols:
    """The symbols of a node's output; ties and freezes are noted in tracing."""
    sources = [tracing.symbols[name] for name in node.inputs]
    if node.op == "InputLayer":
        made = tracing.new(tracing.extents[node.name][-1])
        tracing.freeze(node, "an input of the network", made)
        return made
    rule = _merge if node.op in MERGES else _RULES.get(node.op)
    found = rule(node, sources, tracing) if rule and _is_plain_call(node) else None
    if found is None:
        shape = tracing.extents[node.name]
        found = tracing.new(shape[-1] if shape else 0)
        tracing.freeze(node, f"of a kind whose channels cannot be removed ({node.op})", *sources, found)
    elif not is_elementwise(node.attributes.get("activation")):
        tracing.freeze(node, f"a layer whose activation mixes channels ({node.attributes['activation']})", found)
    return found


def _is_plain_call(node: Node) -> bool:
    """Whether a layer is called with tensors alone: a constant operand has channels that nothing here would cut."""

    def tensors(value: object) -> bool:
        if isinstance(value, list):
            return all(map(tensors, value))
        return isinstance(value, Mapping) and list(value) == ["input"]

    call = node.attributes.get("call")
    return call is None or (tensors(call["args"]) and set(call.get("kwargs", {})) <= {"training"})


def _pass_on(node: Node, sources: list[Symbols], tracing: Tracing) -> Symbols | None:
    return sources[0]


def _produce(node: Node, sources: list[Symbols], tracing: Tracing) -> Symbols | None:
    """Makes new symbols. Groups stay equal: the channels at one place of each group go or stay together."""
    source, groups = sources[0], int(node.attributes.get("groups", 1))
    count = tracing.extents[node.name][-1]
    if is_per_channel(node, len(source)):
        return np.repeat(source, count // len(source))
    made = tracing.new(count)
    if groups > 1:
        for symbols in (source.reshape(groups, -1), made.reshape(groups, -1)):
            tracing.ties += [(symbols[0], other) for other in symbols[1:]]
    tracing.made[node.name] = made
    return made


def _normalize(node: Node, sources: list[Symbols], tracing: Tracing) -> Symbols | None:
    """A batch norm of another axis has other parameters."""
    return sources[0] if normalizes_channels(node, len(tracing.extents[node.name])) else None


def normalizes_channels(node: Node, rank: int) -> bool:
    """Whether a BatchNormalization of an input of the given rank, without the batch, has its parameters by channel."""
    axis = node.attributes.get("axis", -1)
    return channel_axis(axis[0] if isinstance(axis, list | tuple) else int(axis), rank, node) == rank - 1


def _softmax(node: Node, sources: list[Symbols], tracing: Tracing) -> Symbols | None:
    axis, rank = node.attributes.get("axis", -1), len(tracing.extents[node.name])
    axes = axis if isinstance(axis, list | tuple) else [axis]
    return None if any(channel_axis(int(one), rank, node) == rank - 1 for one in axes) else sources[0]


def _activation(node: Node, sources: list[Symbols], tracing: Tracing) -> Symbols | None:
    return sources[0] if is_elementwise(node.attributes.get("activation")) else None


def _rescale(node: Node, sources: list[Symbols], tracing: Tracing) -> Symbols | None:
    settings = (node.attributes.get("scale", 1.0), node.attributes.get("offset", 0.0))
    return sources[0] if all(isinstance(value, int | float) for value in settings) else None


def _permute(node: Node, sources: list[Symbols], tracing: Tracing) -> Symbols | None:
    return sources[0] if node.attributes["dims"][-1] == len(node.attributes["dims"]) else None


def _reshape(node: Node, sources: list[Symbols], tracing: Tracing) -> Symbols | None:
    """Channels stay channels, or the last axes become one in which the channels repeat."""
    before, after = tracing.extents[node.inputs[0]], tracing.extents[node.name]
    for place in range(len(before)):
        if after and math.prod(before[place:]) == after[-1]:
            return np.tile(sources[0], math.prod(before[place:-1]))
    return None


def _slice(node: Node, sources: list[Symbols], tracing: Tracing) -> Symbols | None:
    if not slices_channels(node, len(tracing.extents[node.name])):
        return sources[0]
    taken = sources[0][int(node.attributes["start"]) : int(node.attributes["stop"])]
    tracing.cuts[node.name] = taken
    return taken


def slices_channels(node: Node, rank: int) -> bool:
    """Whether a Slice of an input of the given rank, without the batch, takes some of the channels."""
    return channel_axis(int(node.attributes.get("axis", -1)), rank, node) == rank - 1


def _merge(node: Node, sources: list[Symbols], tracing: Tracing) -> Symbols | None:
    rank = len(tracing.extents[node.name])
    if node.op == "Concatenate" and channel_axis(int(node.attributes.get("axis", -1)), rank, node) == rank - 1:
        return np.concatenate(sources)
    channels = max(map(len, sources))
    whole = [symbols for symbols in sources if len(symbols) == channels]
    for symbols in sources:
        if len(symbols) < channels:
            # One channel for all of them: it goes only with its layer, and ties nothing.
            tracing.freeze(node, "a broadcast of one channel over all", symbols)
    tracing.ties += [(whole[0], other) for other in whole[1:]]
    return whole[0]


_Rule = Callable[[Node, list[Symbols], Tracing], Symbols | None]

#: None of a rule: this node is frozen.
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(KERNEL_OPS, _produce),
    **dict.fromkeys(
        """ReLU LeakyReLU PReLU ELU Identity Dropout SpatialDropout2D GaussianNoise GaussianDropout AlphaDropout
        MaxPooling2D AveragePooling2D GlobalAveragePooling2D GlobalMaxPooling2D ZeroPadding2D Cropping2D MirrorPad
        UpSampling2D Resize RepeatVector""".split(),
        _pass_on,
    ),
    "BatchNormalization": _normalize,
    "Softmax": _softmax,
    "Activation": _activation,
    "Rescaling": _rescale,
    "Permute": _permute,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Slice": _slice,
}
