"""What the stages that train make of their settings and inputs, what they tell, and what they leave when they are
stopped; and batch norms that are measured anew along several prunings."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_here import run_here
from toy_network import toy_graph, write_pictures

from toolchain import activations, checkpoint, graph_file, training_stages
from toolchain.batch_norm_correction import corrected_batch_norms, read_kept, write_kept
from toolchain.cache import Checkpoint, Result
from toolchain.graph import Graph
from toolchain.prune import Pruning, prune
from toolchain.recipe_training import Finetune
from toolchain.stage_work import GRAPH, KEPT, SCENES, Work, save
from toolchain.training import PictureFolder, Trained, Training, TrainingData

TOLD = {"history": [{"epoch": 1, "loss": 2.0}], "best_epoch": 1, "watched": "", "ended": ""}


def result(folder: Path, graph: Graph | None = None, **files: bytes) -> Result:
    folder.mkdir()
    if graph is not None:
        graph_file.save(graph, folder / GRAPH)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return Result(folder, (), "", {}, 0.0, False, "", "")


class Told:
    def __init__(self) -> None:
        self.lines: list[tuple[float, float, str]] = []

    def __call__(self, done: float, total: float, text: str = "", /) -> None:
        self.lines.append((done, total, text))


def work(folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, Any], progress: Any = Told()) -> Work:
    (folder / "out").mkdir()
    settings = {"allow_lambda": False, **settings}
    return Work(settings, inputs, folder / "out", progress, Checkpoint(folder / "checkpoint"))


def as_json(settings: Finetune, **decided: Any) -> dict[str, Any]:
    return settings.model_dump(mode="json") | {"labels": True, "distill": 0.0} | decided


DATA = {
    "data": {
        "train": [{"split": "trainval", "labelled": True}, {"split": None, "labelled": False}],
        "validation": [{"split": "val", "labelled": True}],
        "share": 0.2,
    }
}


def test_settings_and_pictures_reach_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def train(graph: Graph, training: Training, data: TrainingData, **keywords: Any) -> Trained:
        given.update(keywords, training=training, data=data, name=graph.name)
        (keywords["checkpoint_folder"] / "logs").mkdir(parents=True)
        (keywords["checkpoint_folder"] / "logs" / "events").write_text("for TensorBoard")
        return Trained(graph, TOLD)

    monkeypatch.setattr("toolchain.train.train", train)
    student, teacher = toy_graph(), dataclasses.replace(toy_graph(), name="teacher")
    folders = {"train_0": tmp_path / "a", "train_1": tmp_path / "b", "validation_0": tmp_path / "c"}
    inputs = {"graph": result(tmp_path / "s", student), "teacher": result(tmp_path / "t", teacher), **folders}
    settings = as_json(Finetune(epochs=3, freeze=("conv_*",), features=("a", "b")), distill=2.0)
    facts = training_stages.train(work(tmp_path, settings | DATA, inputs))
    assert given["training"] == Training(
        epochs=3, freeze=("conv_*",), features=("a", "b"), distill=2.0, freeze_statistics=True, seed=1,
        learning_rate=1e-3, clip=10.0, ema=0.998, mosaic=0.5, scale=0.5, shift=0.1, color=1.0,
    )  # fmt: skip
    assert given["data"] == TrainingData(
        train=(PictureFolder(tmp_path / "a", "trainval"), PictureFolder(tmp_path / "b", None, labelled=False)),
        validation=(PictureFolder(tmp_path / "c", "val"),),
        share=0.2,
    )
    assert (given["name"], given["teacher"].name) == ("toy", "teacher")
    assert (given["checkpoint_folder"], given["use_best"]) == (tmp_path / "checkpoint", False)
    assert facts["training"]["settings"]["epochs"] == 3 and facts["training"]["history"] == TOLD["history"]
    assert graph_file.load(tmp_path / "out" / GRAPH).name == "toy"
    # The checkpoint goes when the training is whole.
    assert (tmp_path / "out" / "logs" / "events").read_text() == "for TensorBoard"


def test_scenes_have_their_own_splits(tmp_path: Path) -> None:
    given = work(tmp_path, {}, {"scenes": result(tmp_path / "drawn")})
    folder = tmp_path / "drawn" / SCENES
    assert training_stages.data_of(given) == TrainingData(
        (PictureFolder(folder, "train"),), (PictureFolder(folder, "val"),)
    )


def test_progress_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(graph: Graph, training: Training, data: TrainingData, *, progress: Any, **_: Any) -> Trained:
        now = {"epoch": 0.5, "epochs": 30, "loss": 12.3456, "seconds": 3.0, "seconds_left": 177.4}
        progress(now)
        progress({**now, "epoch": 1, "map": 0.61234, "val_loss": 3.0})
        progress({**now, "epoch": 1.5})
        return Trained(graph, TOLD)

    monkeypatch.setattr("toolchain.train.train", train)
    told = Told()
    inputs = {"graph": result(tmp_path / "s", toy_graph()), "scenes": result(tmp_path / "drawn")}
    training_stages.train(work(tmp_path, as_json(Finetune()), inputs, told))
    assert told.lines == [
        (0.5, 30, "epoch 0.5 of 30, loss 12.3, 177 s left"),
        (1, 30, "epoch 1.0 of 30, loss 12.3, mAP 61.23 %, 177 s left"),
        # An mAP holds until the next.
        (1.5, 30, "epoch 1.5 of 30, loss 12.3, mAP 61.23 %, 177 s left"),
    ]


STATE = {"step": 120, "steps": 900, "history": [], "best": {}, "watched": "map", "loss_so_far": [], "ended": ""}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (None, "the training had just begun and begins anew; what was finished before is kept"),
        ({}, "the training is kept as it was after step 120 of 900, the same command goes on"),
        ({"best": {"epoch": 3, "figure": 0.61234}},
         "the training is kept as it was after step 120 of 900, the same command goes on; with --use-best it packages "
         "the best so far, mAP 61.23 %, of epoch 3"),
        ({"best": {"epoch": 3, "figure": 4.56789}, "watched": "val_loss"},
         "the training is kept as it was after step 120 of 900, the same command goes on; with --use-best it packages "
         "the best so far, loss 4.568, of epoch 3"),
        ({"best": {"epoch": 3, "figure": 0.0}, "watched": ""},
         "the training is kept as it was after step 120 of 900, the same command goes on; with --use-best it packages "
         "the best so far of epoch 3"),
    ],
)  # fmt: skip
def test_an_interrupted_training_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any] | None, sentence: str
) -> None:
    def train(*_: Any, checkpoint_folder: Path, **__: Any) -> Trained:
        if state is not None:
            checkpoint_folder.mkdir()
            checkpoint.save_state(checkpoint_folder, [np.zeros(3, np.float32)], STATE | state)
        raise KeyboardInterrupt

    monkeypatch.setattr("toolchain.train.train", train)
    inputs = {"graph": result(tmp_path / "s", toy_graph()), "scenes": result(tmp_path / "drawn")}
    with pytest.raises(KeyboardInterrupt) as stopped:
        training_stages.train(work(tmp_path, as_json(Finetune()), inputs))
    assert str(stopped.value) == sentence


def pruned(graph: Graph, ratio: float, folder: Path) -> Graph:
    """The graph without its weakest channels, which the folder says of its batch norms."""
    found = prune(graph, [node.name for node in graph.nodes], Pruning(ratio, cut="uniform", multiple=1))
    folder.mkdir()
    save(found.graph, folder)
    write_kept(folder / KEPT, graph, found.kept)
    return found.graph


def test_which_channels_stayed_holds_along_several_prunings(tmp_path: Path) -> None:
    graph = toy_graph()
    once = pruned(graph, 0.25, tmp_path / "0")
    twice = pruned(once, 0.4, tmp_path / "1")
    kept = read_kept([tmp_path / "0" / KEPT, tmp_path / "1" / KEPT])
    assert set(kept) == {"conv_0_bn", "conv_1_bn"}
    for name, indices in kept.items():
        whole, left = (one.by_name[name].weights["gamma"] for one in (graph, twice))
        assert len(left) < len(once.by_name[name].weights["gamma"]) < len(whole)
        # Pruning moves no gamma, and no two of them are equal.
        np.testing.assert_array_equal(whole[indices], left)
    assert read_kept([]) == {}


def test_batch_norms_are_measured_anew_against_the_whole_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(monkeypatch)
    pictures = write_pictures(tmp_path / "pictures", 4)
    # Its statistics are those of these very pictures: the new ones must be those of the pruned network on them.
    graph = activations.reestimate_batch_norms(toy_graph(), pictures)
    twice = pruned(pruned(graph, 0.25, tmp_path / "0"), 0.4, tmp_path / "1")
    inputs: dict[str, Any] = {"graph": result(tmp_path / "after", twice), "original": result(tmp_path / "whole", graph)}
    inputs |= {f"pruned_{index}": Result(tmp_path / str(index), (), "", {}, 0.0, False, "", "") for index in (0, 1)}
    facts = training_stages.batch_norm(work(tmp_path, {}, {**inputs, "pictures": tuple(pictures)}))
    found = graph_file.load(tmp_path / "out" / GRAPH)
    measured = activations.reestimate_batch_norms(twice, pictures)
    for name in ("conv_0_bn", "conv_1_bn"):
        for key in ("moving_mean", "moving_variance"):
            mine, theirs = (one.by_name[name].weights[key] for one in (found, measured))
            # Sums and quotients of float32 numbers of the order of 1.
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    (note,) = facts["notes"]
    assert note.startswith("statistics of 2 batch norms were measured anew on 4 pictures: their means moved by ")
    assert "those of conv_1_bn most" in note
    assert facts["trainable"] < sum(array.size for node in graph.nodes for array in node.weights.values())
    kept = read_kept([tmp_path / "0" / KEPT, tmp_path / "1" / KEPT])
    same = corrected_batch_norms(graph, twice, pictures, kept=kept)
    np.testing.assert_array_equal(
        same.by_name["conv_1_bn"].weights["moving_mean"], found.by_name["conv_1_bn"].weights["moving_mean"]
    )


def test_batch_norms_of_an_untouched_network_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(monkeypatch)
    pictures = write_pictures(tmp_path / "pictures", 4)
    inputs = {name: result(tmp_path / name, toy_graph()) for name in ("graph", "original")}
    facts = training_stages.batch_norm(work(tmp_path, {}, {**inputs, "pictures": tuple(pictures)}))
    assert "their means moved by 0.000 of a standard deviation" in facts["notes"][0]
    assert "its deviations to 1.000 times" in facts["notes"][0]
