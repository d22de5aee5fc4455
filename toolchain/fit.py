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
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from deploy.errors import InputError
from toolchain import checkpoint
from toolchain.distillation import objective
from toolchain.graph import Graph, Node
from toolchain.input_size import resized
from toolchain.keras_writer import to_keras
from toolchain.scope import select
from toolchain.training import AVERAGES, GRADIENTS, SQUARES, Progress, Training, memory
from toolchain.training_batches import Batches, feed
from toolchain.training_data import Examples
from toolchain.validation import Validation

_SECONDS_BETWEEN_REPORTS = 2.0
_SECONDS_BETWEEN_STATES = 30.0
#: images and truth of one batch after the other, as training_batches.py has them.
_Fed = Generator[tuple[np.ndarray, np.ndarray], None, None]


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
    with _strategy(training.batch) as strategy:
        run = Run(graph, training, teacher, batches, watched, folder, tell, strategy, allow_lambda)
        run.restore()
        return run.fit()


@contextlib.contextmanager
def _strategy(batch: int) -> Any:
    """All GPUs that TensorFlow sees, where there are several; yields the number of devices."""
    if keras.backend.backend() != "tensorflow":
        yield 1
        return
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        yield 1
        return
    if batch % len(devices):
        raise InputError(
            f"a batch is shared evenly by all devices: {batch} pictures, {len(devices)} {devices[0].device_type}s; "
            f"make the batch a multiple of {len(devices)}"
        )
    with tf.distribute.MirroredStrategy([device.name for device in devices]).scope():
        yield len(devices)


def _shared(feeding: Callable[[], _Fed], devices: int) -> Any:
    """The batches as Keras's fit takes them: with several devices each gets an equal part of every batch."""
    if devices == 1:
        return feeding()
    import tensorflow as tf

    def parts() -> _Fed:
        # Keras looks at the first batch, and then begins anew.
        with contextlib.closing(feeding()) as fed:
            for images, truth in fed:
                yield from zip(np.split(images, devices), np.split(truth, devices), strict=True)

    with contextlib.closing(parts()) as some:
        signature = tuple(tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in next(some))
    dataset = tf.data.Dataset.from_generator(parts, output_signature=signature).prefetch(2 * devices)
    return tf.distribute.get_strategy().distribute_datasets_from_function(lambda context: dataset)


class Run:
    """A training as it goes on."""

    def __init__(
        self, graph: Graph, training: Training, teacher: Graph | None, batches: Batches, watched: Examples,
        folder: Path | None, tell: Progress, devices: int, allow_lambda: bool,
    ) -> None:  # fmt: skip
        self.graph, self.training, self.batches, self.folder = graph, training, batches, folder
        self.per_epoch = batches.steps_per_epoch
        self.steps = training.epochs * self.per_epoch
        self.precision = _precision(training.mixed_precision)
        self.devices, self.device = devices, _device()
        self.sizes = _sizes(graph, training.multi_scale)
        self.trainee = _trainee(graph, training, teacher, self.sizes, devices, self.precision, allow_lambda)
        for layer in self.trainee.network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = memory(self.steps, AVERAGES)
        self.trainee.compile(optimizer=_optimizer(training, self.steps), jit_compile=keras.backend.backend() == "jax")
        self.trainee.optimizer.build(self.trainee.trainable_variables)
        self.average = _Average(self.trainee.network, training.ema) if training.ema is not None else None
        self.own_size, self.functions = self.trainee.size, dict[tuple[int, int], Any]()
        self.validation = Validation(graph, watched, training.batch) if watched.pictures else None
        self.predictors = _predictors(self.trainee)
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
            _shared(lambda: feed(self.batches, first, last, size, mosaic, workers), self.devices),
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


def _precision(mixed: bool | None) -> str:
    """Keras's policy: 16 bits where the device multiplies them faster, bfloat16 where it can."""
    capability = _gpu_capability()
    if mixed is None:
        mixed = capability is not None and capability >= (7, 0)
    if not mixed:
        return "float32"
    if capability is None:
        raise InputError("mixed precision needs a GPU, and there is none; leave mixed_precision out")
    return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16"


def _gpu_capability() -> tuple[int, int] | None:
    """Of the first GPU, None where there is none."""
    if keras.backend.backend() == "jax":
        import jax

        gpus = [device for device in jax.devices() if device.platform == "gpu"]
        if not gpus:
            return None
        major, minor = gpus[0].compute_capability.split(".")
        return int(major), int(minor)
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    if not found:
        return None
    capability = tf.config.experimental.get_device_details(found[0]).get("compute_capability", (0, 0))
    return int(capability[0]), int(capability[1])


def _device() -> str:
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return f"{jax.devices()[0].device_kind} (jax)"
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    if not found:
        return f"CPU ({backend})"
    name = tf.config.experimental.get_device_details(found[0]).get("device_name", "GPU")
    return f"{len(found)} x {name} ({backend})" if len(found) > 1 else f"{name} ({backend})"


def _sizes(graph: Graph, share: float) -> list[tuple[int, int]]:
    """The input sizes of a training, (height, width): whole cells of the coarsest scale, in the network's shape."""
    assert graph.input is not None and graph.head is not None
    height, width = graph.input.height, graph.input.width
    stride = max(scale.stride for scale in graph.head.scales)
    rows, columns = height // stride, width // stride
    parts = math.gcd(rows, columns)
    found = [
        (rows // parts * part * stride, columns // parts * part * stride)
        for part in range(1, 2 * parts + 1)
        if abs(part - parts) <= share * parts
    ]
    return found if share else [(height, width)]


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


def _trainee(
    graph: Graph, training: Training, teacher_graph: Graph | None, sizes: Sequence[tuple[int, int]], devices: int,
    precision: str, allow_lambda: bool,
) -> Any:  # fmt: skip
    """A Keras model around the network that takes pixels and has the training's loss."""
    assert graph.input is not None
    mean, std = np.array(graph.input.mean, np.float32), np.array(graph.input.std, np.float32)
    networks = _networks(_watching(graph, training.features), sizes, allow_lambda)
    network = networks[(graph.input.height, graph.input.width)]
    teachers: dict[tuple[int, int], Any] = {}
    if training.distill:
        if teacher_graph is None:
            raise InputError("a distillation has a teacher: none was given; set distill to 0 or give one")
        theirs = [_of_teacher(name, teacher_graph) for name in training.features]
        teachers = _networks(_watching(teacher_graph, theirs), sizes, allow_lambda)
    frozen = select(graph, training.freeze) if training.freeze else frozenset()
    for layer in network.layers:
        if layer.name in frozen:
            layer.trainable = False
    for model in (network, *teachers.values()):
        for layer in model.layers:
            if precision != "float32" and not isinstance(layer, keras.layers.InputLayer):
                layer.dtype_policy = precision
    loss = objective(graph, training)

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
            return _listed(one(self._normal(images), training=training))

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


def _predictors(trainee: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any] | None]:
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
    for name in layers:
        if name not in graph.by_name:
            raise InputError(f"a feature is a layer: {graph.name!r} has no {name!r}; slimdet inspect lists its layers")
    return dataclasses.replace(graph, outputs=(*graph.outputs, *layers))


def _of_teacher(name: str, teacher: Graph) -> str:
    """The layer of the uncompressed network that another became: Tucker's last part stands for the whole."""
    return name if name in teacher.by_name else name.removesuffix("_tucker_2")


def _networks(graph: Graph, sizes: Sequence[tuple[int, int]], allow_lambda: bool) -> dict[tuple[int, int], Any]:
    """The Keras model of the graph at each of the sizes and at its own; all share their layers."""
    assert graph.input is not None
    layers: dict[str, Any] = {}
    own = (graph.input.height, graph.input.width)
    return {
        size: to_keras(resized(graph, size), allow_lambda=allow_lambda, layers=layers)
        for size in dict.fromkeys((own, *sizes))
    }


class _Average:
    """The exponential moving average of a network's weights, batch norm's statistics among them: Keras's own leaves
    these out, and weights of some time ago do not go with the statistics of now.

    With t the steps so far, the share of the old is at most (1 + t) / (10 + t): the first weights are soon forgotten.
    """

    def __init__(self, network: Any, share: float) -> None:
        self._share = share
        self._variables = [one for one in network.variables if "float" in str(one.dtype)]
        self.values = [
            keras.Variable(ops.convert_to_numpy(one), trainable=False, dtype=one.dtype) for one in self._variables
        ]
        self._mix = self._mixed
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            self._mix = tf.function(self._mixed)

    def _mixed(self, new: Any) -> None:
        for average, variable in zip(self.values, self._variables, strict=True):
            average.assign_add(new * (variable - average))

    def update(self, steps: int) -> None:
        """After a step; steps: how many there were before."""
        self._mix(ops.convert_to_tensor(1 - min(self._share, (1 + steps) / (10 + steps)), "float32"))

    @contextlib.contextmanager
    def in_place(self) -> Any:
        """The averages are the network's weights for as long as the block runs."""
        raw = [np.array(ops.convert_to_numpy(one)) for one in self._variables]
        for variable, average in zip(self._variables, self.values, strict=True):
            # A copy: JAX gives buffers away, each once.
            variable.assign(np.array(ops.convert_to_numpy(average)))
        try:
            yield
        finally:
            for variable, array in zip(self._variables, raw, strict=True):
                variable.assign(array)


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
            self._run.loss_so_far = [float(one) for one in self.model.metrics[0].variables]
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


def with_weights_of(graph: Graph, network: Any) -> Graph:
    """The graph with the weights that its Keras model has now: layers by their names, their weights by their order."""
    return dataclasses.replace(graph, nodes=tuple(_with_weights_of(node, network) for node in graph.nodes))


def _with_weights_of(node: Node, network: Any) -> Node:
    if not node.weights:
        return node
    values = network.get_layer(node.name).get_weights()
    return dataclasses.replace(node, weights=dict(zip(node.weights, values, strict=True)))
