"""What Prometheus reads: parsed again by the rules of its text format."""

import re

import feed_values
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.metrics import as_text
from deploy.status import Spread

_SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (\S+)')
_LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\[\\"n])*)"')


def parsed(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples by name and labels; checks each line, and that each name is explained and typed once, before it."""
    samples, kinds = {}, {}
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            continue
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert name not in kinds and kind in ("counter", "gauge") and (kind == "counter") == name.endswith("_total")
            kinds[name] = kind
            continue
        match = _SAMPLE.fullmatch(line)
        assert match, line
        assert match[1] == name, "the samples of a metric stand together"
        unescaped = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
        labels = tuple(
            (key, re.sub(r'\\[\\"n]', lambda found: unescaped[found[0]], value))
            for key, value in _LABEL.findall(match[2] or "")
        )
        assert (match[1], labels) not in samples, "no series twice"
        samples[match[1], labels] = float(match[3])
    return samples


def test_the_values_are_the_snapshot_s() -> None:
    found = parsed(as_text(feed_values.snapshot()))
    assert found["slimdet_results_total", ()] == 280
    assert found["slimdet_stage_seconds", (("stage", "invoke"), ("quantile", "0.95"))] == 0.0215
    assert found["slimdet_result_age_seconds", (("quantile", "0.5"),)] == 0.04
    assert found["slimdet_detections_total", (("label", "person"),)] == 412
    assert found["slimdet_feed_state", (("feed", "yard"), ("state", "stalled"))] == 1
    assert found["slimdet_feed_state", (("feed", "yard"), ("state", "running"))] == 0
    assert found["slimdet_feed_frames_dropped_total", (("feed", "door"),)] == 20
    assert found["slimdet_output_failed_total", (("output", "mqtt"),)] == 4
    assert found["slimdet_model", (("model", "yolo_int8.tflite"),)] == 1
    assert found["slimdet_model", (("model", "small_int8.tflite"),)] == 0
    assert found["process_resident_memory_bytes", ()] == 90 << 20
    assert found["slimdet_waiting_frames", ()] == 1
    assert found["slimdet_temperature_celsius", ()] == 61.5


def test_what_is_not_known_has_no_sample() -> None:
    found = parsed(as_text(feed_values.snapshot(age=None, temperature=None, feeds=(), outputs=(), detections={})))
    assert not {name for name, _ in found} & {"slimdet_result_age_seconds", "slimdet_temperature_celsius"}


def test_numbers_that_are_none_are_written_as_prometheus_does() -> None:
    text = as_text(feed_values.snapshot(fps=float("nan"), age=Spread(float("inf"), 1.0)))
    assert "slimdet_results_per_second NaN\n" in text and 'slimdet_result_age_seconds{quantile="0.5"} +Inf\n' in text


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.integers(0, 9), max_size=4))
def test_any_label_comes_back_as_it_was(detections: dict[str, int]) -> None:
    found = parsed(as_text(feed_values.snapshot(detections=detections)))
    back = {labels[0][1]: value for (name, labels), value in found.items() if name == "slimdet_detections_total"}
    assert back == detections


def test_a_name_that_is_no_utf_8_can_still_be_sent() -> None:
    assert as_text(feed_values.snapshot(feeds=(feed_values.feed_status("a\udcff"),))).encode()
