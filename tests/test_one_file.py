"""The way without a recipe, from Keras files; from darknet's see test_cli.py."""

import json
from pathlib import Path

import pytest
from run_here import run_here

from deploy.command_line import exit_code
from deploy.model_file import read
from toolchain.cli import slimdet
from toolchain.one_file import _by_reason

HEAD = """
labels: [cat, dog]
input: {resize: letterbox, mean: [127.5, 127.5, 127.5], std: [127.5, 127.5, 127.5]}
scales:
  - output: predict
    stride: 8
    anchors: [[8, 8], [16, 12]]
"""


def write_keras(path: Path, *, with_lambda: bool, side: int | None = 32) -> None:
    """A network of 32x32x3, or of the side that is given, with one scale of stride 8: 2 anchors of 5 + 2 channels."""
    import keras

    image = keras.Input((side, side, 3))
    x = keras.layers.Conv2D(8, 3, strides=4, padding="same", activation="relu", name="stem")(image)
    if with_lambda:
        x = keras.layers.Lambda(lambda tensor: tensor * 2.0, output_shape=(8, 8, 8), name="twice")(x)
    x = keras.layers.MaxPooling2D(2)(x)
    keras.Model(image, keras.layers.Conv2D(2 * (5 + 2), 1, name="predict")(x)).save(path)


def convert(folder: Path, model: str, *options: str, head: str = HEAD) -> int:
    (folder / "head.yaml").write_text(head)
    files = ["convert", str(folder / model), "--head", str(folder / "head.yaml"), "-o", str(folder / "out.tflite")]
    return exit_code(slimdet, "slimdet", [*files, *options])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("model", ["net.keras", "net.h5"])
def test_a_keras_file_with_its_head(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(monkeypatch)
    write_keras(tmp_path / model, with_lambda=False)
    assert convert(tmp_path, model) == 0
    contract = read(tmp_path / "out.tflite")[1]
    assert contract.labels == ("cat", "dog")
    assert contract.input.resize == "letterbox" and contract.input.mean == (127.5, 127.5, 127.5)
    assert {tensor.name: tensor.shape for tensor in contract.tensors} == {
        "image": (1, 32, 32, 3),
        "xy_8": (1, 4, 4, 2 * 2),
        "wh_8": (1, 4, 4, 2 * 2),
        "objectness_8": (1, 4, 4, 2 * 1),
        "classes_8": (1, 4, 4, 2 * 2),
    }
    # What stands on the command line counts, not what stands in the file.
    assert convert(tmp_path, model, "--resize", "stretch", "--precision", "float16") == 0
    contract = read(tmp_path / "out.tflite")[1]
    assert (contract.input.resize, contract.precision) == ("stretch", "float16")


@pytest.mark.slow
def test_a_file_for_another_program_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_keras(tmp_path / "net.keras", with_lambda=False)
    assert convert(tmp_path, "net.keras", "--for", "mediapipe") == 1
    assert "grey bars" in capsys.readouterr().err
    assert not (tmp_path / "out.tflite").exists()
    twice = ["--for", "mediapipe", "--for", "mediapipe"]
    assert convert(tmp_path, "net.keras", *twice, "--resize", "stretch") == 0
    assert "out_mediapipe.tflite" in capsys.readouterr().out
    contract = read(tmp_path / "out_mediapipe.tflite")[1]
    assert contract.head.kind == "postprocess" and contract.labels == ("cat", "dog")
    assert read(tmp_path / "out.tflite")[1].head.kind == "yolo"


def test_the_summary_has_one_line_for_each_reason() -> None:
    notes = [*(f"conv_{index}: Mish approximated" for index in range(5)), "up: one resize: exact"]
    assert _by_reason(notes) == ["conv_0, conv_1, conv_2 and 2 more: Mish approximated", "up: one resize: exact"]
    assert _by_reason(notes[3:5]) == ["conv_3, conv_4: Mish approximated"]


@pytest.mark.slow
def test_an_open_input_size_stands_in_the_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(monkeypatch)
    write_keras(tmp_path / "net.keras", with_lambda=False, side=None)
    assert convert(tmp_path, "net.keras") == 1
    assert "input: {size: [height, width]}" in capsys.readouterr().err.strip().splitlines()[-1]
    assert convert(tmp_path, "net.keras", head=HEAD.replace("input: {", "input: {size: [24, 40], ")) == 0
    contract = read(tmp_path / "out.tflite")[1]
    assert (contract.input.height, contract.input.width) == (24, 40)
    assert {tensor.name: tensor.shape for tensor in contract.tensors}["objectness_8"] == (1, 3, 5, 2)


@pytest.mark.slow
def test_a_lambda_runs_only_where_it_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_keras(tmp_path / "net.keras", with_lambda=True)
    assert convert(tmp_path, "net.keras") == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Lambda" in said and "--allow-lambda" in said
    assert not (tmp_path / "out.tflite").exists()
    # It goes through conversion and verification alike.
    assert convert(tmp_path, "net.keras", "--allow-lambda") == 0
    assert read(tmp_path / "out.tflite")[1].precision == "float32"

    recipe = "name: net\nmodel: {keras: net.keras, head: head.yaml, allow_lambda: true}\nprecisions: [float32]\n"
    (tmp_path / "net.yaml").write_text(recipe + "benchmark: {runs: 3, min_secs: 0}\n")
    assert exit_code(slimdet, "slimdet", ["build", str(tmp_path / "net.yaml"), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    convolutions = 3 * 3 * 3 * 8 + 8 + 8 * 14 + 14
    assert [report["stages"][0][key] for key in ("trainable", "non_trainable")] == [convolutions, 0]
    assert read(tmp_path / "out" / "net_float32.tflite")[1].input.resize == "letterbox"
