"""Trains a tf_keras model that tensorflow-model-optimization has wrapped: what its three stages share.

sparsity.py, clustering.py and quantization_aware.py each say how a model is wrapped and stripped; here it is trained by
the same loss, on the same batches and along the same steps as in train.py. tf_keras's fit and callbacks are not used:
what a wrapper wants done before, between and after the steps is called by name, and a step is one TensorFlow function.

All runs in a process of its own, graph in and graph out as files. The same settings and data give the same weights on
the same machine.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import GraphError, InputError
from toolchain import child_process, graph_file
from toolchain.graph import Graph, Node
from toolchain.kernel_report import KERNELS, with_kernel
from toolchain.scope import select
from toolchain.train import data_from_json, data_to_json
from toolchain.training import AVERAGES, GRADIENTS, SQUARES, Progress, Training, TrainingData, memory

_SECONDS_BETWEEN_REPORTS = 2.0
#: Settings that these stages cannot follow, with the only value that they take.
_FIXED: Mapping[str, tuple[Any, str]] = {
    "ema": (None, "averaged weights are neither sparse nor clustered"),
    "multi_scale": (0.0, "a wrapped model keeps its input size"),
    "features": ((), "a wrapped model has other layers than the teacher"),
    "freeze_statistics": (False, "a wrapped model's batch norms measure every batch"),
    "patience": (None, "what is reached is reached at the last step"),
    "tensorboard": (False, "no logs are written here"),
}


def _nothing() -> None:
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Wrapped:
    """A model ready to be trained, and what its wrappers want done."""

    #: tf_keras, with the inputs and outputs of the network.
    model: Any
    #: Returns a tf_keras model whose layers have the nodes' names, with the weights that were learned.
    strip: Callable[[], Any]
    #: Called once before the first step.
    begin: Callable[[], None] = _nothing
    #: Called in every step behind the optimizer, traced once as a part of the step.
    after_step: Callable[[], None] = _nothing
    #: Called at the end of every epoch.
    after_epoch: Callable[[], None] = _nothing


#: From the network's tf_keras model and the number of steps to the wrapped model.
Wrap = Callable[[Any, int], Wrapped]


def check(graph: Graph, training: Training, teacher: Graph | None) -> None:
    """Raises GraphError unless the graph has raw YOLO outputs, and InputError for settings that cannot be followed."""
    if graph.input is None or graph.head is None or not graph.labels:
        raise GraphError(
            f"what is trained has an input, labels and a head: {graph.name!r} lacks one; describe it with a head file"
        )
    if any(set(scale.outputs) != {"raw"} for scale in graph.head.scales):
        raise GraphError(
            f"a training reads raw outputs: those of {graph.name!r} are split by role; train it before it is split"
        )
    for name, (only, reason) in _FIXED.items():
        value = getattr(training, name)
        if value != only:
            raise InputError(f"{name} is {only!r} where weights are wrapped, as {reason}: got {value!r}; leave it out")
    if training.mixed_precision:
        raise InputError("weights that are wrapped are trained in float32: mixed_precision was asked for; leave it out")
    if training.distill and teacher is None:
        raise InputError("a distillation has a teacher: none was given; set distill to 0 or give one")
    if teacher is not None and (teacher.head, teacher.labels) != (graph.head, graph.labels):
        raise GraphError(
            f"a teacher has its student's head and labels: {teacher.name!r} differs from {graph.name!r} in them; take"
            " the network that it was made of"
        )


def layer_reasons(
    graph: Graph,
    include: Sequence[str],
    exclude: Sequence[str],
    training: Training,
    why_not: Callable[[Node], str],
    *,
    predictions_stay: bool = False,
) -> dict[str, str]:
    """For every node with a kernel why a stage leaves it alone, "" where it does not; why_not knows what the stage
    cannot do with a layer by itself.

    With predictions_stay, and without include, the layers that predict stay as they are: few weights, on which every
    box hangs.

    Raises InputError for patterns that take nothing, and GraphError where no layer is left.
    """
    chosen, frozen = select(graph, include, exclude), frozen_nodes(graph, training)
    predicting = frozenset() if include or not predictions_stay else frozenset(graph.outputs)
    reasons = {}
    for node in with_kernel(graph):
        if node.name not in chosen:
            reasons[node.name] = "left out by the scope"
        elif node.name in frozen:
            reasons[node.name] = "frozen"
        elif node.name in predicting:
            reasons[node.name] = "it predicts; include it by name"
        elif node.shared_with or any(other.shared_with == node.name for other in graph.nodes):
            reasons[node.name] = "its weights are used twice"
        else:
            reasons[node.name] = why_not(node)
    if all(reasons.values()):
        (reason, count), *_ = Counter(reasons.values()).most_common(1) or [("it has no kernels", 0)]
        raise GraphError(
            f"a stage changes some layer: of {graph.name!r}'s {len(reasons)} with a kernel it can change none, {count}"
            f" of them because: {reason}; widen the scope"
        )
    return reasons


def frozen_nodes(graph: Graph, training: Training) -> frozenset[str]:
    """The nodes that keep their weights: by the training's patterns, or by their own attribute."""
    own = {node.name for node in graph.nodes if node.attributes.get("trainable") is False}
    return frozenset(own | (select(graph, training.freeze) if training.freeze else set()))


def train_wrapped(
    function: str,
    graph: Graph,
    settings: Mapping[str, Any],
    training: Training,
    data: TrainingData,
    *,
    step: str,
    teacher: Graph | None = None,
    allow_lambda: bool = False,
    progress: Progress | None = None,
) -> tuple[Graph, Mapping[str, Any]]:
    """Runs a stage's "package.module:function" in a child process with the keyword arguments of `train_in_child` and
    settings, plain JSON. Returns the graph with the weights that were learned, and the function's facts.

    Raises what check raises, InputError for data that cannot be trained on and for a training that diverges, and
    ConversionError when the process dies.
    """
    check(graph, training, teacher)
    with child_process.folder() as place:
        before, after, told = place / "before.zip", place / "after.zip", place / "told.jsonl"
        graph_file.save(graph, before)
        if teacher is not None:
            graph_file.save(teacher, place / "teacher.zip")
        arguments = {
            "before": str(before),
            "after": str(after),
            "told": str(told),
            "settings": dict(settings),
            "training": dataclasses.asdict(training),
            "data": data_to_json(data),
            "teacher": None if teacher is None else str(place / "teacher.zip"),
            "allow_lambda": allow_lambda,
        }
        with child_process.followed(told, progress):
            facts = child_process.run(function, arguments, place, step=f"{step} of {graph.name!r}")
        return graph_file.load(after), facts


def train_in_child(
    wrap: Wrap,
    *,
    before: str,
    after: str,
    told: str,
    training: Mapping[str, Any],
    data: Mapping[str, Any],
    teacher: str | None,
    allow_lambda: bool,
    steady: bool = False,
) -> dict[str, Any]:
    """What a stage does in its own process: trains the graph in `before`, wrapped, and writes it to `after`. Progress
    goes to `told` as lines of JSON. steady: batch norms keep their statistics. Returns as plain JSON history, left_out,
    pictures, validation_pictures, steps and seconds."""
    # Keras first: importing tensorflow-model-optimization makes every later import of tf.keras the old one.
    import keras
    import tensorflow as tf
    import tf_keras

    from toolchain.keras_writer import with_weights_of
    from toolchain.tf_keras_writer import to_tf_keras
    from toolchain.training_batches import Batches
    from toolchain.training_data import split_examples
    from toolchain.validation import Validation

    lists = {key: tuple(value) for key, value in training.items() if isinstance(value, list)}
    settings = Training(**{**training, **lists})
    graph = graph_file.load(Path(before))
    assert graph.input is not None
    learning, watched = split_examples(data_from_json(data), graph)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(settings.seed)
    batches = Batches(learning, graph.input, settings)
    trained = _with_frozen(graph, frozen_nodes(graph, settings))
    model = to_tf_keras(trained, steady=steady, allow_lambda=allow_lambda)
    steps = settings.epochs * batches.steps_per_epoch
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = memory(steps, AVERAGES)
    wrapped = wrap(model, steps)
    teaching = None if teacher is None else _teacher(graph_file.load(Path(teacher)), allow_lambda)
    with open(told, "a", encoding="utf-8") as lines:

        def tell(facts: Mapping[str, float]) -> None:
            lines.write(json.dumps(facts) + "\n")
            lines.flush()

        validation = Validation(graph, watched, settings.batch) if watched.pictures else None
        history = fit(wrapped, graph, batches, validation, settings, tell, teaching)
    graph_file.save(_one_zero(with_weights_of(graph, wrapped.strip())), Path(after))
    return {
        "history": history,
        "left_out": list(dict.fromkeys([*learning.left_out, *watched.left_out])),
        "pictures": len(learning.pictures),
        "validation_pictures": len(watched.pictures),
        "steps": steps,
        "seconds": history[-1]["seconds"],
    }


def _one_zero(graph: Graph) -> Graph:
    """The graph with 0 for every -0, which a mask makes of a negative weight: other bits, and longer when packed."""
    nodes = [
        dataclasses.replace(node, weights={name: array + 0 for name, array in node.weights.items()})
        for node in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _with_frozen(graph: Graph, frozen: frozenset[str]) -> Graph:
    nodes = [
        dataclasses.replace(node, attributes={**node.attributes, "trainable": False}) if node.name in frozen else node
        for node in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _teacher(graph: Graph, allow_lambda: bool) -> Callable[[Any], list[Any]]:
    """The teacher's outputs on a network's inputs, as in use."""
    import keras

    from toolchain.keras_writer import to_keras

    network = to_keras(graph, allow_lambda=allow_lambda)
    return lambda inputs: list(keras.tree.flatten(network(inputs, training=False)))


def fit(
    wrapped: Wrapped,
    graph: Graph,
    batches: Any,
    validation: Any | None,
    settings: Training,
    tell: Progress,
    teacher: Callable[[Any], list[Any]] | None = None,
) -> list[dict[str, float]]:
    """Trains a wrapped model in place and returns what was told at the end of every epoch.

    batches: training_batches.Batches. validation: validation.Validation. teacher: from the network's inputs, float32
    (n, h, w, 3), to its outputs. Raises InputError when the loss is no longer finite.
    """
    from toolchain.training_batches import feed

    assert graph.input is not None
    size, per_epoch = (graph.input.height, graph.input.width), batches.steps_per_epoch
    runs = _runs(wrapped, graph, settings, teacher, settings.epochs * per_epoch)
    clock = _Clock(settings.epochs, per_epoch)
    history: list[dict[str, float]] = []
    wrapped.begin()
    for epoch in range(settings.epochs):
        first, total = epoch * per_epoch, 0.0
        mosaic = epoch < settings.epochs * (1 - settings.close_mosaic)
        fed = feed(batches, first, first + per_epoch, size, mosaic, max(1, (os.cpu_count() or 1) - 1))
        for done, (images, truth) in enumerate(fed, 1):
            loss = float(runs.step(images, truth))
            if not math.isfinite(loss):
                raise InputError(
                    f"a training's loss is finite: it diverged in epoch {epoch + 1}; lower learning_rate"
                )
            total += loss
            if clock.is_due() and done < per_epoch:
                tell(clock.facts(epoch + done / per_epoch, total / done))
        wrapped.after_epoch()
        facts = clock.facts(epoch + 1, total / per_epoch)
        if validation is not None:
            facts |= validation.measure(runs.predict, runs.objective, runs.teach, labels=settings.labels)
        history.append(facts)
        tell(facts)
    return history


@dataclasses.dataclass(frozen=True, eq=False)
class _Runs:
    """What a training runs; images are uint8 (n, h, w, 3), truth is float32 (n, M, 5)."""

    #: One step on (images, truth); the loss before it.
    step: Callable[[Any, Any], Any]
    #: The network's outputs for images, as in use.
    predict: Callable[[Any], list[Any]]
    #: The teacher's.
    teach: Callable[[Any], list[Any]] | None
    objective: Callable[[Any, Sequence[Any], Sequence[Any] | None], Any]


def _runs(
    wrapped: Wrapped, graph: Graph, settings: Training, teacher: Callable[[Any], list[Any]] | None, steps: int
) -> _Runs:
    import tensorflow as tf

    from toolchain.distillation import objective

    assert graph.input is not None
    mean, std = np.array(graph.input.mean, np.float32), np.array(graph.input.std, np.float32)
    of_outputs = objective(graph, settings)
    variables = wrapped.model.trainable_variables
    optimizer = _optimizer(settings, variables, steps)
    optimizer.build(variables)

    def inputs_of(images: Any) -> Any:
        return (tf.cast(images, tf.float32) - mean) / std

    def step(images: Any, truth: Any) -> Any:
        inputs = inputs_of(images)
        taught = None if teacher is None else teacher(inputs)
        with tf.GradientTape() as tape:
            loss = of_outputs(truth, tf.nest.flatten(wrapped.model(inputs, training=True)), taught)
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        wrapped.after_step()
        return loss

    def compiled(function: Callable[..., Any]) -> Any:
        # Nothing here is Python that depends on a tensor: without autograph a training begins some tenth sooner.
        return tf.function(function, autograph=False, jit_compile=False, reduce_retracing=True)

    return _Runs(
        compiled(step),
        compiled(lambda images: tf.nest.flatten(wrapped.model(inputs_of(images), training=False))),
        None if teacher is None else compiled(lambda images: teacher(inputs_of(images))),
        of_outputs,
    )


def _optimizer(settings: Training, variables: Sequence[Any], steps: int) -> Any:
    import tf_keras

    warm = max(1, int(steps * settings.warmup))
    rate = tf_keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm), warmup_target=settings.learning_rate, warmup_steps=warm
    )
    shared = {"weight_decay": settings.weight_decay, "global_clipnorm": settings.clip, "jit_compile": False}
    if settings.optimizer == "sgd":
        optimizer = tf_keras.optimizers.SGD(rate, settings.momentum, nesterov=settings.momentum > 0, **shared)
    else:
        betas = memory(steps, GRADIENTS), memory(steps, SQUARES)
        optimizer = tf_keras.optimizers.AdamW(rate, beta_1=betas[0], beta_2=betas[1], **shared)
    optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if not _is_kernel(variable)])
    return optimizer


def _is_kernel(variable: Any) -> bool:
    return weight_name(variable) in KERNELS


def weight_name(variable: Any) -> str:
    """"kernel" of a tf_keras variable that is called "conv/kernel:0"."""
    name: str = variable.name
    return name.rsplit("/", 1)[-1].split(":")[0]


class _Clock:
    """Tells how far a training is."""

    def __init__(self, epochs: int, per_epoch: int) -> None:
        self._epochs = epochs
        self._per_epoch = per_epoch
        self._begin = self._last = time.monotonic()
        self._started = 0.0
        self._told = False

    def is_due(self) -> bool:
        """Whether it is time to report. Asked after every step."""
        now = time.monotonic()
        if not self._started:
            # The first step is slow: TensorFlow traces the graph in it. The time left is told by the others.
            self._started = now
            return False
        if self._told and now - self._last < _SECONDS_BETWEEN_REPORTS:
            return False
        self._last, self._told = now, True
        return True

    def facts(self, done: float, loss: float) -> dict[str, float]:
        """done: epochs, with fractions."""
        now = time.monotonic()
        steps = done * self._per_epoch
        left = (now - self._started) / max(steps - 1, 1) * (self._epochs * self._per_epoch - steps)
        return {
            "epoch": done,
            "epochs": self._epochs,
            "loss": loss,
            "seconds": round(now - self._begin, 1),
            "seconds_left": round(left, 1),
        }
