"""The program `slimdet`: its commands, exit codes and sentences, and one real build from a cfg to a measured file."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import fake_stages
import numpy as np
import pytest
import toy_detector
from fake_stages import runs
from run_here import run_here

from deploy.command_line import exit_code
from deploy.model_file import read
from toolchain import build, jobs
from toolchain.cli import slimdet
from toolchain.quantize import Int8
from toolchain.stage_work import Facts, Work

DARKNET = ("convert", "a.cfg", "a.weights", "--names", "n")
BUILD_SIDE = ("tensorflow", "keras", "litert_quantizer", "pydantic", "yaml", "rich", "jinja2")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}


def run(*arguments: str) -> int:
    return exit_code(slimdet, "slimdet", [str(argument) for argument in arguments])


def program(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)


def test_start_imports_nothing_heavy() -> None:
    heavy = (*BUILD_SIDE, "numpy", "cv2", "PIL", "ai_edge_litert")
    loaded = f"[name for name in {heavy} if name in sys.modules]"
    done = program(f"import sys, toolchain.__main__, toolchain.cli; print({loaded})")
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("package", ["toolchain", "benchmarks", "deploy"])
def test_interruption_while_the_program_loads_is_one_line(package: str) -> None:
    code = (
        "import runpy, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click': raise KeyboardInterrupt\n"
        f"sys.meta_path.insert(0, Interrupting())\nrunpy.run_module({package!r}, run_name='__main__')"
    )
    done = program(code)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "slimdet: error: interrupted\n")


def device_side_only(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the program as if the build side's libraries were not installed."""
    code = f"import sys\nfor name in {BUILD_SIDE}: sys.modules[name] = None\n"
    return program(code + f"sys.argv[1:] = {list(arguments)}\nfrom toolchain.__main__ import main\nmain()")


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "shapes", "--out", "x"],
        ["build", "--schema"],
        ["convert", "a.keras", "--head", "h", "-o", "m"],
        ["inspect", "a.keras"],
        ["inspect", "a.yaml"],
        ["inspect", "reference_compressed_1"],
        ["inspect", "a.cfg", "--sensitivity"],
    ],
)
def test_device_side_alone_says_what_to_install(tmp_path: Path, arguments: list[str]) -> None:
    done = device_side_only(*arguments)
    assert done.returncode == 1
    assert "pip install 'slimdet[build]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_device_side_alone_runs_the_device_commands(tmp_path: Path) -> None:
    model = toy_detector.write_toy(tmp_path / "toy.tflite")
    cv2.imwrite(str(tmp_path / "red.png"), np.full((8, 8, 3), (0, 0, 255), np.uint8))
    done = device_side_only("detect", str(model), "--source", str(tmp_path / "red.png"), "--jsonl", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["detections"][0]["label"] == "red"
    assert device_side_only("bench", "latency", str(model), "--runs", "1", "--min-secs", "0").returncode == 0
    assert device_side_only("inspect", str(model)).returncode == 0
    (tmp_path / "net.cfg").write_text(NET)
    done = device_side_only("inspect", str(tmp_path / "net.cfg"))
    assert done.returncode == 0 and "Tucker can split 1 of 3 convolutions: conv_1" in done.stdout, done.stderr


@pytest.mark.parametrize("command", ["build", "convert", "inspect"])
def test_help_version_and_wrong_use(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"Example:\n    slimdet {command} " in text or f"Example:\n      slimdet {command} " in text
    assert "--debug" in text and "--json FILE" in text
    assert run(command, "--version") == 0
    assert capsys.readouterr().out.startswith("slimdet ")
    assert run(command, "--no-such-option") == 2


def test_group() -> None:
    assert set(slimdet.commands) == {"build", "convert", "inspect", "bench", "detect"}
    done = subprocess.run(
        [sys.executable, "-m", "toolchain", "--version"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout[:8]) == (0, "slimdet ")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["build", "nowhere.yaml", "--out", "x"], 1, "there is no file 'nowhere.yaml'"),
        (["build", "nowhere.yaml"], 2, "Missing option '--out'"),
        (["convert", "a.cfg", "-o", "m.tflite"], 2, "a darknet model is CFG WEIGHTS --names FILE"),
        ([*DARKNET, "--head", "h", "-o", "m.tflite"], 2, "a darknet model is"),
        (["convert", "a.keras", "-o", "m.tflite"], 2, "a Keras model is MODEL --head"),
        (["convert", "a.keras", "w", "--head", "h", "-o", "m.tflite"], 2, "a Keras model is MODEL"),
        ([*DARKNET, "--precision", "int8", "-o", "m"], 2, "add --calibration DIR"),
        ([*DARKNET, "--precision", "int8_mixed", "-o", "m"], 2, "add --calibration DIR"),
        ([*DARKNET, "--float-io", "-o", "m"], 2, "a float32 file has float inputs and outputs anyway"),
        ([*DARKNET, "--precision", "int8", "--calibration", ".", "--max-map-loss", "0.1", "-o", "m"], 2,
         "--max-map-loss is for --precision int8_mixed, not int8"),
        ([*DARKNET, "--precision", "int8_mixed", "--max-map-loss", "1.5", "-o", "m"], 2, "is not in the range"),
        ([*DARKNET, "--precision", "int4", "-o", "m"], 2, "'int4' is not one of"),
        ([*DARKNET, "-o", "a.weights"], 1, "never overwrites what it reads"),
        ([*DARKNET, "-o", "gone/m.tflite"], 1, "the folder .*gone is missing"),
        ([*DARKNET, "-o", "m.tflite"], 1, "a.cfg"),
        (["inspect", "nothing"], 1, "there is no 'nothing'"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], code: int, sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == code
    error = capsys.readouterr().err
    assert re.search(sentence, error.replace("\n", " "))
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_long_job_is_named_while_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told = threading.Event()
    real = threading.Timer

    def timer(seconds: float, function: Callable[..., None], arguments: list[str]) -> threading.Timer:
        def tell() -> None:
            function(*arguments)
            told.set()

        return real(0.0, tell)

    def slow(*_: object, started: Callable[[str], None], **others: object) -> dict[str, object]:
        started("convert")
        assert told.wait(60)
        return {"summary": ["done"]}

    monkeypatch.setattr(threading, "Timer", timer)
    monkeypatch.setattr("toolchain.one_file.convert_file", slow)
    assert run("convert", "a.cfg", "a.weights", "--names", "n", "-o", "m.tflite") == 0
    assert capsys.readouterr() == ("done\n", "convert            runs\n")


@pytest.mark.parametrize("command", ["inspect", "bench latency"])
def test_json_never_overwrites_what_is_read(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = toy_detector.write_toy(tmp_path / "toy.tflite")
    content = model.read_bytes()
    assert run(*command.split(), str(model), "--json", str(model)) == 1
    assert capsys.readouterr().err == f"slimdet: error: --json {model} would overwrite {model}; choose another file\n"
    assert model.read_bytes() == content


def test_json_is_not_the_output_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = str(tmp_path / "m.tflite")
    assert run(*DARKNET, "-o", same, "--json", same) == 1
    assert capsys.readouterr().err == f"slimdet: error: --json {same} would overwrite {same}; choose another file\n"


def test_json_never_overwrites_what_a_recipe_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, weights = tmp_path / "net.yaml", tmp_path / "net.weights"
    recipe.write_text(
        "name: net\nmodel: {cfg: net.cfg, weights: net.weights, names: net.names}\nprecisions: [float32]\n"
    )
    weights.write_bytes(b"trained for weeks")
    assert run("build", str(recipe), "--out", str(tmp_path / "out"), "--json", str(weights)) == 1
    assert "would overwrite" in capsys.readouterr().err
    assert weights.read_bytes() == b"trained for weeks"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", "nowhere.yaml", "--out", "x", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", "--schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Recipe"


def test_inspect_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = toy_detector.write_toy(tmp_path / "toy.tflite")
    assert run("inspect", str(model), "--json", str(tmp_path / "toy.json")) == 0
    assert "AVERAGE_POOL_2D" in capsys.readouterr().out
    assert json.loads((tmp_path / "toy.json").read_text())["bytes"] == model.stat().st_size
    assert run("inspect", str(model), "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "tflite"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe for the stand-ins of the stages."""
    monkeypatch.setattr(build, "BY_NAME", fake_stages.fake_table())
    monkeypatch.setattr(jobs, "code_version", fake_stages.fake_code_version)
    monkeypatch.setenv(fake_stages.LOG, str(tmp_path / "log"))
    (tmp_path / "net").write_text("net")
    text = "name: net\nmodel: {cfg: net, weights: net, names: net}\nprecisions: [float32]\n"
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


def test_build_tells_what_ran_and_why(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(recipe.parent / "out")
    assert run("build", str(recipe), "--out", out) == 0
    told = capsys.readouterr()
    assert "tflite float32" in told.out and "report.html" in told.out
    lines = dict(line.split(maxsplit=1) for line in told.err.splitlines())
    assert lines["load"].startswith("ran in ") and lines["load"].endswith(": first build")
    recipe.write_text(recipe.read_text() + "input: {resize: stretch}\n")
    assert run("build", str(recipe), "--out", out, "--json", "-") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["files"][0]["path"] == "net_float32.tflite"
    lines = dict(line.split(maxsplit=1) for line in told.err.splitlines())
    assert lines["load"].endswith(": setting resize changed from letterbox to stretch")
    assert lines["pictures"] == "kept"


@pytest.mark.parametrize(("skip", "code"), [("benchmark", 0), ("load", 2), ("bench", 2)])
def test_skip(recipe: Path, skip: str, code: int) -> None:
    assert run("build", str(recipe), "--out", str(recipe.parent / "out"), "--skip", skip) == code


def test_interruption_ends_cleanly_and_the_next_build_goes_on(recipe: Path) -> None:
    code = "import signal, fake_stages, sys; from deploy.command_line import run; from toolchain import build, cli\n"
    code += "from toolchain import jobs; jobs.code_version = fake_stages.fake_code_version\n"
    code += "build.BY_NAME.update(fake_stages.fake_table())\n"
    # A shell that starts it in the background would have it ignore Ctrl-C.
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); run(cli.slimdet, 'slimdet')"
    out = recipe.parent / "out"
    environment = {**os.environ, "PYTHONPATH": ENVIRONMENT["PYTHONPATH"], fake_stages.STOP_IN: "convert"}
    command = [sys.executable, "-c", code, "build", str(recipe), "--out", str(out)]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "stopped\n"
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "interrupted; what was finished before is kept" in error and "Traceback" not in error
    assert not list(out.glob(".cache/*/.part-*"))
    runs()
    assert run("build", str(recipe), "--out", str(out)) == 0
    assert runs()[0] == "convert"


def test_an_interrupted_training_says_what_it_keeps(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> dict[str, object]:
        raise KeyboardInterrupt("the training is kept as it was after step 3 of 9")

    monkeypatch.setattr(build, "build", stopped)
    assert run("build", str(recipe), "--out", str(recipe.parent / "out")) == 1
    told = capsys.readouterr().err
    assert told == "slimdet: error: interrupted; the training is kept as it was after step 3 of 9\n"


@pytest.mark.parametrize("option", [[], ["--use-best"]])
def test_use_best_reaches_the_build(recipe: Path, monkeypatch: pytest.MonkeyPatch, option: list[str]) -> None:
    given: list[bool] = []
    real = build.build

    def watched(*arguments: Any, use_best: bool) -> dict[str, Any]:
        given.append(use_best)
        return real(*arguments, use_best=use_best)

    monkeypatch.setattr(build, "build", watched)
    assert run("build", str(recipe), "--out", str(recipe.parent / "out"), *option) == 0
    assert given == [bool(option)]


def test_how_a_job_goes_on_is_told_every_some_seconds(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def working(work: Work) -> Facts:
        for seconds, done, text in ((4.9, 1, "not yet"), (1.1, 2, "the first"), (9.9, 3, "not yet"), (0.1, 4, "")):
            now[0] += seconds
            work.progress(done, 8, text)
        return fake_stages.load(work)

    monkeypatch.setitem(build.BY_NAME, "load", dataclasses.replace(build.BY_NAME["load"], run=working))
    assert run("build", str(recipe), "--out", str(recipe.parent / "out")) == 0
    told = [line.split(maxsplit=1)[1] for line in capsys.readouterr().err.splitlines() if line.startswith("load ")]
    # Without words of its own: four of eight in 16 seconds, so 16 more.
    assert told[:2] == ["the first", "50 %, 16 s left"] and told[2].startswith("ran in") and len(told) == 3


CFG = """\
[net]
width=64
height=64
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=22
size=1
stride=1
activation=linear

[yolo]
mask=0,1
anchors=12,14, 26,27
classes=6
num=2
"""


def write_network(folder: Path) -> None:
    """A cfg, random weights in darknet's layout, and the drawn scenes' class names."""
    random = np.random.default_rng(3)
    parts = [np.array([0, 2, 5], "<i4").tobytes(), np.array([0], "<i8").tobytes()]
    for filters, inputs, size, norm in ((8, 3, 3, True), (16, 8, 3, True), (22, 16, 1, False)):
        values = [random.normal(0, 0.3, filters)]
        values += [
            random.uniform(0.5, 1.5, filters),
            random.normal(0, 0.3, filters),
            random.uniform(0.5, 2, filters),
        ] * norm
        values.append(random.normal(0, (2 / (size * size * inputs)) ** 0.5, filters * inputs * size * size))
        parts += [value.astype("<f4").tobytes() for value in values]
    (folder / "net.cfg").write_text(CFG)
    (folder / "net.weights").write_bytes(b"".join(parts))
    (folder / "net.names").write_text("circle\nsquare\ntriangle\nstar\ncross\nheart\n")


@pytest.mark.slow
def test_real_build_and_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_network(tmp_path)
    text = "name: net\nmodel: {cfg: net.cfg, weights: net.weights, names: net.names}\nprecisions: [float32, int8]\n"
    text += "data: {scenes: {train: 8, val: 1, test: 6}}\nbenchmark: {runs: 3, min_secs: 0}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    out = tmp_path / "out"
    arguments = ["build", str(tmp_path / "recipe.yaml"), "--out", str(out)]
    assert run(*arguments) == 0, capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    convolutions = 3 * 3 * 3 * 8 + 3 * 3 * 8 * 16 + 16 * 22
    assert report["stages"][0]["name"] == "load"
    assert report["stages"][0]["trainable"] == convolutions + 2 * 8 + 2 * 16 + 22
    assert report["stages"][0]["non_trainable"] == 2 * 8 + 2 * 16
    for file in report["files"]:
        content = (out / file["path"]).read_bytes()
        assert file["bytes"] == len(content)
        assert 0 <= file["map"] <= 1 and file["accuracy"]["images"] == 6
        assert file["latency"]["p50_ms"] > 0
        contract = read(out / file["path"])[1]
        assert contract.precision == file["precision"]
        assert contract.lineage["inputs"].keys() == {"cfg", "weights", "names"}
        assert contract.measured["verification"]["pictures"] == 8
    capsys.readouterr()

    # In a fresh process nothing is computed again, and so TensorFlow not even imported.
    code = "import sys; from deploy.command_line import exit_code; from toolchain.cli import slimdet; "
    code += f"code = exit_code(slimdet, 'slimdet', {arguments}); "
    code += "print(code, 'tensorflow' in sys.modules, 'keras' in sys.modules)"
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    done = program(code)
    assert done.stdout.splitlines()[-1] == "0 False False"
    assert {line.split()[-1] for line in done.stderr.splitlines()} == {"kept"}
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before

    # The way without a recipe makes the same model.
    (pictures,) = out.glob(".cache/scenes/*/files/scenes/JPEGImages")
    names = [str(tmp_path / name) for name in ("net.cfg", "net.weights")]
    convert = ["convert", *names, "--names", str(tmp_path / "net.names"), "-o", str(tmp_path / "alone.tflite")]
    assert run(*convert, "--calibration", str(pictures), "--precision", "int8", "--json", "-") == 0
    done = json.loads(capsys.readouterr().out)
    assert done["calibration"]["used"] == 8 + 1 + 6
    assert read(tmp_path / "alone.tflite")[1].precision == "int8"
    assert run(*convert) == 0
    assert "generated pictures" in capsys.readouterr().out
    assert read(tmp_path / "alone.tflite")[0] == read(out / "net_float32.tflite")[0]


NET = """\
[net]
width=32
height=32
channels=3

[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=16
size=3
stride=1
pad=1
activation=leaky

[convolutional]
filters=14
size=1
stride=1
activation=linear

[yolo]
mask=0,1
anchors=4,5, 6,7
classes=2
num=2
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "net.cfg").write_text(NET)
    (tmp_path / "net.names").write_text("cat\ndog\n")
    return tmp_path / "net.cfg"


def test_sensitivity_is_shown_drawn_and_written(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, plot, told = net.with_suffix(".names"), net.with_name("plot.png"), net.with_name("told.json")
    asked = ("--names", names, "--sensitivity", "--ratio", "0.5", "--plot", plot, "--json", told)
    assert run("inspect", net, *asked) == 0
    shown = capsys.readouterr().out
    assert "drawn ones stand in for them" in shown and "conv_0" in shown and "-50 %" in shown
    assert cv2.imread(str(plot)) is not None
    found = json.loads(told.read_text())
    assert found["drawn_pictures"] is True
    assert [(row["method"], row["layer"]) for row in found["rows"]] == [
        ("prune", "conv_0"), ("prune", "conv_1"), ("tucker", "conv_1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--ratio", "0.5"], 2, "--ratio belongs to --sensitivity"),
        (["--pictures", "x", "--plot", "y"], 2, "--pictures, --plot belong to --sensitivity"),
        (["--sensitivity", "--pictures", "x", "--data", "y"], 2, "give one of them"),
        (["--sensitivity", "--ratio", "1.5"], 1, "between 0 and 1"),
        (["--sensitivity", "--pictures", "nowhere"], 1, "nowhere"),
        (["--sensitivity", "--plot", "net.cfg"], 1, "would overwrite"),
        (["--sensitivity", "--plot", "a.png", "--json", "a.png"], 1, "would overwrite"),
    ],
)
def test_sensitivity_refuses(
    net: Path, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(net.parent)
    assert run("inspect", "net.cfg", *arguments) == code
    assert words in " ".join(capsys.readouterr().err.split())
    assert net.read_text() == NET


@pytest.mark.slow
def test_a_recipe_that_compresses_ends_in_verified_files(
    net: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage for real: Tucker weighted by drawn pictures, pruning corrected with them, both timed."""
    run_here(monkeypatch)
    (net.parent / "photos").mkdir()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 255, (48, 64, 3), np.uint8)
        cv2.imwrite(str(net.parent / "photos" / f"{index}.png"), pixels)
    weights = net.with_suffix(".weights")
    assert run("inspect", net, "--json", net.with_suffix(".json")) == 0
    parameters = json.loads(net.with_suffix(".json").read_text())["totals"]["parameters"]
    values = np.random.default_rng(1).uniform(0.05, 0.4, parameters).astype("<f4")
    weights.write_bytes(np.array([0, 2, 0], "<i4").tobytes() + np.array([0], "<i8").tobytes() + values.tobytes())
    (net.parent / "net.yaml").write_text(
        "name: net\nmodel: {cfg: net.cfg, weights: net.weights, names: net.names}\n"
        "stages:\n  - tucker: {ranks: {ratio: 0.5}}\n  - prune: {ratio: 0.5, criterion: taylor, multiple: 4}\n"
        "  - prune: {flops: 0.95, multiple: 2}\n"
        "precisions: [float32]\ncalibration: {pictures: photos, count: 4}\nbenchmark: {runs: 2, min_secs: 0}\n"
    )
    assert run("build", net.with_suffix(".yaml"), "--out", net.parent / "out") == 0, capsys.readouterr().err
    report = json.loads((net.parent / "out" / "report.json").read_text())
    assert [file["of"] for file in report["files"]] == ["original", "float32"]
    names = ("tucker", "prune", "prune 2")
    tucker, prune, second = (stage for stage in report["stages"] if stage["name"] in names)
    assert [layer["name"] for layer in tucker["layers"] if layer["ranks"]] == ["conv_1"]
    assert prune["flops"] < tucker["flops"] < report["stages"][0]["flops"]
    assert second["flops"] <= 0.95 * prune["flops"]
    for file in report["files"]:
        assert file["verification"]["pictures"] == 4
    content, contract = read(net.parent / "out" / "net_float32.tflite")
    assert contract.lineage["stages"] == ["tucker", "prune", "prune"]


@pytest.mark.slow
def test_a_recipe_that_trains_and_recovers_ends_in_verified_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way of recovery for real, on a network that begins with random weights."""
    run_here(monkeypatch)
    write_network(tmp_path)
    (tmp_path / "net.yaml").write_text(
        "name: net\nmodel: {cfg: net.cfg, weights: net.weights, names: net.names}\n"
        "data: {scenes: {train: 16, val: 4, test: 4}}\n"
        "stages:\n  - train: {epochs: 2, batch: 8}\n  - prune: {ratio: 0.3, multiple: 2}\n"
        "  - finetune: {epochs: 1, batch: 8, seed: 5}\n  - batch_norm: {pictures: 4}\n"
        "precisions: [float32]\nbenchmark: {runs: 2, min_secs: 0}\n"
    )
    assert run("build", tmp_path / "net.yaml", "--out", tmp_path / "out") == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert [len(stages[name]["training"]["history"]) for name in ("train", "finetune")] == [2, 1]
    settings = [stages[name]["training"]["settings"] for name in ("train", "finetune")]
    assert [(one["labels"], one["distill"], one["seed"]) for one in settings] == [(True, 0.0, 1), (True, 1.0, 5)]
    assert stages["batch_norm"]["notes"][0].startswith("statistics of 2 batch norms were measured anew on 4 pictures")
    assert stages["finetune"]["trainable"] == stages["prune"]["trainable"] < stages["train"]["trainable"]
    assert [file["of"] for file in report["files"]] == ["original", "float32"]
    assert all(file["verification"]["pictures"] == 8 for file in report["files"])
    assert read(tmp_path / "out" / "net_float32.tflite")[1].lineage["seeds"]["finetune"] == 5
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 4
    assert not list((tmp_path / "out" / ".cache").glob("*/.resume-*"))


def test_options_of_int8_reach_the_conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []

    def convert(*_: object, int8: object, **others: object) -> dict[str, object]:
        asked.append(int8)
        return {"summary": ["done"]}

    monkeypatch.setattr("toolchain.one_file.convert_file", convert)
    mixed = [*DARKNET, "--precision", "int8_mixed", "--calibration", str(tmp_path), "-o", "m.tflite"]
    assert run(*mixed) == run(*mixed, "--float-io", "--max-map-loss", "0.02") == 0
    assert asked == [Int8(), Int8(float_io=True, max_map_loss=0.02)]
    # Half a point, as the help says.
    assert Int8().max_map_loss == 0.005
