"""What the stages do that train, or make up for a compression in another way: as stages.py, a plain function each."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from toolchain.graph import Graph
from toolchain.pass_report import PassResult, to_json
from toolchain.stage_work import KEPT, SCENES, Facts, Work, save
from toolchain.training import PictureFolder, Training, TrainingData

_Chosen = TypeVar("_Chosen")


def train(work: Work) -> Facts:
    """Trains all weights. Settings: the recipe's Train or Finetune with labels and distill decided, allow_lambda, and
    what data_of reads. Inputs: graph, where it learns from one teacher, and the pictures."""
    from toolchain.train import train as train_graph

    training = training_of(work)
    assert work.checkpoint is not None
    try:
        trained = train_graph(
            work.graph(),
            training,
            data_of(work),
            teacher=work.graph("teacher") if "teacher" in work.inputs else None,
            checkpoint_folder=work.checkpoint.folder,
            use_best=work.checkpoint.end,
            allow_lambda=work.settings["allow_lambda"],
            progress=_Told(work).tell,
        )
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_kept(work.checkpoint.folder)) from stop
    if (logs := work.checkpoint.folder / "logs").is_dir():
        shutil.copytree(logs, work.out / "logs")
    return {**save(trained.graph, work.out), "training": {**trained.facts, "settings": dataclasses.asdict(training)}}


def sparsify(work: Work) -> Facts:
    """Makes weights 0. Settings: the recipe's Sparsify, otherwise as train. Inputs: as train."""
    from toolchain.sparsity import Sparsity
    from toolchain.sparsity import sparsify as sparsify_graph

    return _wrapped(work, sparsify_graph, _chosen(Sparsity, work))


def cluster(work: Work) -> Facts:
    """Leaves kernels few values. Settings: the recipe's Cluster, otherwise as train. Inputs: as train."""
    from toolchain.clustering import Clustering
    from toolchain.clustering import cluster as cluster_graph

    return _wrapped(work, cluster_graph, _chosen(Clustering, work))


def quantization_aware(work: Work) -> Facts:
    """Trains rounded. Settings: the recipe's QuantizationAware, otherwise as train. Inputs: as train."""
    from toolchain.quantization_aware import QuantizationAware
    from toolchain.quantization_aware import quantization_aware as train_rounded

    return _wrapped(work, train_rounded, _chosen(QuantizationAware, work))


def _wrapped(work: Work, run: Callable[..., PassResult], settings: Any) -> Facts:
    """What a stage does that trains and changes what weights may be."""
    training = training_of(work)
    result = run(
        work.graph(),
        settings,
        training,
        data_of(work),
        teacher=work.graph("teacher") if "teacher" in work.inputs else None,
        allow_lambda=work.settings["allow_lambda"],
        progress=_Told(work).tell,
    )
    told = {"best_epoch": training.epochs, "watched": "map", "ended": "", **result.facts}
    return {
        **save(result.graph, work.out),
        **to_json(result),
        "training": {**told, "settings": dataclasses.asdict(training)},
    }


def batch_norm(work: Work) -> Facts:
    """Measures batch norms anew. Settings: allow_lambda. Inputs: graph, original, pictures, and in their order the
    results of the prunings between the two, pruned_0 and so on."""
    from toolchain.batch_norm_correction import corrected_batch_norms, read_kept

    graph, original = work.graph(), work.graph("original")
    pruned = [name for name in work.inputs if name.startswith("pruned_")]
    kept = read_kept([work.file(f"pruned_{index}", KEPT) for index in range(len(pruned))])
    changed = corrected_batch_norms(
        original, graph, work.paths("pictures"), kept=kept, allow_lambda=work.settings["allow_lambda"],
        progress=work.progress,
    )  # fmt: skip
    return {**save(changed, work.out), "notes": [_moved(graph, changed, len(work.paths("pictures")))]}


def training_of(work: Work) -> Training:
    """The settings of a training, from those of its stage."""
    return _chosen(Training, work)


def _chosen(kind: type[_Chosen], work: Work) -> _Chosen:
    """The settings of a dataclass, from those of a stage."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    # JSON has lists where the dataclass has tuples.
    given: dict[str, Any] = {key: value for key, value in work.settings.items() if key in names}
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def data_of(work: Work) -> TrainingData:
    """The pictures to train on: the input scenes; or setting data with share and, under train and validation, split and
    labelled of each folder, which is the input train_0 and so on."""
    if "scenes" in work.inputs:
        folder = work.file("scenes", SCENES)
        return TrainingData((PictureFolder(folder, "train"),), (PictureFolder(folder, "val"),))
    data = work.settings["data"]

    def folders(kind: str) -> tuple[PictureFolder, ...]:
        return tuple(PictureFolder(work.path(f"{kind}_{index}"), **entry) for index, entry in enumerate(data[kind]))

    return TrainingData(folders("train"), folders("validation"), data["share"])


class _Told:
    """Passes on what a training tells, with the last mAP, which it tells at the end of an epoch alone."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._now: Mapping[str, float] = {}

    def tell(self, facts: Mapping[str, float]) -> None:
        self._now = {**self._now, **facts}
        now = self._now
        if "loss" not in now:
            self._work.progress(0, 0, f"compiles its first of {now['epochs']:.0f} epochs")
            return
        text = f"epoch {now['epoch']:.1f} of {now['epochs']:.0f}, loss {now['loss']:.3g}"
        text += f", mAP {100 * now['map']:.2f} %" if "map" in now else ""
        self._work.progress(now["epoch"], now["epochs"], f"{text}, {now['seconds_left']:.0f} s left")


def _kept(folder: Path) -> str:
    """What an interrupted training leaves in its checkpoint, and what can be done with it, in words."""
    from toolchain import checkpoint

    told = checkpoint.told(folder)
    if told is None:
        return "the training had just begun and begins anew; what was finished before is kept"
    kept = f"the training is kept as it was after step {told['step']} of {told['steps']}, the same command goes on"
    if not told["best"]:
        return kept
    score = told["best"]["figure"]
    best = {"map": f", mAP {100 * score:.2f} %,", "val_loss": f", loss {score:.4g},"}.get(told["watched"], "")
    return f"{kept}; with --use-best it packages the best so far{best} of epoch {told['best']['epoch']:.0f}"


def _moved(before: Graph, after: Graph, pictures: int) -> str:
    """How far batch norms' statistics were moved, in words; of each the median of its channels."""
    moves: dict[str, tuple[float, float]] = {}
    for node in before.nodes:
        if node.op == "BatchNormalization" and node.weights:
            old, new = node.weights, after.by_name[node.name].weights
            # A channel that is always 0 has no deviation.
            deviations = [np.sqrt(np.maximum(weights["moving_variance"], 1e-12)) for weights in (old, new)]
            shifts = np.abs(new["moving_mean"] - old["moving_mean"]) / deviations[0]
            moves[node.name] = float(np.median(shifts)), float(np.median(deviations[1] / deviations[0]))
    if not moves:
        return "the network has no batch norms, and stays as it is"
    name = max(moves, key=lambda one: moves[one][0])
    shift, ratio = moves[name]
    return (
        f"statistics of {len(moves)} batch norms were measured anew on {pictures} pictures: their means moved by "
        f"{np.median([one for one, _ in moves.values()]):.3f} of a standard deviation, in the median; those of {name} "
        f"most, by {shift:.3f}, its deviations to {ratio:.3f} times"
    )
