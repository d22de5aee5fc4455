"""A Keras model around a network that takes pixels and has a training's loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from deploy.errors import InputError
from toolchain.distillation import objective
from toolchain.graph import Graph
from toolchain.input_size import resized
from toolchain.keras_writer import to_keras
from toolchain.scope import select
from toolchain.training import Training


def make_trainee(
    graph: Graph, training: Training, teacher_graph: Graph | None, sizes: Sequence[tuple[int, int]], devices: int,
    precision: str, allow_lambda: bool,
) -> Any:  # fmt: skip
    """The model, whose `network` is the graph's own, frozen layers and all; at first for pictures of its own size.

    sizes: (height, width) of the pictures that will come. devices: how many share a batch. precision: Keras's policy.
    Raises InputError for a distillation without a teacher and a feature that is no layer of both, GraphError where
    Keras refuses the graph.
    """
    assert graph.input is not None
    mean, std = np.array(graph.input.mean, np.float32), np.array(graph.input.std, np.float32)
    chosen = select(graph, training.features) if training.features else frozenset()
    features = [node.name for node in graph.nodes if node.name in chosen]
    networks = _networks(_watching(graph, features), sizes, allow_lambda)
    network = networks[(graph.input.height, graph.input.width)]
    teachers: dict[tuple[int, int], Any] = {}
    if training.distill:
        if teacher_graph is None:
            raise InputError("a distillation has a teacher: none was given; set distill to 0 or give one")
        theirs = [_of_teacher(name, teacher_graph) for name in features]
        teachers = _networks(_watching(teacher_graph, theirs), sizes, allow_lambda)
    frozen = select(graph, training.freeze) if training.freeze else frozenset()
    for layer in network.layers:
        if layer.name in frozen:
            layer.trainable = False
    for model in (network, *teachers.values()):
        for layer in model.layers:
            if precision != "float32" and not isinstance(layer, keras.layers.InputLayer):
                layer.dtype_policy = precision
    loss, frozen_statistics = objective(graph, training), training.freeze_statistics

    class Trainee(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.sizes = list(networks.values())
            self.teachers = list(teachers.values())
            for one in self.teachers:
                one.trainable = False
            self.objective = loss
            #: Of the pictures that come next.
            self.size = (network.input_shape[1], network.input_shape[2])

        def call(self, images: Any, training: bool = False) -> Any:
            one = networks[self.size]
            return _listed(one(self._normal(images), training=training and not frozen_statistics))

        def _normal(self, images: Any) -> Any:
            return (ops.cast(images, "float32") - mean) / std

        def taught(self, images: Any) -> Any:
            one = teachers[self.size]
            return _listed(one(self._normal(images), training=False))

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
        ) -> Any:
            found = loss(y, y_pred, self.taught(x) if teachers else None)
            # Every device sees a part of the batch, and their gradients are added up.
            return found / devices

    return Trainee()


def predictors(trainee: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any] | None]:
    """Compiled functions of uint8 images of the network's own size: the network's outputs, and the teacher's, None
    where there is none. With several devices predict_on_batch would give each of them the whole batch."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        teach = tf.function(trainee.taught) if trainee.teachers else None
        return tf.function(lambda images: trainee(images, training=False)), teach
    return trainee.predict_on_batch, trainee.taught if trainee.teachers else None


def _listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _watching(graph: Graph, layers: Sequence[str]) -> Graph:
    """The graph with the outputs of inner layers behind its own."""
    return dataclasses.replace(graph, outputs=(*graph.outputs, *layers))


def _of_teacher(name: str, teacher: Graph) -> str:
    """The layer of the uncompressed network that another became: Tucker's last part stands for the whole."""
    found = name if name in teacher.by_name else name.removesuffix("_tucker_2")
    if found not in teacher.by_name:
        raise InputError(f"a feature is a layer of the teacher's too: {teacher.name!r} has no {name!r}; leave it out")
    return found


def _networks(graph: Graph, sizes: Sequence[tuple[int, int]], allow_lambda: bool) -> dict[tuple[int, int], Any]:
    """The Keras model of the graph at each of the sizes and at its own; all share their layers."""
    assert graph.input is not None
    layers: dict[str, Any] = {}
    own = (graph.input.height, graph.input.width)
    return {
        size: to_keras(resized(graph, size), allow_lambda=allow_lambda, layers=layers)
        for size in dict.fromkeys((own, *sizes))
    }
