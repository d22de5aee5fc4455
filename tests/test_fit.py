import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import InputError
from squares import squares_data, toy_graph, write_squares
from toolchain import checkpoint
from toolchain.graph import Graph
from toolchain.training import Training
from toolchain.training_data import Examples, split_examples

pytest.importorskip("tensorflow")

import keras  # noqa: E402

from toolchain import devices, trainee  # noqa: E402
from toolchain import fit as fitting  # noqa: E402
from toolchain.fit import fit  # noqa: E402
from toolchain.input_size import sizes_around  # noqa: E402
from toolchain.keras_writer import with_weights_of  # noqa: E402
from toolchain.weight_average import WeightAverage  # noqa: E402


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return toy_graph(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def examples(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Examples]:
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder, {"train": 12, "val": 3})
    return split_examples(squares_data(folder), graph, 0)


def run(graph: Graph, examples: tuple[Examples, Examples], folder: Path | None = None, **settings: Any) -> Any:
    keras.utils.set_random_seed(settings.get("seed", 0))
    teacher = settings.pop("teacher", None)
    tell = settings.pop("tell", lambda facts: None)
    return fit(graph, Training(**{"batch": 4, "epochs": 2, **settings}), *examples, teacher, folder, tell)


def weights(graph: Graph) -> dict[str, np.ndarray]:
    return {f"{node.name} {name}": value for node in graph.nodes for name, value in node.weights.items()}


@pytest.fixture(scope="module")
def plain(graph: Graph, examples: tuple[Examples, Examples], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training of two epochs as it is by default, its folder, and what it told."""
    folder, told = tmp_path_factory.mktemp("plain"), list[Mapping[str, float]]()
    return run(graph, examples, folder, tell=told.append), folder, told


@pytest.fixture(scope="module")
def one_epoch(graph: Graph, examples: tuple[Examples, Examples]) -> dict[str, np.ndarray]:
    """Weights after one epoch."""
    return weights(run(graph, examples, epochs=1).graph)


INTERRUPTED: dict[str, Any] = {
    "ema": 0.9, "mosaic": 0.5, "scale": 0.3, "color": 1.0, "optimizer": "adamw", "seed": 7
}  # fmt: skip


@pytest.fixture(scope="module")
def interrupted(graph: Graph, examples: tuple[Examples, Examples], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a whole training comes to, which saved nothing; and a folder with what one leaves that dies behind each of
    its steps, by number."""
    whole = run(graph, examples, **INTERRUPTED)
    left, folder = tmp_path_factory.mktemp("left"), tmp_path_factory.mktemp("folder")
    save = checkpoint.save_state

    def save_and_copy(place: Path, variables: Any, facts: Mapping[str, Any]) -> None:
        save(place, variables, facts)
        shutil.copytree(place, left / str(facts["step"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_SECONDS_BETWEEN_STATES", 0.0)
        patch.setattr(checkpoint, "save_state", save_and_copy)
        run(graph, examples, folder, **INTERRUPTED)
    return whole, left


def test_every_step_is_saved_but_the_first(interrupted: tuple[Any, Path]) -> None:
    # The first step is told of by the second: no state is saved of it alone.
    assert sorted(path.name for path in interrupted[1].iterdir()) == ["2", "3", "4", "5", "6"]


@pytest.mark.parametrize("step", [2, 3, 4, 5])
def test_a_training_that_dies_at_any_step_goes_on_from_there(
    graph: Graph, examples: tuple[Examples, Examples], interrupted: tuple[Any, Path], step: int
) -> None:
    whole, folder = interrupted[0], interrupted[1] / str(step)
    told = checkpoint.told(folder)
    assert told is not None and told["step"] == step
    resumed = run(graph, examples, folder, **INTERRUPTED)
    assert resumed.facts["steps"] == whole.facts["steps"] == 2 * 12 // 4
    for key in ("loss", "val_loss", "map"):
        one, other = ([epoch[key] for epoch in found.facts["history"]] for found in (whole, resumed))
        np.testing.assert_allclose(other, one, rtol=1e-5)
    for name, value in weights(whole.graph).items():
        # Adam divides by the root of small squares: rounding grows, but stays far below a step of 2e-3.
        np.testing.assert_allclose(weights(resumed.graph)[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_finished_training_is_not_trained_again(
    graph: Graph, examples: tuple[Examples, Examples], plain: tuple[Any, Path, list[Any]]
) -> None:
    first, folder, _ = plain
    told: list[Mapping[str, float]] = []
    again = run(graph, examples, folder, tell=told.append)
    assert told == [] and again.facts["history"] == first.facts["history"]
    assert all(np.array_equal(weights(again.graph)[name], value) for name, value in weights(first.graph).items())


def test_frozen_layers_stay(graph: Graph, examples: tuple[Examples, Examples]) -> None:
    first, last = graph.nodes[1].name, [node.name for node in graph.nodes if node.weights][3]
    before, after = weights(graph), weights(run(graph, examples, freeze=(f"{first} ~ {last}",)).graph)
    changed = {name for name, value in before.items() if not np.array_equal(after[name], value)}
    names = [node.name for node in graph.nodes]
    frozen = set(names[names.index(first) : names.index(last) + 1])
    assert changed == {name for name in before if name.split()[0] not in frozen}
    assert 0 < len(changed) < len(before)


def test_statistics_that_are_frozen_stay_while_all_else_learns(
    graph: Graph, examples: tuple[Examples, Examples], one_epoch: dict[str, np.ndarray]
) -> None:
    before, measured = weights(graph), one_epoch
    after = weights(run(graph, examples, freeze_statistics=True, epochs=1).graph)
    statistics = {name for name in before if name.endswith(("moving_mean", "moving_variance"))}
    assert statistics and all(np.array_equal(before[name], after[name]) for name in statistics)
    assert not any(np.array_equal(before[name], after[name]) for name in set(before) - statistics)
    assert not any(np.array_equal(before[name], measured[name]) for name in statistics)


def test_the_average_of_weights_lags_behind_them(
    graph: Graph, examples: tuple[Examples, Examples], one_epoch: dict[str, np.ndarray]
) -> None:
    before, plain, averaged = weights(graph), one_epoch, weights(run(graph, examples, ema=0.99, epochs=1).graph)
    for name, value in before.items():
        # Steps 1 to 3 are mixed in with at least 1 - 1/10, 1 - 2/11 and 1 - 3/12: the first weights count little, but
        # they count, and so do those between.
        moved = np.abs(plain[name] - value).max()
        assert np.abs(averaged[name] - plain[name]).max() <= 1.01 * moved
    assert any(not np.array_equal(plain[name], averaged[name]) for name in before)


def test_the_average_is_that_of_the_text() -> None:
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    network.set_weights([np.array([[1.0], [2.0]], np.float32)])
    average = WeightAverage(network, 0.5)
    network.set_weights([np.array([[3.0], [6.0]], np.float32)])
    average.update(0)  # (1 + 0) / (10 + 0) of the old
    first = 0.1 * np.array([1, 2]) + 0.9 * np.array([3, 6])
    np.testing.assert_allclose(average.values[0].numpy()[:, 0], first, rtol=1e-6)
    average.update(100)  # 101 / 110 is more than the half that was asked for
    with average.in_place():
        np.testing.assert_allclose(network.get_weights()[0][:, 0], (first + np.array([3, 6])) / 2, rtol=1e-6)
    assert network.get_weights()[0].tolist() == [[3.0], [6.0]]


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "sgd", "learning_rate": 0.05, "clip": 1.0}, {"multi_scale": 0.5}, {"tensorboard": True}],
)
def test_other_settings_train_too(
    graph: Graph, examples: tuple[Examples, Examples], tmp_path: Path, settings: dict[str, Any]
) -> None:
    found = run(graph, examples, tmp_path, epochs=3, **settings)
    history = found.facts["history"]
    assert history[-1]["val_loss"] < history[0]["val_loss"]
    assert ("logs" in [path.name for path in tmp_path.iterdir()]) == ("tensorboard" in settings)
    if "tensorboard" in settings:
        import tensorflow as tf

        (file,) = (tmp_path / "logs").iterdir()
        steps = [event.step for event in tf.compat.v1.train.summary_iterator(str(file)) if event.summary.value]
        assert sorted(set(steps)) == [1, 2, 3] and len(steps) == 3 * len(("loss", "val_loss", "map"))


def test_sizes_are_whole_cells_of_the_networks_shape(graph: Graph) -> None:
    assert graph.head is not None and graph.head.scales[0].stride == 8
    # 64 pixels are 8 cells of 8; a quarter of that to either side.
    assert sizes_around(graph, 0.25) == [(8 * cells, 8 * cells) for cells in range(6, 10 + 1)]
    assert sizes_around(graph, 0.0) == [(64, 64)]


def test_a_training_that_gets_no_better_ends(graph: Graph, examples: tuple[Examples, Examples]) -> None:
    # Weights that hardly move: the validation's loss cannot fall in three epochs by more than rounding.
    found = run(graph, examples, epochs=50, patience=3, learning_rate=1e-12)
    assert found.facts["ended"] == "map was not better for 3 epochs"
    assert len(found.facts["history"]) == found.facts["best_epoch"] + 3 < 50


def test_a_training_that_diverges_ends_with_a_sentence(
    graph: Graph, examples: tuple[Examples, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(graph: Graph, training: Training) -> Any:
        return lambda truth, outputs, teacher: keras.ops.sum(outputs[0]) * float("inf")

    monkeypatch.setattr(trainee, "objective", overflowing)
    with pytest.raises(InputError, match="diverged in epoch 1; lower learning_rate"):
        run(graph, examples)


def test_pictures_without_labels_teach_no_labels(graph: Graph, examples: tuple[Examples, Examples]) -> None:
    alone = dataclasses.replace(examples[0].pictures[0], labelled=False)
    mixed = Examples((*examples[0].pictures[1:], alone), ())
    with pytest.raises(InputError, match="1 of 12"):
        run(graph, (mixed, examples[1]))


def test_a_feature_is_a_layer(graph: Graph, examples: tuple[Examples, Examples]) -> None:
    with pytest.raises(InputError, match="'nowhere'"):
        run(graph, examples, features=("nowhere",), distill=1.0, teacher=graph)


def test_inner_layers_are_compared_with_the_teachers(
    graph: Graph, examples: tuple[Examples, Examples], tmp_path: Path
) -> None:
    other = toy_graph(tmp_path, seed=9)
    inner = [node.name for node in graph.nodes if node.op == "Conv2D"][1]
    losses = [
        run(graph, examples, labels=False, distill=1.0, features=features, teacher=other, epochs=1).facts["history"][0]
        for features in ((), (inner,))
    ]
    assert losses[0]["val_loss"] != losses[1]["val_loss"]


def test_a_distillation_needs_a_teacher(graph: Graph, examples: tuple[Examples, Examples]) -> None:
    with pytest.raises(InputError, match="none was given"):
        run(graph, examples, distill=1.0)


def test_mixed_precision_needs_hardware_for_it(
    graph: Graph, examples: tuple[Examples, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpu_capability", lambda: None)
    monkeypatch.setattr(devices, "processor_has_amx", lambda: False)
    with pytest.raises(InputError, match="needs a GPU or a processor with AMX"):
        run(graph, examples, mixed_precision=True)


@pytest.mark.parametrize(
    ("capability", "amx", "asked", "policy"),
    [
        (None, True, True, "mixed_bfloat16"),
        (None, True, None, "float32"),
        (None, True, False, "float32"),
        ((6, 1), True, None, "float32"),
        ((7, 5), False, None, "mixed_float16"),
        ((8, 0), False, None, "mixed_bfloat16"),
        ((8, 0), False, False, "float32"),
    ],
)
def test_precision_follows_the_device(
    capability: tuple[int, int] | None, amx: bool, asked: bool | None, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpu_capability", lambda: capability)
    monkeypatch.setattr(devices, "processor_has_amx", lambda: amx)
    assert devices.precision(asked) == policy


def test_amx_is_what_linux_says(tmp_path: Path) -> None:
    assert not devices.processor_has_amx(tmp_path)
    (tmp_path / "proc").mkdir()
    told = tmp_path / "proc/cpuinfo"
    told.write_text("model name : a processor\nflags : fpu avx512_bf16 amx_tile\n")
    assert not devices.processor_has_amx(tmp_path)
    told.write_text("model name : a processor\nflags : fpu amx_bf16 amx_tile\n")
    assert devices.processor_has_amx(tmp_path)


def test_sixteen_bits_train_too(
    graph: Graph, examples: tuple[Examples, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpu_capability", lambda: (8, 0))
    found = run(graph, examples, epochs=3)
    assert found.facts["precision"] == "mixed_bfloat16"
    assert found.facts["history"][-1]["val_loss"] < found.facts["history"][0]["val_loss"]
    assert all(value.dtype == np.float32 for value in weights(found.graph).values())


def test_the_time_left_leaves_out_the_slow_first_step(plain: tuple[Any, Path, list[Mapping[str, float]]]) -> None:
    *_, told = plain
    # A first estimate comes with the second step, whatever the clock says.
    assert told[0]["epoch"] == pytest.approx(2 / 3) and 0 <= told[0]["seconds_left"] < told[0]["seconds"]


def test_weights_come_back_exactly(graph: Graph) -> None:
    from toolchain.keras_writer import to_keras

    network = to_keras(graph)
    kernel, bias = network.get_layer("conv_4").get_weights()
    network.get_layer("conv_4").set_weights([kernel + 1, bias])
    for before, after in zip(graph.nodes, with_weights_of(graph, network).nodes, strict=True):
        for name, value in before.weights.items():
            wanted = value + 1 if (before.name, name) == ("conv_4", "kernel") else value
            assert np.array_equal(after.weights[name], wanted)


@pytest.mark.slow
def test_the_reference_network_trains_with_its_backbone_frozen(tmp_path: Path) -> None:
    from toolchain.yolov4 import YoloV4, build_yolov4

    network, _ = build_yolov4(YoloV4(("red", "blue"), backbone="efficientnet-b0", size=(64, 64)), seed=1)
    write_squares(tmp_path, {"train": 2, "val": 1})
    # Without pictures to watch the last weights are kept. The first step's size is 0: the warm-up begins there.
    pictures = split_examples(squares_data(tmp_path), network, 0)[0], Examples((), ())
    found = run(network, pictures, batch=2, epochs=3, freeze=("stem_conv_pad ~ top_activation",), optimizer="sgd")
    before, after = weights(network), weights(found.graph)
    names = [node.name for node in network.nodes]
    head = names[names.index("top_activation") + 1 :]
    changed = {name.split()[0] for name in before if not np.array_equal(before[name], after[name])}
    # Deep in a random head a gradient can be less than a float32's last bit.
    assert changed <= set(head) and {"conv2d_37", "conv2d_29", "conv2d_21"} <= changed


_SEVERAL = """
import json, sys
from pathlib import Path
import numpy as np
import tensorflow as tf
tests, folder, devices = sys.argv[1:]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(devices))
sys.path.insert(0, tests)
import keras
import squares
from toolchain import fit as fitting
from toolchain.fit import fit
from toolchain.training import Training
from toolchain.training_data import split_examples
# The state of every step is kept.
fitting._SECONDS_BETWEEN_STATES = 0.0
# Each device has batch statistics of its own part: without batch norms all compute the same.
squares.LAYER = squares.LAYER.replace("batch_normalize=1", "")
graph = squares.toy_graph(Path(folder))
keras.utils.set_random_seed(0)
pictures = split_examples(squares.squares_data(Path(folder)), graph, 0)
training = Training(epochs=3, batch=4, ema=0.9, mosaic=0.5, clip=5.0, distill=0.5)
found = fit(graph, training, *pictures, graph, None, lambda facts: None)
total = sum(float(np.abs(value).sum()) for node in found.graph.nodes for value in node.weights.values())
print(json.dumps({**found.facts, "weights": total}))
"""


@pytest.mark.slow
def test_several_devices_share_a_batch_and_learn_the_same(tmp_path: Path) -> None:
    write_squares(tmp_path, {"train": 12, "val": 3})
    command = [sys.executable, "-c", _SEVERAL, str(Path(__file__).parent), str(tmp_path)]
    children = [
        subprocess.Popen(
            [*command, str(devices)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[1]
        )
        for devices in (1, 2)
    ]
    texts = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    one, two = (json.loads(text.splitlines()[-1]) for text in texts)
    values = [[epoch["loss"] for epoch in found["history"]] for found in (one, two)]
    # Sums in another order; Adam, which divides by the root of small squares, spreads that from step to step.
    assert values[1][0] == pytest.approx(values[0][0], rel=1e-5)
    np.testing.assert_allclose(values[1], values[0], rtol=1e-3)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-4)
    assert (one["steps"], two["steps"]) == (9, 9)
