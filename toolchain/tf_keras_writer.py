"""Makes a tf_keras (Keras 2) model of a graph: tensorflow-model-optimization knows no other.

A layer with weights becomes the layer of tf_keras of the same name, which tensorflow-model-optimization can wrap.
Whatever has none is computed by Keras itself inside of a layer of ours, so that slices, resizes and every activation
are the very same. Both together compute the graph to float32 rounding.

Only processes that are made for it import tf_keras: with it, TF_USE_LEGACY_KERAS may be set for all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from deploy.errors import GraphError
from toolchain.graph import Graph, Node, owner, with_outputs_renamed
from toolchain.keras_writer import call_arguments, call_node, first_line, layer_settings, model_of, set_weights

#: Layers with weights that compute the same in both.
TWINS = frozenset(
    """BatchNormalization Conv2D Conv2DTranspose Dense DepthwiseConv2D GroupNormalization LayerNormalization
    Normalization PReLU SeparableConv2D""".split()
)
#: Settings of Keras that tf_keras does not know, with the only value that means the same there.
_ONLY_KERAS: Mapping[str, Any] = {"quantization_config": None, "rms_scaling": False}

#: Layers that pass their input on unchanged but in training.
_ONLY_IN_TRAINING = frozenset("AlphaDropout Dropout GaussianDropout GaussianNoise SpatialDropout2D".split())


def to_tf_keras(graph: Graph, *, steady: bool = False, allow_lambda: bool = False) -> Any:
    """A tf_keras.Model that computes the graph in float32; its outputs are in the order of graph.outputs, a list where
    there are several. Layers have the names of their nodes. steady: batch norms keep their statistics, and use them, in
    training too.

    Raises GraphError, naming the node, for a layer with weights that tf_keras has no twin of, and where Keras refuses a
    node.
    """
    import tf_keras

    layers: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    graph = activations_apart(graph)
    for node in graph.nodes:
        try:
            tensors[node.name] = _call(node, graph, layers, tensors, steady, allow_lambda)
        except (TypeError, ValueError, AttributeError, KeyError, NotImplementedError) as error:
            raise GraphError(
                f"tf_keras builds every node: {node.op} {node.name!r} was refused: {first_line(error)}"
            ) from error
    return model_of(tf_keras.Model, graph, tensors)


def activations_apart(graph: Graph) -> Graph:
    """The graph with the activation of every layer with weights in a node of its own, NAME_activation: of some
    activations tf_keras has others under the same name. The layers keep their names."""
    nodes: list[Node] = []
    last: dict[str, str] = {}
    for node in graph.nodes:
        inputs = tuple(last.get(name, name) for name in node.inputs)
        activation = node.attributes.get("activation")
        if not owner(graph, node).weights or activation in (None, "linear"):
            nodes.append(dataclasses.replace(node, inputs=inputs))
            continue
        last[node.name] = _unused(f"{node.name}_activation", graph)
        attributes = {**node.attributes, "activation": "linear"}
        nodes.append(dataclasses.replace(node, inputs=inputs, attributes=attributes))
        nodes.append(Node(last[node.name], "Activation", (node.name,), {"activation": activation}))
    return with_outputs_renamed(graph, nodes, last)


def _unused(name: str, graph: Graph) -> str:
    while name in graph.by_name:
        name += "_"
    return name


def _call(
    node: Node, graph: Graph, layers: dict[str, Any], tensors: Mapping[str, Any], steady: bool, allow_lambda: bool
) -> Any:
    import tf_keras

    if node.op == "InputLayer":
        settings = node.attributes
        return tf_keras.Input(
            tuple(settings["shape"]), settings.get("batch_size"), node.name, settings.get("dtype", "float32")
        )
    root = owner(graph, node)
    sources = [tensors[name] for name in node.inputs]
    if not root.weights:
        described = json.dumps({"name": node.name, "op": node.op, "attributes": dict(node.attributes)})
        return keras_node_layer()(described, allow_lambda, name=node.name, dtype="float32")(sources)
    if root.op not in TWINS:
        raise GraphError(
            f"a layer with weights has a twin in tf_keras: {root.op} {root.name!r} has none; leave this stage out"
        )
    if root.name not in layers:
        layers[root.name] = _twin(root, steady)
    arguments, keywords = call_arguments(node, sources)
    tensor = layers[root.name](*arguments, **keywords)
    if root is node:
        set_weights(layers[root.name], node)
    return tensor


def _twin(node: Node, steady: bool) -> Any:
    import tf_keras

    settings = layer_settings(node)
    settings = {key: value for key, value in settings.items() if (key, value) not in _ONLY_KERAS.items()}
    kind = steady_batch_norm() if steady and node.op == "BatchNormalization" else getattr(tf_keras.layers, node.op)
    layer = kind.from_config(settings)
    if node.attributes.get("trainable") is False:
        layer.trainable = False
    return layer


@functools.cache
def steady_batch_norm() -> Any:
    """tf_keras's batch norm, with its statistics as constants: scale and shift are learned, and nothing is averaged."""
    import tf_keras

    @tf_keras.utils.register_keras_serializable("slimdet")
    class SteadyBatchNorm(tf_keras.layers.BatchNormalization):
        def call(self, inputs: Any, training: Any = None) -> Any:
            return super().call(inputs, training=False)

    return SteadyBatchNorm


@functools.cache
def keras_node_layer() -> Any:
    """The tf_keras layer that runs a node without weights by Keras."""
    import tensorflow as tf
    import tf_keras

    @tf_keras.utils.register_keras_serializable("slimdet")
    class KerasNode(tf_keras.layers.Layer):
        """Reads a list of tensors, those that its node reads; its config is the node as JSON."""

        def __init__(self, node: str, allow_lambda: bool, **settings: Any) -> None:
            super().__init__(**settings)
            self._described = node
            self._allow_lambda = allow_lambda
            # In a closure: tf_keras would follow Keras's layers where they were attributes.
            self._run = _runner(Node(**json.loads(node)), allow_lambda)

        @tf.autograph.experimental.do_not_convert
        def call(self, inputs: Any, training: Any = None) -> Any:
            return self._run(inputs, training)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "node": self._described, "allow_lambda": self._allow_lambda}

    return KerasNode


def _runner(node: Node, allow_lambda: bool) -> Callable[[Any, Any], Any]:
    """From the tensors that a node reads, and whether this is a training, to its output."""
    built: dict[str, Any] = {}

    def run(inputs: Any, training: Any) -> Any:
        called = node
        if node.op in _ONLY_IN_TRAINING and training is not None and "call" not in node.attributes:
            call = {"args": [{"input": 0}], "kwargs": {"training": training}}
            called = dataclasses.replace(node, attributes={**node.attributes, "call": call})
        sources = inputs if isinstance(inputs, list | tuple) else [inputs]
        # By place: a node may read another twice.
        names = [f"{place}" for place in range(len(sources))]
        called = dataclasses.replace(called, inputs=tuple(names))
        try:
            return call_node(called, called, built, dict(zip(names, sources, strict=True)), allow_lambda)
        except Exception as error:
            # Or else tf_keras puts ten lines of its own around the sentence.
            setattr(error, "_keras_call_info_injected", True)
            raise

    return run
