import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import mean_average_precision
from deploy.decode import decode
from deploy.detections import Detections
from deploy.nms import nms
from deploy.preprocess import Preprocessor, to_source
from squares import squares_data, toy_graph, write_squares
from toolchain.graph import Graph
from toolchain.reference import by_role
from toolchain.training_data import Examples, split_examples

pytest.importorskip("tensorflow")

from deploy.contract import Tensor  # noqa: E402
from toolchain.raw_detections import contract_of  # noqa: E402
from toolchain.validation import Validation  # noqa: E402


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder, {"train": 1, "val": 7})
    return folder


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return toy_graph(tmp_path_factory.mktemp("net"))


def outputs_of(images: np.ndarray) -> list[np.ndarray]:
    """Raw outputs that follow from the pixels: where a cell has colour, some box of about the right size, not always of
    the right class."""
    small = images.astype(np.float32).reshape(len(images), 8, 8, 8, 8, 3).mean((2, 4))
    strength = np.abs(small - 100).max(-1)
    raw = np.zeros((len(images), 8, 8, 2, 7), np.float32)
    raw[..., 4] = strength[..., None] / 20 - 3
    raw[..., 5] = (small[..., 0] - 110)[..., None] / 40
    raw[..., 6] = (small[..., 2] - 90)[..., None] / 40
    return [raw.reshape(len(images), 8, 8, 14)]


def plain_loss(truth: Any, outputs: Sequence[Any], teacher: Sequence[Any] | None) -> float:
    """The number of objects of each picture, and what was taught, averaged over the batch."""
    taught = 0.0 if teacher is None else float(np.mean(teacher[0]))
    return float((truth[..., 4] >= 0).sum() / len(truth)) + taught


@pytest.mark.parametrize("batch", [1, 3, 7, 16])
def test_the_map_is_that_of_the_accuracy_benchmark(graph: Graph, squares: Path, batch: int) -> None:
    _, watched = split_examples(squares_data(squares), graph, 0)
    found = Validation(graph, watched, batch).measure(outputs_of, plain_loss, None, labels=True)
    assert graph.input is not None and graph.head is not None
    whole = dataclasses.replace(graph.input, mean=(0.0,) * 3, std=(1.0,) * 3)
    preprocess = Preprocessor(whole, Tensor("image", (1, 64, 64, 3), "uint8", scale=1.0))
    contract, head = contract_of(graph), graph.head

    def detect(bgr: np.ndarray) -> Detections:
        tensor, placement = preprocess(bgr)
        raw = dict(zip(graph.outputs, outputs_of(tensor), strict=True))
        by_name = {
            f"{role}_{scale.stride}": part for scale in head.scales for role, part in by_role(raw, scale).items()
        }
        one = decode(by_name, contract, 0.005)
        one = one.take(nms(one.boxes, one.scores, one.class_ids, 0.45, 10_000))
        return Detections(to_source(one.boxes, placement, clip=False), one.scores, one.class_ids)

    expected = mean_average_precision(graph.labels, detect, squares, "val", "darknet")
    assert 0.02 < expected < 0.98, "a figure that could be met by chance"
    assert found["map"] == pytest.approx(expected, abs=1e-6)
    assert found["val_loss"] == pytest.approx(1)


def test_without_labels_there_is_a_loss_alone(graph: Graph, squares: Path) -> None:
    _, watched = split_examples(squares_data(squares), graph, 0)
    validation = Validation(graph, watched, 4)
    # The mean over the pictures, not over the batches of 4 and 3.
    taught = [np.asarray(index, float) for index in (2.0, 9.0)] * 2
    found = [
        validation.measure(outputs_of, plain_loss, lambda images: [taught.pop(0)], labels=False) for _ in range(2)
    ]
    assert found == [{"val_loss": pytest.approx(1 + (4 * 2 + 3 * 9) / 7)}] * 2


def test_pictures_without_an_object_have_no_map(graph: Graph, squares: Path) -> None:
    _, watched = split_examples(squares_data(squares), graph, 0)
    empty = tuple(dataclasses.replace(one, objects=np.zeros((0, 5), np.float32)) for one in watched.pictures)
    found = Validation(graph, Examples(empty, ()), 4).measure(outputs_of, plain_loss, None, labels=True)
    assert found == {"val_loss": 0.0, "map": 0.0}
