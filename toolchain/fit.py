"""Fits a Keras model of a graph: Keras's own `fit`, epoch by epoch, around a network that takes pixels.

In the process that trains, on any of Keras's backends; several GPUs by tf.distribute. Everything that a step depends on
is in the checkpoint: the weights, the optimizer's memory, the epoch's mean loss so far, and the step's number, from
which the batches follow (training_batches.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from deploy.errors import InputError
from toolchain import checkpoint
from toolchain.devices import device_name, every_device, precision, shared
from toolchain.graph import Graph
from toolchain.input_size import sizes_around
from toolchain.keras_writer import with_weights_of
from toolchain.trainee import make_trainee, predictors
from toolchain.training import AVERAGES, GRADIENTS, SQUARES, Progress, Training, memory
from toolchain.training_batches import Batches, feed
from toolchain.training_data import Examples
from toolchain.validation import Validation
from toolchain.weight_average import WeightAverage

_SECONDS_BETWEEN_REPORTS = 2.0
_SECONDS_BETWEEN_STATES = 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """The graph with its new weights and the facts of Trained, but those about the data."""

    graph: Graph
    facts: Mapping[str, Any]


def fit(
    graph: Graph, training: Training, learning: Examples, watched: Examples, teacher: Graph | None, folder: Path | None,
    tell: Progress, *, allow_lambda: bool = False,
) -> Fitted:  # fmt: skip
    """Trains a graph from where the checkpoint in folder stands, or from its own weights.

    Raises InputError when there are fewer pictures than a batch, the loss is no longer finite, or the device cannot do
    what is asked; GraphError when Keras refuses the graph.
    """
    assert graph.input is not None and graph.head is not None
    alone = sum(not example.labelled for example in learning.pictures)
    if training.labels and alone:
        raise InputError(
            f"labels are those of every picture: {alone} of {len(learning.pictures)} have none; leave them out, or "
            "train without labels"
        )
    batches = Batches(learning, graph.input, training)
    with every_device(training.batch) as devices:
        run = Run(graph, training, teacher, batches, watched, folder, tell, devices, allow_lambda)
        run.restore()
        return run.fit()


class Run:
    """A training as it goes on."""

    def __init__(
        self, graph: Graph, training: Training, teacher: Graph | None, batches: Batches, watched: Examples,
        folder: Path | None, tell: Progress, devices: int, allow_lambda: bool,
    ) -> None:  # fmt: skip
        self.graph, self.training, self.batches, self.folder = graph, training, batches, folder
        self.per_epoch = batches.steps_per_epoch
        self.steps = training.epochs * self.per_epoch
        self.precision = precision(training.mixed_precision)
        self.devices, self.device = devices, device_name()
        self.sizes = sizes_around(graph, training.multi_scale)
        self.trainee = make_trainee(graph, training, teacher, self.sizes, devices, self.precision, allow_lambda)
        for layer in self.trainee.network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = memory(self.steps, AVERAGES)
        self.trainee.compile(optimizer=_optimizer(training, self.steps), jit_compile=keras.backend.backend() == "jax")
        self.trainee.optimizer.build(self.trainee.trainable_variables)
        self.average = WeightAverage(self.trainee.network, training.ema) if training.ema is not None else None
        self.own_size, self.functions = self.trainee.size, dict[tuple[int, int], Any]()
        self.validation = Validation(graph, watched, training.batch) if watched.pictures else None
        self.predictors = predictors(self.trainee)
        self.watched = ("map" if training.labels else "val_loss") if self.validation else ""
        self.watch = _Watch(tell, self)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.step = 0
        self.loss_so_far: list[float] = []
        self.ended = ""
        self.logs = _event_files(folder) if training.tensorboard and folder else None

    def variables(self) -> list[Any]:
        """All that changes in a step, but the epoch's mean loss."""
        averages = self.average.values if self.average else []
        return [*self.trainee.network.variables, *self.trainee.optimizer.variables, *averages]

    def restore(self) -> None:
        state = checkpoint.load_state(self.folder) if self.folder else None
        if state is None:
            return
        arrays, facts = state
        for variable, array in zip(self.variables(), arrays, strict=True):
            variable.assign(array)
        self.step, self.history, self.best = facts["step"], facts["history"], facts["best"]
        self.loss_so_far, self.ended = facts["loss_so_far"], facts["ended"]

    def save(self) -> None:
        if self.folder is None:
            return
        # JAX's step works on values of its own until it is asked.
        getattr(self.trainee, "jax_state_sync", lambda: None)()
        facts = {
            "step": self.step,
            "steps": self.steps,
            "history": self.history,
            "best": self.best,
            "watched": self.watched,
            "device": self.device,
            "precision": self.precision,
            "seconds_per_step": self.watch.seconds_per_step(),
            "loss_so_far": self.loss_so_far,
            "ended": self.ended,
        }
        checkpoint.save_state(self.folder, [ops.convert_to_numpy(one) for one in self.variables()], facts)

    def fit(self) -> Fitted:
        begin = time.monotonic()
        while self.step < self.steps and not self.ended:
            self.epoch(self.step // self.per_epoch)
        best = checkpoint.load_best(self.folder) if self.folder else None
        graph = best or self.best_graph
        facts = {
            "history": self.history,
            "steps": self.step,
            "best_epoch": self.best["epoch"],
            "watched": self.watched,
            "device": self.device,
            "precision": self.precision,
            "seconds": round(time.monotonic() - begin, 1),
            "seconds_per_step": self.watch.seconds_per_step(),
            "ended": self.ended,
        }
        return Fitted(graph, facts)

    def epoch(self, epoch: int) -> None:
        """Trains from the step that was reached to the epoch's end, and looks at the validation pictures."""
        training = self.training
        size = self.sizes[int(np.random.default_rng((training.seed, epoch)).integers(len(self.sizes)))]
        mosaic = epoch < training.epochs * (1 - training.close_mosaic)
        first, last = self.step, (epoch + 1) * self.per_epoch
        workers = max(1, (os.cpu_count() or 1) - 1)
        # A function a size: one for all would be traced anew for pictures of any size, and choose no network.
        self.trainee.size, self.trainee.train_function = size, self.functions.get(size)
        self.trainee.fit(
            shared(lambda: feed(self.batches, first, last, size, mosaic, workers), self.devices),
            epochs=epoch + 1,
            initial_epoch=epoch,
            steps_per_epoch=last - first,
            callbacks=[self.watch],
            shuffle=False,
            verbose=0,
        )
        self.functions[size] = self.trainee.train_function
        self.trainee.size = self.own_size
        facts = self.watch.facts(self.step / self.per_epoch, self.watch.loss)
        with self.average.in_place() if self.average else contextlib.nullcontext():
            if self.validation:
                predict, teach = self.predictors
                facts |= self.validation.measure(predict, self.trainee.objective, teach, labels=training.labels)
            self.history.append(facts)
            self._judge(epoch + 1)
        self.loss_so_far = []
        self.watch.tell(facts)
        if self.logs:
            self.logs(epoch + 1, facts)
        self.save()

    def _judge(self, epoch: int) -> None:
        """Keeps the weights where they are the best so far, and ends a training that gets no better."""
        facts = self.history[-1]
        if not all(math.isfinite(value) for value in facts.values()):
            raise InputError(f"a training's loss is finite: it diverged in epoch {epoch}; lower learning_rate")
        figure, loss = facts.get(self.watched, 0.0), facts.get("val_loss", 0.0)
        better = not self.best or not self.watched
        if not better:
            # Of equal mAPs, on few pictures or none found yet, the lower loss is the better one.
            sign = -1 if self.watched == "map" else 1
            better = (sign * figure, loss) < (sign * self.best["figure"], self.best["loss"])
        if better:
            self.best = {"epoch": epoch, "figure": figure, "loss": loss}
            self.best_graph = with_weights_of(self.graph, self.trainee.network)
            if self.folder:
                checkpoint.save_best(self.folder, self.best_graph)
        patience = self.training.patience
        if patience and epoch - self.best["epoch"] >= patience:
            self.ended = f"{self.watched} was not better for {patience} epochs"


def _optimizer(training: Training, steps: int) -> Any:
    warm = max(1, int(steps * training.warmup))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm), warmup_target=training.learning_rate, warmup_steps=warm
    )
    common: dict[str, Any] = {"weight_decay": training.weight_decay, "global_clipnorm": training.clip}
    if training.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=training.momentum, nesterov=training.momentum > 0, **common)
    else:
        betas = memory(steps, GRADIENTS), memory(steps, SQUARES)
        optimizer = keras.optimizers.AdamW(rate, beta_1=betas[0], beta_2=betas[1], **common)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


class _Watch(keras.callbacks.Callback):
    """Tells how far a training is, saves its state now and then, and ends one that diverges."""

    def __init__(self, tell: Progress, run: Run) -> None:
        super().__init__()
        self.tell, self._run = tell, run
        self.begin = self._last = self._saved = time.monotonic()
        self._started, self._first = 0.0, 0
        self._steps_seconds, self._steps = 0.0, 0
        self._step_begin = 0.0
        self.loss = math.nan

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # What the epoch's mean had seen before a kill.
        if self._run.loss_so_far:
            for variable, value in zip(self.model.metrics[0].variables, self._run.loss_so_far, strict=True):
                variable.assign(value)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._step_begin = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._run.average:
            getattr(self.model, "jax_state_sync", lambda: None)()
            self._run.average.update(self._run.step)
        self._run.step += 1
        self.loss = float(logs["loss"])
        per_epoch = self._run.per_epoch
        if not math.isfinite(self.loss):
            epoch = (self._run.step - 1) // per_epoch + 1
            raise InputError(f"a training's loss is finite: it diverged in epoch {epoch}; lower learning_rate")
        now = time.monotonic()
        if not self._started:
            # The first step is slow: the graph is compiled in it. The time left is told by the others.
            self._started, self._first = now, self._run.step
            return
        self._steps_seconds += now - self._step_begin
        self._steps += 1
        first = self._run.step == self._first + 1
        ends_epoch = self._run.step % per_epoch == 0
        if (first or now - self._last >= _SECONDS_BETWEEN_REPORTS) and not ends_epoch:
            self._last = now
            self.tell(self.facts(self._run.step / per_epoch, self.loss))
        if now - self._saved >= _SECONDS_BETWEEN_STATES and not ends_epoch:
            getattr(self.model, "jax_state_sync", lambda: None)()
            # Of several devices each has its own part of the mean, and no float: a sum is that of all.
            self._run.loss_so_far = [float(one + 0.0) for one in self.model.metrics[0].variables]
            self._run.save()
            self._saved = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._last = self._saved = time.monotonic()

    def seconds_per_step(self) -> float:
        return round(self._steps_seconds / self._steps, 4) if self._steps else 0.0

    def facts(self, done: float, loss: float) -> dict[str, float]:
        now = time.monotonic()
        steps = self._run.step
        left = (now - self._started) / max(steps - self._first, 1) * (self._run.steps - steps)
        return {
            "epoch": done,
            "epochs": self._run.training.epochs,
            "loss": loss,
            "seconds": round(now - self.begin, 1),
            "seconds_left": round(left, 1),
        }


def _event_files(folder: Path) -> Callable[[int, Mapping[str, float]], None]:
    """Writes an epoch's figures for TensorBoard, which need not be installed where a network is trained."""
    if keras.backend.backend() != "tensorflow":
        raise InputError("TensorBoard's logs are written by TensorFlow, which does not train here; set tensorboard off")
    import tensorflow as tf

    writer = tf.summary.create_file_writer(str(folder / "logs"))
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"

    def write(epoch: int, facts: Mapping[str, float]) -> None:
        with writer.as_default(step=epoch):
            for name in ("loss", "val_loss", "map"):
                if name in facts:
                    tf.summary.write(name, tf.constant(facts[name], tf.float32), metadata=metadata)
        writer.flush()

    return write
