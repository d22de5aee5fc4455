"""Trains a graph that has a YOLO head: on labelled pictures, on what another network makes of pictures, or both.

Keras's own fit (fit.py) runs in a process of its own, graph in and graph out as files: TensorFlow's memory and its
global settings go with it. The same settings and data give the same weights on the same machine, whether the training
ran through or was killed and went on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.errors import GraphError, InputError
from toolchain import checkpoint, child_process, graph_file
from toolchain.graph import Graph
from toolchain.training import PictureFolder, Progress, Trained, Training, TrainingData


def train(
    graph: Graph, training: Training, data: TrainingData, *, teacher: Graph | None = None,
    checkpoint_folder: Path | None = None, use_best: bool = False, allow_lambda: bool = False,
    progress: Progress | None = None,
) -> Trained:  # fmt: skip
    """Trains all weights but the frozen ones.

    The graph has an input, labels and a YoloHead with raw outputs; so has the teacher, with the same head.
    checkpoint_folder belongs to exactly this training: a state in it is gone on from, and new ones are written there.
    use_best: no more training; the best weights in that folder so far.

    Raises InputError for data that cannot be trained on, a training that diverges and a use_best without weights,
    GraphError for a graph without such a head or a teacher with another, ConversionError when the training's process
    dies.
    """
    _check(graph)
    if teacher is not None:
        _check(teacher)
        if teacher.head != graph.head or teacher.labels != graph.labels:
            raise GraphError(
                f"a teacher has its student's head and labels: {teacher.name!r} differs from {graph.name!r} in them; "
                "take the network that it was made of"
            )
    if use_best:
        return _best_so_far(checkpoint_folder)
    with child_process.folder() as place:
        names = ("before.zip", "teacher.zip", "after.zip", "told.jsonl")
        before, theirs, after, told = (place / name for name in names)
        graph_file.save(graph, before)
        if teacher is not None:
            graph_file.save(teacher, theirs)
        if checkpoint_folder is not None:
            checkpoint_folder.mkdir(parents=True, exist_ok=True)
        arguments = {
            "before": str(before),
            "teacher": str(theirs) if teacher is not None else None,
            "after": str(after),
            "told": str(told),
            "folder": str(checkpoint_folder.absolute()) if checkpoint_folder else None,
            "training": dataclasses.asdict(training),
            "data": data_to_json(data),
            "allow_lambda": allow_lambda,
        }
        with child_process.followed(told, progress):
            step = f"training of {graph.name!r}"
            facts = child_process.run("toolchain.train:train_in_child", arguments, place, step=step, trains=True)
        return Trained(graph_file.load(after), facts)


def _check(graph: Graph) -> None:
    if graph.input is None or graph.head is None or not graph.labels:
        raise GraphError(
            f"what is trained has an input, labels and a head: {graph.name!r} lacks one; describe it with a head file"
        )
    if any(set(scale.outputs) != {"raw"} for scale in graph.head.scales):
        raise GraphError(
            f"a training reads raw outputs: those of {graph.name!r} are split by role; train it before it is split"
        )


def _best_so_far(folder: Path | None) -> Trained:
    facts = checkpoint.told(folder) if folder else None
    graph = checkpoint.load_best(folder) if folder else None
    if facts is None or graph is None:
        raise InputError("the best weights so far are those of a whole epoch: none has ended yet; train on")
    done = f"taken as it was after {facts['step']} of {facts['steps']} steps"
    kept = {key: facts[key] for key in ("history", "watched", "device", "precision", "seconds_per_step")}
    return Trained(
        graph, {**kept, "steps": facts["step"], "best_epoch": facts["best"]["epoch"], "ended": facts["ended"] or done}
    )


def data_to_json(data: TrainingData) -> dict[str, Any]:
    """Plain JSON of which data_from_json makes the same; paths become absolute."""

    def folders(every: tuple[PictureFolder, ...]) -> list[dict[str, Any]]:
        return [
            {"folder": str(one.folder.absolute()), "split": one.split, "labelled": one.labelled} for one in every
        ]

    return {"train": folders(data.train), "validation": folders(data.validation), "share": data.share}


def data_from_json(value: Mapping[str, Any]) -> TrainingData:
    def folders(every: list[dict[str, Any]]) -> tuple[PictureFolder, ...]:
        return tuple(PictureFolder(Path(one["folder"]), one["split"], one["labelled"]) for one in every)

    return TrainingData(folders(value["train"]), folders(value["validation"]), value["share"])


def train_in_child(
    before: str, teacher: str | None, after: str, told: str, folder: str | None, training: Mapping[str, Any],
    data: Mapping[str, Any], allow_lambda: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What `train` does in its own process; returns Trained's facts."""
    import keras

    from toolchain.fit import fit
    from toolchain.training_data import split_examples

    lists = {key: tuple(value) for key, value in training.items() if isinstance(value, list)}
    settings = Training(**{**training, **lists})
    graph = graph_file.load(Path(before))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(settings.seed)
    learning, watched = split_examples(data_from_json(data), graph)
    with open(told, "a", encoding="utf-8") as lines:

        def tell(facts: Mapping[str, float]) -> None:
            lines.write(json.dumps(facts) + "\n")
            lines.flush()

        # The first step, in which the network is compiled, takes many seconds.
        tell({"epoch": 0.0, "epochs": settings.epochs})
        fitted = fit(
            graph, settings, learning, watched, graph_file.load(Path(teacher)) if teacher else None,
            Path(folder) if folder else None, tell, allow_lambda=allow_lambda,
        )  # fmt: skip
    graph_file.save(fitted.graph, Path(after))
    return {
        **fitted.facts,
        "left_out": list(dict.fromkeys([*learning.left_out, *watched.left_out])),
        "pictures": len(learning.pictures),
        "validation_pictures": len(watched.pictures),
    }
