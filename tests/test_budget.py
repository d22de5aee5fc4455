"""Limits: reading them, and when they are met."""

import json

import pytest

from benchmarks.budget import Limit, judged, limits_for, read_budget, require_met
from deploy.errors import GateError, InputError


def test_toml_and_json_say_the_same(tmp_path):
    written = {"*_int8.tflite": {"p50_ms": 5.0, "speedup": 1.5}, "*": {"size_mb": 2.0}}
    (tmp_path / "budget.toml").write_text('["*_int8.tflite"]\np50_ms = 5\nspeedup = 1.5\n["*"]\nsize_mb = 2\n')
    (tmp_path / "budget.json").write_text(json.dumps(written))
    assert read_budget(tmp_path / "budget.toml") == read_budget(tmp_path / "budget.json") == written


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p50_ms = 5", "'p50_ms' has none"),
        ("", "has none; write one"),
        ('["*"]', "'*' has none"),
        ('["*"]\np51_ms = 5', "'*' has 'p51_ms'"),
        ('["*"]\np50_ms = "5"', "p50_ms is '5'"),
        ('["*"]\np50_ms = true', "p50_ms is True"),
        ('["*"]\np50_ms = 0', "p50_ms is 0"),
        ('["*"]\np50_ms = nan', "p50_ms is nan"),
        ('["*"]\np50_ms = inf', "p50_ms is inf"),
        ('["*"', "is neither"),
    ],
)
def test_what_is_no_budget_is_refused_with_the_place(tmp_path, text, words):
    path = tmp_path / "budget.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_budget(path)
    assert words in str(caught.value) and "budget.toml" in str(caught.value)


def test_other_files_are_refused(tmp_path):
    for name, content in (("deep.json", b"[" * 200_000), ("list.json", b"[1]"), ("bytes.toml", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="a budget"):
            read_budget(tmp_path / name)
    (tmp_path / "large.toml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(InputError, match="at most 1 MiB"):
        read_budget(tmp_path / "large.toml")


def test_every_pattern_that_matches_counts_and_each_model_needs_one():
    budget = {"*": {"size_mb": 2.0}, "b*": {"p50_ms": 5.0}}
    assert limits_for(["x/a", "x/b"], budget, 1.2) == (
        Limit("x/b", "speedup", 1.2),
        Limit("x/a", "size_mb", 2.0),
        Limit("x/b", "size_mb", 2.0),
        Limit("x/b", "p50_ms", 5.0),
    )
    assert limits_for(["a", "b"], {}, None) == ()
    with pytest.raises(InputError, match="of b. none matches a; add one"):
        limits_for(["x/a", "x/b"], {"b*": {"p50_ms": 5.0}}, None)


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [
        # All rounds alike: the first takes 3 ms, the second 2; their intervals are points.
        (Limit("b", "speedup", 1.5), "met"),
        (Limit("b", "speedup", 1.51), "missed"),
        (Limit("b", "p50_ms", 2.0), "met"),
        (Limit("b", "p95_ms", 1.99), "missed"),
        (Limit("b", "size_mb", 1.0), "met"),
        (Limit("b", "size_mb", 0.99), "missed"),
        (Limit("b", "peak_memory_mb", 1e9), "missed"),
    ],
)
def test_verdicts(limit, verdict):
    times = {"a": [3_000_000] * 10, "b": [2_000_000] * 10}
    (row,) = judged([limit], times, {"b": {"size_mb": 1.0, "peak_memory_mb": "unavailable"}}, 1)
    assert row["verdict"] == verdict
    if verdict == "met":
        require_met([row])
    else:
        with pytest.raises(GateError, match=f"b {limit.measure} .*: missed"):
            require_met([row])


def test_a_limit_within_the_interval_is_undecided_and_fails():
    times = {"a": [3_000_000] * 10, "b": [1_000_000, 5_000_000] * 5}
    (row,) = judged([Limit("b", "p50_ms", 3.0)], times, {}, 1)
    assert row["verdict"] == "undecided" and row["interval"][0] < 3 < row["interval"][1]
    with pytest.raises(GateError, match="undecided"):
        require_met([row])


def test_the_chances_of_a_wrong_judgement_add_up_to_five_in_a_hundred():
    limit, times = Limit("b", "speedup", 1.0), {"a": [3, 4, 5], "b": [3, 5, 4]}
    chances = [1 - judged([limit], times, {}, look)[0]["confidence"] for look in range(1, 40)]
    # 1 / (k (k + 1)) is 1 / k - 1 / (k + 1): the sum of the first n is 1 - 1 / (n + 1).
    assert sum(chances) == pytest.approx(0.05 * (1 - 1 / 40))
