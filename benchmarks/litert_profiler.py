"""The process that times each operation by the profiler in LiteRT's own library; op_profile.py starts it.

The wheel's Python interface has no profiler, but its library libLiteRt.so has one in C, which is called here by ctypes.
Its functions are as LiteRT 2.3's headers declare them (litert/c of google-ai-edge/LiteRT), and may become others: every
status is checked, the layout of an event is checked against the bytes that were written, and the sums against the
clock. What does not fit is an error in words; what makes this process die costs the profile alone.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import ai_edge_litert

from benchmarks.child import answer_with
from benchmarks.pinning import pin
from deploy.errors import BackendError

#: How CompiledModel's CPU options name the kernels of our backends.
KERNELS = {"cpu": "xnnpack", "cpu-builtin": "builtin"}

#: Runs before, and of the profile: at least so many and so many seconds.
_WARMUP_RUNS, _RUNS, _SECONDS, _MOST_SECONDS = 3, 10, 1.0, 30.0
_CPU = 1  # kLiteRtHwAcceleratorCpu
_READ_WRITE_LOCK = 1
#: Of an event: an operation of the runtime's own, and one inside a delegate.
_OPERATOR, _DELEGATE_OPERATOR, _DELEGATE_PROFILED = 1 << 1, 1 << 2, 1 << 3
#: What a byte is before the library writes there.
_BLANK = 0xA5
#: More events than this in one run are no events.
_MOST_EVENTS = 1 << 20


class _Event(ctypes.Structure):
    """ProfiledEventData; each memory usage is three numbers of 64 bits."""

    _fields_ = [
        ("tag", c_void_p),
        ("kind", c_int),
        ("start_us", c_uint64),
        ("elapsed_us", c_uint64),
        ("memory", c_int64 * 6),
        ("index", c_uint64),
        ("subgraph", c_uint64),
        ("source", c_int),
    ]


def main() -> int:
    answer_with(lambda settings, _: measure(settings))
    return 0


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Of every operation in the order of execution [name, kind, index, microseconds of each run], and the milliseconds
    of the runs as a whole."""
    if settings["cores"]:
        pin(tuple(settings["cores"]))
    content = Path(settings["model"]).read_bytes()
    library = _library()
    profiler, run = _compiled(library, content, KERNELS[settings["backend"]], settings["threads"])
    for _ in range(_WARMUP_RUNS):
        run()
    runs: list[list[tuple[str, int, int, int]]] = []
    whole: list[float] = []
    begin = time.perf_counter()
    while len(runs) < _RUNS or time.perf_counter() - begin < _SECONDS:
        if runs and time.perf_counter() - begin > _MOST_SECONDS:
            break
        _call(library, "LiteRtResetProfiler", profiler)
        _call(library, "LiteRtStartProfiler", profiler)
        start = time.perf_counter()
        run()
        whole.append((time.perf_counter() - start) * 1e3)
        _call(library, "LiteRtStopProfiler", profiler)
        runs.append(_events(library, profiler))
    operations = _operations(runs, whole)
    if settings["backend"] == "cpu-builtin" and any(where == "delegate" for _, where, _, _ in operations):
        raise BackendError("cpu-builtin delegates nothing, but the profiler tells of a delegate; leave the profile out")
    return {"operations": operations, "whole_ms": whole}


def _operations(runs: list[list[tuple[str, int, int, int]]], whole_ms: list[float]) -> list[list[Any]]:
    """One operation for each place in the runs, which must agree in all but the times."""
    plain = [[event[:3] for event in run] for run in runs]
    if not plain[0] or any(run != plain[0] for run in plain):
        raise BackendError("the profiler tells of the same operations in every run, but here they differ; leave it out")
    for run, whole in zip(runs, whole_ms, strict=True):
        # Rounding to whole microseconds loses up to one of each event, or adds one.
        if sum(event[3] for event in run) / 1e3 > whole + len(run) / 1e3:
            raise BackendError("operations take no longer than the run, but the profiler says so; leave it out")
    return [
        [name, "delegate" if kind != _OPERATOR else "runtime", index, [run[place][3] for run in runs]]
        for place, (name, kind, index) in enumerate(plain[0])
    ]


def _library() -> ctypes.CDLL:
    folder = Path(ai_edge_litert.__file__).parent
    names = ("libLiteRt.so", "libLiteRt.dylib", "libLiteRt.dll")
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise BackendError(f"the profiler lies in {names[0]} of ai-edge-litert, which this installation lacks")
    try:
        return ctypes.CDLL(str(found[0]))
    except OSError as error:
        raise BackendError(f"cannot load {found[0].name} of ai-edge-litert: {error}") from error


def _call(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise BackendError(f"the profiler needs {name}, which this version of ai-edge-litert lacks") from error
    function.restype = c_int
    status = function(*arguments)
    if status:
        raise BackendError(f"the profiler's {name} ended with status {status} of LiteRT, and 0 was expected")


def _compiled(
    library: ctypes.CDLL, content: bytes, kernels: str, threads: int
) -> tuple[c_void_p, Callable[[], None]]:
    """The profiler, and what runs the model once; its objects live as long as this process."""
    environment, model, options, compiled, profiler = (c_void_p() for _ in range(5))
    _kept.append(content)
    _call(library, "LiteRtCreateEnvironment", c_int(0), None, byref(environment))
    _call(
        library, "LiteRtCreateModelFromBuffer", environment, c_char_p(content), c_size_t(len(content)), byref(model)
    )
    _call(library, "LiteRtCreateOptions", byref(options))
    _call(library, "LiteRtSetOptionsHardwareAccelerators", options, c_int(_CPU))
    cpu = f'num_threads = {threads}\nkernel_mode = "{kernels}"\n'
    for key, text in ((b"runtime_options_string", b"enable_profiling = true\n"), (b"xnnpack", cpu.encode())):
        opaque = c_void_p()
        # The library keeps the pointer and would free it: it gets a function that does nothing, and the text stays.
        kept = ctypes.create_string_buffer(text)
        _kept.append(kept)
        _call(library, "LiteRtCreateOpaqueOptions", c_char_p(key), kept, _DO_NOTHING, byref(opaque))
        _call(library, "LiteRtAddOpaqueOptions", options, opaque)
    _call(library, "LiteRtCreateCompiledModel", environment, model, options, byref(compiled))
    _call(library, "LiteRtCompiledModelGetProfiler", compiled, byref(profiler))
    index, subgraph = c_size_t(), c_void_p()
    _call(library, "LiteRtGetMainModelSubgraphIndex", model, byref(index))
    _call(library, "LiteRtGetModelSubgraph", model, index, byref(subgraph))
    inputs = _buffers(library, "Input", environment, compiled, subgraph)
    outputs = _buffers(library, "Output", environment, compiled, subgraph)
    for buffer in inputs:
        _fill(library, c_void_p(buffer))

    def run() -> None:
        sizes = c_size_t(len(inputs)), c_size_t(len(outputs))
        _call(library, "LiteRtRunCompiledModel", compiled, c_size_t(0), sizes[0], inputs, sizes[1], outputs)

    return profiler, run


_DO_NOTHING = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)
#: What the library holds pointers to.
_kept: list[Any] = []


def _buffers(library: ctypes.CDLL, side: str, environment: c_void_p, compiled: c_void_p, subgraph: c_void_p) -> Any:
    """The handles of a buffer for every input or output."""
    count, handles = c_size_t(), []
    _call(library, f"LiteRtGetNumSubgraph{side}s", subgraph, byref(count))
    for place in map(c_size_t, range(count.value)):
        tensor, needs, buffer = c_void_p(), c_void_p(), c_void_p()
        # LiteRtRankedTensorType, which is handed on unread: some 80 bytes.
        kind = ctypes.create_string_buffer(1024)
        _call(library, f"LiteRtGetSubgraph{side}", subgraph, place, byref(tensor))
        _call(library, "LiteRtGetRankedTensorType", tensor, kind)
        _call(
            library, f"LiteRtGetCompiledModel{side}BufferRequirements", compiled, c_size_t(0), place, byref(needs)
        )
        _call(library, "LiteRtCreateManagedTensorBufferFromRequirements", environment, kind, needs, byref(buffer))
        handles.append(buffer)
    return (c_void_p * len(handles))(*handles)


def _fill(library: ctypes.CDLL, buffer: c_void_p) -> None:
    """Sets the input to zeros: how long kernels take depends little on what they compute."""
    memory, size = c_void_p(), c_size_t()
    _call(library, "LiteRtGetTensorBufferPackedSize", buffer, byref(size))
    _call(library, "LiteRtLockTensorBuffer", buffer, byref(memory), c_int(_READ_WRITE_LOCK))
    ctypes.memset(memory, 0, size.value)
    _call(library, "LiteRtUnlockTensorBuffer", buffer)


def _events(library: ctypes.CDLL, profiler: c_void_p) -> list[tuple[str, int, int, int]]:
    """Name, kind, index and microseconds of every operation since the profiler was reset."""
    count = c_int()
    _call(library, "LiteRtGetNumProfilerEvents", profiler, byref(count))
    if not 0 < count.value <= _MOST_EVENTS:
        raise BackendError(f"the profiler tells of 1 to {_MOST_EVENTS} events a run, not of {count.value}")
    size, number = ctypes.sizeof(_Event), count.value
    # Room for events of three times the size, so that another layout shows instead of writing elsewhere.
    memory = (ctypes.c_ubyte * (3 * size * number)).from_buffer(bytearray([_BLANK]) * (3 * size * number))
    _call(library, "LiteRtGetProfilerEvents", profiler, c_int(number), memory)
    # Of the last event the last field, and what lies behind it.
    end, source = size * number, size * (number - 1) + _Event.source.offset
    written = bytes(memory[source : source + _Event.source.size]).strip(bytes([_BLANK]))
    if not written or bytes(memory[end:]).strip(bytes([_BLANK])):
        raise BackendError(f"an event of the profiler has {size} bytes, but this version of ai-edge-litert has others")
    events = ctypes.cast(memory, POINTER(_Event))[:number]
    return [
        (_text(event.tag), event.kind, event.index, event.elapsed_us)
        for event in events
        if event.kind in (_OPERATOR, _DELEGATE_OPERATOR, _DELEGATE_PROFILED)
    ]


def _text(address: int | None) -> str:
    if not address:
        raise BackendError("an event of the profiler has a name, but here it has none")
    return ctypes.string_at(address).decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
