"""Two .tflite files layer by layer: what is equal, what int8 adds, files of strangers, and files that do not match."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from run_here import run_here
from toy_network import converted, toy_graph, write_pictures

from deploy.contract import Input
from deploy.errors import InputError
from deploy.picture import read_picture
from deploy.preprocess import Preprocessor
from toolchain import file_comparison, stage_work, stages
from toolchain.cache import Result, Source
from toolchain.calibration import observe
from toolchain.cli import slimdet
from toolchain.comparison_report import worst
from toolchain.convert import convert
from toolchain.equalization import equalized, scalable
from toolchain.file_comparison import compare_files
from toolchain.intermediates import Intermediates, channel_factors
from toolchain.stage_work import Work


def _compared(which: str, against: str = "float32", count: int = 4) -> dict[str, Any]:
    folder = converted()
    pictures = sorted((folder / "pictures").glob("*.png"))[:count]
    files = folder / f"{which}.tflite", folder / f"{against}.tflite"
    return compare_files(*files, pictures, scaled=which == "int8")


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
    # Changed scales before the concatenation are in one file alone, and no layers; what reads them is held against what
    # they read.
    assert found["not_compared"] == [] and not any(name.endswith("_quantized") for name in layers)
    joined = layers["joined_1/concat"]
    before = [_noise(layers[name]) for name in ("residual_1/Add", "resize/ResizeNearestNeighbor")]
    # Decibels are rounded to hundredths: 0.01 dB are 0.23 % of the noise.
    assert joined["added"] == pytest.approx(max(0, _noise(joined) - max(before)), abs=0.0025 * max(before))
    # Zero padding copies the input, whose 256 values are those of a pixel: nothing is lost but float's rounding.
    assert layers["conv_0_pad_1/Pad"]["decibels"] > 100
    # All noise of the first that computes is its own.
    first = layers["conv_0_bn_1/batchnorm/add_1"]
    assert first["added"] == pytest.approx(_noise(first), rel=0.0025)
    for layer in found["layers"]:
        low, high = layer["holds"]
        assert high - low == pytest.approx(255 * layer["step"], rel=1e-5)
        assert 0 <= layer["clipped"] <= 1 and 0 < layer["used"] <= 1
        assert layer["decibels"] > 3
    json.dumps(found, allow_nan=False)


def _noise(layer: dict[str, Any]) -> float:
    """As a share of the signal."""
    return float(10 ** (-layer["decibels"] / 10))


def test_dynamic_range_is_float_between_its_layers() -> None:
    found = _compared("dynamic")
    assert all(layer["dtype"] == "float32" for layer in found["layers"])
    assert any(layer["decibels"] < 150 for layer in found["layers"])
    # Nor are weights that are widened before use.
    assert _compared("float16", count=1)["not_compared"] == []


def test_pictures_enter_as_the_caller_says() -> None:
    folder = converted()
    pictures = sorted((folder / "pictures").glob("*.png"))[:2]
    files = folder / "int8.tflite", folder / "float32.tflite"
    guessed = compare_files(*files, pictures)
    # The toy network's files are not packaged: nothing in them says that pictures are letterboxed.
    assert "neither file says how pictures enter" in guessed["notes"][0]
    given = compare_files(*files, pictures, input=toy_graph().input)
    assert given["notes"] == []
    ranges = [[layer["range"] for layer in found["layers"]] for found in (guessed, given)]
    assert ranges[0] != ranges[1]
    again = compare_files(*files, pictures, input=Input("image", 64, 64, "stretch"))
    assert again["layers"] == guessed["layers"]


def test_the_stage_of_a_build_gives_what_the_files_are_and_not_where(tmp_path: Path) -> None:
    folder = converted()
    inputs: dict[str, Source] = {"pictures": tuple(sorted((folder / "pictures").glob("*.png"))[:2])}
    for name, source in (("tflite", "int8.tflite"), ("float32", "float32.tflite")):
        (tmp_path / name).mkdir()
        (tmp_path / name / stages.TFLITE).write_bytes((folder / source).read_bytes())
        inputs[name] = Result(tmp_path / name, (), "", {}, 0.0, False, "", "")
    stage_work.save(toy_graph(), tmp_path)
    inputs["graph"] = Result(tmp_path, (), "", {}, 0.0, False, "", "")
    told: list[tuple[float, float]] = []
    work = Work({"scaled": True}, inputs, tmp_path, lambda done, total, text="": told.append((done, total)))
    facts = stages.compare(work)
    assert {layer["dtype"] for layer in facts["layers"]} == {"int8"} and facts["notes"] == []
    assert told == [(1, 2), (2, 2)] and str(tmp_path) not in json.dumps(facts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Warning. Enabling .experimental_preserve_all_tensors")
def test_a_network_that_int8_rewrites_is_compared_with_the_true_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 has another float graph behind it, whose layers but the rewritten have the names of the float32 file's."""
    run_here(monkeypatch)
    graph, pictures = toy_graph("mish"), write_pictures(tmp_path / "pictures", 4)
    convert(graph, "float32", tmp_path / "float32.tflite")
    convert(graph, "int8", tmp_path / "int8.tflite", pictures=pictures, float_file=tmp_path / "float32.tflite")
    files = tmp_path / "int8.tflite", tmp_path / "float32.tflite"
    found = compare_files(*files, pictures, input=graph.input, scaled=True)
    plain = {layer["name"] for layer in _compared("int8")["layers"]}
    named = {layer["name"] for layer in found["layers"]}
    assert {name.partition("_")[0] for name in plain - named} <= {"shaped"}
    assert {"shaped_low_1/mul", "shaped_gate_1/Sigmoid", "shaped_1/Mul"} <= set(found["not_compared"])
    assert all(layer["decibels"] > 3 for layer in found["layers"])


def test_a_layer_that_overflows_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted()
    picture = str(sorted((folder / "pictures").glob("*.png"))[0])
    add = file_comparison._add

    def overflowing(sums: Any, found: np.ndarray, expected: np.ndarray, *told: Any) -> None:
        add(sums, found, np.full_like(expected, np.inf) if expected.shape[-1] == 80 else expected, *told)

    monkeypatch.setattr(file_comparison, "_add", overflowing)
    files = str(folder / "int8.tflite"), str(folder / "float32.tflite")
    found = file_comparison.compare_in_child(*files, [picture], str(folder / "told.jsonl"), None, False)
    # joined has 48 + 32 channels.
    (warning,) = (text for text in found["warnings"] if "not finite" in text)
    assert warning.startswith("'joined_1/concat") and warning.endswith("it is not compared")
    assert all(math.isfinite(layer["decibels"]) for layer in found["layers"])
    assert not any(layer["name"].startswith("joined") for layer in found["layers"])
    json.dumps(found, allow_nan=False)


def test_what_is_cut_off_or_saturated_is_said() -> None:
    sums = file_comparison._Sums()
    expected = np.array([[-30.0, -2.0, 0.0, 2.0]], np.float32)
    found = np.array([[-1.0, -1.0, 0.0, 1.0]], np.float32)
    # It holds -1 to 1 in steps of 0.5: three of four are more than a quarter beyond.
    file_comparison._add(sums, found, expected, (-1.0, 1.0, 0.5), None)
    assert sums.clipped == 3 / 4
    assert (sums.saturated, sums.saturated_reference) == (0, 1 / 4)
    assert (sums.low, sums.high) == (-30.0, 2.0)
    assert sums.noise == pytest.approx((29**2 + 1 + 0 + 1) / 4)


def test_outputs_of_other_names_match_where_a_shape_is_that_of_one_in_each() -> None:
    def file(**shapes: tuple[int, ...]) -> Any:
        shapes_by_index = list(shapes.values())
        return SimpleNamespace(output_names=dict(enumerate(shapes)), shape=shapes_by_index.__getitem__)

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
    assert "most noise is added at" in done.output
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


@pytest.mark.filterwarnings("ignore:Warning. Enabling .experimental_preserve_all_tensors")
def test_scaled_channels_are_compared_no_worse_than_with_their_true_scales() -> None:
    """A channel's factor f is found by least squares, so that |found - f x|² is at most |found - x/s|² with the true
    scale s. Noise counts in x's own size: it is divided by f², where the true one is by 1/s². So the noise is at most
    1/(f s)² of that with the true scales, f s of the channel where it is least."""
    folder = converted()
    picture, graph = sorted((folder / "pictures").glob("*.png"))[0], toy_graph()
    assert graph.input is not None
    content = (folder / "float32.tflite").read_bytes()
    free = scalable(content)
    observed = observe(content, graph.input, sorted((folder / "pictures").glob("*.png")), free)
    scales = equalized(content, {index: observed.greatest(index) for index in free}, {}).scales
    files = folder / "int8.tflite", folder / "float32.tflite"
    found = compare_files(*files, [picture], input=graph.input, scaled=True)
    layers = {layer["name"]: layer for layer in found["layers"]}
    quantized, plain = (Intermediates(path.read_bytes()) for path in files)
    for inside in (quantized, plain):
        tensor = dataclasses.replace(inside.inputs[0], name=graph.input.name)
        inside.run(Preprocessor(graph.input, tensor)(read_picture(picture))[0])
    indices = {details["name"]: index for index, details in quantized.details.items()}
    # Of all tensors between layers the depthwise convolution's, conv_2's and conv_3's, and what hands them on.
    assert len(scales) == 3 + len(("residual", "pool", "up", "joined"))
    for index, scale in scales.items():
        name = str(plain.details[index]["name"])
        assert scale.max() > 2 * scale.min()
        values, expected = quantized.values(indices[name]), plain.values(index)
        factor = channel_factors(values, expected)
        sums = file_comparison._Sums()
        file_comparison._add(sums, values, expected / scale, None, 1 / scale)
        true = file_comparison._decibels(sums.signal, sums.noise)
        # Decibels are rounded to hundredths.
        least = true - 20 * max(0.0, math.log10(1 / float((factor * scale).min()))) - 0.005
        assert layers[name]["decibels"] >= least > true - 3
    # Without knowing it, the comparison takes the scales for noise.
    blind = {layer["name"]: layer for layer in compare_files(*files, [picture], input=graph.input)["layers"]}
    assert all(blind[plain.details[index]["name"]]["decibels"] < 3 for index in scales)
