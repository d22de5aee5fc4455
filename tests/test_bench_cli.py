"""The commands `bench accuracy` and `bench latency` as a user calls them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from labelled_folders import write_label, write_picture
from toy_detector import write_toy
from voc_folder import add_picture, small_set

from benchmarks import cli, tables
from benchmarks.accuracy import PROTOCOLS
from deploy.command_line import exit_code

ROOT = Path(cli.__file__).parents[1]
QUICK = ["--runs", "3", "--min-secs", "0", "--warmup-min-secs", "0"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return str(write_toy(tmp_path_factory.mktemp("model") / "toy.tflite"))


def run(*arguments: str) -> int:
    return exit_code(cli.main, "python -m benchmarks", list(arguments))


def test_accuracy_writes_a_table_and_json(tmp_path, toy, capsys):
    data, result = str(small_set(tmp_path / "data")), tmp_path / "result.json"
    code = run("bench", "accuracy", toy, "--data", data, "--split", "test", "--protocol", "voc", "--json", str(result))
    assert code == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("map 100.00   (voc, 4 pictures, 2 classes)")
    assert shown.err == ""
    value = json.loads(result.read_text())
    assert (value["map"], value["protocol"], value["images"], set(value["per_class"])) == (
        1.0,
        "voc",
        4,
        {"red", "blue"},
    )


def test_accuracy_of_all_pictures_of_yolo_data_with_names_in_a_file(tmp_path, toy, capsys):
    write_picture(tmp_path / "data/images/0.png")
    write_label(tmp_path / "data/labels/0.txt", "0 0.5 0.5 1 1")
    (tmp_path / "toy.names").write_text("red\n")
    arguments = ["accuracy", toy, "--data", str(tmp_path / "data"), "--json", "-", "--split", ""]
    assert run(*arguments, "--names", str(tmp_path / "toy.names")) == 0
    assert json.loads(capsys.readouterr().out)["per_class"] == {"red": pytest.approx(1.0)}
    assert run(*arguments) == 1
    assert "name their classes" in capsys.readouterr().err
    assert run(*arguments, "--names", str(tmp_path / "none.names")) == 1


def test_json_to_standard_output_is_json_alone(tmp_path, toy, capsys):
    data = str(small_set(tmp_path))
    assert run("accuracy", toy, "--data", data, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["protocol"] == "voc07"
    assert run("latency", toy, *QUICK, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 3


def test_json_never_overwrites_the_model(tmp_path, capsys):
    model, data = write_toy(tmp_path / "toy.tflite"), str(small_set(tmp_path / "data"))
    content = model.read_bytes()
    (tmp_path / "link.tflite").symlink_to(model)
    for name in ("toy.tflite", "./toy.tflite", "link.tflite"):
        for command in (["latency", str(model), *QUICK], ["accuracy", str(model), "--data", data]):
            assert run(*command, "--json", f"{tmp_path}/{name}") == 1
            assert capsys.readouterr().err.endswith(f"would overwrite {model}; choose another file\n")
    assert model.read_bytes() == content


@pytest.mark.parametrize("arguments", [[], ["bench"]])
def test_help_of_a_group_has_an_example(arguments, capsys):
    assert run(*arguments, "--help") == 0
    assert "Example:\n" in capsys.readouterr().out


def test_what_did_not_count_is_shown(tmp_path, toy, capsys):
    data = small_set(tmp_path)
    (data / "JPEGImages/001.png").write_bytes(b"")
    note = data / "Annotations/002.xml"
    note.write_text(note.read_text().replace(">red<", ">unicorn<").replace("<xmax>40<", "<xmax>45<"))
    assert run("accuracy", toy, "--data", str(data)) == 0
    shown = capsys.readouterr().out
    assert "classes of the data that the model does not know, NOT SCORED (1): unicorn" in shown
    assert "pictures skipped, in the truth as well (1):\n  001: " in shown
    assert "boxes of the truth cut at the picture's border: 1" in shown


def test_latency_shows_parts_and_settings(toy, capsys):
    assert run("bench", "latency", toy, *QUICK, "--threads", "2", "--backend", "cpu-builtin") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ms", "p50", "p90", "p95", "p99", "min", "max", "mean", "std"]
    assert [line.split()[0] for line in lines[1:5]] == ["preprocess", "invoke", "postprocess", "total"]
    assert len({len(line) for line in lines[:5]}) == 1  # aligned
    assert any(line.split()[1:] == ["cpu-builtin,", "2", "threads"] for line in lines)


def test_benchmark_models_names_are_known_too(toy, capsys):
    assert (
        run(
            "latency",
            toy,
            "--num-runs",
            "4",
            "--num-threads",
            "1",
            "--min-secs",
            "0",
            "--max-secs",
            "9",
            "--warmup-runs",
            "2",
            "--warmup-min-secs",
            "0",
            "--json",
            "-",
        )
        == 0
    )
    value = json.loads(capsys.readouterr().out)
    assert (value["runs"], value["warmup_runs"]) == (4, 2)
    arguments = ["--num_runs", "4", "--num_threads", "1", "--min_secs", "0", "--max_secs", "9", "--warmup_runs", "2"]
    assert run("latency", toy, *arguments, "--warmup_min_secs", "0", "--json", "-", "--enable_op_profiling") == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["runs"], value["warmup_runs"]) == (4, 2) and "profile" in value


def test_several_numbers_of_threads_are_one_table(toy, capsys, tmp_path):
    target = tmp_path / "sweep.json"
    assert run("latency", toy, *QUICK, "--threads", "2,1", "--json", str(target)) == 0
    head, first, second, *_ = capsys.readouterr().out.splitlines()
    assert head.startswith("threads  p50 ms") and [first.split()[0], second.split()[0]] == ["2", "1"]
    value = json.loads(target.read_text())
    assert (value["schema"], value["threads"]) == ("slimdet.latency-sweep/1", [2, 1])
    assert [result["threads"] for result in value["results"]] == [2, 1]
    assert {result["schema"] for result in value["results"]} == {"slimdet.latency/1"}


def test_an_interval_that_is_wanted_narrow(toy, capsys):
    assert run("latency", toy, *QUICK, "--until-within", "99%", "--json", "-") == 0
    value = json.loads(capsys.readouterr().out)
    # A microsecond's work: within 99 % sooner or later, in nine seconds.
    assert (value["stopped_by"], value["until_within"]) == ("until_within", 0.99) and value["looks"] >= 1
    assert run("latency", toy, *QUICK, "--until-within", "0.0001%", "--max-secs", "0.2") == 0
    assert "and the interval is wider than 0.0001 %" in capsys.readouterr().out


def test_a_profile_is_shown(toy, capsys):
    assert run("latency", toy, *QUICK, "--profile", "--backend", "cpu-reference") == 0
    assert "operations unavailable: operations are timed on cpu, cpu-builtin" in capsys.readouterr().out


def test_accuracy_on_two_backends_shows_classes_causes_drift_and_worst_pictures(tmp_path, toy, capsys):
    data = small_set(tmp_path / "data")
    add_picture(data, "004", "red", label="blue")
    arguments = ["accuracy", toy, "--data", str(data), "--protocol", "voc", "--worst", str(tmp_path / "worst")]
    assert run(*arguments, "--backend", "cpu", "--backend", "cpu-builtin", "--worst-count", "1") == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["class", "AP", "truths", "detections", "from", "0.25", "precision", "recall"] in lines
    assert ["blue", "66.67", "3", "2", "100.0", "66.7"] in lines
    assert ["all", "83.33", "5", "5", "80.0", "80.0"] in lines
    assert "1 false positives: localisation 0, class 1, both 0, duplicate 0, background 0" in shown
    assert "confused most often: blue taken for red 1" in shown
    assert ["cpu-builtin", "83.333", "5"] in [line[:3] for line in lines] and "(against cpu)" in shown
    assert f"1 worst pictures in {tmp_path / 'worst'}" in shown
    assert sorted(path.name for path in (tmp_path / "worst").iterdir()) == ["01_004.jpg", "contact_sheet.jpg"]


def test_report_of_what_the_commands_wrote(tmp_path, toy, capsys):
    data = str(small_set(tmp_path / "data"))
    files = [str(tmp_path / "accuracy.json"), str(tmp_path / "toy.json")]
    assert run("accuracy", toy, "--data", data, "--json", files[0]) == 0
    assert run("latency", toy, *QUICK, "--json", files[1]) == 0
    capsys.readouterr()
    assert run("report", *files, "--out", str(tmp_path / "out")) == 0
    names = [f"report.{ending}" for ending in ("json", "md", "html")]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "out" / name) for name in names]
    (row,) = json.loads((tmp_path / "out/report.json").read_text())["rows"]
    assert row["model"] == "toy" and row["map"] == pytest.approx(1.0) and row["p50_ms"] > 0 and row["on_front"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["accuracy", "M"],
        ["accuracy", "M", "--data", "D", "--protocol", "voc12"],
        ["accuracy", "M", "--data", "D", "--conf", "nan"],
        ["accuracy", "M", "--data", "D", "--iou", "1.5"],
        ["accuracy", "M", "--data", "D", "--working-conf", "nan"],
        ["accuracy", "M", "--data", "D", "--worst-count", "0"],
        ["report", "--out", "D"],
        ["report", "R"],
        ["latency"],
        ["latency", "M", "--threads", "0"],
        ["latency", "M", "--threads", "1,1"],
        ["latency", "M", "--threads", "1,"],
        ["latency", "M", "--threads", "257"],
        ["latency", "M", "--until-within", "0"],
        ["latency", "M", "--until-within", "nan"],
        ["latency", "M", "--until-within", "100%"],
        ["latency", "M", "--seed", "-1"],
        ["compare"],
        ["latency", "M", "--runs", "0"],
        ["latency", "M", "--min-secs", "nan"],
        ["latency", "M", "--json"],
        ["speed"],
    ],
)
def test_wrong_use_is_code_2(arguments, capsys):
    assert run(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def one_sentence(capsys) -> str:
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "Traceback" not in shown
    return shown


def test_what_a_user_can_cause_is_code_1_and_one_sentence(tmp_path, toy, capsys):
    data = str(small_set(tmp_path / "data"))
    half = tmp_path / "half.tflite"
    half.write_bytes(Path(toy).read_bytes()[:300])
    for arguments in (
        ["latency", str(half), *QUICK],
        ["latency", str(tmp_path / "none.tflite"), *QUICK],
        ["latency", toy, *QUICK, "--backend", "abacus"],
        ["accuracy", str(half), "--data", data],
        ["accuracy", toy, "--data", str(tmp_path / "none")],
        ["accuracy", toy, "--data", data, "--split", "train"],
        ["accuracy", toy, "--data", data, "--backend", "npu"],
    ):
        assert run(*arguments) == 1
        assert one_sentence(capsys).startswith("slimdet: error: ")
    assert run("latency", toy, *QUICK, "--json", str(tmp_path / "none" / "x.json")) == 1
    assert "cannot write" in one_sentence(capsys)


def test_an_older_result_stays_when_the_run_fails(tmp_path, toy):
    result = tmp_path / "result.json"
    result.write_text("older")
    assert run("accuracy", toy, "--data", str(tmp_path), "--json", str(result)) == 1
    assert result.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("command", ["accuracy", "latency", "compare", "report"])
def test_help_has_an_example(command):
    shown = CliRunner().invoke(cli.bench, [command, "--help"])
    assert shown.exit_code == 0
    assert f"slimdet bench {command} " in shown.output.split("Example:")[1]


def test_the_commands_name_every_protocol():
    assert cli.PROTOCOLS == PROTOCOLS


def test_help_loads_neither_numpy_nor_the_interpreter():
    code = (
        "import sys; from benchmarks.cli import main; from deploy.command_line import exit_code; "
        "[exit_code(main, 'bench', [name, '--help']) for name in ('accuracy', 'latency', 'compare')]; "
        "sys.exit(sorted({'numpy', 'cv2', 'ai_edge_litert', 'tensorflow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_benchmarks(toy):
    command = [sys.executable, "-m", "benchmarks", "bench", "latency", toy, *QUICK, "--json", "-"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["backend"] == "cpu"


def test_table_aligns_numbers_to_the_right():
    rows = [("cat", "9.10"), ("diningtable", "100.00")]
    assert tables.table(("class", "AP"), rows) == "class            AP\ncat            9.10\ndiningtable  100.00"
