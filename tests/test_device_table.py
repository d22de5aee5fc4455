"""The table of several devices."""

from benchmarks.device_table import devices_text

LATENCY = {f"{name}_ms": value for name, value in zip(("p50", "p90", "p95", "p99"), (1.5, 2.0, 2.5, 3.0), strict=True)}
LATENCY |= {"min_ms": 1.0, "max_ms": 4.0, "mean_ms": 1.6, "std_ms": 0.25, "backend": "cpu", "threads": 2}


def test_latency_with_what_is_unavailable_and_what_failed():
    pi = {"device": "ssh:pi", **LATENCY, "environment": {"cpu": "Raspberry Pi 5"}, "warnings": ["it is hot"]}
    phone = {"device": "adb:X", **LATENCY, "p90_ms": "unavailable", "environment": {"cpu": "Pixel 8"}}
    text = devices_text([pi, {"device": "ssh:off", "error": "there is no connection"}, phone])
    head, first, second, *rest = text.splitlines()
    assert head.split() == "device cpu backend threads p50 p90 p95 p99 min max mean std".split()
    assert first.split() == "ssh:pi Raspberry Pi 5 cpu 2 1.500 2.000 2.500 3.000 1.000 4.000 1.600 0.250".split()
    assert second.split()[4:8] == ["2", "1.500", "unavailable", "2.500"]
    assert rest == ["", "ssh:pi: warning: it is hot", "ssh:off: error: there is no connection"]


def test_accuracy():
    found = {"device": "local", "map": 0.625, "images": 8, "detections": 9, "invoke_s": 0.5, "backend": "cpu"}
    found["threads"] = 1
    head, row = devices_text([found]).splitlines()
    assert "mAP %" in head and row.split() == ["local", "unavailable", "cpu", "1", "62.50", "8", "9", "0.50"]


def test_a_result_of_several_settings_has_a_row_each():
    several = [{**LATENCY, "threads": count} for count in (1, 2)]
    sweep = {"device": "local", "sweep": several, "environment": {"cpu": "x"}}
    assert [line.split()[3] for line in devices_text([sweep]).splitlines()] == ["threads", "1", "2"]


def test_only_errors():
    assert devices_text([{"device": "a", "error": "no"}]) == "a: error: no"
