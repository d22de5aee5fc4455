"""The report of results, their own and strangers'."""

import base64
import copy
import html.parser
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy_detector import write_toy
from voc_folder import add_picture, small_set

from benchmarks import cli, svg_plots
from benchmarks.backends import measure_backends
from benchmarks.bench_report import cells, plotted, short_names, table, write_report
from benchmarks.bench_results import Result, read_results
from deploy.command_line import exit_code
from deploy.errors import InputError


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """An accuracy on two backends, with a worst picture."""
    folder = tmp_path_factory.mktemp("measured")
    data = small_set(folder / "data")
    add_picture(data, "004", "red", label="blue")
    model = write_toy(folder / "toy.tflite")
    return measure_backends(model, data, "test", "voc", ["cpu", "cpu-builtin"], worst=folder / "worst")


def latency(model="toy.tflite", p50=4.0, device="board", backend="cpu", **other):
    times = {f"{name}_ms": p50 for name in ("p50", "p90", "p95", "p99", "min", "max", "mean", "std")}
    return {
        "schema": "slimdet.latency/1",
        **times,
        "model": f"/models/{model}",
        "backend": backend,
        "threads": 1,
        "parts": {"invoke": times, "total": times},
        "intervals": {"p50_ms": [p50 - 0.5, p50 + 0.5]},
        "peak_memory_mb": 30.0,
        "warnings": [],
        "device": device,
        "environment": {"cpu": "a processor"},
        **other,
    }


def comparison(*speedups):
    models = [
        {"model": f"{name}.tflite", "p50_ms": 8.0 / speedup, "speedup": speedup, "speedup_interval": [speedup, speedup]}
        for name, speedup in speedups
    ]
    return {"models": models, "rounds": 30, "settings": {"threads": 1}, "environment": {"cpu": "board"}}


def written(tmp_path, *contents):
    paths = []
    for number, content in enumerate(contents):
        paths.append(tmp_path / f"result_{number}.json")
        paths[-1].write_text(json.dumps(content))
    return paths


def report(tmp_path, *contents):
    write_report(read_results(written(tmp_path, *contents)), tmp_path / "out")
    return [(tmp_path / "out" / f"report.{ending}").read_text() for ending in ("json", "md", "html")]


class Page(html.parser.HTMLParser):
    """Tags that are open, and those that reach outside the page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.outside, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attributes:
            if name.startswith("on") or (name in ("src", "href") and not value.startswith("data:image/jpeg;base64,")):
                self.outside.append((name, value))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_report_has_all_parts_on_one_page_that_needs_nothing(tmp_path, measured):
    profile = {"operations": [{"op": "CONV_2D", "count": 4, "ms": 3.0}, {"op": "ADD", "count": 1, "ms": 0.5}]}
    text, markdown, page = report(
        tmp_path, measured, latency(profile=profile), latency("small.tflite", 2.0), comparison(("toy", 1), ("small", 2))
    )
    value = json.loads(text)
    assert value["schema"] == "slimdet.report/1"
    assert [(row["model"], row["speedup"]) for row in value["rows"]] == [("toy", 1), ("small", 2)]
    assert value["rows"][0]["map"] == measured["map"] and value["rows"][1]["map"] is None
    parsed = Page(page)
    assert parsed.open == [] and parsed.outside == [] and not parsed.tags & {"script", "link", "iframe", "object"}
    titles = re.findall("<h2>([^<:]+)", page)
    assert titles == [
        "mAP against latency",
        "Latency of each part, ms",
        "Time of each operation",
        "Drift of boxes between backends",
        "Precision against recall, IoU 0.5",
        "Causes of errors at score 0.25",
        "AP of each class, %",
        "Worst pictures",
        "Made with",
    ]
    assert page.index("CONV_2D") < page.index(">ADD<") and "url(" not in page and "@import" not in page
    assert "| toy | board, cpu, 1 thread |" in markdown and "## Causes of errors" in markdown


def test_what_comes_from_files_is_escaped(tmp_path, measured):
    evil = '<script>alert(1)</script>"\'|`'
    accuracy = copy.deepcopy(measured)
    accuracy["model"], accuracy["protocol"] = f"{evil}.tflite", evil
    accuracy["classes"] = {evil: next(iter(accuracy["classes"].values()))}
    accuracy["per_class"] = {evil: 0.5}
    accuracy["misses"]["per_class"] = {evil: next(iter(accuracy["misses"]["per_class"].values()))}
    accuracy["data_classes_without_partner"] = [evil]
    accuracy["backends"][0]["backend"] = evil
    accuracy["worst"]["cost"] = evil
    other = latency(f"{evil}.tflite", device=evil, warnings=[evil], profile={"operations": [{evil: evil, "ms": 1.0}]})
    other["parts"][evil] = other["parts"]["total"]
    _, markdown, page = report(tmp_path, accuracy, other, latency(profile=evil))
    parsed = Page(page)
    assert "script" not in parsed.tags and parsed.open == [] and parsed.outside == []
    assert "script" in markdown and not re.search(r"(?<!\\)[<`|](?! |$)", re.sub(r"(?m)^\| | \| | \|$", " ", markdown))


def test_latency_without_accuracy_and_accuracy_without_latency_have_rows(tmp_path, measured):
    only_map, *_ = (json.loads(one) for one in report(tmp_path, measured)[:1])
    assert [(row["p50_ms"], row["map"]) for row in only_map["rows"]] == [(None, measured["map"])]
    page = report(tmp_path, latency(profile="unavailable: no profiler here"))[2]
    assert "<h2>mAP against" not in page and "speed-up" not in page
    assert "Profile: unavailable: no profiler here" in page


def test_the_map_is_taken_from_the_nearest_measurement_and_says_so(measured):
    accuracy = {**measured, "device": "board"}
    accuracy["backends"] = [{**run, "map": value} for run, value in zip(measured["backends"], (0.5, 0.25), strict=True)]
    elsewhere = {**accuracy, "device": "other", "backends": [{"backend": "gpu", "map": 0.125}]}
    results = [as_result("accuracy", accuracy), as_result("accuracy", elsewhere)]
    backends = ("cpu", "cpu-builtin", "gpu", "npu")
    results += [as_result("latency", latency(backend=backend)) for backend in backends]
    rows = table(results)
    assert [row.map for row in rows] == [0.5, 0.25, 0.125, 0.5]
    assert [row.map_from for row in rows] == [None, None, "gpu on other", "cpu on board"]
    assert cells(rows[2])[2] == "12.50*"


def as_result(kind, content):
    return Result(kind, Path("result.json"), content)


def test_the_front_is_of_one_device_and_backend(measured):
    def of(name, value):
        backends = [{"backend": "cpu", "map": value}]
        return as_result("accuracy", {**measured, "model": f"{name}.tflite", "backends": backends})

    results = [of("a", 0.5), of("b", 0.6), of("c", 0.4)]
    times = [("a", 2.0, "board"), ("b", 4.0, "board"), ("c", 3.0, "board"), ("c", 9.0, "slow board")]
    results += [as_result("latency", latency(f"{name}.tflite", p50, device)) for name, p50, device in times]
    rows = table(results)
    assert [row.on_front for row in rows] == [True, True, False, True]
    (points,) = plotted(rows).values()
    assert [point.series for _, point in points] == [0, 0, 0, 1]
    assert points[0][1].interval == (1.5, 2.5)


def test_a_speed_up_joins_its_latency(measured):
    same = {**comparison(("toy", 1), ("small", 2)), "device": "board"}
    rows = table([as_result("latency", latency()), as_result("compare", same)])
    assert [(row.model, row.speedup, row.p50_ms) for row in rows] == [("toy", 1, 4.0), ("small", 2, 4.0)]


def test_one_name_for_two_files_is_an_error(measured):
    with pytest.raises(InputError, match="measured different ones named toy; rename one"):
        table([as_result("accuracy", measured), as_result("accuracy", {**measured, "model_sha256": "0"})])


def test_short_names_lose_what_all_have_in_common():
    assert short_names(["net_int8", "net_int4"]) == {"net_int8": "int8", "net_int4": "int4"}
    assert short_names(["net_a", "net_a"]) == {"net_a": "net_a"}
    assert short_names(["net_", "net_a"]) == {"net_": "net_", "net_a": "a"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": "slimdet.accuracy/2"}, "version 1"),
        ({"schema": ["x"]}, "version 1"),
        ({"map": 1.5}, "map in accuracy of .* is a number from 0 to 1, not 1.5"),
        ({"map": True}, "is a number from 0 to 1"),
        ({"per_class": []}, "is an object"),
        ({"per_class": {"a": "b"}}, "a in per_class in accuracy"),
        ({"images": -1}, "a whole number from 0"),
        ({"model": None}, "is a text"),
        ({"device": 3}, "device of .* is a text"),
        ({"environment": {}}, "has a field cpu"),
        ({"backends": [{"backend": "cpu", "map": 1, "drift": {}}]}, "has a field pairs"),
        ({"misses": {}}, "has a field false_positives"),
        ({"worst": {"cost": "x", "pictures": [], "contact_sheet": "no base64!"}}, "contact sheet is a JPEG"),
        ({"worst": {"cost": "x", "pictures": [], "contact_sheet": "AAAA"}}, "contact sheet is a JPEG"),
    ],
)
def test_damaged_results_are_one_sentence(tmp_path, measured, change, told, capsys):
    (path,) = written(tmp_path, {**measured, **change})
    assert exit_code(cli.main, "slimdet", ["bench", "report", str(path), "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and re.search(told, shown)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"schema": NaN}', "[" * 100_000, '{"a": 1}', "[]", '"x"', "\ud800"])
def test_what_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError):
        read_results([path])
    with pytest.raises(InputError, match="cannot read"):
        read_results([tmp_path / "none.json"])


def test_infinite_numbers_are_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(latency()).replace("4.0", "1e999"))
    with pytest.raises(InputError, match="is a finite number, not inf"):
        read_results([path])


def test_lists_of_results_are_read_and_no_result_is_overwritten(tmp_path):
    (path,) = written(tmp_path, [latency(), {**latency("b.tflite")}])
    assert len(read_results([path])) == 2
    assert len(read_results(written(tmp_path, {"results": [latency()]}))) == 1
    mine = tmp_path / "report.json"
    mine.write_text(json.dumps(latency()))
    with pytest.raises(InputError, match="must not be overwritten"):
        write_report(read_results([mine]), tmp_path)
    assert json.loads(mine.read_text())["p50_ms"] == 4.0


def test_a_huge_contact_sheet_is_refused_before_it_is_decoded(tmp_path, measured):
    sheet = cv2.imencode(".jpg", np.zeros((2, 5000, 3), np.uint8))[1].tobytes()
    worst = {**measured["worst"], "contact_sheet": base64.b64encode(sheet).decode()}
    with pytest.raises(InputError, match="at most 4096 pixels a side"):
        report(tmp_path, {**measured, "worst": worst})


def test_labels_of_a_plot_do_not_lie_on_each_other():
    points = [svg_plots.Point(10 + 0.01 * place, 50 + 0.01 * place, f"model {place}", 0) for place in range(4)]
    drawn = svg_plots.scatter(points, "ms", "mAP", "title")
    places = [(float(x), float(y)) for x, y in re.findall(r'class="name" x="([\d.]+)" y="([\d.]+)"', drawn)]
    width = len("model 0") * 5.8
    assert len(places) == 4
    for i, (x, y) in enumerate(places):
        for u, v in places[:i]:
            assert abs(x - u) >= width - 0.11 or abs(y - v) >= 12 - 0.11  # drawn to a tenth


def test_a_bar_is_as_long_as_its_count():
    drawn = svg_plots.bars([("a", [(0, 30), (1, 10)]), ("b", [(0, 0), (1, 20)])], "title")
    assert [float(width) for width in re.findall(r'width="([\d.]+)" height="15"', drawn)] == [330, 110, 0, 220]
