import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploy.errors import GraphError, InputError
from toolchain.darknet_reader import read_darknet
from toolchain.graph import Graph
from toolchain.scenes import write_scenes
from toolchain.train import Trained, Training, _Watch, fit, train, with_weights_of
from toolchain.training_data import Samples, batches, read_samples
from voc_folder import xml

#: A net small enough to learn two colours in seconds.
CFG = """
[net]
width=64
height=64
channels=3
{layers}
[convolutional]
size=1
stride=1
filters=14
activation=linear
[yolo]
mask=0,1
anchors=14,14, 24,24
classes=2
num=2
scale_x_y=1.05
"""
LAYER = """
[convolutional]
batch_normalize=1
filters={filters}
size=3
stride={stride}
pad=1
activation=relu
"""
#: The last cell sees 15 + 2 * 8 pixels: more than the largest square.
LAYERS = ((8, 2), (16, 2), (24, 2), (32, 1))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("net")
    (folder / "toy.cfg").write_text(CFG.format(layers="".join(LAYER.format(filters=n, stride=s) for n, s in LAYERS)))
    (folder / "toy.names").write_text("red\nblue\n")
    return read_darknet(folder / "toy.cfg", None, folder / "toy.names", seed=1)


Object = tuple[str, tuple[float, ...], int]


def add(folder: Path, split: str, name: str, picture: np.ndarray, objects: list[Object]) -> None:
    for part in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "JPEGImages" / f"{name}.png"), picture)
    (folder / "Annotations" / f"{name}.xml").write_text(xml(picture.shape[1::-1], objects))
    with open(folder / "ImageSets" / "Main" / f"{split}.txt", "a") as names:
        names.write(f"{name}\n")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, 64 x 64, with one red or blue square on grey each."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for split, count in {"train": 48, "val": 8}.items():
        for index in range(count):
            picture = np.full((64, 64, 3), 100, np.uint8)
            side = int(rng.integers(12, 26))
            x, y = rng.integers(0, 64 - side, 2).tolist()
            color = index % 2
            picture[y : y + side, x : x + side] = [(0, 0, 230), (230, 0, 0)][color]
            truth = [(("red", "blue")[color], (x + 1, y + 1, x + side, y + side), 0)]
            add(folder, split, f"{split}_{index}", picture, truth)
    return folder


@pytest.fixture(scope="module")
def run(graph: Graph, squares: Path) -> tuple[Trained, list[Mapping[str, float]]]:
    told: list[Mapping[str, float]] = []
    training = Training(epochs=30, batch=8, learning_rate=0.01, seed=3)
    return train(graph, squares, training, progress=told.append), told


def test_training_lowers_the_loss_on_pictures_that_it_never_saw(run: tuple[Trained, list[Mapping[str, float]]]) -> None:
    history = run[0].history
    assert [epoch["epoch"] for epoch in history] == list(range(1, 30 + 1))
    # 128 boxes at an objectness of .01 and one object, whose two classes are open: about 6 to 10 before any step.
    assert history[0]["val_loss"] > 4
    assert history[-1]["val_loss"] < 1
    assert run[0].left_out == ()


def test_progress_ends_with_the_last_epoch(run: tuple[Trained, list[Mapping[str, float]]]) -> None:
    trained, told = run
    assert [facts for facts in told if "val_loss" in facts] == list(trained.history)
    assert all(0 < facts["epoch"] <= facts["epochs"] == 30 and facts["seconds_left"] >= 0 for facts in told)
    assert told[-1]["seconds_left"] == 0


def test_only_the_weights_change(graph: Graph, run: tuple[Trained, list[Mapping[str, float]]]) -> None:
    changed = 0
    for before, after in zip(graph.nodes, run[0].graph.nodes, strict=True):
        assert (before.name, before.op, before.inputs, before.attributes) == (
            after.name,
            after.op,
            after.inputs,
            after.attributes,
        )
        assert list(before.weights) == list(after.weights)
        for name, value in after.weights.items():
            assert value.shape == before.weights[name].shape and value.dtype == np.float32
            changed += not np.array_equal(value, before.weights[name])
    assert changed == sum(len(node.weights) for node in graph.nodes)
    assert (run[0].graph.head, run[0].graph.labels, run[0].graph.input) == (graph.head, graph.labels, graph.input)


@pytest.mark.slow
def test_the_same_settings_give_the_same_weights(graph: Graph, squares: Path) -> None:
    training = Training(epochs=2, batch=8, seed=3)
    one, two, other = (
        [value for node in train(graph, squares, settings).graph.nodes for value in node.weights.values()]
        for settings in (training, training, dataclasses.replace(training, seed=4))
    )
    assert all(np.array_equal(*pair) for pair in zip(one, two, strict=True))
    assert not any(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_a_child_that_cannot_train_tells_why(graph: Graph, squares: Path) -> None:
    with pytest.raises(InputError, match="do not fill one of 64"):
        train(graph, squares, Training(batch=64))


def test_a_graph_without_a_raw_head_is_refused(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="lacks one"):
        train(dataclasses.replace(graph, head=None), tmp_path, Training())
    assert graph.head is not None
    scale = dataclasses.replace(graph.head.scales[0], outputs={"xy": "conv_4"})
    with pytest.raises(GraphError, match="split by role"):
        train(dataclasses.replace(graph, head=dataclasses.replace(graph.head, scales=(scale,))), tmp_path, Training())


@pytest.mark.parametrize(
    "settings",
    [{"epochs": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan}, {"warmup": 1.0}, {"seed": -1}],
)
def test_senseless_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Training(**settings)


def test_a_training_that_diverges_ends_with_a_sentence() -> None:
    watch = _Watch(lambda facts: None, epochs=2, per_epoch=5)
    watch.after_batch(0, {"loss": 3.0})
    with pytest.raises(InputError, match="lower learning_rate"):
        watch.after_batch(1, {"loss": math.nan})


def test_the_time_left_leaves_out_the_slow_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Mapping[str, float]] = []
    clock = iter([0.0, 30.0, 33.0, 33.0])  # begun; 30 s for the first step, 3 s for the second
    monkeypatch.setattr("toolchain.train.time.monotonic", lambda: next(clock))
    watch = _Watch(told.append, epochs=2, per_epoch=5)
    watch.after_batch(0, {"loss": 3.0})
    watch.after_batch(1, {"loss": 2.0})
    assert told == [{"epoch": 2 / 5, "epochs": 2, "loss": 2.0, "seconds": 33.0, "seconds_left": (2 * 5 - 2) * 3.0}]


def test_fewer_pictures_than_a_batch_are_refused(graph: Graph) -> None:
    few = Samples(np.zeros((3, 64, 64, 3), np.uint8), np.full((3, 1, 5), -1, np.float32), ())
    with pytest.raises(InputError, match="3 do not fill one of 4"):
        fit(None, graph, few, few, Training(batch=4), lambda facts: None)


def test_weights_come_back_exactly(graph: Graph) -> None:
    from toolchain.keras_writer import to_keras

    network = to_keras(graph)
    kernel, bias = network.get_layer("conv_4").get_weights()
    network.get_layer("conv_4").set_weights([kernel + 1, bias])
    for before, after in zip(graph.nodes, with_weights_of(graph, network).nodes, strict=True):
        for name, value in before.weights.items():
            wanted = value + 1 if (before.name, name) == ("conv_4", "kernel") else value
            assert np.array_equal(after.weights[name], wanted)


def test_samples_are_pixels_and_boxes_of_the_networks_input(graph: Graph, tmp_path: Path) -> None:
    # 128 x 64 is halved and put between bars of 16 rows; BGR becomes RGB.
    picture = np.full((64, 128, 3), (10, 20, 30), np.uint8)
    add(tmp_path, "train", "wide", picture, [("blue", (21, 11, 60, 30), 0), ("red", (100, 50, 300, 60), 0)])
    add(tmp_path, "train", "none", picture, [])
    samples = read_samples(tmp_path, "train", graph)
    assert samples.images.shape == (2, 64, 64, 3) and samples.images.dtype == np.uint8
    assert (samples.images[0, 16:48] == (30, 20, 10)).all() and (samples.images[0, :16] == 128).all()
    expected = [(20 / 2, 10 / 2 + 16, 60 / 2, 30 / 2 + 16, 1), (99 / 2, 49 / 2 + 16, 128 / 2, 60 / 2 + 16, 0)]
    assert samples.truth.dtype == np.float32
    np.testing.assert_array_equal(samples.truth[0], np.float32(expected))
    assert (samples.truth[1] == -1).all()


def test_what_cannot_be_learnt_from_is_left_out_and_told(graph: Graph, tmp_path: Path) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    box = (1, 1, 20, 20)
    add(tmp_path, "train", "good", picture, [("red", box, 0), ("blue", box, 1), ("zebra", box, 0)])
    add(tmp_path, "train", "broken", picture, [("red", box, 0)])
    (tmp_path / "JPEGImages" / "broken.png").write_bytes(b"")
    add(tmp_path, "train", "missing", picture, [("red", box, 0)])
    (tmp_path / "JPEGImages" / "missing.png").unlink()
    samples = read_samples(tmp_path, "train", graph)
    assert samples.truth.tolist() == [[[0, 0, 20, 20, 0]]]
    assert [text.split(":")[0] for text in samples.left_out] == ["picture missing", "class zebra", "picture broken"]


def test_data_without_any_class_of_the_model_are_refused(graph: Graph, tmp_path: Path) -> None:
    add(tmp_path, "train", "a", np.zeros((64, 64, 3), np.uint8), [("zebra", (1, 1, 20, 20), 0)])
    with pytest.raises(InputError, match="zebra"):
        read_samples(tmp_path, "train", graph)


def test_a_split_without_a_readable_picture_is_refused(graph: Graph, tmp_path: Path) -> None:
    add(tmp_path, "train", "a", np.zeros((64, 64, 3), np.uint8), [("red", (1, 1, 20, 20), 0)])
    (tmp_path / "JPEGImages" / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match="none of the split 'train'"):
        read_samples(tmp_path, "train", graph)


def test_batches_are_whole_and_mirrored_with_their_boxes(graph: Graph, squares: Path) -> None:
    samples = read_samples(squares, "train", graph)
    original = samples.images.copy()
    seen: list[np.ndarray] = []
    mirrored = 0
    for images, truth in batches(samples, 10, True, (1, 0)):
        assert images.shape == (10, 64, 64, 3) and truth.shape == (10, 1, 5)
        for image, (box,) in zip(images, truth):
            x1, y1, x2, y2, label = box.astype(int)
            expected = np.full((64, 64, 3), 100)
            expected[y1:y2, x1:x2] = [(230, 0, 0), (0, 0, 230)][label]
            assert (image == expected).all()
            same = (original == image).all(axis=(1, 2, 3)).any()
            mirrored += not same
            seen.append(image if same else image[:, ::-1])
    assert len(seen) == 48 // 10 * 10
    assert len(np.unique(seen, axis=0)) == len(seen)
    assert 10 < mirrored < 30  # 40 coins, 3 standard deviations of sqrt(40)/2
    assert (samples.images == original).all()


def test_batches_follow_from_their_key(graph: Graph, squares: Path) -> None:
    samples = read_samples(squares, "train", graph)
    first, again, other = (
        np.stack([images for images, _ in batches(samples, 8, False, key)]) for key in ((1, 0), (1, 0), (1, 1))
    )
    assert (first == again).all() and (first != other).any()
    turned = np.stack([images for images, _ in batches(samples, 8, True, (1, 0))])
    assert (turned != first).any()


def test_the_built_in_network_and_its_recipe_fit_together(tmp_path: Path) -> None:
    from toolchain.carried import built_in_networks
    from toolchain.cost import cost
    from toolchain.recipe import read_recipe

    cfg = built_in_networks()["shapes"]
    net = read_darknet(cfg, None, cfg.with_suffix(".names"), seed=0)
    assert net.head is not None and net.input is not None
    assert [(scale.stride, len(scale.anchors)) for scale in net.head.scales] == [(16, 3), (8, 3)]
    assert cost(net).trainable == sum(
        [16 * 27, 32 * 16 * 9, 64 * 32 * 9, 64 * 64 * 9, 128 * 64 * 9, 128 * 128 * 9, 64 * 128, 128 * 64 * 9]
        + [33 * 128 + 33, 32 * 64, 64 * (32 + 64) * 9, 33 * 64 + 33]
        + [2 * n for n in (16, 32, 64, 64, 128, 128, 64, 128, 32, 64)]  # batch norm's gamma and beta
    )
    recipe = read_recipe("shapes").recipe
    (stage,) = [stage.train for stage in recipe.stages if stage.train is not None]
    Training(**stage.model_dump())
    assert recipe.data is not None
    write_scenes(tmp_path / "data", splits={"train": 4}, seed=0, size=net.input.width)
    samples = read_samples(tmp_path / "data", "train", net)
    assert samples.left_out == () and samples.images.shape[1:] == (160, 160, 3)
