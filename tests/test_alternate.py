"""Models in alternation: the rounds, and what runs in them. No test asserts a time."""

from collections.abc import Callable

import numpy as np
import pytest
from tiny_tflite import Builder, postprocess, yolo

from benchmarks.alternate import alternate, in_rounds
from deploy import model_file
from deploy.errors import BackendError, InputError
from deploy.interpreter import Model

QUICK = {"runs": 3, "min_secs": 0.0, "max_secs": 60.0, "warmup_secs": 0.0}


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
    with pytest.raises(BackendError, match="^a: a backend is one of"):
        alternate({"a": yolo()[0]}, backend="abacus", **QUICK)
