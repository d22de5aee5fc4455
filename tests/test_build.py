"""The order of a build, what it keeps, what it does again and why, and that nothing is lost when it is stopped."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fake_stages
import pytest
from fake_stages import runs
from voc_folder import xml

from deploy.errors import InputError, VerificationError
from toolchain import build, cache, jobs
from toolchain.recipe import read_recipe
from toolchain.stage_work import Facts, Work

RECIPE = """\
name: net
model: {cfg: net.cfg, weights: net.weights, names: net.names}
precisions: [float32, int8]
calibration: {pictures: photos, count: 3}
"""
#: With two precisions: the shared float file, then for each what follows.
ALL = [
    "load", "convert", "verify", "package", "quantize", "verify", "package", "benchmark", "compare", "benchmark"
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and its files, and fake stages in the table."""
    monkeypatch.setattr(build, "BY_NAME", fake_stages.fake_table())
    monkeypatch.setattr(jobs, "code_version", fake_stages.fake_code_version)
    monkeypatch.setenv(fake_stages.LOG, str(tmp_path / "log"))
    for name in ("net.cfg", "net.weights", "net.names"):
        (tmp_path / name).write_text(name)
    (tmp_path / "photos").mkdir()
    for index in range(5):
        (tmp_path / "photos" / f"{index}.jpg").write_text(f"photo {index}")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def run(place: Path, *skip: str) -> dict[str, object]:
    return build.build(read_recipe(str(place / "recipe.yaml")), place / "out", frozenset(skip))


def edit(place: Path, old: str, new: str) -> None:
    text = (place / "recipe.yaml").read_text()
    assert old in text
    (place / "recipe.yaml").write_text(text.replace(old, new))


def reasons(report: dict[str, object]) -> dict[str, str]:
    """Why each stage that ran in this build did."""
    return {stage["name"]: stage["reason"] for stage in report["stages"] if stage["build"] == "ran"}


def outputs(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (place / "out").iterdir() if path.is_file()}


def test_first_build_makes_every_file_and_a_report(place: Path) -> None:
    report = run(place)
    assert runs() == ALL
    assert set(outputs(place)) == {
        "net_float32.tflite", "net_int8.tflite", "report.json", "report.md", "report.html"
    }  # fmt: skip
    assert set(reasons(report).values()) == {"first build"}
    first = report["stages"][0]
    assert {"name", "trainable", "non_trainable", "flops", "seconds"} <= first.keys()
    assert (first["name"], first["trainable"], first["flops"]) == ("load", 90, 2_000_000)
    for file in report["files"]:
        assert file["bytes"] == (place / "out" / file["path"]).stat().st_size
        assert file["latency"]["p50_ms"] > 0
        assert file["verification"]["outputs"]
    assert report == json.loads((place / "out" / "report.json").read_text())


def test_an_int8_file_is_compared_with_the_builds_own_float_file(place: Path) -> None:
    edit(place, "count: 3", "count: 5")
    edit(place, "int8]", "int8, float16]")
    report = run(place)
    float32, int8, float16 = report["files"]
    assert "layers" not in float32 and "layers" not in float16
    assert int8["layers"]["pictures"] == 5 and "file" not in int8["layers"]
    assert [stage["name"] for stage in report["stages"] if stage["name"].startswith("compare")] == ["compare int8"]
    for name in ("report.md", "report.html"):
        page = (place / "out" / name).read_text()
        assert "Layers of net_int8.tflite against float32" in page and "conv_1_1/Relu" in page
    before = outputs(place)["net_int8.tflite"]
    report = run(place, "compare")
    assert "layers" not in report["files"][1] and outputs(place)["net_int8.tflite"] == before
    assert "The stage compare was skipped." in (place / "out" / "report.md").read_text()


def test_a_loss_that_is_allowed_adds_a_mixed_file(place: Path) -> None:
    before = run(place)
    own = outputs(place)
    runs()
    edit(place, "name: net\n", "name: net\nint8: {max_map_loss: 0.01}\n")
    report = run(place)
    assert [file["path"] for file in report["files"]] == [
        "net_float32.tflite", "net_int8.tflite", "net_int8_mixed.tflite"
    ]  # fmt: skip
    # int8 itself is quantized as before; its lineage tells of the recipe's new key.
    ran = runs()
    assert ran.count("quantize") == 1 and ran.count("convert") == 0 and "quantize int8" not in reasons(report)
    assert outputs(place)["net_float32.tflite"] == own["net_float32.tflite"]
    # It is compared with the float file, verified and measured like the others.
    mixed = report["files"][2]
    assert mixed["layers"]["pictures"] == 3 and mixed["verification"] and mixed["latency"]["p50_ms"] > 0
    assert (mixed["precision"], mixed["calibration"]["used"]) == ("int8_mixed", 3)
    # Three of five pictures calibrate it; the loss is measured on the other two.
    text = (place / "out" / "net_int8_mixed.tflite").read_text()
    assert text.startswith("int8_mixed float32 ") and "photo 0 photo 1 photo 3 measured on photo 2 photo 4 {" in text
    assert '"max_map_loss": 0.01' in text and '"max_map_loss": 0.005' not in text
    assert "net_int8_mixed.tflite" in (place / "out" / "report.md").read_text()
    edit(place, "max_map_loss: 0.01", "max_map_loss: 0.02")
    assert set(reasons(run(place))) >= {"quantize int8_mixed", "package int8_mixed"} and "quantize" in runs()
    assert [file["path"] for file in before["files"]] == ["net_float32.tflite", "net_int8.tflite"]


def test_eight_pictures_are_enough_to_compare_on(place: Path) -> None:
    for index in range(20):
        (place / "photos" / f"more_{index:02d}.jpg").write_text(f"photo {index}")
    edit(place, "count: 3", "count: 25")
    assert run(place)["files"][1]["layers"]["pictures"] == 8


def test_second_build_does_nothing_and_changes_nothing(place: Path) -> None:
    run(place)
    before, _ = outputs(place), runs()
    times = {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*") if path.name != "lock"}
    run(place)
    assert runs() == []
    assert outputs(place) == before
    # Folders' times change with the lock file only.
    assert {path: path.stat().st_mtime_ns for path in times if path.is_file()} == {
        path: time for path, time in times.items() if path.is_file()
    }


@pytest.mark.parametrize(
    ("old", "new", "again", "job", "reason"),
    [
        # Other calibration pictures are other pictures to verify on; the float32 file is the same and stays packaged.
        ("count: 3", "count: 2", ["convert", "verify", "quantize", "verify", "package", "compare", "benchmark"],
         "quantize int8", "input pictures changed"),
        ("int8]", "float16]", ["quantize", "verify", "package", "benchmark"], "quantize float16", "first build"),
        ("name: net\n", "name: net\nbenchmark: {threads: 2}\n", ["benchmark", "benchmark"], "benchmark int8",
         "setting threads changed from 1 to 2"),
        ("name: net\n", "name: net\ninput: {resize: stretch}\n", ALL, "load",
         "setting resize changed from letterbox to stretch"),
        ("name: net\n", "# a comment\nname: net\n", [], "report", "setting recipe.sha256 changed from"),
    ],
)  # fmt: skip
def test_a_change_reruns_what_depends_on_it_and_says_why(
    place: Path, old: str, new: str, again: list[str], job: str, reason: str
) -> None:
    run(place)
    runs()
    edit(place, old, new)
    report = run(place)
    ran = runs()
    assert ran == again
    if job != "report":
        assert reasons(report)[job] == reason
    assert all(stage["build"] in ("ran", "kept") for stage in report["stages"])


def test_changed_weights_rerun_everything(place: Path) -> None:
    run(place)
    runs()
    (place / "net.weights").write_text("better")
    report = run(place)
    assert runs() == ALL
    assert reasons(report)["load"] == "input weights changed"
    assert reasons(report)["convert"] == "input graph changed"


def test_touching_a_file_reruns_nothing(place: Path) -> None:
    run(place)
    runs()
    os.utime(place / "net.weights")
    run(place)
    assert runs() == []


def test_changed_code_reruns_the_stage_and_equal_results_end_it_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(place)
    runs()
    real = jobs.code_version
    monkeypatch.setattr(
        jobs,
        "code_version",
        lambda function: ("new", {"numpy": "2"}) if function is fake_stages.convert else real(function),
    )
    report = run(place)
    assert runs() == ["convert"]
    assert reasons(report)["convert"] == "this stage's code changed"


def test_newer_library_reruns_the_stage(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"tensorflow": "2.20"}
    real = jobs.code_version
    monkeypatch.setattr(jobs, "code_version", lambda function: (real(function)[0], versions))
    run(place)
    runs()
    versions["tensorflow"] = "2.21"
    report = run(place)
    assert runs() == ALL
    assert reasons(report)["load"] == "library tensorflow changed from 2.20 to 2.21"


def test_other_machine_measures_again_and_builds_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(place)
    runs()
    machine = {**jobs.environment(), "cpu": "another"}
    monkeypatch.setattr(jobs, "environment", lambda: machine)
    report = run(place)
    assert runs() == ["benchmark", "benchmark"]
    assert reasons(report)["benchmark int8"].startswith("machine cpu changed from ")


@pytest.mark.parametrize("harm", ["delete", "damage"])
def test_a_harmed_output_is_put_back_and_nothing_runs(place: Path, harm: str) -> None:
    run(place)
    before, _ = outputs(place), runs()
    for name in before:
        path = place / "out" / name
        path.unlink() if harm == "delete" else path.write_bytes(before[name][:-1] + b"?")
    run(place)
    assert runs() == []
    assert outputs(place) == before


@pytest.mark.parametrize("harm", ["delete", "damage", "record"])
def test_a_harmed_result_is_made_again_and_only_that(place: Path, harm: str) -> None:
    run(place)
    before, _ = outputs(place), runs()
    (kept,) = (place / "out" / ".cache").glob("quantize-int8/*/files/model.tflite")
    if harm == "delete":
        kept.unlink()
    elif harm == "damage":
        kept.write_bytes(b"?" * kept.stat().st_size)
    else:
        record = kept.parents[1] / "record.json"
        record.write_text(record.read_text().replace('"used": 3', '"used": 9'))
    report = run(place)
    assert runs() == ["quantize"]
    why = {"delete": "model.tflite was missing", "damage": "model.tflite was damaged", "record": "record was damaged"}
    assert why[harm] in reasons(report)["quantize int8"]
    after = outputs(place)
    assert {name: after[name] for name in after if name.endswith("tflite")} == {
        name: before[name] for name in before if name.endswith("tflite")
    }


@pytest.mark.parametrize("stage", ["load", "convert", "quantize", "package", "benchmark"])
def test_kill_at_any_stage_leaves_old_files_whole_and_the_next_build_goes_on(place: Path, stage: str) -> None:
    run(place)
    before, _ = outputs(place), runs()
    (place / "net.weights").write_text("better")
    environment = {**os.environ, fake_stages.STOP_IN: stage, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "fake_stages", str(place / "recipe.yaml"), str(place / "out")]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "stopped\n"
        with pytest.raises(InputError, match=f"another .process {child.pid}. does now"):
            run(place)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    done = runs()
    assert done[-1] == stage
    half = outputs(place)
    # Each file is the old one or the whole new one; what comes after the stage is the old one.
    assert half["report.json"] == before["report.json"]
    assert half["net_int8.tflite"] == before["net_int8.tflite"] or stage == "benchmark"
    assert list((place / "out" / ".cache").glob("*/.part-*"))
    run(place)
    # The stopped stage again, and what had not been reached; nothing that was finished.
    assert done[:-1] + runs() == ALL
    assert not list((place / "out" / ".cache").glob("*/.part-*"))
    whole = outputs(place)
    assert whole["net_int8.tflite"] != before["net_int8.tflite"]
    assert set(whole) == set(before)


@pytest.mark.parametrize("error", [VerificationError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")])
def test_a_stage_that_fails_leaves_the_old_files(
    place: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    run(place)
    before, _ = outputs(place), runs()
    (place / "net.weights").write_text("better")

    def fail(work: Work) -> Facts:
        (work.out / "half").write_text("half")
        raise error

    broken = dataclasses.replace(build.BY_NAME["convert"], run=fail)
    monkeypatch.setitem(build.BY_NAME, "convert", broken)
    monkeypatch.setattr(jobs, "code_version", lambda function: ("same", {}))
    expected = (InputError, "the disk is full") if isinstance(error, OSError) else (type(error), None)
    with pytest.raises(expected[0], match=expected[1]):
        run(place)
    assert outputs(place) == before
    assert not list((place / "out" / ".cache").glob("*/.part-*"))


def test_leftovers_of_a_killed_build_are_removed(place: Path) -> None:
    run(place)
    leftover = place / "out" / ".cache" / "load" / f"{cache._PART}123"
    leftover.mkdir()
    (leftover / "half").write_text("half")
    part, other = place / "out" / ".net_int8.tflite.123.part", place / "out" / ".other.tflite.123.part"
    part.write_text("half")
    other.write_text("not ours")
    run(place)
    assert not leftover.exists() and not part.exists() and other.exists()


def test_folder_that_cannot_be_written(place: Path) -> None:
    (place / "out").write_text("a file")
    with pytest.raises(InputError, match="cannot write into .*out: .*; choose another --out"):
        run(place)


def test_trained_on_drawn_scenes(place: Path) -> None:
    text = "name: net\nmodel: {cfg: net.cfg, weights: net.weights, names: net.names}\nprecisions: [int8]\n"
    text += "data: {scenes: {train: 4}}\nstages:\n  - train: {epochs: 2}\n"
    (place / "recipe.yaml").write_text(text)
    report = run(place)
    names = [stage["name"] for stage in report["stages"]]
    assert names[:4] == ["load", "scenes", "train", "convert"]
    # What comes after the training has its FLOPs.
    assert [stage["flops"] for stage in report["stages"]][:4] == [2_000_000, 2_000_000, 1_000_000, 1_000_000]
    assert report["files"][0]["map"] == 0.86
    assert report["files"][0]["calibration"]["used"] == 4
    assert (place / "out" / "sample.jpg").is_file()
    runs()
    edit(place, "epochs: 2", "epochs: 3")
    report = run(place)
    assert runs() == ["train", "convert", "quantize", "verify", "package", "compare", "benchmark"]
    assert reasons(report)["train"] == "setting epochs changed from 2 to 3"
    report = run(place, "train")
    assert "train" not in [stage["name"] for stage in report["stages"]]


def test_without_pictures_it_verifies_on_drawn_ones(place: Path) -> None:
    (place / "recipe.yaml").write_text(RECIPE.split("precisions")[0] + "precisions: [float32]\n")
    report = run(place)
    assert runs() == ["load", "pictures", "convert", "verify", "package", "benchmark"]
    assert report["files"][0]["verified_on_drawn_pictures"]


def test_skipping_verification_is_told_in_plain_words(place: Path) -> None:
    report = run(place, "verify", "benchmark")
    assert runs() == ["load", "convert", "package", "quantize", "package", "compare"]
    assert report["skipped"] == ["benchmark", "verify"]
    assert all(file["verification"] is None for file in report["files"])
    for name in ("report.md", "report.html"):
        assert "NOT VERIFIED" in (place / "out" / name).read_text()


@pytest.mark.parametrize(
    ("skip", "sentence"),
    [
        ("load", "cannot be skipped"),
        ("convert", "cannot be skipped"),
        ("quantize", "take them out of `precisions`"),
        ("package", "cannot be skipped"),
        ("report", "cannot be skipped"),
        ("verfy", "did you mean 'verify'"),
    ],
)
def test_needed_and_unknown_stages_cannot_be_skipped(place: Path, skip: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        run(place, skip)
    assert not (place / "out").exists()


def test_never_calibrates_on_test_pictures(place: Path) -> None:
    data = place / "voc"
    (data / "ImageSets" / "Main").mkdir(parents=True)
    (data / "JPEGImages").mkdir()
    (data / "ImageSets" / "Main" / "test.txt").write_text("a\nb\n")
    (data / "JPEGImages" / "a.jpg").write_text("another one")
    # The same bytes under another name.
    (data / "JPEGImages" / "b.jpg").write_text("photo 3")
    edit(place, "name: net\n", "name: net\nbenchmark: {data: voc}\n")
    with pytest.raises(InputError, match="1 of the 5 in .*photos are in the split 'test', the first 3.jpg"):
        run(place)
    (data / "JPEGImages" / "b.jpg").write_text("photo 9")
    run(place)


def test_never_overwrites_what_it_reads(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "net_int8.tflite").write_text("weights under a strange name")
    edit(place, "net.weights", "out/net_int8.tflite")
    with pytest.raises(InputError, match="never overwrites what it reads"):
        run(place)
    assert (place / "out" / "net_int8.tflite").read_text() == "weights under a strange name"


def test_files_for_other_programs_are_made_of_every_file(place: Path) -> None:
    before = run(place)
    own = outputs(place)
    runs()
    edit(place, "name: net\n", "name: net\ninput: {resize: letterbox}\npackage: {for: mediapipe}\n")
    with pytest.raises(InputError, match="mediapipe stretch pictures.*add `input: {resize: stretch}`"):
        run(place)
    edit(place, "resize: letterbox", "resize: stretch")
    report = run(place)
    assert runs().count("decode") == 2
    assert {"net_float32_mediapipe.tflite", "net_int8_mediapipe.tflite"} <= outputs(place).keys()
    for file in report["files"]:
        (made,) = file["clients"]
        path = place / "out" / made["path"]
        assert (made["for"], made["bytes"]) == ("mediapipe", path.stat().st_size)
        assert path.read_text() == "mediapipe" + (place / "out" / file["path"]).read_text()
        assert made["path"] in (place / "out" / "report.md").read_text()
    assert not any("clients" in file for file in before["files"])

    # Another program's file alone is made anew, and nothing that was there before.
    edit(place, "for: mediapipe", "for: [mediapipe, task-library]")
    run(place)
    assert runs() == ["decode"] * 2
    edit(place, "package: {for: [mediapipe, task-library]}\n", "")
    run(place)
    edit(place, "input: {resize: stretch}\n", "")
    run(place)
    assert {name: outputs(place)[name] for name in own if name.endswith("tflite")} == {
        name: content for name, content in own.items() if name.endswith("tflite")
    }


def test_files_for_other_programs_are_skipped_by_the_recipe_alone(place: Path) -> None:
    run(place, "decode")
    edit(place, "name: net\n", "name: net\ninput: {resize: stretch}\npackage: {for: task-library}\n")
    with pytest.raises(InputError, match="take it out of there instead"):
        run(place, "decode")
    (place / "out" / "net_int8_task-library.tflite").write_text("weights under a strange name")
    edit(place, "net.weights", "out/net_int8_task-library.tflite")
    with pytest.raises(InputError, match="never overwrites what it reads"):
        run(place)


def test_pictures_come_from_a_folder(place: Path) -> None:
    edit(place, "pictures: photos", "pictures: photos/1.jpg")
    with pytest.raises(InputError, match="pictures come from a folder, but .*1.jpg is a picture"):
        run(place)


def test_missing_input_is_named(place: Path) -> None:
    (place / "net.weights").unlink()
    with pytest.raises(InputError, match="cannot read .*net.weights: No such file"):
        run(place)


COMPRESSED = """\
name: net
model: {cfg: net.cfg, weights: net.weights, names: net.names}
stages:
  - tucker: {ranks: {ratio: 0.5}}
  - prune: {ratio: 0.25}
precisions: [float32]
calibration: {pictures: photos, count: 3}
"""
#: The original becomes a file too, to compare with.
COMPRESSED_ALL = ["load", "tucker", "prune", "convert", "verify", "package", "convert", "verify", "package"]


def test_a_compressed_network_is_compared_with_its_original(place: Path) -> None:
    (place / "recipe.yaml").write_text(COMPRESSED)
    report = run(place)
    assert runs() == [*COMPRESSED_ALL, "benchmark", "benchmark"]
    original, float32 = report["files"]
    assert (original["of"], float32["of"]) == ("original", "float32")
    assert (place / "out" / "net_original_float32.tflite").is_file()
    assert "tucker" not in (place / "out" / "net_original_float32.tflite").read_text().partition("{")[0]
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert [layer["name"] for layer in stages["tucker"]["layers"]] == ["conv_1", "conv_2"]
    assert run(place)["files"] == report["files"] and runs() == []
    page = (place / "out" / "report.html").read_text()
    assert "Layers of tucker" in page and "left out by the scope" in page and "2, 3" in page
    assert "tucker: 1 of 2 layers with a kernel were changed." in page
    assert "error: that of tucker." in page and "error: that of prune." in page
    markdown = (place / "out" / "report.md").read_text()
    assert "| tflite original, float32 |" in markdown
    assert "| conv_1 | 3x3x8x8 | 2, 3 | 576 → 100 (5.8x) | 0.01 → 0.00 (5.8x) | 0.2500 | 2.000 | 1.000 |" in markdown


def test_where_there_are_pictures_compression_looks_at_them(place: Path) -> None:
    (place / "recipe.yaml").write_text(COMPRESSED)
    run(place)
    kept = next((place / "out" / ".cache" / "prune").glob("*/files/graph.zip")).read_text()
    assert '"weighted": true' in kept and '"correct": true' in kept
    assert kept.count("photo 0") == 2
    runs()
    edit(place, "ratio: 0.5}", "ratio: 0.5}, weighted: false")
    edit(place, "ratio: 0.25", "ratio: 0.25, correct: false")
    report = run(place)
    assert runs()[:2] == ["tucker", "prune"]
    assert "setting weighted changed from True to False" in reasons(report)["tucker"]
    kept = next((place / "out" / ".cache" / "prune").glob("*/files/graph.zip")).read_text()
    assert "photo" not in kept


def test_without_pictures_compression_does_without(place: Path) -> None:
    (place / "recipe.yaml").write_text(COMPRESSED.replace("calibration: {pictures: photos, count: 3}\n", ""))
    run(place)
    kept = next((place / "out" / ".cache" / "prune").glob("*/files/graph.zip")).read_text()
    assert '"weighted": false' in kept and '"correct": false' in kept


def test_skipping_all_compression_leaves_no_original(place: Path) -> None:
    (place / "recipe.yaml").write_text(COMPRESSED)
    report = run(place, "tucker", "prune")
    assert "tucker" not in runs()
    assert [file["of"] for file in report["files"]] == ["float32"]


def test_what_was_timed_holds_for_its_machine_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "recipe.yaml").write_text(COMPRESSED.replace("ratio: 0.25", "ratio: 0.25, keep_if_faster: float32"))
    run(place)
    runs()
    other = {**jobs.environment(), "cpu": "another"}
    monkeypatch.setattr(jobs, "environment", lambda: other)
    report = run(place)
    assert "machine cpu changed" in reasons(report)["prune"]
    assert "tucker" not in reasons(report)


def test_stages_before_the_compression_belong_to_the_original(place: Path) -> None:
    (place / "recipe.yaml").write_text(
        "name: net\nmodel: {cfg: net.cfg, weights: net.weights, names: net.names}\ndata: {scenes: {train: 2}}\n"
        "stages:\n  - train: {epochs: 1}\n  - prune: {ratio: 0.5}\nprecisions: [float32]\n"
    )
    run(place)
    text = (place / "out" / "net_original_float32.tflite").read_text()
    assert "trained 1" in text and '"stages": ["train"]' in text
    text = (place / "out" / "net_float32.tflite").read_text()
    assert '"stages": ["train", "prune"]' in text


def test_every_stage_is_told_with_the_network_that_it_worked_on(place: Path) -> None:
    (place / "recipe.yaml").write_text(COMPRESSED)
    flops = {stage["name"]: stage["flops"] for stage in run(place)["stages"]}
    assert flops["load"] == flops["convert original"] == flops["benchmark original"] == 2_000_000
    assert flops["prune"] == flops["convert"] == flops["benchmark float32"] == 500_000


RECOVERED = """\
name: net
model: {cfg: net.cfg, weights: net.weights, names: net.names}
data: {train: [{folder: voc, split: trainval}], validation: {share: 0.25}}
stages:
  - tucker: {ranks: {ratio: 0.5}}
  - finetune: {seed: 3}
  - prune: {ratio: 0.25}
  - finetune: {seed: 4}
  - prune: {ratio: 0.1}
  - batch_norm: {}
precisions: [float32]
"""


@pytest.fixture
def recovered(place: Path) -> Path:
    """A recipe that compresses and recovers twice, and its data."""
    (place / "recipe.yaml").write_text(RECOVERED)
    write_voc(place / "voc", trainval="abcd", test="ef")
    return place


def write_voc(folder: Path, **splits: str) -> None:
    """Splits of pictures whose ids are single letters; a picture's content is its id."""
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    for split, ids in splits.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(ids))
        for picture_id in ids:
            (folder / "JPEGImages" / f"{picture_id}.jpg").write_text(f"picture {picture_id}")
            (folder / "Annotations" / f"{picture_id}.xml").write_text(xml((40, 20), [("cat", (1, 1, 40, 20), 0)]))


def kept(place: Path, job: str, name: str = "graph.zip") -> str:
    (path,) = (place / "out" / ".cache" / job).glob(f"[!.]*/files/{name}")
    return path.read_text()


def test_a_network_recovers_by_what_it_was_before_the_first_compression(recovered: Path) -> None:
    report = run(recovered)
    ran = runs()
    assert ran[:7] == ["load", "tucker", "finetune", "prune", "finetune", "prune", "batch_norm"]
    for job in ("finetune", "finetune-2"):
        assert "from a teacher from labels graph teacher train_0" in kept(recovered, job)
        assert '"train": [{"split": "trainval", "labelled": true}], "validation": []' in kept(recovered, job)
        assert '"share": 0.25' in kept(recovered, job)
    # The statistics are held against those of the whole network, along all prunings in between.
    assert "measured anew graph original pictures pruned_0 pruned_1;" in kept(recovered, "batch_norm")
    original = recovered / "out" / "net_original_float32.tflite"
    assert "prune" not in original.read_text() and lineage_of(original)["seeds"] == {}
    assert report["seeds"] == {"tucker": 1, "finetune": 3, "prune": 1, "finetune 2": 4, "prune 2": 1}
    lineage = lineage_of(recovered / "out" / "net_float32.tflite")
    assert lineage["stages"] == ["tucker", "finetune", "prune", "finetune", "prune", "batch_norm"]
    assert (lineage["seeds"], "ended_early" in lineage) == (report["seeds"], False)


def lineage_of(file: Path) -> dict[str, object]:
    """What the stand-in for package wrote behind the network."""
    text = file.read_text()
    first = "ended_early" if '{"ended_early"' in text else "inputs"
    lineage: dict[str, object] = json.loads(text[text.rindex(f'{{"{first}"') :])
    return lineage


def test_without_a_compression_it_learns_from_labels_alone(recovered: Path) -> None:
    run(recovered, "tucker", "prune", "batch_norm")
    assert runs()[:3] == ["load", "finetune", "finetune"]
    assert "trained 30 from labels graph train_0" in kept(recovered, "finetune")


def test_pictures_alone_teach_by_what_the_network_was(recovered: Path) -> None:
    edit(recovered, "{train: [{folder: voc, split: trainval}], validation: {share: 0.25}}",
         "{pictures: [photos], validation: {pictures: others}}")  # fmt: skip
    (recovered / "others").mkdir()
    (recovered / "others" / "0.jpg").write_text("another")
    run(recovered)
    assert "trained 30 from a teacher graph teacher train_0 validation_0" in kept(recovered, "finetune")
    assert '"train": [{"split": null, "labelled": false}], "validation": [{"split"' in kept(recovered, "finetune")
    runs()
    (recovered / "others" / "1.jpg").write_text("one more")
    report = run(recovered)
    assert runs()[0] == "finetune" and reasons(report)["finetune"] == "input validation_0 changed"
    with pytest.raises(InputError, match="neither; skip it too"):
        run(recovered, "tucker", "prune", "batch_norm")
    with pytest.raises(InputError, match="no stage before it compresses; skip it too"):
        run(recovered, "tucker", "prune", "finetune")


def test_who_learns_from_labels_leaves_pictures_alone_aside(recovered: Path) -> None:
    edit(recovered, "validation: {share: 0.25}", "pictures: [photos]")
    edit(recovered, "finetune: {seed: 4}", "finetune: {seed: 4, labels: false}")
    run(recovered)
    assert "graph teacher train_0 {" in kept(recovered, "finetune")
    # A tenth is held out where nothing is said.
    assert '"share": 0.1' in kept(recovered, "finetune")
    assert "graph teacher train_0 train_1 {" in kept(recovered, "finetune-2")


def test_it_calibrates_on_what_it_trains_on_where_nothing_else_is_said(recovered: Path) -> None:
    edit(recovered, "precisions: [float32]", "precisions: [int8]\ncalibration: {count: 3}")
    report = run(recovered)
    assert [file["calibration"]["used"] for file in report["files"] if "calibration" in file] == [3]
    # Evenly spaced over a, b, c, d.
    assert "picture a picture b picture c" in (recovered / "out" / "net_int8.tflite").read_text()
    assert report["stages"][-1]["flops"] == 500_000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("split: trainval}]", "split: mixed}]"),
        ("validation: {share: 0.25}", "validation: {folder: voc, split: mixed}"),
        ("validation: {share: 0.25}", "pictures: [photos]"),
        ("{train: [{folder: voc, split: trainval}], validation: {share: 0.25}}",
         "{pictures: [innocent], validation: {pictures: photos}}"),
    ],
)  # fmt: skip
def test_never_trains_on_or_watches_test_pictures(recovered: Path, old: str, new: str) -> None:
    edit(recovered, "precisions", "benchmark: {data: voc}\nprecisions")
    run(recovered)
    lists = recovered / "voc" / "ImageSets" / "Main"
    (lists / "mixed.txt").write_text("a\nf\n")
    # The same bytes under another name.
    (recovered / "photos" / "4.jpg").write_text("picture f")
    (recovered / "innocent").mkdir()
    (recovered / "innocent" / "0.jpg").write_text("picture g")
    edit(recovered, old, new)
    runs()
    words = "no network is trained or watched on test pictures: 1 of the . in .* are in the split .*, the first [f4]"
    with pytest.raises(InputError, match=words):
        run(recovered)
    assert runs() == []


def build_in_process(place: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fake_stages", str(place / "recipe.yaml"), str(place / "out")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def killed(recovered: Path) -> Path:
    """A build that was killed in the second of two epochs of its second training."""
    edit(recovered, "  - finetune: {seed: 3}\n", "  - train: {}\n")
    child = build_in_process(recovered, **{fake_stages.STOP_IN: "finetune"})
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "stopped\n"
        child.send_signal(signal.SIGKILL)
    assert runs() == ["load", "tucker", "train", "prune", "finetune"]
    return recovered


def test_a_killed_training_goes_on_where_it_was(killed: Path) -> None:
    report = run(killed)
    assert runs()[:3] == ["finetune", "prune", "batch_norm"]
    assert "epochs 1 to 2;" in kept(killed, "finetune")
    assert not list((killed / "out" / ".cache").glob("*/.resume-*"))
    assert "ended early" not in (killed / "out" / "report.md").read_text()
    assert all(not stage["training"]["ended"] for stage in report["stages"] if "training" in stage)


def use_best(place: Path) -> dict[str, object]:
    return build.build(read_recipe(str(place / "recipe.yaml")), place / "out", use_best=True)


def test_the_best_so_far_is_packaged_and_a_later_build_goes_on(killed: Path) -> None:
    report = use_best(killed)
    # The training that was whole stays as it is; the one that was not ends.
    assert runs()[:3] == ["finetune", "prune", "batch_norm"]
    assert "epochs 1 to 1;" in kept(killed, "finetune")
    early = killed / "out" / "net_float32.tflite"
    assert lineage_of(early)["ended_early"] == {"finetune": "after epoch 1 of 2, as asked"}
    assert "ended_early" not in lineage_of(killed / "out" / "net_original_float32.tflite")
    sentence = "The training finetune ended early, after 1 of 2 epochs: after epoch 1 of 2, as asked."
    for name in ("report.md", "report.html"):
        assert sentence in (killed / "out" / name).read_text()
    assert use_best(killed)["files"] == report["files"] and runs() == []
    report = run(killed)
    assert runs()[0] == "finetune" and reasons(report)["finetune"] == "it goes on after an early end"
    assert "epochs 1 to 2;" in kept(killed, "finetune")
    assert "ended_early" not in lineage_of(early)
    # Whole trainings are never ended.
    use_best(killed)
    assert runs() == []
