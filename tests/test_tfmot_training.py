import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import GraphError, InputError
from small_training import PICTURES, TRAINING, data, small_graph, train_here
from toolchain import child_process
from toolchain.graph import Graph
from toolchain.tfmot_training import (
    Wrapped,
    _Clock,
    check,
    frozen_nodes,
    layer_reasons,
    train_in_child,
    train_wrapped,
)
from toolchain.training import Training
from toy_network import toy_graph

#: Distils alone, so that a student that equals its teacher has nothing to learn.
DISTIL = dataclasses.replace(TRAINING, labels=False, distill=1.0, weight_decay=0.0)


def unwrapped(model: Any, steps: int) -> Wrapped:
    return Wrapped(model, lambda: model)


def train_unwrapped(settings: Mapping[str, Any], **arguments: Any) -> dict[str, Any]:
    return train_in_child(unwrapped, **arguments, **settings)


def trained(
    graph: Graph, training: Training, told: list[Mapping[str, float]] | None = None, **more: Any
) -> tuple[Graph, Mapping[str, Any]]:
    function = "test_tfmot_training:train_unwrapped"
    settings = {"steady": more.pop("steady", False)}
    progress = None if told is None else told.append
    return train_wrapped(function, graph, settings, training, data(), step="try", progress=progress, **more)


def weights(graph: Graph) -> dict[tuple[str, str], np.ndarray]:
    return {(node.name, name): array for node in graph.nodes for name, array in node.weights.items()}


def test_the_loss_gets_lower_and_all_weights_move(monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    told: list[Mapping[str, float]] = []
    graph = small_graph()
    longer = dataclasses.replace(TRAINING, epochs=8, learning_rate=1e-2)
    changed, facts = trained(graph, longer, told)
    first, *_, last = facts["history"]
    assert last["loss"] < first["loss"] / 2 and last["val_loss"] < first["val_loss"] / 2
    assert [one for one in told if "val_loss" in one] == facts["history"]
    assert all(0 < one["epoch"] <= one["epochs"] == 8 and one["seconds_left"] >= 0 for one in told)
    assert "map" in first and last["seconds_left"] == 0
    assert (facts["pictures"], facts["validation_pictures"], facts["steps"]) == (PICTURES, 4, 8 * PICTURES // 8)
    assert {text.split(":")[0] for text in facts["left_out"]} == {
        f"class {name}" for name in ("triangle", "star", "cross", "heart")
    }
    before, after = weights(graph), weights(changed)
    assert list(before) == list(after)
    assert all(not np.array_equal(before[key], after[key]) for key in before)


def test_frozen_layers_and_their_statistics_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    graph = small_graph()
    changed, _ = trained(graph, dataclasses.replace(TRAINING, epochs=2, freeze=("conv_0 ~ conv_1_activation",)))
    frozen = {"conv_0", "conv_0_bn", "conv_1", "conv_1_bn"}
    before, after = weights(graph), weights(changed)
    for name, weight in before:
        assert np.array_equal(before[name, weight], after[name, weight]) == (name in frozen), (name, weight)
    # The training's own business, and none of the graph's.
    assert [dict(node.attributes) for node in graph.nodes] == [dict(node.attributes) for node in changed.nodes]


def test_a_student_that_is_its_teacher_has_nothing_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    # A dropout would make them differ.
    plain = [
        dataclasses.replace(node, attributes={"rate": 0.0}) if node.name == "dropout" else node
        for node in small_graph().nodes
    ]
    graph = dataclasses.replace(small_graph(), nodes=tuple(plain))
    # The loss has a kink where the two agree: any step leads away from it.
    still = dataclasses.replace(DISTIL, learning_rate=1e-9)
    _, same = trained(graph, still, steady=True, teacher=graph)
    assert all(abs(epoch["loss"]) < 1e-3 and abs(epoch["val_loss"]) < 1e-3 for epoch in same["history"])
    assert "map" not in same["history"][0]
    _, other = trained(graph, still, steady=True, teacher=small_graph("tanh"))
    assert all(epoch["loss"] > 1 and epoch["val_loss"] > 1 for epoch in other["history"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_kernels_decay(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    monkeypatch.setattr("toolchain.distillation.objective", lambda graph, training: _nothing_to_learn)
    settings = {"optimizer": optimizer, "learning_rate": 0.1, "weight_decay": 0.5, "warmup": 0.0, "clip": None}
    graph = small_graph()
    changed, _ = trained(graph, dataclasses.replace(TRAINING, **settings), steady=True)
    # Of four steps one warms up, at a step size of 0; a cosine goes over the other three. Each takes the share
    # step size * decay.
    rates = [0.0, *(0.1 * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3))]
    left = math.prod(1 - rate * 0.5 for rate in rates)
    before, after = weights(graph), weights(changed)
    for name, weight in before:
        factor = left if "kernel" in weight else 1.0
        np.testing.assert_allclose(after[name, weight], factor * before[name, weight], rtol=1e-5, err_msg=name)


def _nothing_to_learn(truth: Any, outputs: Any, teacher: Any) -> Any:
    import tensorflow as tf

    return tf.add_n([0.0 * tf.reduce_sum(output) for output in outputs])


def test_a_training_that_diverges_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    with pytest.raises(InputError, match="diverged in epoch .; lower learning_rate"):
        trained(toy_graph(), dataclasses.replace(TRAINING, learning_rate=10.0, clip=None, warmup=0.0))


_SEEDED = """
import dataclasses, importlib, json, sys
from pathlib import Path
from small_training import TRAINING, small_graph
from toolchain import child_process, graph_file
from toolchain.clustering import Clustering, cluster
from toolchain.quantization_aware import QuantizationAware, quantization_aware
from toolchain.sparsity import Sparsity, sparsify
from toolchain.training import PictureFolder, TrainingData

def run(function, arguments, place, *, step, trains=False):
    # As in a child of its own: JSON in, JSON out.
    module, _, name = function.partition(":")
    return json.loads(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))))

child_process.run = run
folder, scenes, seeds = sys.argv[1:]
data = TrainingData((PictureFolder(Path(scenes), "train"),), (PictureFolder(Path(scenes), "val"),))
for stage, settings in ((sparsify, Sparsity(0.5)), (cluster, Clustering(8)), (quantization_aware, QuantizationAware())):
    for seed in map(int, seeds.split()):
        graph = stage(small_graph(), settings, dataclasses.replace(TRAINING, seed=seed), data).graph
        graph_file.save(graph, Path(folder) / f"{stage.__name__}_{seed}")
"""


@pytest.mark.slow
def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    # Two processes side by side, each with all stages one after the other: TensorFlow starts twice, not nine times.
    root, scenes = Path(__file__).parents[1], data().train[0].folder
    environment = {**os.environ, **child_process._ENVIRONMENT, **child_process._NO_GPU}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests")])
    children = []
    for name, seeds in (("one", "3"), ("two", "3 4")):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", _SEEDED, str(tmp_path / name), str(scenes), seeds]
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    words = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], words
    for stage in ("sparsify", "cluster", "quantization_aware"):
        one, two, other = (
            (tmp_path / place / f"{stage}_{seed}").read_bytes() for place, seed in (("one", 3), ("two", 3), ("two", 4))
        )
        assert one == two != other, stage


def test_what_cannot_be_trained_is_refused() -> None:
    graph = toy_graph()
    with pytest.raises(GraphError, match="lacks one"):
        check(dataclasses.replace(graph, head=None), TRAINING, None)
    assert graph.head is not None
    split = dataclasses.replace(graph.head.scales[0], outputs={"xy": "far"})
    with pytest.raises(GraphError, match="split by role"):
        check(dataclasses.replace(graph, head=dataclasses.replace(graph.head, scales=(split,))), TRAINING, None)
    with pytest.raises(InputError, match="a distillation has a teacher"):
        check(graph, DISTIL, None)
    with pytest.raises(GraphError, match="has its student's head and labels"):
        check(graph, DISTIL, dataclasses.replace(graph, labels=("one", "other")))
    check(graph, DISTIL, graph)


@pytest.mark.parametrize(
    "setting",
    [
        {"ema": 0.9},
        {"multi_scale": 0.5},
        {"features": ("conv_2",)},
        {"freeze_statistics": True},
        {"patience": 3},
        {"tensorboard": True},
        {"mixed_precision": True},
    ],
)
def test_settings_that_cannot_be_followed_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        check(toy_graph(), dataclasses.replace(TRAINING, **setting), None)
    check(toy_graph(), dataclasses.replace(TRAINING, mixed_precision=False), None)


def test_every_layer_that_is_left_alone_has_a_reason() -> None:
    graph = toy_graph()
    conv = graph.by_name["conv_2"]
    shared = dataclasses.replace(conv, name="again", inputs=("conv_2",), weights={}, shared_with="conv_2")
    graph = dataclasses.replace(graph, nodes=(*graph.nodes, shared))
    why_not: Callable[[Any], str] = lambda node: "too small" if node.name == "conv_3" else ""  # noqa: E731
    reasons = layer_reasons(graph, (), ("near",), dataclasses.replace(TRAINING, freeze=("conv_0",)), why_not)
    assert reasons == {
        "conv_0": "frozen",
        "conv_1": "",
        "grouped": "",
        "depthwise": "",
        "conv_2": "its weights are used twice",
        "conv_3": "too small",
        "far": "",
        "near": "left out by the scope",
        "again": "its weights are used twice",
    }


def test_a_stage_that_could_change_nothing_is_refused() -> None:
    with pytest.raises(GraphError, match="can change none, 7 of them because: too small; widen the scope"):
        layer_reasons(toy_graph(), (), ("near",), TRAINING, lambda node: "too small")


def test_nodes_are_frozen_by_pattern_and_by_their_own_setting() -> None:
    graph = toy_graph()
    own = dataclasses.replace(graph.nodes[-1], attributes={**graph.nodes[-1].attributes, "trainable": False})
    graph = dataclasses.replace(graph, nodes=(*graph.nodes[:-1], own))
    assert frozen_nodes(graph, TRAINING) == {"near"}
    assert frozen_nodes(graph, dataclasses.replace(TRAINING, freeze=("conv_?",))) == {
        "near", "conv_0", "conv_1", "conv_2", "conv_3",
    }  # fmt: skip


def test_the_time_left_leaves_out_the_slow_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # Begun; 30 s for the first step, 3 s for the second, 1 s for the third, which is not told, 2 s for the fourth.
    clock = iter([0.0, 30.0, 33.0, 33.0, 34.0, 36.0, 36.0])
    monkeypatch.setattr("toolchain.tfmot_training.time.monotonic", lambda: next(clock))
    watch = _Clock(epochs=2, per_epoch=5)
    assert not watch.is_due()
    assert watch.is_due()
    assert watch.facts(2 / 5, 7.0) == {
        "epoch": 2 / 5, "epochs": 2, "loss": 7.0, "seconds": 33.0, "seconds_left": (2 * 5 - 2) * 3.0,
    }  # fmt: skip
    assert not watch.is_due()
    assert watch.is_due()
    assert watch.facts(4 / 5, 7.0)["seconds_left"] == (2 * 5 - 4) * (36 - 30) / 3
