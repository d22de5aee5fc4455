"""The sensitivity table: what it measures is what the compressed network itself does."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import voc_folder
from deploy.errors import GraphError, InputError
from run_here import run_here, values
from toolchain import sensitivity
from toolchain.channels import analyse, remove
from toolchain.graph import Graph, Node
from toolchain.sensitivity import Truths, as_text, measure_sensitivity, plot, silenced
from toy_network import toy_graph, write_pictures


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    run_here(monkeypatch)
    return write_pictures(tmp_path, 3)


def _everything(graph: Graph) -> frozenset[str]:
    return frozenset(node.name for node in graph.nodes)


def test_silenced_channels_are_removed_channels(pictures: list[Path], tmp_path: Path) -> None:
    graph = toy_graph()
    channels = analyse(graph, _everything(graph))
    removed = np.concatenate([group.symbols[::3] for group in channels.free])
    weights = silenced(graph, channels, removed)
    nodes = tuple(
        dataclasses.replace(node, weights={**node.weights, **weights.get(node.name, {})}) for node in graph.nodes
    )
    zeroed = dataclasses.replace(graph, nodes=nodes)
    pruned = remove(graph, channels, removed)
    names = list(graph.outputs)
    expected, found = (values(one, names, pictures, tmp_path) for one in (pruned, zeroed))
    for name in names:
        # Equal products in sums of another order: measured in the reference's 153 convolutions as 9e-6.
        assert np.linalg.norm(found[name] - expected[name]) <= 9e-6 * np.linalg.norm(expected[name])


def test_rows_say_what_the_compressed_network_does(pictures: list[Path], tmp_path: Path) -> None:
    graph = toy_graph()
    found = measure_sensitivity(graph, pictures, ratios=(0.25, 0.75))
    json.dumps(found, allow_nan=False)
    assert (found["metric"], found["whole"], found["pictures"], found["ratios"]) == ("error", 0.0, 3, [0.25, 0.75])
    channels = analyse(graph, _everything(graph))
    rows = {(row["method"], row["layer"]): row["values"] for row in found["rows"]}
    assert {layer for method, layer in rows if method == "prune"} == {group.name for group in channels.free}
    assert {layer for method, layer in rows if method == "tucker"} == {"conv_1", "conv_2"}
    # One case by hand: conv_3 has 48 filters, of which the 12 of least norm go.
    (group,) = (group for group in channels.free if group.name == "conv_3")
    norms = np.linalg.norm(graph.by_name["conv_3"].weights["kernel"].reshape(-1, 48), axis=0)
    order = {int(symbol): norms[place] for place, symbol in enumerate(channels.symbols["conv_3"])}
    weakest = sorted(group.symbols.tolist(), key=order.__getitem__)[: 48 // 4]
    pruned = remove(graph, channels, weakest)
    before, after = (values(one, list(graph.outputs), pictures, tmp_path) for one in (graph, pruned))
    squares = [
        np.sum((after[name] - before[name]) ** 2) / np.sum((before[name] - before[name].mean((0, 1, 2))) ** 2)
        for name in graph.outputs
    ]
    # Pruned and silenced agree to 9e-6, see above.
    assert rows["prune", "conv_3"][0] == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-4)
    for values_of_row in rows.values():
        assert all(value > 0 for value in values_of_row)


def test_the_map_of_labelled_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(monkeypatch)
    data = voc_folder.small_set(tmp_path / "voc")
    graph = dataclasses.replace(toy_graph(), labels=("red", "blue"))
    told: list[tuple[float, float]] = []
    found = measure_sensitivity(
        graph, (), Truths(data, "test"), ratios=(0.5,), progress=lambda *done: told.append(done)
    )
    assert (found["metric"], found["pictures"]) == ("map", 4)
    assert 0 <= found["whole"] <= 1
    assert all(0 <= value <= 1 for row in found["rows"] for value in row["values"])
    assert told[-1] == (len(found["rows"]),) * 2
    assert "mAP in percent on 4 pictures" in as_text(found)
    assert plot(found)[:4] == b"\x89PNG"


def test_a_model_is_as_it_was_behind_every_case(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ratio twice tells the same twice."""
    found = measure_sensitivity(toy_graph(), pictures, ratios=(0.5, 0.25, 0.5))
    for row in found["rows"]:
        assert row["values"][0] == row["values"][2]


def test_table_and_plot() -> None:
    rows = [
        {"method": "prune", "layer": "conv_0", "layers": ["conv_0", "conv_2"], "values": [0.125, 0.5]},
        {"method": "tucker", "layer": "conv_1", "layers": ["conv_1"], "values": [0.0625, 1.25]},
    ]
    found = {"metric": "error", "whole": 0.0, "ratios": [0.25, 0.5], "pictures": 8, "rows": rows}
    lines = as_text(found).splitlines()
    assert lines[1].split() == ["layer", "method", "-25", "%", "-50", "%"]
    assert lines[2].split() == ["conv_0", "prune", "0.1250", "0.5000"]
    picture = cv2.imdecode(np.frombuffer(plot(found), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None and picture.shape[0] > 100
    assert plot(found) == plot(found)
    alone = {**found, "rows": rows[:1]}
    assert plot(alone) != plot(found)


@pytest.mark.parametrize("ratios", [(0.0,), (1.0,), (), (0.5, float("nan"))])
def test_ratios_out_of_range(ratios: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        measure_sensitivity(toy_graph(), (), ratios=ratios)


def test_what_cannot_be_measured(pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="has no head"):
        measure_sensitivity(dataclasses.replace(toy_graph(), head=None), pictures)
    with pytest.raises(InputError, match="none were given"):
        measure_sensitivity(toy_graph(), ())
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match="none of the 1 given can be read"):
        measure_sensitivity(toy_graph(), [tmp_path / "broken.jpg"])
    graph = toy_graph()
    bare = Graph(
        "bare",
        (graph.nodes[0], Node("far", "Conv2D", ("image",), {"filters": 3, "kernel_size": 1},
                              {"kernel": np.ones((1, 1, 3, 3), np.float32)})),
        ("far",), graph.input, dataclasses.replace(graph.head, scales=graph.head.scales[:1]), graph.labels,
    )  # fmt: skip
    with pytest.raises(GraphError, match="needs a layer that can be compressed"):
        measure_sensitivity(bare, pictures)


def test_batches_do_not_matter(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure_sensitivity(toy_graph(), pictures, ratios=(0.5,))
    monkeypatch.setattr(sensitivity, "_BATCH", 1)
    single = measure_sensitivity(toy_graph(), pictures, ratios=(0.5,))
    for one, other in zip(whole["rows"], single["rows"], strict=True):
        # The same sums in another order, over 7 convolutions: some 7 * 2^-23, against errors above 0.01.
        assert one["values"] == pytest.approx(other["values"], rel=1e-4)
