import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import GraphError, InputError
from run_here import run_here
from squares import squares_data, toy_graph, write_squares
from toolchain import checkpoint, graph_file
from toolchain.darknet_reader import read_darknet
from toolchain.graph import Graph
from toolchain.train import data_from_json, data_to_json, train
from toolchain.training import PictureFolder, Trained, Training, TrainingData


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return toy_graph(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder, {"train": 48, "val": 8})
    return folder


Run = tuple[Trained, list[Mapping[str, float]]]


@pytest.fixture(scope="module")
def run(graph: Graph, squares: Path) -> Run:
    told: list[Mapping[str, float]] = []
    training = Training(epochs=30, batch=8, learning_rate=0.01, seed=3)
    return train(graph, training, squares_data(squares), progress=told.append), told


def test_training_finds_what_it_never_saw(run: Run) -> None:
    facts = run[0].facts
    history = facts["history"]
    assert [epoch["epoch"] for epoch in history] == list(range(1, 30 + 1))
    # 128 boxes at an objectness of .01 and one object, whose two classes are open: about 6 to 10 before any step.
    assert history[0]["val_loss"] > 4
    assert history[-1]["val_loss"] < history[0]["val_loss"] / 4
    assert max(epoch["map"] for epoch in history) > 0.95
    assert facts["watched"] == "map" and facts["left_out"] == []
    best = min(history, key=lambda epoch: (-epoch["map"], epoch["val_loss"]))
    assert history[facts["best_epoch"] - 1] == best
    assert (facts["pictures"], facts["validation_pictures"], facts["steps"]) == (48, 8, 30 * 48 // 8)
    assert (facts["precision"], facts["ended"]) == ("float32", "")


def test_progress_ends_with_the_last_epoch(run: Run) -> None:
    trained, (first, *told) = run
    # Said before the first step, which takes long.
    assert first == {"epoch": 0.0, "epochs": 30}
    assert [facts for facts in told if "val_loss" in facts] == trained.facts["history"]
    assert all(0 < facts["epoch"] <= facts["epochs"] == 30 and facts["seconds_left"] >= 0 for facts in told)
    assert told[-1]["seconds_left"] == 0


def test_only_the_weights_change(graph: Graph, run: Run) -> None:
    changed = 0
    for before, after in zip(graph.nodes, run[0].graph.nodes, strict=True):
        assert (before.name, before.op, before.inputs) == (after.name, after.op, after.inputs)
        assert before.attributes == after.attributes
        assert list(before.weights) == list(after.weights)
        for name, value in after.weights.items():
            assert value.shape == before.weights[name].shape and value.dtype == np.float32
            changed += not np.array_equal(value, before.weights[name])
    assert changed == sum(len(node.weights) for node in graph.nodes)
    assert (run[0].graph.head, run[0].graph.labels, run[0].graph.input) == (graph.head, graph.labels, graph.input)


@pytest.mark.slow
def test_the_same_settings_give_the_same_weights(graph: Graph, squares: Path) -> None:
    training = Training(epochs=2, batch=8, seed=3, mosaic=0.5, color=1.0, scale=0.5)

    def weights(settings: Training) -> list[np.ndarray]:
        trained = train(graph, settings, squares_data(squares)).graph
        return [value for node in trained.nodes for value in node.weights.values()]

    # Two processes at a time.
    with ThreadPoolExecutor(2) as pool:
        one, two, other = pool.map(weights, (training, training, dataclasses.replace(training, seed=4)))
    assert all(np.array_equal(*pair) for pair in zip(one, two, strict=True))
    assert not any(np.array_equal(*pair) for pair in zip(one, other, strict=True))


_KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from squares import squares_data
from toolchain import fit, graph_file
from toolchain.train import train
from toolchain.training import Training
train(graph_file.load(Path({graph!r})), Training(**{settings!r}), squares_data(Path({data!r})),
      checkpoint_folder=Path({folder!r}))
"""


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_nothing_had_happened(graph: Graph, squares: Path, tmp_path: Path) -> None:
    settings = {"epochs": 12, "batch": 4, "seed": 5, "ema": 0.9, "mosaic": 0.5}
    graph_file.save(graph, tmp_path / "graph.zip")
    script = _KILLED.format(
        tests=str(Path(__file__).parent), graph=str(tmp_path / "graph.zip"), settings=settings, data=str(squares),
        folder=str(tmp_path / "kept"),
    )  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(train, graph, Training(**settings), squares_data(squares))
        process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
        deadline = time.monotonic() + 240
        while (checkpoint.told(tmp_path / "kept") or {"step": 0})["step"] < 24 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        whole = running.result()
    state = checkpoint.told(tmp_path / "kept")
    assert state is not None and 24 <= state["step"] < 144, "it was to be killed in its middle"
    best = train(graph, Training(**settings), squares_data(squares), checkpoint_folder=tmp_path / "kept", use_best=True)
    assert best.facts["ended"] == f"taken as it was after {state['step']} of {12 * 48 // 4} steps"
    resumed = train(graph, Training(**settings), squares_data(squares), checkpoint_folder=tmp_path / "kept")
    # The bound is 1e-5 relative on a CPU.
    for key in ("loss", "val_loss", "map"):
        one, other = ([epoch[key] for epoch in found.facts["history"]] for found in (whole, resumed))
        np.testing.assert_allclose(other, one, rtol=1e-5)
    assert resumed.facts["best_epoch"] == whole.facts["best_epoch"]


@pytest.mark.slow
def test_a_student_learns_from_its_teacher_without_labels(
    run: Run, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = run[0].graph
    student = toy_graph(tmp_path, layers=((6, 2), (12, 2), (16, 2), (24, 1)), seed=2)
    pictures = (PictureFolder(squares / "JPEGImages", labelled=False),)
    training = Training(epochs=80, batch=8, learning_rate=0.01, labels=False, distill=1.0, seed=1)
    taught = train(student, training, TrainingData(pictures), teacher=teacher)
    assert taught.facts["watched"] == "val_loss"
    losses = [epoch["val_loss"] for epoch in taught.facts["history"]]
    assert min(losses) < losses[0] / 5
    # What it learned is what the labels say, which it never saw.
    alone = Training(epochs=1, batch=8, learning_rate=1e-12, warmup=0.0, flip=False)
    run_here(monkeypatch)
    judged = train(taught.graph, alone, squares_data(squares))
    assert judged.facts["history"][0]["map"] > 0.9


def test_a_child_that_cannot_train_tells_why(graph: Graph, squares: Path) -> None:
    with pytest.raises(InputError, match="do not fill one of 64"):
        train(graph, Training(batch=64), squares_data(squares))


def test_a_graph_without_a_raw_head_is_refused(graph: Graph, tmp_path: Path) -> None:
    data = squares_data(tmp_path)
    with pytest.raises(GraphError, match="lacks one"):
        train(dataclasses.replace(graph, head=None), Training(), data)
    assert graph.head is not None
    scale = dataclasses.replace(graph.head.scales[0], outputs={"xy": "conv_4"})
    with pytest.raises(GraphError, match="split by role"):
        train(
            dataclasses.replace(graph, head=dataclasses.replace(graph.head, scales=(scale,))), Training(), data
        )


def test_a_teacher_with_another_head_is_refused(graph: Graph, tmp_path: Path) -> None:
    teacher = dataclasses.replace(graph, name="other", labels=("red", "green"))
    with pytest.raises(GraphError, match="'other' differs"):
        train(graph, Training(distill=1.0), squares_data(tmp_path), teacher=teacher)


def test_best_weights_need_a_whole_epoch(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none has ended yet"):
        train(graph, Training(), squares_data(tmp_path), checkpoint_folder=tmp_path / "none", use_best=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan}, {"warmup": 1.0}, {"seed": -1},
        {"ema": 1.0}, {"mosaic": 1.1}, {"clip": 0.0}, {"patience": 0}, {"distill": -1.0},
    ],
)  # fmt: skip
def test_senseless_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Training(**settings)


def test_a_training_learns_from_something() -> None:
    with pytest.raises(InputError, match="neither"):
        Training(labels=False)


def test_data_come_back_from_json(tmp_path: Path) -> None:
    data = TrainingData((PictureFolder(tmp_path, "train"),), (PictureFolder(tmp_path / "b", None, False),), 0.3)
    assert data_from_json(data_to_json(data)) == data


def test_the_built_in_network_fits_its_recipe() -> None:
    from toolchain.carried import built_in_networks
    from toolchain.cost import cost

    cfg = built_in_networks()["shapes"]
    net = read_darknet(cfg, None, cfg.with_suffix(".names"), seed=0)
    assert net.head is not None and net.input is not None
    assert [(scale.stride, len(scale.anchors)) for scale in net.head.scales] == [(16, 3), (8, 3)]
    assert cost(net).trainable == sum(
        [16 * 27, 32 * 16 * 9, 64 * 32 * 9, 64 * 64 * 9, 128 * 64 * 9, 128 * 128 * 9, 64 * 128, 128 * 64 * 9]
        + [33 * 128 + 33, 32 * 64, 64 * (32 + 64) * 9, 33 * 64 + 33]
        + [2 * n for n in (16, 32, 64, 64, 128, 128, 64, 128, 32, 64)]  # batch norm's gamma and beta
    )
