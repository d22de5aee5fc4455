"""Two .tflite files layer by layer: what is equal, what int8 adds, files of strangers, and files that do not match."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from toy_network import converted, write_pictures

from deploy.errors import InputError
from toolchain import file_comparison
from toolchain.cli import slimdet
from toolchain.file_comparison import as_text, compare_files, plot, worst


def _compared(which: str, against: str = "float32", count: int = 4) -> dict[str, Any]:
    folder = converted()
    pictures = sorted((folder / "pictures").glob("*.png"))[:count]
    return compare_files(folder / f"{which}.tflite", folder / f"{against}.tflite", pictures)


def test_a_file_is_what_it_is() -> None:
    found = _compared("float32")
    assert {layer["decibels"] for layer in found["layers"]} == {150.0}
    assert not worst(found["layers"]) and not found["warnings"] and not found["not_compared"]
    assert all(layer["holds"] is None and layer["clipped"] is None for layer in found["layers"])
    assert set(found["outputs"]) == {f"{role}_{s}" for role in ("xy", "wh", "objectness", "classes") for s in (16, 8)}


def test_int8_against_float_layer_by_layer() -> None:
    found = _compared("int8")
    assert found["pictures"] == 4
    layers = {layer["name"].partition(";")[0]: layer for layer in found["layers"]}
    assert {layer["dtype"] for layer in found["layers"]} == {"int8"}
    assert {layer["against"] for layer in found["layers"]} == {"float32"}
    # Changed scales before the concatenation are in one file alone; what reads them is held against what they read.
    assert [name for name in found["not_compared"] if name.endswith("_quantized")] == found["not_compared"] != []
    joined = layers["joined_1/concat"]
    assert joined["lost"] is not None
    inputs = [layers[name]["decibels"] for name in ("residual_1/Add", "resize/ResizeNearestNeighbor")]
    assert joined["lost"] == pytest.approx(max(0, min(inputs) - joined["decibels"]), abs=0.02)
    # Zero padding copies the input, whose 256 values are those of a pixel: nothing is lost but float's rounding.
    assert layers["conv_0_pad_1/Pad"]["decibels"] > 100
    for layer in found["layers"]:
        low, high = layer["holds"]
        assert high - low == pytest.approx(255 * layer["step"], rel=1e-5)
        assert 0 <= layer["clipped"] <= 1 and 0 < layer["used"] <= 1
        assert layer["decibels"] > 3
    listed = worst(found["layers"])
    assert listed == sorted(listed, key=lambda one: -one["lost"]) and listed[0]["lost"] > 0
    json.dumps(found)


def test_dynamic_range_is_float_between_its_layers() -> None:
    found = _compared("dynamic")
    assert all(layer["dtype"] == "float32" for layer in found["layers"])
    assert any(layer["decibels"] < 150 for layer in found["layers"])


def test_the_text_names_what_is_float_and_what_loses_most() -> None:
    found = _compared("int8", count=2)
    text = as_text(found)
    top = worst(found["layers"])[0]
    assert f"{top['name'].partition(';')[0]} ({top['lost']:.1f} dB)" in text
    assert "of integers, 0 float" in text
    mixed = {**found, "layers": [*found["layers"][:-1], {**found["layers"][-1], "dtype": "float32"}]}
    assert f"stays float: {found['layers'][-1]['name']}" in as_text(mixed)


def test_the_plot_is_a_picture_and_always_the_same() -> None:
    found = _compared("int8", count=2)
    drawn = plot(found)
    assert drawn == plot(found)
    with Image.open(io.BytesIO(drawn)) as image:
        assert image.format == "PNG" and image.size == (1100, 550)


def test_what_is_cut_off_or_saturated_is_said() -> None:
    sums = file_comparison._Sums()
    expected = np.array([[-30.0, -2.0, 0.0, 2.0]], np.float32)
    found = np.array([[-1.0, -1.0, 0.0, 1.0]], np.float32)
    # It holds -1 to 1 in steps of 0.5: three of four are more than a quarter beyond.
    file_comparison._add(sums, found, expected, (-1.0, 1.0, 0.5))
    assert sums.clipped == 3 / 4
    assert (sums.saturated, sums.saturated_reference) == (0, 1 / 4)
    assert (sums.low, sums.high) == (-30.0, 2.0)
    assert sums.noise == pytest.approx((29**2 + 1 + 0 + 1) / 4)


def test_outputs_of_other_names_match_where_a_shape_is_that_of_one_in_each() -> None:
    def file(**shapes: tuple[int, ...]) -> Any:
        details = {index: {"shape": shape} for index, shape in enumerate(shapes.values())}
        return SimpleNamespace(names=dict(enumerate(shapes)), details=details)

    mine = file(a=(1, 4), b=(1, 5), c=(1, 5), d=(1, 6))
    theirs = file(e=(1, 7), f=(1, 4), g=(1, 6), h=(1, 6))
    # Two of one shape in one file are no pair of files.
    assert file_comparison._outputs_by_shape(mine, theirs) == {"a": (0, 1)}


def test_files_that_do_not_match(tmp_path: Path) -> None:
    folder = converted()
    pictures = write_pictures(tmp_path / "pictures", 2)
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes((folder / "int8.tflite").read_bytes()[:3000])
    with pytest.raises(InputError, match="damaged"):
        compare_files(damaged, folder / "float32.tflite", pictures)
    with pytest.raises(InputError, match="none of 1 can be read"):
        compare_files(folder / "int8.tflite", folder / "float32.tflite", [damaged])
    (tmp_path / "none.txt").write_text("no picture")
    found = compare_files(folder / "int8.tflite", folder / "float32.tflite", [tmp_path / "none.txt", *pictures])
    assert found["pictures"] == 2 and found["skipped"][0].startswith("none.txt: ")


def test_the_command(tmp_path: Path) -> None:
    folder = converted()
    files = [str(folder / f"{which}.tflite") for which in ("int8", "float32")]
    to, drawn = tmp_path / "found.json", tmp_path / "worst.png"
    command = ["inspect", files[0], "--against", files[1], "--pictures", str(folder / "pictures")]
    done = CliRunner().invoke(slimdet, [*command, "--json", str(to), "--plot", str(drawn)])
    assert done.exit_code == 0, done.output
    assert "most is lost at" in done.output
    assert json.loads(to.read_text())["kind"] == "comparison" and drawn.read_bytes()[1:4] == b"PNG"
    refused = CliRunner().invoke(slimdet, [*command, "--sensitivity"])
    assert refused.exit_code == 2 and "without --sensitivity" in refused.output
    kept = CliRunner().invoke(slimdet, [*command, "--plot", files[1]])
    assert kept.exit_code != 0 and Path(files[1]).read_bytes()[4:8] == b"TFL3"


@pytest.mark.real_data
def test_a_strangers_broken_file_is_named(real_data: Path) -> None:
    files = [real_data / "tflite" / f"yolo-fastest-coco-{kind}.tflite" for kind in ("uint8", "float32")]
    pictures = sorted((real_data / "voc2007" / "calibration200" / "JPEGImages").glob("*.jpg"))[:3]
    found = compare_files(*files, pictures)
    assert "neither file says how pictures enter" in found["notes"][0]
    told = " ".join(found["warnings"])
    assert "of a pixel's 256 values 2 are left at the input 'image_input': its scale 1 is made for another" in told
    assert told.count("is saturated") == told.count("says nothing") == len(found["outputs"]) == 2
    other = real_data / "tflite" / "face_detection_short_range.tflite"
    with pytest.raises(InputError, match="read pictures of one size"):
        compare_files(files[0], other, pictures)
