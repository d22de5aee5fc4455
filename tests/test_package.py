"""The one file: its contract, and that nothing half-made takes its name."""

import dataclasses
import importlib.metadata
import os
from pathlib import Path

import numpy as np
import pytest
from toy_network import ANCHORS, LABELS, converted, toy_graph

from deploy import model_file
from deploy.detector import Detector
from deploy.errors import ContractError, ConversionError, InputError
from toolchain import package as module
from toolchain.package import contract_of, package
from toolchain.tflite_metadata import with_own_metadata

#: int8 in its other forms: test_quantize.py.
_PRECISIONS = ("float32", "float16", "dynamic", "int8")


@pytest.mark.parametrize("precision", _PRECISIONS)
def test_a_packaged_file_detects(tmp_path: Path, precision: str) -> None:
    destination = tmp_path / f"toy_{precision}.tflite"
    contract = package(converted() / f"{precision}.tflite", toy_graph(), precision, destination, measured={"map": 0.5})
    detector = Detector(destination, conf=0.0)
    assert detector.contract == contract
    assert contract.labels == LABELS and contract.precision == precision and contract.measured == {"map": 0.5}
    far, near = contract.head.scales  # type: ignore[union-attr]
    assert (far.stride, near.stride, far.anchors) == (16, 8, ANCHORS)
    assert far.outputs == {role: f"{role}_16" for role in ("xy", "wh", "objectness", "classes")}
    found = detector.detect(np.full((50, 70, 3), 90, np.uint8))
    assert len(found.boxes) > 0
    body, _ = model_file.read(destination)
    assert body == with_own_metadata((converted() / f"{precision}.tflite").read_bytes(), contract)


def test_lineage_says_what_made_it(tmp_path: Path) -> None:
    lineage = {"recipe": "ab12"}
    contract = package(converted() / "int8.tflite", toy_graph(), "int8", tmp_path / "m.tflite", lineage=lineage)
    assert contract.lineage["recipe"] == "ab12"
    assert contract.lineage["made_with"]["tensorflow"] == importlib.metadata.version("tensorflow")


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        package(converted() / "int8.tflite", toy_graph(), "int8", tmp_path / name, lineage={"x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_labels_that_do_not_fit_are_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    destination = tmp_path / "m.tflite"
    destination.write_bytes(b"old")
    wrong = dataclasses.replace(toy_graph(), labels=("one",))
    with pytest.raises(ContractError, match="classes_"):
        package(converted() / "float32.tflite", wrong, "float32", destination)
    assert destination.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.tflite"]


def test_what_cannot_be_opened_never_gets_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    destination = tmp_path / "m.tflite"
    destination.write_bytes(b"old")
    real = model_file.write
    monkeypatch.setattr(model_file, "write", lambda body, contract: real(body, contract)[:-100])
    with pytest.raises(InputError):
        package(converted() / "float32.tflite", toy_graph(), "float32", destination)
    assert destination.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.tflite"]


def test_a_destination_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    for destination in (tmp_path / "missing" / "m.tflite", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="cannot write"):
            package(converted() / "float32.tflite", toy_graph(), "float32", destination)
    assert os.listdir(tmp_path) == ["folder"]


def test_what_is_no_detector_or_no_precision_is_refused() -> None:
    content = (converted() / "float32.tflite").read_bytes()
    with pytest.raises(ConversionError, match="has an input and a head"):
        contract_of(dataclasses.replace(toy_graph(), head=None), content, "float32")
    with pytest.raises(ConversionError, match="not 'float8'"):
        contract_of(toy_graph(), content, "float8")


def test_a_version_that_is_not_to_be_had_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAKERS", ("numpy", "no-such-distribution"))
    assert module.versions() == {"numpy": np.__version__}
