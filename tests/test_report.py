"""The report says the same in all three forms, and never more than was measured."""

import base64
import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

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
             "verified_on_drawn_pictures": True, "calibration": {"used": 63, "skipped": ["a.jpg: damaged"]},
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
    assert "int8 was calibrated on 63 pictures; 1 could not be read, the first a.jpg: damaged." in found


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


def test_markdown_and_text_hold_the_table() -> None:
    markdown, text = as_markdown(content(), True), as_text(content())
    assert (
        "| tflite int8 | 44.12 (6.0x) | 200 (5.0x) | 11459.69 (5.4x) | 87.23 (+5.01) | 287.00 (2.2x) | 350.00 "
        "(2.0x) | yes |" in markdown
    )
    assert "![" in markdown and "![" not in as_markdown(content(), False)
    assert "| tucker | 200 | 11459.69 | 1.2 | ran | first build |" in markdown
    assert all(cell in text for row in table(content()) for cell in row.cells)


def test_page_is_complete_in_itself_and_escapes(tmp_path: Path) -> None:
    value = content()
    value["name"] = "<script>alert(1)</script>"
    picture = b"\xff\xd8picture"
    page = as_html(value, picture)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert base64.b64encode(picture).decode() in page
    # No address is fetched: the only source is the picture inside.
    assert re.findall(r'(?:src|href)="([^"]{0,23})', page) == ["data:image/jpeg;base64,"]
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
