"""Makes small weights 0 while the network is trained on, by tensorflow-model-optimization.

Unstructured, the share of zeros s rises over the steps t from begin t_0 to end t_1 along a cubic (Zhu and Gupta 2017,
To prune, or not to prune, equation 1)
    s_t = s · (1 - (1 - (t - t_0) / (t_1 - t_0))³)
in every layer alike; the smallest weights go each time, and may come back until the next. "2:4" makes two of four
neighbouring input channels 0 from the first step on.

Zeros stay zeros in the file, which gets smaller when it is packed: at 80 % in yolov4-tiny 22.5 MB of float32 weights
become 6.0 after gzip, int8 weights of 5.0 MB 2.1. The file itself stays as long, and nothing gets faster: XNNPACK
multiplies by zeros as by other values.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

from deploy.errors import InputError
from toolchain.graph import Graph, Node
from toolchain.kernel_report import kernel_of, kernel_reports, packed_bytes, share_of_zeros
from toolchain.pass_report import PassResult
from toolchain.tfmot_training import Wrapped, layer_reasons, train_in_child, train_wrapped
from toolchain.training import Progress, Training, TrainingData

#: How often at most the weights that are 0 are chosen anew on the way.
_UPDATES = 50
_SPARSE = ("Conv2D", "Conv2DTranspose", "Dense", "SeparableConv2D")
#: The group in which "2:4" counts.
_GROUP = 4


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """What share of the weights becomes 0, and when. Raises InputError for a setting outside its range."""

    #: Share of zeros in every layer in scope; "2:4" makes it half whatever is said here.
    sparsity: float = 0.8
    #: Part of all steps after which the first weights become 0, and after which all have.
    begin: float = 0.0
    end: float = 0.7
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    #: Patterns as scope.py has them.
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise InputError(f"sparsity is above 0 and below 1: got {self.sparsity}; 0.8 makes four of five weights 0")
        if not 0 <= self.begin < self.end <= 1:
            raise InputError(
                f"weights become 0 between two parts of a training, 0 <= begin < end <= 1: got {self.begin} and"
                f" {self.end}; correct them"
            )
        if self.pattern not in ("unstructured", "2:4"):
            raise InputError(f"a pattern of zeros is unstructured or 2:4: got {self.pattern!r}; choose one")


def sparsify(
    graph: Graph,
    settings: Sparsity,
    training: Training,
    data: TrainingData,
    *,
    teacher: Graph | None = None,
    allow_lambda: bool = False,
    progress: Progress | None = None,
) -> PassResult:
    """The graph with weights that are 0, trained on the way. facts: zeros (share in all kernels, before and after),
    packed_bytes (of all weights, before and after) and what tfmot_training.train_in_child tells.

    Raises what tfmot_training.layer_reasons and train_wrapped raise.
    """
    why_not = functools.partial(_why_not, pattern=settings.pattern)
    reasons = layer_reasons(graph, settings.include, settings.exclude, training, why_not, predictions_stay=True)
    changed, facts = train_wrapped(
        "toolchain.sparsity:sparsify_in_child",
        graph,
        {
            "layers": [name for name, reason in reasons.items() if not reason],
            "sparsity": settings.sparsity,
            "begin": settings.begin,
            "end": settings.end,
            "pattern": settings.pattern,
        },
        training,
        data,
        step="sparsity",
        teacher=teacher,
        allow_lambda=allow_lambda,
        progress=progress,
    )
    packed = packed_bytes(graph), packed_bytes(changed)
    facts = {**facts, "zeros": [share_of_zeros(graph), share_of_zeros(changed)], "packed_bytes": list(packed)}
    return PassResult(changed, kernel_reports(graph, changed, reasons), (_note(*packed),), facts=facts)


def _why_not(node: Node, pattern: str) -> str:
    if node.op not in _SPARSE:
        return f"{node.op}: tensorflow-model-optimization leaves its few weights alone"
    channels = kernel_of(node).shape[-2]
    if pattern == "2:4" and (node.op == "Conv2DTranspose" or channels % _GROUP):
        return f"2:4 counts input channels of a convolution in fours: {node.op} with {channels}"
    return ""


def _note(before: int, after: int) -> str:
    return (
        f"sparsity makes the compressed file smaller and nothing faster: the float32 weights take {after / 1e6:.2f} MB"
        f" after gzip, {before / 1e6:.2f} MB before; the file itself stays as long as it was, its zeros are stored and"
        " multiplied by; what makes a file itself smaller, and faster, is int8"
    )


def sparsify_in_child(settings: Mapping[str, Any], **arguments: Any) -> dict[str, Any]:
    """What sparsify does in its own process. settings: those of Sparsity and layers, the names of those that become
    sparse."""
    return train_in_child(functools.partial(_wrapped, settings=settings), **arguments)


def _wrapped(model: Any, steps: int, settings: Mapping[str, Any]) -> Wrapped:
    import tensorflow_model_optimization as tfmot
    import tf_keras

    begin, end, frequency = update_steps(settings["begin"], settings["end"], steps)
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, settings["sparsity"], begin, end, frequency=frequency)
    pattern = {"sparsity_m_by_n": (2, 4)} if settings["pattern"] == "2:4" else {}
    layers = frozenset(settings["layers"])

    def wrapper(layer: Any) -> Any:
        if layer.name not in layers:
            return layer
        return tfmot.sparsity.keras.prune_low_magnitude(layer, schedule, **pattern)

    wrapped = tf_keras.models.clone_model(model, clone_function=wrapper)
    masks = tfmot.sparsity.keras.UpdatePruningStep()
    masks.set_model(wrapped)
    return Wrapped(
        wrapped,
        strip=lambda: tfmot.sparsity.keras.strip_pruning(wrapped),
        begin=masks.on_train_begin,
        after_epoch=lambda: masks.on_epoch_end(None),
    )


def update_steps(begin: float, end: float, steps: int) -> tuple[int, int, int]:
    """The first and the last step, counted from 1, at which weights become 0, and from how many to how many: such that
    the last is one of them. At the first none do."""
    last = max(1, round(end * steps))
    first = min(round(begin * steps), last - 1)
    frequency = max(1, (last - first) // _UPDATES)
    return last - (last - first) // frequency * frequency, last, frequency
