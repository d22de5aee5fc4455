"""How long a step of fine-tuning takes, beside a plain Keras step of the same network.

    python -m toolchain.step_time --cfg NET.cfg --weights NET.weights --names NAMES --data FOLDER [--split SPLIT]

The plain step is Keras's own train_step of the network on one batch that stays in memory, with the same optimizer and
the mean of its squared outputs as its loss: nothing is read, changed or assigned. Fine-tuning reads pictures, makes
mosaics of them, assigns objects to anchors and keeps an average of the weights. The two take turns, an epoch each, and
the ratio is that of their medians. The input pipeline alone is timed too, with nothing else at work.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.environment import environment
from deploy.command_line import debug_option, json_option, run, write_json
from toolchain.graph import Graph
from toolchain.training import PictureFolder, Training, TrainingData

#: Turns of each that are timed, after one that is not: it compiles.
_TURNS = 5


def measure(graph: Graph, data: TrainingData, batch: int, steps: int) -> dict[str, Any]:
    """Seconds a step of both, their ratio, and seconds a batch of the pipeline alone; medians over the turns.

    steps: of each turn, at most an epoch. Raises what a training raises.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from toolchain.fit import Run
    from toolchain.keras_writer import to_keras
    from toolchain.training_batches import Batches, feed
    from toolchain.training_data import Examples, split_examples

    training = Training(
        epochs=_TURNS + 1, batch=batch, ema=0.998, mosaic=0.5, scale=0.5, shift=0.1, color=1.0, close_mosaic=0.0
    )
    learning, _ = split_examples(data, graph, training.seed)
    learning = Examples(learning.pictures[: steps * batch], learning.left_out)
    assert graph.input is not None
    batches = Batches(learning, graph.input, training)
    tuned = Run(graph, training, None, batches, Examples((), ()), None, lambda facts: None, 1, False)
    plain = to_keras(graph)
    count = len(graph.outputs)
    plain.compile(optimizer=keras.optimizers.AdamW(1e-6), loss=["mse"] * count if count > 1 else "mse")
    size = (graph.input.height, graph.input.width)
    images = tf.constant(batches.make(0, size, True)[0] / np.float32(255), tf.float32)
    targets = [tf.zeros_like(output) for output in plain.predict_on_batch(images)] if count > 1 else None
    targets = targets if targets is not None else tf.zeros_like(plain.predict_on_batch(images))
    constant = tf.data.Dataset.from_tensors((images, tuple(targets) if count > 1 else targets)).repeat()

    def seconds(work: Any) -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) / batches.steps_per_epoch

    times: dict[str, list[float]] = {"finetune": [], "plain": []}
    for turn in range(_TURNS + 1):
        one = seconds(lambda: tuned.epoch(turn))
        other = seconds(lambda: plain.fit(constant, steps_per_epoch=batches.steps_per_epoch, verbose=0))
        if turn:
            times["finetune"].append(one)
            times["plain"].append(other)
    epoch = batches.steps_per_epoch
    alone = [seconds(lambda: list(feed(batches, turn * epoch, (turn + 1) * epoch, size, True, 1))) for turn in range(3)]
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "model": graph.name,
        "batch": batch,
        "steps_per_turn": batches.steps_per_epoch,
        "finetune_s": medians["finetune"],
        "plain_s": medians["plain"],
        "ratio": medians["finetune"] / medians["plain"],
        "ratios": [one / other for one, other in zip(times["finetune"], times["plain"], strict=True)],
        "pipeline_s": statistics.median(alone),
        "environment": environment(),
    }


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--cfg", type=_FILE, required=True, help="darknet's network description.")
@click.option("--weights", type=_FILE, required=True, help="darknet's weights.")
@click.option("--names", type=_FILE, required=True, help="One class name a line.")
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Labelled pictures."
)
@click.option("--split", help="Of the data; all of them where it is left out.")
@click.option("--batch", default=16, show_default=True, help="Pictures a step.")
@click.option("--steps", default=8, show_default=True, help="Of each turn.")
@json_option("Write the figures as JSON; - is standard output.")
@debug_option
def step_time(
    cfg: Path, weights: Path, names: Path, data: Path, split: str | None, batch: int, steps: int, json_file: str | None
) -> None:
    """Time a step of fine-tuning beside a plain Keras step of the same network."""
    from toolchain.darknet_reader import read_darknet

    graph = read_darknet(cfg, weights, names)
    found = measure(graph, TrainingData((PictureFolder(data, split),), share=0.0), batch, steps)
    if json_file is not None:
        write_json(json_file, found)
    if json_file != "-":
        click.echo(
            f"{found['model']}, batch {batch}: fine-tuning {found['finetune_s']:.3f} s a step, plain Keras "
            f"{found['plain_s']:.3f} s, ratio {found['ratio']:.3f} (turns {min(found['ratios']):.3f} to "
            f"{max(found['ratios']):.3f}); the pipeline alone {found['pipeline_s']:.3f} s a batch"
        )


if __name__ == "__main__":
    run(step_time, "python -m toolchain.step_time")
