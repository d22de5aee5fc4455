"""The profile of operations: from the runtime where it can be had, and its absence in words."""

import ctypes

import pytest
from toy_detector import write_toy

from benchmarks import litert_profiler, op_profile
from benchmarks.op_profile import profile, summary
from deploy.errors import BackendError


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("model") / "toy.tflite")


def test_kinds_are_summed_and_sorted():
    operations = [
        ("CONV_2D", "runtime", 0, [1000, 3000, 2000]),
        ("Add", "delegate", 0, [7000, 7000, 7000]),
        ("CONV_2D", "runtime", 1, [1000, 1000, 90_000]),
    ]
    found = summary(operations, [11.0, 12.0, 99.0])
    assert (found["runs"], found["run_ms"]) == (3, 12.0)
    assert found["ops"] == [
        {"op": "Add", "where": "delegate", "count": 1, "ms": 7.0, "share": 0.7},
        {"op": "CONV_2D", "where": "runtime", "count": 2, "ms": 3.0, "share": pytest.approx(0.3)},
    ]
    assert [(row["op"], row["index"], row["ms"]) for row in found["operations"]] == [
        ("CONV_2D", 0, 2.0),
        ("Add", 0, 7.0),
        ("CONV_2D", 1, 1.0),
    ]


def test_operations_that_take_no_time_have_no_share():
    assert summary([("Add", "runtime", 0, [0])], [1.0])["ops"][0]["share"] == 0


@pytest.mark.parametrize(("backend", "where"), [("cpu", "delegate"), ("cpu-builtin", "runtime")])
def test_of_a_real_model(toy, backend, where):
    """This wheel has the profiler; should another not, the text says what is missing, and nothing else fails."""
    found = profile(toy, backend=backend)
    if isinstance(found, str):
        assert found.startswith("unavailable: ") and len(found) > 40
        pytest.skip(f"this runtime's profiler cannot be used: {found}")
    assert sum(kind["share"] for kind in found["ops"]) == pytest.approx(1) or found["ops"][0]["ms"] == 0
    assert {row["where"] for row in found["operations"]} == {where}
    assert found["runs"] >= 10
    if backend == "cpu-builtin":
        assert [row["op"] for row in found["operations"]] == ["AVERAGE_POOL_2D", *["CONV_2D"] * 4]
        assert [row["index"] for row in found["operations"]] == [0, 1, 2, 3, 4]


def test_other_backends_and_broken_files_are_unavailable_with_the_reason(toy, tmp_path):
    assert profile(toy, backend="cpu-reference").startswith("unavailable: operations are timed on cpu, cpu-builtin")
    half = tmp_path / "half.tflite"
    half.write_bytes(toy.read_bytes()[:100])
    assert profile(half).startswith("unavailable: ")


def test_a_profiler_that_kills_its_process_costs_the_profile_alone(toy, monkeypatch):
    def dies(module, settings, remedy):
        raise BackendError("it is measured in a process of its own, which was ended by SIGSEGV; " + remedy)

    monkeypatch.setattr(op_profile, "run_child", dies)
    assert profile(toy) == (
        "unavailable: it is measured in a process of its own, which was ended by SIGSEGV; the latency stands without it"
    )


def test_runs_that_differ_or_take_longer_than_the_clock_are_refused():
    one, other = [("Add", 8, 0, 5)], [("Mul", 8, 0, 5)]
    assert litert_profiler._operations([one, one], [1.0, 1.0]) == [["Add", "delegate", 0, [5, 5]]]
    for runs in ([one, other], [one, one + other], [[], []]):
        with pytest.raises(BackendError, match="same operations in every run"):
            litert_profiler._operations(runs, [1.0] * len(runs))
    with pytest.raises(BackendError, match="no longer than the run"):
        litert_profiler._operations([[("Add", 8, 0, 5000)]], [1.0])


class Library:
    """Stands in for libLiteRt.so: writes events of any size."""

    def __init__(self, size: int) -> None:
        self.size = size

    def LiteRtGetNumProfilerEvents(self, profiler, count) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def LiteRtGetProfilerEvents(self, profiler, count, memory) -> int:  # noqa: N802
        ctypes.memset(memory, 0, self.size * count.value)
        return 0


def _library(size: int) -> object:
    library = Library(size)
    for name in ("LiteRtGetNumProfilerEvents", "LiteRtGetProfilerEvents"):
        method = getattr(library, name)
        # A ctypes function takes a restype; a bound method does not.
        setattr(library, name, type("Function", (), {"__call__": lambda self, *a, method=method: method(*a)})())
    return library


@pytest.mark.parametrize("difference", [-16, 16])
def test_another_layout_of_events_is_noticed(difference):
    size = ctypes.sizeof(litert_profiler._Event)
    assert litert_profiler._events(_library(size), ctypes.c_void_p()) == []
    with pytest.raises(BackendError, match=f"has {size} bytes"):
        litert_profiler._events(_library(size + difference), ctypes.c_void_p())


def test_a_missing_function_is_named():
    with pytest.raises(BackendError, match="needs LiteRtNothing, which this version"):
        litert_profiler._call(ctypes.CDLL(None), "LiteRtNothing")
