"""Models against each other: rounds, the interval of their ratio, and the command. No test asserts a time."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tflite import Builder, postprocess, yolo

from benchmarks.alternate import alternate, compare, in_rounds, main, ratio_interval
from deploy import model_file
from deploy.command_line import exit_code
from deploy.errors import BackendError, InputError
from deploy.interpreter import Model

QUICK = {"runs": 3, "min_secs": 0.0, "max_secs": 60.0, "warmup_secs": 0.0}

#: Times of some rounds of two models: 1 ns to 1 ms.
PAIRS = st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=30)


class Clock:
    """Time that passes only where a call takes it."""

    def __init__(self) -> None:
        self.now = 0
        self.called: list[str] = []

    def __call__(self) -> int:
        return self.now

    def call(self, name: str, nanoseconds: int) -> Callable[[], None]:
        def take() -> None:
            self.called.append(name)
            self.now += nanoseconds

        return take


def test_every_round_makes_each_call_once_in_an_order_drawn_anew():
    orders = []
    for _ in range(2):
        clock = Clock()
        calls = {name: clock.call(name, cost) for name, cost in {"a": 5, "b": 70, "c": 900}.items()}
        times = in_rounds(calls, runs=40, min_secs=0, max_secs=1, seed=3, clock=clock)
        assert times == {"a": [5] * 40, "b": [70] * 40, "c": [900] * 40}
        rounds = [tuple(clock.called[start : start + 3]) for start in range(0, 3 * 40, 3)]
        assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
        # Each of the 3! orders in 40 rounds: that one is missing has a chance of 6 * (5/6)**40 = 0.4 %, and the seed
        # is fixed.
        assert len(set(rounds)) == 6
        orders.append(rounds)
    assert orders[0] == orders[1]


@pytest.mark.parametrize(
    ("runs", "min_secs", "max_secs", "expected"),
    [
        (7, 0, 100, 7),
        # A round takes 1 + 3 seconds: after 4 of them 16 seconds have passed.
        (1, 15, 100, 4),
        (1000, 0, 15, 4),
        (1000, 0, 0, 1),
        (1, 90, 15, 4),
    ],
)
def test_rounds_end_when_there_are_enough_or_the_time_is_up(runs, min_secs, max_secs, expected):
    clock = Clock()
    calls = {"a": clock.call("a", 10**9), "b": clock.call("b", 3 * 10**9)}
    times = in_rounds(calls, runs=runs, min_secs=min_secs, max_secs=max_secs, clock=clock)
    assert {name: len(found) for name, found in times.items()} == {"a": expected, "b": expected}


def test_nothing_to_call_ends_at_once():
    assert in_rounds({}, runs=5, min_secs=1e8, max_secs=1e8) == {}


def test_files_of_every_kind_are_timed_equally_often(tmp_path):
    float_content, contract = yolo()
    path = tmp_path / "ours.tflite"
    path.write_bytes(model_file.write(float_content, contract))
    models = {"float": float_content, "int8": yolo("int8")[0], "with contract": path, "foreign": postprocess()}
    times = alternate(models, **QUICK)
    assert list(times) == list(models)
    assert {len(found) for found in times.values()} == {3}
    assert all(type(time) is int and time > 0 for found in times.values() for time in found)


def test_other_integers_are_given_as_zeros():
    builder = Builder()
    source, result = builder.tensor("indices", (4,), "int32"), builder.tensor("floats", (4,))
    builder.operation("CAST", [source], [result])
    content = builder.finish({"indices": source}, {"floats": result})
    assert len(alternate({"cast": content}, **QUICK)["cast"]) == 3


def test_invoke_computes_again_on_the_inputs_of_the_last_run():
    model = Model(yolo()[0])
    (image,) = model.inputs
    outputs = model.run({image.name: np.random.default_rng(0).random(image.shape, np.float32)})
    before = {name: array.copy() for name, array in outputs.items()}
    assert before["objectness_16"].any()
    model.invoke()
    for name, array in outputs.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("name", ["runs", "min_secs", "max_secs", "warmup_secs"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_settings_out_of_range(name, value):
    with pytest.raises(InputError, match=f"{name} is a number from"):
        alternate({"a": yolo()[0]}, **{**QUICK, name: value})


def test_errors_name_the_model(tmp_path):
    with pytest.raises(InputError, match="cannot read lost: No such file"):
        alternate({"lost": tmp_path / "lost.tflite"}, **QUICK)
    with pytest.raises(InputError, match="^half: the .tflite is damaged"):
        alternate({"whole": yolo()[0], "half": yolo()[0][:400]}, **QUICK)
    with pytest.raises(BackendError, match="^odd: backend cpu cannot run"):
        alternate({"odd": postprocess(operation="Unheard")}, **QUICK)
    with pytest.raises(InputError, match="threads is a whole number"):
        alternate({"a": yolo()[0]}, threads=0, **QUICK)


@given(PAIRS)
@settings(max_examples=30, deadline=None)
def test_exchanged_models_give_reciprocals(pairs):
    first, second = zip(*pairs)
    ratio, low, high = ratio_interval(first, second)
    assert 0 < low <= high
    exchanged = ratio_interval(second, first)
    # Each is one division of the same two numbers, rounded to 2**-53.
    assert exchanged == pytest.approx((1 / ratio, 1 / high, 1 / low), rel=3 * 2**-53)


@given(PAIRS, st.integers(1, 10))
@settings(max_examples=30, deadline=None)
def test_the_unit_of_times_cancels_and_a_factor_shows(pairs, exponent):
    first, second = (np.array(side) for side in zip(*pairs))
    found = ratio_interval(first, second)
    # Powers of two, so that nothing is rounded.
    assert ratio_interval(first * 2**exponent, second * 2**exponent) == found
    assert ratio_interval(first * 2**exponent, second) == tuple(2**exponent * value for value in found)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30))
@settings(max_examples=20, deadline=None)
def test_a_model_against_itself_is_exactly_one(times):
    assert ratio_interval(times, times) == (1.0, 1.0, 1.0)


def test_interval_ends_among_the_ratios_of_medians_that_rounds_can_give():
    """Of one round there is one ratio; many rounds are drawn in parts, the last of them smaller."""
    assert ratio_interval([30], [20]) == (1.5, 1.5, 1.5)
    assert ratio_interval([30] * 3000, [20] * 3000) == (1.5, 1.5, 1.5)
    ratio, low, high = ratio_interval([10, 20, 30] * 1000, [10] * 3000)
    assert ratio == 2 and {low, high} <= {1.0, 1.5, 2.0, 2.5, 3.0}


def test_interval_holds_the_true_ratio_and_drift_of_both_cancels():
    """The clock halves during the measurement: the medians' own spread says nothing, the pairs' does."""
    random = np.random.default_rng(0)
    true, rounds, trials = 1.25, 60, 200
    held, widths, apart = 0, [], []
    for trial in range(trials):
        drift = np.linspace(1, 2, rounds)
        second = drift * random.lognormal(13, 0.02, rounds)
        first = true * drift * random.lognormal(13, 0.02, rounds)
        _, low, high = ratio_interval(first, second, seed=trial)
        held += low <= true <= high
        widths.append(high - low)
        _, low, high = ratio_interval(first, random.permutation(second), seed=trial)
        apart.append(high - low)
    # Binomial with 0.95 of 200: mean 190, standard deviation 3.1; five of them below is 174.
    assert held >= 174
    assert np.median(widths) < np.median(apart) / 2


@pytest.mark.parametrize(("first", "second"), [([], []), ([1, 2], [1]), ([1, 0], [1, 1]), ([1], [0])])
def test_what_is_no_pairs_of_times_is_refused(first, second):
    with pytest.raises(InputError, match="in pairs above 0"):
        ratio_interval(first, second)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    paths = tmp_path / "whole.tflite", tmp_path / "int8.tflite"
    for path, dtype in zip(paths, ("float32", "int8")):
        path.write_bytes(yolo(dtype)[0])
    return str(paths[0]), str(paths[1])


COMMAND = ["--runs", "4", "--min-secs", "0", "--warmup-secs", "0"]


def test_command_prints_a_table(files):
    result = CliRunner().invoke(main, [*files, *COMMAND])
    assert result.exit_code == 0, result.output
    head, first, second, _, last = result.output.splitlines()
    assert head.split() == ["model", "p50", "ms", "speed-up", "from", "to"]
    assert first.split()[0] == files[0] and first.split()[2:] == ["1.000"] * 3
    assert second.split()[0] == files[1] and len(second.split()) == 5
    assert last.startswith("4 rounds;")


def test_command_writes_json(files, tmp_path):
    result = CliRunner().invoke(main, [*files, *COMMAND, "--json", "-"])
    shown = json.loads(result.output)
    assert shown["rounds"] == 4
    assert [row["model"] for row in shown["models"]] == list(files)
    for row in shown["models"]:
        low, high = row["speedup_interval"]
        assert 0 < low <= high
        assert row["speedup"] == pytest.approx(shown["models"][0]["p50_ms"] / row["p50_ms"], rel=1e-9)
    assert shown["settings"]["threads"] == 1
    assert {"cpu", "load_average_before"} <= shown["environment"].keys()
    target = tmp_path / "found.json"
    assert CliRunner().invoke(main, [*files, *COMMAND, "--json", str(target)]).exit_code == 0
    assert json.loads(target.read_text()).keys() == shown.keys()


def test_command_refuses_in_one_sentence(files, capsys):
    for arguments, words in (
        ([files[0]], "different files are compared, two at least, not"),
        ([files[0], files[1], files[0]], "different files are compared"),
        ([files[0], "lost.tflite"], "cannot read lost.tflite"),
        ([*files, "--json", files[1]], "--json"),
        ([*files, "--min-secs", "nan"], "min_secs is a number"),
    ):
        assert exit_code(main, "alternate", arguments) == 1
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1
    assert Path(files[1]).read_bytes() == yolo("int8")[0]


def test_compare_keeps_the_order_of_files(files):
    backwards = [Path(name) for name in reversed(files)]
    assert [row["model"] for row in compare(backwards, **QUICK)["models"]] == [str(path) for path in backwards]
