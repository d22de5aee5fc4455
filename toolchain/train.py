"""Trains a graph that has a YOLO head on labelled pictures.

Keras's own fit runs in a process of its own, graph in and graph out as files: TensorFlow's memory and its global
settings go with it. The same settings and data give the same weights on the same machine.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import GraphError, InputError
from toolchain import child_process, graph_file
from toolchain.graph import Graph, Node
from toolchain.training_data import Samples, batches, read_samples

#: What is told while training, every few seconds and at the end of every epoch: epoch (how many are done, with
#: fractions), epochs, loss (mean of the epoch so far), seconds, seconds_left; and at the end of an epoch val_loss.
Progress = Callable[[Mapping[str, float]], None]
_SECONDS_BETWEEN_REPORTS = 2.0
#: Batch norm's averages follow the last 1 / (1 - 0.95) = 20 batches: Keras's own 0.99 is too slow for a training of
#: some hundred steps, whose weights move fast until its end.
_BATCH_NORM_MOMENTUM = 0.95
#: AdamW's memory of gradients and of their squares, some 7 and 50 steps. With Keras's own 0.9 and 0.999 the first, huge
#: gradients brake a training of some hundred steps until its end.
_BETAS = (0.85, 0.98)


@dataclasses.dataclass(frozen=True)
class Training:
    """How to train. Raises InputError when a value makes no sense."""

    epochs: int = 10
    batch: int = 16
    #: The highest step size of AdamW, reached after the warm-up; a cosine takes it down to 0 at the end.
    learning_rate: float = 2e-3
    #: Part of all steps in which the step size rises from 0.
    warmup: float = 0.05
    #: Of kernels alone.
    weight_decay: float = 1e-4
    #: Mirrors every second picture.
    flip: bool = True
    #: Of the order of the pictures.
    seed: int = 0
    split: str = "train"
    #: Watched, never trained on.
    validation: str = "val"

    def __post_init__(self) -> None:
        limits = {
            "epochs": (1, 100_000),
            "batch": (1, 4096),
            "learning_rate": (1e-12, 10.0),
            "warmup": (0.0, 0.9),
            "weight_decay": (0.0, 1.0),
            "seed": (0, 2**32 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} of a training is {low} to {high}: got {value}; correct it")


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """The graph with its new weights, what was told at the end of every epoch, and what was left out of the data."""

    graph: Graph
    history: tuple[Mapping[str, float], ...]
    left_out: tuple[str, ...]


def train(graph: Graph, data: Path, training: Training, *, progress: Progress | None = None) -> Trained:
    """Trains all weights on the split `training.split` of a folder in VOC layout.

    The graph has an input, labels and a YoloHead with raw outputs. Raises InputError for data that cannot be trained on
    and for a training that diverges, GraphError for a graph without such a head, ConversionError when the training's
    process dies.
    """
    if graph.input is None or graph.head is None or not graph.labels:
        raise GraphError(
            f"what is trained has an input, labels and a head: {graph.name!r} lacks one; describe it with a head file"
        )
    if any(set(scale.outputs) != {"raw"} for scale in graph.head.scales):
        raise GraphError(
            f"a training reads raw outputs: those of {graph.name!r} are split by role; train it before it is split"
        )
    with child_process.folder() as place:
        before, after, told = place / "before.zip", place / "after.zip", place / "told.jsonl"
        graph_file.save(graph, before)
        arguments = {
            "before": str(before),
            "after": str(after),
            "told": str(told),
            "data": str(data.absolute()),
            "training": dataclasses.asdict(training),
        }
        with child_process.followed(told, progress):
            step = f"training of {graph.name!r}"
            result = child_process.run("toolchain.train:train_in_child", arguments, place, step=step)
        return Trained(graph_file.load(after), tuple(result["history"]), tuple(result["left_out"]))


def train_in_child(before: str, after: str, told: str, data: str, training: Mapping[str, Any]) -> dict[str, Any]:
    """What `train` does in its own process; returns history and left_out as JSON."""
    import keras
    import tensorflow as tf

    from toolchain.keras_writer import to_keras

    settings = Training(**training)
    graph = graph_file.load(Path(before))
    learning = read_samples(Path(data), settings.split, graph)
    watched = read_samples(Path(data), settings.validation, graph)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(settings.seed)
    network = to_keras(graph)
    with open(told, "a", encoding="utf-8") as lines:

        def tell(facts: Mapping[str, float]) -> None:
            lines.write(json.dumps(facts) + "\n")
            lines.flush()

        history = fit(network, graph, learning, watched, settings, tell)
    graph_file.save(with_weights_of(graph, network), Path(after))
    return {"history": history, "left_out": [*learning.left_out, *watched.left_out]}


def fit(
    network: Any, graph: Graph, learning: Samples, watched: Samples, settings: Training, tell: Progress
) -> list[dict[str, float]]:
    """Trains the Keras model of a graph in place and returns what was told at the end of every epoch.

    Raises InputError when there are fewer pictures than a batch, or the loss is no longer finite.
    """
    per_epoch = len(learning.images) // settings.batch
    if not per_epoch:
        count = len(learning.images)
        raise InputError(
            f"a batch is at most all pictures: {count} do not fill one of {settings.batch}; make the batch smaller"
        )
    import keras

    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = _BATCH_NORM_MOMENTUM
    steps = settings.epochs * per_epoch
    warm = max(1, int(steps * settings.warmup))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm), warmup_target=settings.learning_rate, warmup_steps=warm
    )
    optimizer = keras.optimizers.AdamW(rate, settings.weight_decay, beta_1=_BETAS[0], beta_2=_BETAS[1])
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    trainee = _trainee(network, graph)
    trainee.compile(optimizer=optimizer, jit_compile=False)
    watch = _Watch(tell, settings.epochs, per_epoch)
    trainee.fit(
        _epochs(learning, settings),
        epochs=settings.epochs,
        steps_per_epoch=per_epoch,
        validation_data=(watched.images, watched.truth),
        validation_batch_size=settings.batch,
        callbacks=[
            keras.callbacks.LambdaCallback(on_train_batch_end=watch.after_batch, on_epoch_end=watch.after_epoch)
        ],
        shuffle=False,
        verbose=0,
    )
    return watch.history


def _epochs(learning: Samples, settings: Training) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for epoch in range(settings.epochs):
        yield from batches(learning, settings.batch, settings.flip, (settings.seed, epoch))


def _trainee(network: Any, graph: Graph) -> Any:
    """A Keras model around the network that takes pixels and has the YOLO loss."""
    import keras
    import tensorflow as tf

    from toolchain.loss import LossWeights, yolo_loss

    assert graph.input is not None and graph.head is not None
    head = graph.head
    mean, std = np.array(graph.input.mean, np.float32), np.array(graph.input.std, np.float32)
    order = [graph.outputs.index(scale.outputs["raw"]) for scale in head.scales]

    class Trainee(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def call(self, images: Any, training: bool = False) -> Any:
            return self.network((tf.cast(images, tf.float32) - mean) / std, training=training)

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
        ) -> Any:
            outputs = y_pred if isinstance(y_pred, (list, tuple)) else [y_pred]
            return yolo_loss(head, y, [outputs[index] for index in order], LossWeights())

    return Trainee()


class _Watch:
    """Tells how far a training is, and ends one that diverges."""

    def __init__(self, tell: Progress, epochs: int, per_epoch: int) -> None:
        self.history: list[dict[str, float]] = []
        self._tell = tell
        self._epochs = epochs
        self._per_epoch = per_epoch
        self._begin = self._last = time.monotonic()
        self._started = 0.0

    def after_batch(self, batch: int, logs: Mapping[str, float]) -> None:
        if not math.isfinite(logs["loss"]):
            epoch = len(self.history) + 1
            raise InputError(f"a training's loss is finite: it diverged in epoch {epoch}; lower learning_rate")
        now = time.monotonic()
        if not self._started:
            # The first step is slow: TensorFlow traces the graph in it. The time left is told by the others.
            self._started = self._last = now
        if now - self._last >= _SECONDS_BETWEEN_REPORTS and batch + 1 < self._per_epoch:
            self._last = now
            self._tell(self._facts(len(self.history) + (batch + 1) / self._per_epoch, logs))

    def after_epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        self._last = time.monotonic()
        self.history.append({**self._facts(epoch + 1, logs), "val_loss": float(logs["val_loss"])})
        self._tell(self.history[-1])

    def _facts(self, done: float, logs: Mapping[str, float]) -> dict[str, float]:
        now = time.monotonic()
        steps = done * self._per_epoch
        left = (now - self._started) / max(steps - 1, 1) * (self._epochs * self._per_epoch - steps)
        return {
            "epoch": done,
            "epochs": self._epochs,
            "loss": float(logs["loss"]),
            "seconds": round(now - self._begin, 1),
            "seconds_left": round(left, 1),
        }


def with_weights_of(graph: Graph, network: Any) -> Graph:
    """The graph with the weights that its Keras model has now: layers by their names, their weights by their order."""
    return dataclasses.replace(graph, nodes=tuple(_with_weights_of(node, network) for node in graph.nodes))


def _with_weights_of(node: Node, network: Any) -> Node:
    if not node.weights:
        return node
    values = network.get_layer(node.name).get_weights()
    return dataclasses.replace(node, weights=dict(zip(node.weights, values, strict=True)))
