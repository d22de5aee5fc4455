"""Trains a network with its weights and tensors rounded to 8 bits, by tensorflow-model-optimization, and hands back the
float network: what it has learned is to mind the rounding less. The build quantizes it from its calibration as ever.

Rounded is what the int8 file rounds, as quantize.py makes it:
    kernels     by output channel (of a depthwise convolution by its channel), symmetric, -127 to 127
    tensors     each as a whole, 256 values between the least and the greatest; these are moving averages
    left out    what lies between a convolution, its batch norm and a ReLU behind them, which become one operation; what
                only moves values about (pools, pads, slices, resizes); the raw outputs, which the file splits by role
A kernel is rounded before its batch norm is multiplied into it. That is the same: with the channel's scale its step
grows as well. tensorflow-model-optimization's own choice of places is not used: it knows no squeeze and excite, rounds
a depthwise kernel as a whole, starts each range at -6 to 6, and leaves a kernel in front of a ReLU unrounded.

Batch norms keep their statistics and learn scale and shift alone. In voc-yolo-fastest-xl the int8 file's distance from
the float network (distillation.py's loss, 94 pictures that were not trained on, one run each) was 9.0 before; after 52
steps of learning from the float network it was 6.9, and 10.8 where the statistics moved with the batches; after 156
steps of a quarter of the size 5.7.

What a network has of zeros and clusters can be kept: behind every step weights of one cluster take their mean, which
is the projection on all kernels that have these clusters, and zeros are made zeros again.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import numpy as np

from deploy.errors import InputError
from toolchain.cost import node_costs
from toolchain.graph import Graph, Node
from toolchain.kernel_report import kernel_of, kernel_reports, with_kernel
from toolchain.pass_report import LayerReport, PassResult
from toolchain.scope import select
from toolchain.tf_keras_writer import activations_apart
from toolchain.tfmot_training import Wrapped, frozen_nodes, layer_reasons, train_in_child, train_wrapped, weight_name
from toolchain.training import Progress, Training, TrainingData

Kept = Literal["sparsity", "clusters"]
#: Layers whose kernels are rounded, and the kernels' names.
_KERNELS = {"Conv2D": "kernel", "DepthwiseConv2D": "depthwise_kernel", "Dense": "kernel"}
#: Layers whose output has a range of its own in an int8 file.
_OWN_RANGE = frozenset(
    """Add Average AveragePooling2D BatchNormalization Concatenate Conv2D Dense DepthwiseConv2D GlobalAveragePooling2D
    LeakyReLU Maximum Minimum Multiply ReLU Rescaling Subtract""".split()
)
_ACTIVATIONS = frozenset(
    "hard_sigmoid hard_silu hard_swish leaky_relu logistic relu relu6 sigmoid silu swish tanh".split()
)
#: Layers whose output has their input's range.
_SAME_RANGE = frozenset(
    """AlphaDropout Cropping2D DarknetReorg Dropout Flatten GaussianDropout GaussianNoise GlobalMaxPooling2D Identity
    InputLayer MaxPooling2D MirrorPad Permute RepeatVector Reshape Resize Slice SpatialDropout2D UpSampling2D
    ZeroPadding2D""".split()
)
#: Layers that become one operation with a ReLU behind them.
_BEFORE_RELU = frozenset(("Add", "BatchNormalization", "Conv2D", "Dense", "DepthwiseConv2D", "Multiply", "Subtract"))
#: More different values than this in a kernel are no clusters.
_MOST_CLUSTERS = 256
#: Share of the old in the moving average of a tensor's range.
_OLD = 0.95


@dataclasses.dataclass(frozen=True)
class QuantizationAware:
    """Where weights and tensors are rounded. Raises InputError for a setting outside its range."""

    #: What the network has of zeros or clusters stays.
    preserve: tuple[Kept, ...] = ()
    #: Patterns as scope.py has them.
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kept in self.preserve:
            if kept not in typing.get_args(Kept):
                raise InputError(f"what is kept is {' or '.join(typing.get_args(Kept))}: got {kept!r}; correct it")


@dataclasses.dataclass(frozen=True)
class Rounding:
    """What is rounded of one node: the weight of this name, "" for none, and its output."""

    kernel: str = ""
    output: bool = False


def quantization_aware(
    graph: Graph,
    settings: QuantizationAware,
    training: Training,
    data: TrainingData,
    *,
    teacher: Graph | None = None,
    allow_lambda: bool = False,
    progress: Progress | None = None,
) -> PassResult:
    """The graph with weights that were trained rounded, themselves not rounded. facts: what
    tfmot_training.train_in_child tells. The reports name layers without a kernel too, where they stayed in float.

    Raises what tfmot_training.layer_reasons and train_wrapped raise.
    """
    reasons = layer_reasons(graph, settings.include, settings.exclude, training, _why_not)
    chosen = select(graph, settings.include, settings.exclude)
    apart = activations_apart(graph)
    # An activation that was part of a layer is in scope with it.
    parts = {node.name for node in apart.nodes if node.name not in graph.by_name and node.inputs[0] in chosen}
    places = roundings(apart, chosen | parts, frozen_nodes(graph, training))
    changed, facts = train_wrapped(
        "toolchain.quantization_aware:train_rounded_in_child",
        graph,
        {
            "places": {name: dataclasses.asdict(place) for name, place in places.items()},
            "preserve": list(settings.preserve),
        },
        training,
        data,
        step="quantization-aware training",
        teacher=teacher,
        allow_lambda=allow_lambda,
        progress=progress,
    )
    layers = kernel_reports(graph, changed, reasons)
    if not settings.preserve:
        layers = tuple(dataclasses.replace(layer, zeros=None, values=None) for layer in layers)
    return PassResult(changed, (*layers, *_stayed_float(graph, chosen)), _notes(graph, settings, reasons), facts=facts)


def _why_not(node: Node) -> str:
    return "" if node.op in _KERNELS else f"{node.op}: what it rounds inside is out of reach; it stays in float"


def _stayed_float(graph: Graph, chosen: Collection[str]) -> list[LayerReport]:
    costs = node_costs(graph)
    with_kernels = {node.name for node in with_kernel(graph)}
    return [
        LayerReport(
            name=node.name,
            op=node.op,
            kernel=(),
            parameters=(costs[node.name].total,) * 2,
            flops=(costs[node.name].flops,) * 2,
            reason=f"{_kind(node)}: its 8-bit arithmetic is not imitated; it stays in float",
        )
        for node in graph.nodes
        if node.name in chosen and node.name not in with_kernels and _has_own_range(node) is None
    ]


def _notes(graph: Graph, settings: QuantizationAware, reasons: Mapping[str, str]) -> tuple[str, ...]:
    notes = ["the network is in float as before: it has learned with roundings that conversion to int8 will make"]
    trained = [graph.by_name[name] for name, reason in reasons.items() if not reason]
    counts = {
        "sparsity": sum(not kernel_of(node).all() for node in trained),
        "clusters": sum(len(np.unique(kernel_of(node))) <= _MOST_CLUSTERS for node in trained),
    }
    notes += [f"{kept} kept in {counts[kept]} of {len(trained)} layers, which had some" for kept in settings.preserve]
    return tuple(notes)


def _kind(node: Node) -> str:
    activation = node.attributes.get("activation")
    return str(activation) if node.op == "Activation" else node.op


def _has_own_range(node: Node) -> bool | None:
    """Whether the output of a node has a range of its own in an int8 file; None where that is not known."""
    if node.op == "Activation":
        activation = node.attributes.get("activation")
        return False if activation == "linear" else True if activation in _ACTIVATIONS else None
    if node.op in ("Resize", "UpSampling2D") and node.attributes.get("interpolation", "nearest") != "nearest":
        return True
    return True if node.op in _OWN_RANGE else False if node.op in _SAME_RANGE else None


def roundings(graph: Graph, chosen: Collection[str], frozen: Collection[str]) -> dict[str, Rounding]:
    """What is rounded, by node, in graph order; nodes of which nothing is are left out.

    graph: with activations apart. chosen: names of the nodes in scope; frozen: of those that keep their weights.
    """
    shared = {name for node in graph.nodes if node.shared_with for name in (node.name, node.shared_with)}
    found = {}
    for node in graph.nodes:
        if node.name not in chosen or node.name in shared or (node.weights and node.name in frozen):
            continue
        place = Rounding(_KERNELS.get(node.op, ""), _rounds_output(graph, node))
        if place != Rounding():
            found[node.name] = place
    return found


def _rounds_output(graph: Graph, node: Node) -> bool:
    if not _has_own_range(node) or node.name in graph.outputs:
        return False
    readers = [reader for reader in graph.nodes for name in reader.inputs if name == node.name]
    if len(readers) != 1:
        return True
    (reader,) = readers
    if node.op in _KERNELS and reader.op == "BatchNormalization":
        return False
    return not (node.op in _BEFORE_RELU and _is_relu(reader))


def _is_relu(node: Node) -> bool:
    if node.op == "ReLU":
        settings = node.attributes
        plain = not settings.get("negative_slope") and not settings.get("threshold")
        return plain and settings.get("max_value") in (None, 6, 6.0)
    return node.op == "Activation" and node.attributes.get("activation") in ("relu", "relu6")


def train_rounded_in_child(settings: Mapping[str, Any], **arguments: Any) -> dict[str, Any]:
    """What quantization_aware does in its own process. settings: places, by node the fields of Rounding, and preserve,
    as in QuantizationAware."""
    return train_in_child(functools.partial(_wrapped, settings=settings), steady=True, **arguments)


def _wrapped(model: Any, steps: int, settings: Mapping[str, Any]) -> Wrapped:
    import tensorflow_model_optimization as tfmot
    import tf_keras

    from toolchain import eight_bit

    quantization = tfmot.quantization.keras
    places = {name: Rounding(**place) for name, place in settings["places"].items()}

    def annotated(layer: Any) -> Any:
        if layer.name not in places:
            return layer
        place = places[layer.name]
        return quantization.quantize_annotate_layer(layer, eight_bit.EightBit(place.kernel, place.output, _OLD))

    with quantization.quantize_scope({"EightBit": eight_bit.EightBit}):
        marked = tf_keras.models.clone_model(model, clone_function=annotated)
        wrapped = quantization.quantize_apply(marked, eight_bit.AsAnnotated())
    kernels = _weights_of(wrapped, model)

    def strip() -> Any:
        for layer in model.layers:
            layer.set_weights([kernels[layer.name, weight_name(variable)] for variable in layer.weights])
        return model

    keepers = [
        _keeper(kernels[name, place.kernel], settings["preserve"]) for name, place in places.items() if place.kernel
    ]

    def keep() -> None:
        for keeper in keepers:
            keeper()

    return Wrapped(wrapped, strip, after_step=keep)


def _weights_of(wrapped: Any, model: Any) -> dict[tuple[str, str], Any]:
    """The variables of a wrapped model by the names of the layer and of the weight. The layers inside of the wrappers
    hold rounded tensors in the place of some."""
    from tensorflow_model_optimization.quantization.keras import QuantizeWrapperV2

    names = {layer.name for layer in model.layers}
    found: dict[tuple[str, str], Any] = {}
    for layer in wrapped.layers:
        name = layer.layer.name if isinstance(layer, QuantizeWrapperV2) else layer.name
        assert name in names
        found |= {(name, weight_name(variable)): variable for variable in layer.weights}
    return found


def _keeper(kernel: Any, preserve: Collection[str]) -> Callable[[], None]:
    """Puts zeros and clusters of a kernel, a variable, back to what they were when this was made."""
    import tensorflow as tf

    values, places = np.unique(kernel.numpy(), return_inverse=True)
    counts = np.bincount(places.ravel()).astype(np.float32)
    counts[values == 0] = np.inf
    clusters, zeros = places.reshape(-1), kernel.numpy() == 0

    def keep_clusters() -> None:
        means = tf.math.unsorted_segment_sum(tf.reshape(kernel, (-1,)), clusters, len(values)) / counts
        kernel.assign(tf.reshape(tf.gather(means, clusters), kernel.shape))

    def keep_zeros() -> None:
        kernel.assign(tf.where(zeros, 0.0, kernel))

    if "clusters" in preserve and len(values) <= _MOST_CLUSTERS:
        return keep_clusters
    return keep_zeros if "sparsity" in preserve and zeros.any() else lambda: None
