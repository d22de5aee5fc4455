"""Scores of channels by what the detections lose without them, held against zeroing the channels."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deploy.contract import ROLES, Input, Scale, YoloHead
from deploy.errors import GraphError
from run_here import run_here, values
from toolchain import taylor
from toolchain.activations import channel_moments, taylor_scores
from toolchain.graph import Graph
from toolchain.reference import by_role
from toolchain.taylor import output_weights
from toy_network import ANCHORS, LABELS, RAW, SIDE, Layers, toy_graph, write_pictures


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(monkeypatch)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 4)


def linear_detector(*, single: bool) -> Graph:
    """A detector without any activation; with single each of its raw outputs reads one channel, in one cell."""
    net = Layers(5)
    stride = SIDE if single else 16
    net.add("pool", "AveragePooling2D", "image", pool_size=[stride, stride])
    net.conv("conv", "pool", 3, RAW + 2, size=1)
    net.prediction("raw", "conv", RAW + 2)
    if single:
        kernel = np.zeros((1, 1, RAW + 2, RAW), np.float32)
        # Its last two channels are read by no output.
        kernel[0, 0, range(RAW), range(RAW)] = np.arange(1, RAW + 1)
        weights = {**net.nodes[-1].weights, "kernel": kernel}
        net.nodes[-1] = dataclasses.replace(net.nodes[-1], weights=weights)
    head = YoloHead((Scale(stride, ANCHORS, {"raw": "raw"}),))
    return Graph("linear", tuple(net.nodes), ("raw",), Input("image", SIDE, SIDE), head, LABELS)


def without(graph: Graph, layer: str, channel: int) -> Graph:
    """The graph with one channel of a convolution's output at zero."""
    node = graph.by_name[layer]
    weights = {name: array.copy() for name, array in node.weights.items()}
    for array in weights.values():
        array[..., channel] = 0
    changed = dataclasses.replace(node, weights=weights)
    return dataclasses.replace(graph, nodes=tuple(changed if n is node else n for n in graph.nodes))


def brute_force(graph: Graph, layer: str, pictures: list[Path], tmp_path: Path) -> np.ndarray:
    """Mean over pictures of the squared, weighted change of all outputs without each channel."""
    assert graph.head is not None
    names = list(graph.outputs)
    whole = values(graph, names, pictures, tmp_path)
    weights = output_weights(graph.head, whole)
    scores = []
    for channel in range(graph.by_name[layer].weights["kernel"].shape[-1]):
        changed = values(without(graph, layer, channel), names, pictures, tmp_path)
        squares = [np.square(weights[n] * (changed[n] - whole[n]), dtype=np.float64).sum() for n in names]
        scores.append(sum(squares) / len(pictures))
    return np.array(scores)


def test_where_each_channel_moves_one_output_the_score_is_its_change(pictures: list[Path], tmp_path: Path) -> None:
    graph = linear_detector(single=True)
    expected = brute_force(graph, "conv", pictures, tmp_path)
    found = taylor_scores(graph, ["conv", "raw"], pictures)
    # Signs vanish in the square of one product; a change is found as a difference, off by an epsilon of the output.
    np.testing.assert_allclose(found["conv"], expected, rtol=1e-4, atol=1e-8)
    assert (found["conv"][RAW:] == 0).all() and (found["conv"][:RAW] > 0).all()
    # An output is a node too: without it, it changes by all of itself.
    raw = values(graph, ["raw"], pictures, tmp_path)
    assert graph.head is not None
    weights = output_weights(graph.head, raw)["raw"]
    np.testing.assert_allclose(found["raw"], np.square(weights * raw["raw"]).mean((0, 1, 2)), rtol=1e-5)


def test_signs_stand_for_the_sum_over_all_outputs(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = 200
    monkeypatch.setattr(taylor, "DRAWS", draws)
    graph = linear_detector(single=False)
    expected = brute_force(graph, "conv", pictures, tmp_path)
    found = taylor_scores(graph, ["conv"], pictures, seed=1)["conv"]
    # Relative standard deviation at most sqrt(2 / draws) (taylor.DRAWS); 4 of them over 16 channels.
    np.testing.assert_allclose(found, expected, rtol=4 * (2 / draws) ** 0.5)
    assert np.abs(found / expected - 1).mean() < (2 / draws) ** 0.5


def test_scores_order_channels_as_zeroing_them_does(pictures: list[Path], tmp_path: Path) -> None:
    graph = toy_graph("relu")
    expected = brute_force(graph, "conv_2", pictures, tmp_path)
    found, again, other = (taylor_scores(graph, ["conv_2", "conv_0", "dropout"], pictures, seed=n) for n in (0, 0, 1))
    assert all((found[name] == again[name]).all() and (found[name] != other[name]).any() for name in found)
    assert [len(found[name]) for name in ("conv_2", "conv_0", "dropout")] == [32, 16, 32]
    # Behind conv_2 stand an add and a max-pool: the first order is not all, but ranks mostly stay.
    ranks = [np.argsort(np.argsort(scores)) for scores in (expected, found["conv_2"])]
    assert np.corrcoef(*ranks)[0, 1] > 0.8
    assert (found["conv_0"] >= 0).all()


def test_weights_are_the_slopes_of_a_detections_score() -> None:
    random = np.random.default_rng(0)
    raw = random.normal(0, 3, (2, 3, 4, RAW)).astype(np.float32)
    for activation in ("sigmoid", "softmax"):
        head = YoloHead((Scale(16, ANCHORS, {"raw": "raw"}),), class_activation=activation)  # type: ignore[arg-type]
        weights = output_weights(head, {"raw": raw})["raw"].reshape(2, 3, 4, len(ANCHORS), -1)
        logits = raw.astype(np.float64).reshape(weights.shape)

        def scores(logits: np.ndarray, activation: str = activation) -> np.ndarray:
            objectness = 1 / (1 + np.exp(-logits[..., 4:5]))
            powers = np.exp(logits[..., 5:])
            rest = powers.sum(-1, keepdims=True) if activation == "softmax" else 1 + powers
            return np.asarray(objectness * powers / rest)

        for label in range(len(LABELS)):
            moved = logits.copy()
            moved[..., 5 + label] += 1e-6
            slope = (scores(moved) - scores(logits))[..., label] / 1e-6
            # float32 weights, and a difference of order 1e-6.
            np.testing.assert_allclose(weights[..., 5 + label], slope, rtol=1e-4, atol=1e-6)
        objectness = 1 / (1 + np.exp(-logits[..., 4]))
        np.testing.assert_allclose(weights[..., 4], objectness * (1 - objectness), rtol=1e-5, atol=1e-7)
        for part in range(4):
            np.testing.assert_allclose(weights[..., part], objectness, rtol=1e-5, atol=1e-7)


def test_outputs_that_are_split_by_role_weigh_the_same() -> None:
    raw = np.random.default_rng(1).normal(0, 200, (2, 3, 4, RAW)).astype(np.float32)
    whole = Scale(16, ANCHORS, {"raw": "raw"})
    split = Scale(16, ANCHORS, {role: f"{role}_16" for role in ROLES})
    (expected,) = output_weights(YoloHead((whole,)), {"raw": raw}).values()
    parts = {f"{role}_16": array for role, array in by_role({"raw": raw}, whole).items()}
    found = output_weights(YoloHead((split,)), parts)
    for role, array in by_role({"raw": expected}, whole).items():
        np.testing.assert_array_equal(found[f"{role}_16"], array)
    # Far out, too, nothing overflows.
    assert np.isfinite(expected).all() and 0 <= expected.min() and expected.max() <= 1


def test_moments_of_one_cell_are_products(pictures: list[Path], tmp_path: Path) -> None:
    graph = linear_detector(single=True)
    found = channel_moments(graph, ["conv"], pictures[:1], seed=3)["conv"]
    held = values(graph, ["conv"], pictures[:1], tmp_path)["conv"][0, 0, 0].astype(np.float64)
    # In one cell of one picture the weights of the places are all one; 1e-5: products of float32 values.
    np.testing.assert_allclose(found.mean, held, rtol=1e-5)
    np.testing.assert_allclose(found.second, np.outer(held, held), rtol=1e-5)
    np.testing.assert_allclose(found.covariance, 0, atol=1e-5 * np.square(held).max())
    # What is lost without a channel, to first order, is its slope times what it holds.
    scores = taylor_scores(graph, ["conv"], pictures[:1], seed=3)["conv"]
    np.testing.assert_allclose(found.slopes.diagonal() * np.square(held), scores, rtol=1e-4)
    assert (found.slopes[RAW:] == 0).all()


def test_moments_are_those_of_the_places_that_detections_mind(pictures: list[Path], tmp_path: Path) -> None:
    graph = toy_graph()
    names = ["residual", "joined"]
    found = channel_moments(graph, names, pictures)
    held = values(graph, names, pictures, tmp_path)
    for name in names:
        moments, flat = found[name], held[name].reshape(-1, held[name].shape[-1])
        assert moments.slopes.shape == moments.second.shape == (flat.shape[1],) * 2
        for matrix in (moments.slopes, moments.covariance):
            least = np.linalg.eigvalsh((matrix + matrix.T) / 2)[0]
            # Gram matrices; float32 products.
            assert least > -1e-5 * np.abs(matrix).max()
            np.testing.assert_allclose(matrix, matrix.T, atol=1e-5 * np.abs(matrix).max())
        # Weighted means lie among the values, and are not those of all places alike.
        assert ((flat.min(0) <= moments.mean + 1e-5) & (moments.mean - 1e-5 <= flat.max(0))).all()
        assert np.abs(moments.mean - flat.mean(0)).max() > 1e-3
    again = channel_moments(graph, names, pictures)
    assert all((again[name].slopes == found[name].slopes).all() for name in names)


def test_moments_need_a_head(pictures: list[Path]) -> None:
    with pytest.raises(GraphError, match="has no head"):
        channel_moments(dataclasses.replace(toy_graph(), head=None), ["residual"], pictures)
