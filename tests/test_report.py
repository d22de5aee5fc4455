"""The report says the same in all three forms, and never more than was measured."""

import base64
import copy
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain import training_report
from toolchain.report import as_html, as_markdown, as_text, sentences, table, verification_sentence, write_report

STAGES = [
    {"name": "load", "trainable": 900, "non_trainable": 100, "flops": 61_871_820_000, "flops_unknown": []},
    {"name": "tucker", "trainable": 180, "non_trainable": 20, "flops": 11_459_690_000, "flops_unknown": []},
]


def verification(unit: str, measured: list[float], bound: float) -> dict[str, Any]:
    outputs = [
        {"output": f"xy_{index}", "layer": f"conv_{index}", "measured": value, "bound": bound, "unit": unit}
        for index, value in enumerate(measured)
    ]
    return {"precision": "float32", "pictures": 8, "outputs": outputs}


def compared() -> dict[str, Any]:
    """Twelve layers, the last of them float."""
    layers = [
        {"name": f"conv_{index}_1/Relu;conv_{index}_1/convolution", "op": "CONV_2D", "dtype": "int8", "decibels": 15.5,
         "added": index / 100, "range": [0.0, 1.0], "holds": [0.0, 2.0], "clipped": 0.0, "used": 0.5}
        for index in range(11)
    ]  # fmt: skip
    near = {"name": "near/BiasAdd", "dtype": "float32", "added": 0.0, "holds": None, "clipped": None, "used": None}
    return {"pictures": 8, "layers": [*layers, {**layers[0], **near}], "warnings": [], "notes": [], "skipped": [],
            "not_compared": []}  # fmt: skip


def content() -> dict[str, Any]:
    accuracy = {"protocol": "voc07", "images": 991, "skipped_count": 2, "data_classes_without_partner": ["boat"]}
    return {
        "name": "net",
        "recipe": {"file": "net.yaml", "sha256": "ab"},
        "slimdet": "0.1.0",
        "seeds": {"train": 1},
        "skipped": [],
        "machine": {"cpu": "a CPU", "usable_cores": 2, "memory_mb": 100, "architecture": "x86_64", "python": "3.11",
                    "libraries": {"numpy": "2.4"}},
        "stages": [{**stage, "seconds": 1.25, "build": "ran", "reason": "first build"} for stage in STAGES],
        "files": [
            {"path": "net_float32.tflite", "precision": "float32", "bytes": 262_900_000, "map": 0.8222,
             "verification": verification("float epsilons", [1.0, 40.0], 160.0), "verified_on_drawn_pictures": False,
             "latency": {"p50_ms": 644.0, "p90_ms": 700.0, "warnings": ["the machine was busy"]},
             "accuracy": {**accuracy, "per_class": {"cat": 0.9, "dog": 0.7}}},
            {"path": "net_int8.tflite", "precision": "int8", "bytes": 44_120_000, "map": 0.8723,
             "verification": verification("dB of signal to noise", [30.0, 12.0], 3.0),
             "verified_on_drawn_pictures": True,
             "calibration": {"used": 63, "skipped": ["a.jpg: damaged"], "rule": "mean"},
             "layers": compared(), "notes": ["near: stays float, it is an output"],
             "latency": {"p50_ms": 287.0, "p90_ms": 350.0, "warnings": []},
             "accuracy": {**accuracy, "per_class": {"cat": 0.95}}},
        ],
    }  # fmt: skip


def cells() -> list[dict[str, str]]:
    from toolchain.report import COLUMNS

    return [dict(zip(COLUMNS, row.cells, strict=True)) for row in table(content())]


def test_ratios_in_brackets() -> None:
    original, float32, int8 = cells()
    assert original == {"format": "input model", "size MB": "–", "parameters": "1,000", "FLOPs M": "61871.82",
                        "mAP %": "–", "p50 ms": "–", "p90 ms": "–", "verified": "–"}  # fmt: skip
    # 1000 / 200 and 61871.82 / 11459.69
    assert (float32["parameters"], float32["FLOPs M"]) == ("200 (5.0x)", "11459.69 (5.4x)")
    # The float32 file is what the others are compared with.
    assert (float32["size MB"], float32["mAP %"], float32["p50 ms"]) == ("262.90", "82.22", "644.00")
    assert int8["size MB"] == "44.12 (6.0x)"  # 262.90 / 44.12
    assert int8["mAP %"] == "87.23 (+5.01)"
    assert int8["p50 ms"] == "287.00 (2.2x)"  # 644 / 287
    assert int8["p90 ms"] == "350.00 (2.0x)"


def test_sentences_say_what_was_measured_and_how() -> None:
    found = sentences(content())
    assert found[0] == "int8 is 6.0 times smaller than float32, 2.2 times faster, 5.01 points of mAP above it."
    assert any("protocol voc07, 991 pictures; 2 pictures could not be used" in text for text in found)
    assert any("classes that the model does not know: boat" in text for text in found)
    assert "net_float32.tflite: the machine was busy." in found
    told = "int8 was calibrated on 63 pictures, ranges by the rule mean; 1 could not be read, the first a.jpg: damaged."
    assert told in found


def test_files_for_other_programs_are_told_with_size_and_notes() -> None:
    value = content()
    made = {"path": "net_int8_mediapipe.tflite", "for": "mediapipe", "bytes": 44_300_000, "notes": ["one", "two"]}
    value["files"][1]["clients"] = [made]
    assert "net_int8_mediapipe.tflite, 44.30 MB: one; two." in sentences(value)


def test_the_output_nearest_its_bound_is_named() -> None:
    float32, int8 = content()["files"]
    # Epsilons are the worse the more, decibels the worse the fewer.
    assert "xy_1, has 40 float epsilons, at most 160 allowed" in verification_sentence(float32)
    assert "xy_1, has 12 dB of signal to noise, at least 3 allowed" in verification_sentence(int8)
    assert "8 generated pictures" in verification_sentence(int8)
    assert "8 pictures" in verification_sentence(float32)


def test_unverified_and_unmeasured_stand_first_and_plain() -> None:
    value = content()
    value["skipped"] = ["benchmark", "verify"]
    for file in value["files"]:
        file["verification"] = None
        for key in ("map", "accuracy", "latency"):
            del file[key]
    found = sentences(value)
    assert found[0].startswith("net_float32.tflite is NOT VERIFIED: the stage verify was skipped")
    assert found[1].startswith("net_int8.tflite is NOT VERIFIED")
    assert "mAP was not measured: the stage benchmark was skipped." in found
    assert [row.cells[-1] for row in table(value)[1:]] == ["NO", "NO"]
    assert "NOT VERIFIED" in as_markdown(value, False) and "NOT VERIFIED" in as_html(value, None)


def test_without_data_the_report_says_why_there_is_no_map() -> None:
    value = content()
    for file in value["files"]:
        del file["map"], file["accuracy"]
    assert "mAP was not measured: no data with truths was named in the recipe." in sentences(value)
    assert table(value)[1].cells[4] == "–"


@pytest.mark.parametrize(
    ("after", "words"), [(322.0, "2.0 times faster"), (1288.0, "2.0 times slower"), (645.0, "as fast as it")]
)
def test_faster_and_slower(after: float, words: str) -> None:
    value = content()
    value["files"][1]["latency"]["p50_ms"] = after
    assert words in sentences(value)[0]


def test_without_a_float32_file_nothing_is_compared_with_it() -> None:
    value = content()
    del value["files"][0]
    assert table(value)[1].cells[1] == "44.12"


def trained(**changes: Any) -> dict[str, Any]:
    history = [
        {"epoch": epoch, "epochs": 4, "loss": 8.0 / epoch, "val_loss": 9.0 / epoch, "map": 0.2 * epoch}
        for epoch in (1, 2, 3)
    ]
    told = {"history": history, "best_epoch": 3, "watched": "map", "pictures": 1140, "validation_pictures": 114,
            "device": "CPU (tensorflow)", "precision": "float32", "seconds_per_step": 0.12345, "steps": 90, "ended": "",
            "left_out": [], "settings": {"epochs": 4, "batch": 16, "labels": True, "distill": 1.0, "flip": False,
                                         "clip": None, "freeze": [], "features": ["conv_1", "conv_2"]}}  # fmt: skip
    return told | changes


def test_trainings_are_told_with_figures_and_settings() -> None:
    value = content()
    value["stages"].append({**value["stages"][-1], "name": "finetune", "training": trained()})
    page = as_markdown(value, False)
    row = "| finetune | labels and the original | 1,140 | 114 | 3 of 4 | epoch 3 | mAP 60.00 % |"
    assert f"{row} CPU (tensorflow), float32 | 0.123 |" in page
    settings = "epochs 4, batch 16, labels yes, distill 1.0, flip no, clip unset, freeze none, features conv_1 conv_2"
    assert f"- finetune: {settings}" in page
    html = as_html(value, None)
    assert settings in html and html.count("<svg") == 2
    assert "<h2>Trainings</h2>" not in as_html(content(), None) and "## Trainings" not in as_markdown(content(), False)


def test_a_training_that_ended_early_is_told_before_the_figures() -> None:
    value = content()
    left_out = ["picture 7: damaged", "class boat: the model has none of that name"]
    told = trained(ended="taken as it was after 60 of 90 steps", left_out=left_out)
    value["stages"].append({**value["stages"][-1], "name": "finetune 2", "training": told})
    found = sentences(value)
    assert found[0] == (
        "The training finetune 2 ended early, after 3 of 4 epochs: taken as it was after 60 of 90 steps."
    )
    assert found[1] == "The training finetune 2 left out picture 7: damaged, and 1 more."


def test_what_a_training_does_not_say_is_left_open() -> None:
    told = {"history": [{"epoch": 1, "loss": 2.0}], "best_epoch": 1, "watched": ""}
    told |= {"settings": {"epochs": 1, "labels": False, "distill": 2.0}}
    assert training_report.row("x", told) == ("x", "the original", "–", "–", "1 of 1", "epoch 1", "–", "–", "–")
    assert training_report.sentences("x", told) == []
    assert training_report.plot(told).count("<svg") == 1


def numbers(panel: str, pattern: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, found)) for found in re.findall(pattern, panel)]


def test_a_training_is_drawn_true_to_scale() -> None:
    loss, score = training_report.plot(trained()).split("\n")
    (path,) = re.findall(r'class="line other" d="M([\d. L]+)"', score)
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    # 20, 40 and 60 % lie on a line that goes up: y is counted downwards.
    (_, first), (_, second), (_, third) = points
    assert first - second == pytest.approx(second - third, abs=0.11) and third < first
    # They are where their own lines of the grid are.
    ticks = dict(re.findall(r'class="end" x="46" y="([\d.]+)">([\d.]+)<', score))
    heights = {float(value): float(y) - 4 for y, value in ticks.items()}
    assert heights[20] == pytest.approx(first, abs=0.11) and heights[60] == pytest.approx(third, abs=0.11)
    assert loss.count("<path class=\"line") == 2 * 2  # each line, and its mark beside its name
    ElementTree.fromstring(loss), ElementTree.fromstring(score)


@given(st.lists(st.none() | st.floats(-1e30, 1e30), min_size=1, max_size=30), st.integers(1, 30))
def test_any_history_is_drawn_inside_its_panel(values: list[float | None], best: int) -> None:
    history = [{"epoch": epoch, "loss": value} for epoch, value in enumerate(values, 1)]
    panel = training_report.plot(trained(history=history, best_epoch=best))
    if all(value is None for value in values):
        assert panel == ""
        return
    ElementTree.fromstring(panel)
    assert "nan" not in panel and "inf" not in panel
    for x, y in numbers(panel, r"[ML](-?[\d.]+) (-?[\d.]+)"):
        assert 0 <= x <= 440 and 0 <= y <= 210


def test_markdown_and_text_hold_the_table() -> None:
    markdown, text = as_markdown(content(), True), as_text(content())
    assert (
        "| tflite int8 | 44.12 (6.0x) | 200 (5.0x) | 11459.69 (5.4x) | 87.23 (+5.01) | 287.00 (2.2x) | 350.00 "
        "(2.0x) | yes |" in markdown
    )
    assert "![" in markdown and "![" not in as_markdown(content(), False)
    assert "| tucker | 200 | 11459.69 | 1.2 | ran | first build |" in markdown
    assert all(cell in text for row in table(content()) for cell in row.cells)


def test_a_comparison_is_told_in_a_sentence_a_short_and_a_whole_table() -> None:
    (told,) = (text for text in sentences(content()) if "layer by layer" in text)
    assert told.startswith("net_int8.tflite against float32, layer by layer on 8 pictures: of 12 layers, most noise is")
    assert "conv_10_1/Relu (10.00 % of its signal)" in told and "1 stays float" in told
    markdown, page = as_markdown(content(), False), as_html(content(), None)
    for text in (markdown, page):
        assert "Layers of net_int8.tflite against float32" in text
        assert "stays float, it is an output: near/BiasAdd." in text
        assert "noise as a share" in text
    section = markdown.partition("## Layers of net_int8.tflite")[2]
    listed = re.findall(r"^\| (conv_\d+)_1/Relu \|", section, re.MULTILINE)
    # The ten that add most; conv_0 adds nothing.
    assert listed == [f"conv_{index}" for index in range(10, 0, -1)]
    assert page.count("<td>15.5</td>") == 12 and "12 layers compared" in page
    value = content()
    del value["files"][1]["layers"]
    assert not any("layer by layer" in text for text in sentences(value))
    assert "against float32" not in as_markdown(value, False) + as_html(value, None)


def test_the_layers_error_says_what_it_is() -> None:
    value = content()
    layer = {"name": "conv_1", "op": "Conv2D", "kernel": [3, 3, 8, 8], "parameters": [576, 100], "flops": [5760, 1000],
             "reason": "", "ranks": None, "channels": [8, 4], "error": 3e-5, "milliseconds": None}  # fmt: skip
    value["stages"][1] |= {"layers": [layer], "error": "the removed share"}
    for text in (as_markdown(value, False), as_html(value, None)):
        assert "error: the removed share." in text and "3.000e-05" in text
    del value["stages"][1]["error"]
    assert "error: " not in as_markdown(value, False)


def test_page_is_complete_in_itself_and_escapes(tmp_path: Path) -> None:
    value = content()
    value["name"] = "<script>alert(1)</script>"
    picture = b"\xff\xd8picture"
    page = as_html(value, picture)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert base64.b64encode(picture).decode() in page
    # No address is fetched: the only sources are the pictures inside.
    assert re.findall(r'(?:src|href)="([^"]{0,22})', page) == ["data:image/jpeg;base64", "data:image/png;base64,"]
    assert "http" not in page
    assert "<td>0.7" not in page and "70.00" in page


def test_writes_the_same_bytes_again(tmp_path: Path) -> None:
    sample = tmp_path / "in.jpg"
    sample.write_bytes(b"picture")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        write_report(copy.deepcopy(content()), sample, folder)
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second
    assert set(first) == {"report.json", "report.md", "report.html", "sample.jpg"}
    assert json.loads(first["report.json"]) == content()
