"""What benchmark_model prints, as it was in two of its versions."""

import pytest

from benchmarks.benchmark_model import parse
from deploy.errors import DeviceError

OLD = """\
STARTING!
Duplicate flags: num_threads
Min num runs: [50]
Graph: [/data/local/tmp/slimdet/ab.tflite]
Use xnnpack: [1]
Loaded model /data/local/tmp/slimdet/ab.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
Explicitly applied XNNPACK delegate, and the model graph will be partially executed by the delegate w/ 2 delegate kernels.
The input model file size (MB): 1.03
Initialized session in 3.37ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=127 first=4380 curr=3920 min=3875 max=4380 avg=3950.1 std=55

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=258 first=3901 curr=3850 min=3797 max=4108 avg=3869.6 std=27

Inference timings in us: Init: 3370, First inference: 4380, Warmup (avg): 3950.1, Inference (avg): 3869.6
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your discretion.
Memory footprint delta from the start of the tool (MB): init=5.25 overall=7.5
Overall peak memory footprint (MB) via periodic monitoring: 12.75
"""  # noqa: E501
NEW = OLD.replace(
    "max=4108 avg=3869.6 std=27\n", "max=4108 avg=3869.6 std=27 p5=3820 median=3866 p95=3950\n"
).replace("partially executed by the delegate w/ 2 delegate kernels", "completely executed by the delegate")
OWN_LINE = OLD.replace("avg=3869.6 std=27\n", "avg=3869.6 std=27\np5=3820 median=3866 p95=3950\n")


def test_an_older_one_tells_no_percentiles():
    found = parse(OLD, "adb:X")
    assert [found[f"{name}_ms"] for name in ("min", "max", "mean", "std")] == [
        value / 1000 for value in (3797, 4108, 3869.6, 27)
    ]
    assert {found[f"p{rank}_ms"] for rank in (5, 50, 90, 95, 99)} == {"unavailable"}
    assert (found["runs"], found["warmup_runs"]) == (258, 127)
    assert found["measured_s"] == pytest.approx(258 * 3869.6e-6) and found["warmup_s"] == pytest.approx(127 * 3950.1e-6)
    assert (found["init_ms"], found["first_ms"], found["load_ms"], found["allocate_ms"]) == (
        3.37, 4.38, "unavailable", "unavailable",
    )  # fmt: skip
    assert (found["peak_memory_mb"], found["memory_delta_mb"]) == (12.75, {"init": 5.25, "overall": 7.5})
    assert found["delegation"] == {"state": "part", "delegate": "XNNPACK", "kernels": 2}


@pytest.mark.parametrize("text", [NEW, OWN_LINE, NEW.replace("\n", "\r\n")])
def test_a_newer_one_tells_the_median(text):
    found = parse(text, "adb:X")
    assert [found[f"p{rank}_ms"] for rank in (5, 50, 95)] == [3.82, 3.866, 3.95]
    assert (found["p90_ms"], found["p99_ms"], found["runs"]) == ("unavailable", "unavailable", 258)
    assert found["parts"]["invoke"]["p50_ms"] == 3.866 and found["parts"]["total"] == "unavailable"


def test_what_is_missing_is_unavailable():
    kept = [line for line in OLD.splitlines() if not line.startswith(("Overall", "Memory", "Explicitly"))]
    found = parse("\n".join(kept), "adb:X")
    assert {found[key] for key in ("peak_memory_mb", "memory_delta_mb", "delegation")} == {"unavailable"}
    refused = "Though XNNPACK delegate is explicitly applied, the model graph will not be executed by the delegate."
    assert parse("\n".join([refused, *kept]), "adb:X")["delegation"] == {"state": "none"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("STARTING!\nERROR: Failed to mmap model\nBenchmarking failed.\n", "Failed to mmap model"),
        ("", "'nothing'"),
        (OLD.split("Running benchmark for at least 50")[0], "std=55"),
        ("\x1b[31mnot executable: 64-bit ELF file\n", "not executable"),
    ],
)
def test_output_without_timings_is_an_error(text, said):
    with pytest.raises(DeviceError, match="adb:X: benchmark_model prints its timings") as caught:
        parse(text, "adb:X")
    assert said in str(caught.value) and str(caught.value).isprintable()
