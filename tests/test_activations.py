"""What a network computes on pictures. The child's functions run in this process, where TensorFlow is up already, but
for one test."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deploy.contract import Input, Scale, YoloHead
from deploy.errors import GraphError, InputError
from run_here import run_here, values
from toolchain import activation_runs, activations, batch_norm_statistics
from toolchain.activations import channel_means, patch_moments, reestimate_batch_norms, taylor_scores
from toolchain.graph import Graph, Node
from toolchain.patches import gather, windows
from toy_network import SIDE, Layers, toy_graph, write_pictures

CONVOLUTIONS = ("conv_0", "conv_1", "conv_2", "conv_3", "far", "near")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(monkeypatch)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 5)


def normed_graph() -> Graph:
    """Batch norms one behind the other, one called twice, one frozen, one over vectors; with dropout between."""
    net = Layers(3)
    net.conv("conv_0", "image", 3, 8, strides=[4, 4])
    net.norm("bn_0", "conv_0", 8)
    net.add("relu_0", "ReLU", "bn_0")
    net.add("dropout", "Dropout", "relu_0", rate=0.5)
    net.conv("conv_1", "dropout", 8, 8)
    net.norm("bn_1", "conv_1", 8)
    net.nodes[-1] = dataclasses.replace(
        net.nodes[-1], attributes={**net.nodes[-1].attributes, "trainable": False, "momentum": 0.9}
    )
    net.add("residual", "Add", "bn_1", "relu_0")
    net.norm("bn_2", "residual", 8)
    net.add("pool", "GlobalAveragePooling2D", "bn_2", keepdims=False)
    net.norm("bn_3", "pool", 8)
    net.add("gate", "Reshape", "bn_3", target_shape=[1, 1, 8])
    net.add("gated", "Multiply", "bn_2", "gate")
    net.add("small", "AveragePooling2D", "gated", pool_size=[2, 2])
    net.prediction("raw", "small", 8)
    head = YoloHead((Scale(8, ((10.0, 14.0), (23.0, 27.0)), {"raw": "raw"}),))
    return Graph("normed", tuple(net.nodes), ("raw",), Input("image", SIDE, SIDE), head, ("circle", "square"))


def scrambled(graph: Graph) -> Graph:
    random = np.random.default_rng(1)
    nodes = []
    for node in graph.nodes:
        if "moving_mean" in node.weights:
            size = node.weights["moving_mean"].shape
            new = {
                "moving_mean": random.normal(0, 2, size).astype(np.float32),
                "moving_variance": random.uniform(0.2, 5, size).astype(np.float32),
            }
            node = dataclasses.replace(node, weights={**node.weights, **new})
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes))


# Patch moments


def test_moments_of_all_positions_are_those_of_every_patch(
    here: None, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than there are.
    monkeypatch.setattr(activation_runs, "_LEAST_ROWS", 10**6)
    graph = toy_graph()
    sources = {name: graph.by_name[name].inputs[0] for name in CONVOLUTIONS}
    outputs = values(graph, [*CONVOLUTIONS, *sources.values()], pictures, tmp_path)
    told: list[tuple[float, float]] = []
    with patch_moments(graph, CONVOLUTIONS, pictures, progress=lambda *now: told.append(now)) as moments:
        for name, source in sources.items():
            node, found = graph.by_name[name], moments(name)
            where = windows(node, node.weights, outputs[source].shape[1:])
            everywhere = np.arange(where.positions[0] * where.positions[1])
            patches = np.concatenate([gather(x, where, everywhere) for x in outputs[source]]).astype(np.float64)
            assert found.rows == len(patches) == len(pictures) * len(everywhere)
            assert (found.mean.dtype, found.second.dtype) == (np.float64, np.float32)
            # Sums of n values in float32 are off by n epsilons at most, and by about their root.
            scale, epsilon = np.abs(patches).max(), 2.0**-23
            close = {"rtol": 0, "atol": scale**2 * epsilon * len(patches) ** 0.5}
            np.testing.assert_allclose(found.second, patches.T @ patches / len(patches), **close)
            np.testing.assert_allclose(found.mean, patches.mean(0), rtol=1e-12, atol=scale * 1e-12)
            # What the moments are for: the mean output is the kernel times the mean patch.
            predicted = node.weights["kernel"].reshape(where.length, -1).T @ found.mean + node.weights.get("bias", 0)
            actual = outputs[name].mean((0, 1, 2), dtype=np.float64)
            size = np.abs(node.weights["kernel"]).sum((0, 1, 2)).max() * scale
            np.testing.assert_allclose(predicted, actual, rtol=0, atol=size * epsilon * where.length**0.5)
    assert told[-1] == (len(pictures), len(pictures))
    with pytest.raises(GraphError, match="asked for"):
        moments("grouped")


def test_positions_are_drawn_by_the_seed_alike_from_each_picture(
    here: None, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation_runs, "_LEAST_ROWS", 100)
    monkeypatch.setattr(activation_runs, "_ROWS_PER_VALUE", 2)
    graph = toy_graph()

    def found(layers: tuple[str, ...], seed: int) -> activations.PatchMoments:
        with patch_moments(graph, layers, pictures, seed=seed) as moments:
            return moments("conv_1")

    first, again, other = found(("conv_1",), 0), found(("near", "conv_1", "near"), 0), found(("conv_1",), 1)
    # max(2 * 3 * 3 * 16, 100) patches of the 16 * 16 positions of each picture, as many from each.
    assert first.rows == 5 * -(-2 * 3 * 3 * 16 // 5)
    # The same positions, whatever other layers are asked for and however many pictures a batch then has.
    np.testing.assert_allclose(first.mean, again.mean, rtol=1e-5, atol=1e-6)
    assert np.abs(first.mean - other.mean).max() > 1e-3
    full = found(("conv_1",), 0)
    assert (full.second == first.second).all() and (full.mean == first.mean).all()


def test_layers_whose_moments_do_not_fit_together_wait_for_another_round(
    here: None, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = toy_graph()
    told: list[tuple[float, float]] = []
    with patch_moments(graph, ("conv_1", "conv_2"), pictures) as moments:
        together = [moments(name) for name in ("conv_1", "conv_2")]
    monkeypatch.setattr(activation_runs, "MOMENT_BYTES", 1)
    with patch_moments(graph, ("conv_1", "conv_2"), pictures, progress=lambda *now: told.append(now)) as moments:
        apart = [moments(name) for name in ("conv_1", "conv_2")]
    for one, other in zip(together, apart):
        np.testing.assert_allclose(one.second, other.second, rtol=1e-5, atol=1e-5)
    assert told[-1] == (2 * len(pictures), 2 * len(pictures))


@pytest.mark.parametrize(("layer", "words"), [("grouped", "groups"), ("pool", "MaxPooling2D"), ("nowhere", "none of")])
def test_only_whole_convolutions_have_moments(pictures: list[Path], layer: str, words: str) -> None:
    with pytest.raises(GraphError, match=words), patch_moments(toy_graph(), (layer,), pictures):
        pass


# Channel means


def test_means_are_over_pictures_and_positions(here: None, pictures: list[Path], tmp_path: Path) -> None:
    graph = normed_graph()
    names = ["image", "conv_1", "bn_3", "raw"]
    found = channel_means(graph, names, pictures)
    for name, output in values(graph, names, pictures, tmp_path).items():
        assert found[name].dtype == np.float64
        expected = output.reshape(-1, output.shape[-1]).mean(0, dtype=np.float64)
        # A mean of n values in float32 is off by some sqrt(n) epsilons of their size.
        close = 2.0**-23 * (output[0].size / output.shape[-1]) ** 0.5 * np.abs(output).max()
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=close)
    assert channel_means(graph, [], pictures) == {}


def test_pictures_that_cannot_be_read_are_left_out(here: None, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    graph = normed_graph()
    expected = channel_means(graph, ["bn_0"], pictures)["bn_0"]
    found = channel_means(graph, ["bn_0"], [tmp_path / "broken.png", *pictures])["bn_0"]
    assert (found == expected).all()
    with pytest.raises(InputError, match="none of the 1 given can be read; first .*broken"):
        channel_means(graph, ["bn_0"], [tmp_path / "broken.png"])
    with pytest.raises(InputError, match="none were given"):
        channel_means(graph, ["bn_0"], [])


def test_values_that_are_not_finite_are_refused_by_their_node(here: None, pictures: list[Path]) -> None:
    graph = normed_graph()
    kernel = np.full_like(graph.by_name["conv_1"].weights["kernel"], np.nan)
    nodes = [dataclasses.replace(n, weights={"kernel": kernel}) if n.name == "conv_1" else n for n in graph.nodes]
    broken = dataclasses.replace(graph, nodes=tuple(nodes))
    with pytest.raises(GraphError, match="output of 'conv_1'"):
        channel_means(broken, ["conv_0", "conv_1"], pictures)
    with pytest.raises(GraphError, match="input of 'bn_1'"):
        reestimate_batch_norms(broken, pictures)
    with pytest.raises(GraphError, match="input of 'raw'"), patch_moments(broken, ["raw"], pictures):
        pass


def test_a_network_whose_pictures_cannot_enter_is_refused(pictures: list[Path]) -> None:
    graph = normed_graph()
    with pytest.raises(GraphError, match="describe it"):
        channel_means(dataclasses.replace(graph, input=None), ["bn_0"], pictures)
    two = (Node("other", "InputLayer", (), {"shape": [4, 4, 3]}), *graph.nodes)
    with pytest.raises(GraphError, match="one input"):
        channel_means(dataclasses.replace(graph, nodes=two), ["bn_0"], pictures)
    with pytest.raises(GraphError, match="no head"):
        taylor_scores(dataclasses.replace(graph, head=None), ["bn_0"], pictures)
    with pytest.raises(GraphError, match="'bn_9' is none of"):
        taylor_scores(graph, ["bn_9"], pictures)


def test_a_network_of_batch_1_runs_picture_by_picture(here: None, pictures: list[Path]) -> None:
    graph = normed_graph()
    entry = dataclasses.replace(graph.nodes[0], attributes={**graph.nodes[0].attributes, "batch_size": 1})
    single = dataclasses.replace(graph, nodes=(entry, *graph.nodes[1:]))
    told: list[tuple[float, float]] = []
    found = channel_means(single, ["raw"], pictures, progress=lambda *now: told.append(now))["raw"]
    np.testing.assert_allclose(found, channel_means(graph, ["raw"], pictures)["raw"], rtol=1e-4, atol=1e-5)
    assert told == [(done, 5) for done in range(1, 5 + 1)]
    # A batch norm's statistics are those of many pictures all the same.
    one, other = (reestimate_batch_norms(g, pictures).by_name["bn_3"].weights for g in (single, graph))
    assert (one["moving_variance"] == other["moving_variance"]).all()


# Batch norms


def test_every_batch_norm_gets_the_statistics_of_its_own_input(
    here: None, pictures: list[Path], tmp_path: Path
) -> None:
    graph = scrambled(normed_graph())
    found = reestimate_batch_norms(graph, pictures)
    norms = [node for node in found.nodes if node.op == "BatchNormalization"]
    inputs = values(found, [node.inputs[0] for node in norms], pictures, tmp_path)
    for node in norms:
        x = inputs[node.inputs[0]].reshape(-1, 8).astype(np.float64)
        # Up to four layers of normalization, whose rounding errors of some epsilons a batch norm with a small variance
        # makes larger.
        np.testing.assert_allclose(node.weights["moving_variance"], x.var(0), rtol=1e-4)
        np.testing.assert_allclose(node.weights["moving_mean"], x.mean(0), rtol=0, atol=1e-4 * x.std(0).max())
    for before, after in zip(graph.nodes, found.nodes, strict=True):
        old, new = dataclasses.replace(before, weights={}), dataclasses.replace(after, weights={})
        assert dataclasses.astuple(old) == dataclasses.astuple(new)
        assert list(before.weights) == list(after.weights)
        for name, array in after.weights.items():
            assert array.dtype == np.float32 and array.shape == before.weights[name].shape
            assert name.startswith("moving_") or array is before.weights[name]


def test_scrambled_statistics_come_back(here: None, pictures: list[Path], tmp_path: Path) -> None:
    original = reestimate_batch_norms(normed_graph(), pictures)
    again = reestimate_batch_norms(scrambled(original), pictures)
    (expected,) = values(original, ["raw"], pictures, tmp_path).values()
    (found,) = values(again, ["raw"], pictures, tmp_path).values()
    (other,) = values(scrambled(original), ["raw"], pictures, tmp_path).values()
    # The statistics never depend on the old ones: not even in the last bit.
    np.testing.assert_array_equal(found, expected)
    assert np.abs(other - expected).max() > 0.1


def test_statistics_of_batches_are_pooled(
    here: None, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = normed_graph()
    monkeypatch.setattr(activation_runs, "ACTIVATION_BYTES", 1)
    told: list[tuple[float, float]] = []
    found = reestimate_batch_norms(graph, pictures, progress=lambda *now: told.append(now)).by_name["bn_0"].weights
    (x,) = values(graph, ["conv_0"], pictures, tmp_path).values()
    # Never one alone, which would have no variance behind a global pool.
    assert told == [(3, 5), (5, 5)]
    np.testing.assert_allclose(found["moving_mean"], x.mean((0, 1, 2), dtype=np.float64), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["moving_variance"], x.var((0, 1, 2), dtype=np.float64), rtol=1e-4)


def test_a_batch_norm_that_is_called_twice_sees_both_inputs(here: None, pictures: list[Path], tmp_path: Path) -> None:
    net = Layers(4)
    net.conv("one", "image", 3, 4, strides=[8, 8])
    net.conv("two", "image", 3, 4, strides=[4, 4])
    net.norm("bn", "one", 4)
    net.nodes.append(Node("bn_again", "BatchNormalization", ("two",), net.nodes[-1].attributes, {}, "bn"))
    graph = Graph("twice", tuple(net.nodes), ("bn", "bn_again"), Input("image", SIDE, SIDE))
    found = reestimate_batch_norms(graph, pictures).by_name["bn"].weights
    both = np.concatenate([x.reshape(-1, 4) for x in values(graph, ["one", "two"], pictures, tmp_path).values()])
    np.testing.assert_allclose(found["moving_mean"], both.mean(0, dtype=np.float64), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["moving_variance"], both.var(0, dtype=np.float64), rtol=1e-4)


def test_without_batch_norms_the_graph_stays(pictures: list[Path]) -> None:
    graph = toy_graph()
    plain = dataclasses.replace(graph, nodes=graph.nodes[:1], outputs=("image",), head=None)
    assert reestimate_batch_norms(plain, pictures) is plain


def test_one_value_has_no_variance(here: None, pictures: list[Path]) -> None:
    with pytest.raises(InputError, match="'bn_3' sees one"):
        reestimate_batch_norms(normed_graph(), pictures[:1])


def test_pooled_is_the_law_of_total_variance() -> None:
    x = np.random.default_rng(0).normal(1, 2, (10, 3))
    parts = [(len(part), part.mean(0), part.var(0)) for part in np.split(x, [3, 4])]
    mean, variance = batch_norm_statistics.pooled(parts)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-12)


# Memory


def test_an_activation_stands_until_its_last_reader_has_run() -> None:
    graph = activation_runs.part(normed_graph(), ["raw"])
    plane = 16 * 16 * 8
    # The most is at the first convolution, of 64 x 64 x 3 to 16 x 16 x 8, or at the sum, where its inputs and itself
    # stand beside nothing else.
    assert activation_runs.peak_bytes(graph) == 4 * max(SIDE * SIDE * 3 + plane, 3 * plane)
    assert activation_runs.peak_bytes(graph, kept=["image"]) == 4 * (SIDE * SIDE * 3 + 3 * plane)


# In a process of its own


def test_a_child_gives_the_same_bytes_each_time(pictures: list[Path]) -> None:
    graph = toy_graph()
    found = []
    for _ in range(2):
        with patch_moments(graph, ["conv_1"], pictures) as moments:
            one = moments("conv_1")
        found.append((one.rows, one.mean.tobytes(), one.second.tobytes()))
    assert found[0] == found[1]
