"""Conversion: what the .tflite holds, that it is the same each time, and that a failure leaves the old file."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toy_network import LABELS, SIDE, converted, toy_graph, write_pictures

from deploy.errors import ConversionError, GraphError, InputError
from deploy.interpreter import Model
from toolchain import child_process
from toolchain.convert import convert

_ROOT = Path(__file__).parents[1]
#: Channels of each output of the toy: anchors times what a role holds.
CHANNELS = {"xy": 2 * 2, "wh": 2 * 2, "objectness": 2 * 1, "classes": 2 * len(LABELS)}

#: int8 in its other forms: test_quantize.py.
_PRECISIONS = ("float32", "float16", "dynamic", "int8")


def _operations(content: bytes) -> tuple[list[str], list[tuple[int, ...]]]:
    """Names of the file's operations, and shapes of all its tensors."""
    from ai_edge_litert.tools.flatbuffer_utils import opcode_to_name, read_model_from_bytearray

    model = read_model_from_bytearray(bytearray(content))
    (subgraph,) = model.subgraphs
    names = [opcode_to_name(model, operator.opcodeIndex) for operator in subgraph.operators]
    return names, [tuple(tensor.shape) for tensor in subgraph.tensors if tensor.shape is not None]


@pytest.mark.parametrize("precision", _PRECISIONS)
def test_inputs_and_outputs_stand_under_their_names(precision: str) -> None:
    model = Model((converted() / f"{precision}.tflite").read_bytes())
    dtype = "int8" if precision == "int8" else "float32"
    (image,) = model.inputs
    assert (image.name, image.shape, image.dtype) == ("image", (1, SIDE, SIDE, 3), dtype)
    expected = {
        f"{role}_{stride}": ((1, SIDE // stride, SIDE // stride, channels), dtype)
        for stride in (16, 8)
        for role, channels in CHANNELS.items()
    }
    assert {tensor.name: (tensor.shape, tensor.dtype) for tensor in model.outputs} == expected


def test_the_float_file_holds_few_plain_operations() -> None:
    names, shapes = _operations((converted() / "float32.tflite").read_bytes())
    # Batch norms, ReLU6, Dropout and the linear activation have left no operation; SiLU is LOGISTIC and MUL.
    convolutions = 5 + 2 * 4
    expected = ["CONV_2D"] * convolutions + ["DEPTHWISE_CONV_2D", "PAD", "LEAKY_RELU", "LOGISTIC", "MUL", "ADD"]
    expected += ["MAX_POOL_2D", "RESIZE_NEAREST_NEIGHBOR", "CONCATENATION"]
    assert sorted(names) == sorted(expected)
    assert max(len(shape) for shape in shapes) == 4


@pytest.mark.parametrize("precision", _PRECISIONS)
def test_xnnpack_takes_all_but_the_resize(precision: str) -> None:
    content = (converted() / f"{precision}.tflite").read_bytes()
    delegated = Model(content).delegated
    assert delegated.total - delegated.nodes == 1


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    """Also without the float file, and in a folder of another name."""
    pictures = sorted((converted() / "pictures").iterdir())
    convert(toy_graph(), "int8", tmp_path / "again.tflite", pictures=pictures)
    assert (tmp_path / "again.tflite").read_bytes() == (converted() / "int8.tflite").read_bytes()


def test_the_notes_reach_the_caller(tmp_path: Path) -> None:
    found = convert(toy_graph(), "float16", tmp_path / "m.tflite", float_file=converted() / "float32.tflite")
    assert any(note.startswith("up: one resize") for note in found.notes)
    assert (tmp_path / "m.tflite").read_bytes() == (converted() / "float16.tflite").read_bytes()


def test_a_precision_is_one_of_six(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="float16, dynamic, int8, int8_float_head, int8_mixed, not 'int4'"):
        convert(toy_graph(), "int4", tmp_path / "m.tflite")


def test_int8_without_pictures_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs calibration pictures: none were given"):
        convert(toy_graph(), "int8", tmp_path / "m.tflite", float_file=converted() / "float32.tflite")


def _dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a step that dies of SIGSEGV in the place of every step."""
    real = child_process.run

    def run(_: str, __: Any, place: Path, *, step: str) -> Any:
        return real("ctypes:string_at", {"ptr": 0}, place, step=step)

    monkeypatch.setattr(child_process, "run", run)


def test_a_converter_that_dies_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    destination = tmp_path / "m.tflite"
    destination.write_bytes(b"old")
    _dying(monkeypatch)
    with pytest.raises(ConversionError, match="conversion of 'toy' to float32 died of signal SIGSEGV"):
        convert(toy_graph(), "float32", destination)
    with pytest.raises(ConversionError, match="quantization of float32.tflite to float16 died of signal SIGSEGV"):
        convert(toy_graph(), "float16", destination, float_file=converted() / "float32.tflite")
    assert destination.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.tflite"]


def test_a_layer_that_keras_refuses_is_named(tmp_path: Path) -> None:
    graph = toy_graph()
    nodes = tuple(
        dataclasses.replace(node, attributes={"activation": "unheard"}) if node.name == "shaped" else node
        for node in graph.nodes
    )
    with pytest.raises(GraphError, match="shaped"):
        convert(dataclasses.replace(graph, nodes=nodes), "float32", tmp_path / "m.tflite")
    assert os.listdir(tmp_path) == []


def test_a_destination_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    float_file = converted() / "float32.tflite"
    with pytest.raises(InputError, match="cannot write"):
        convert(toy_graph(), "float16", tmp_path / "missing" / "m.tflite", float_file=float_file)
    (tmp_path / "folder.tflite").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        convert(toy_graph(), "float16", tmp_path / "folder.tflite", float_file=float_file)
    assert os.listdir(tmp_path) == ["folder.tflite"]


_CONVERT = """
import resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from pathlib import Path
from toolchain.convert import convert
from toy_network import toy_graph
print("go", flush=True)
convert(toy_graph(), "float16", Path({destination!r}), float_file=Path({float_file!r}))
"""


def _converting(destination: Path, limit: int = 0) -> subprocess.Popen[str]:
    """A process that quantizes the toy to a file, with file sizes limited to so many bytes."""
    code = _CONVERT.format(
        root=str(_ROOT),
        tests=str(_ROOT / "tests"),
        limit=limit,
        destination=str(destination),
        float_file=str(converted() / "float32.tflite"),
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on file sizes fails as a full disk does: in the middle of a write."""
    destination = tmp_path / "m.tflite"
    destination.write_bytes(b"old")
    process = _converting(destination, limit=(converted() / "float16.tflite").stat().st_size // 2)
    _, noise = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "File too large" in noise and "ConversionError" in noise
    assert destination.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.tflite"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_end_at_any_moment_leaves_the_old_file(tmp_path: Path, how: signal.Signals) -> None:
    destination = tmp_path / "m.tflite"
    destination.write_bytes(b"old")
    for delay in (0.0, 0.4):
        process = _converting(destination)
        assert process.stdout is not None and process.stdout.readline() == "go\n"
        time.sleep(delay)
        process.send_signal(how)
        process.communicate(timeout=120)
        # The whole new file, where it was faster than the signal.
        assert destination.read_bytes() in (b"old", (converted() / "float16.tflite").read_bytes())
        # Nobody can clear away after SIGKILL; what it may leave has a name that nobody takes for a model.
        others = [name for name in os.listdir(tmp_path) if name != "m.tflite"]
        assert all(how == signal.SIGKILL and name.endswith(".part") for name in others)


def test_pictures_are_written_in_a_fixed_way(tmp_path: Path) -> None:
    """The toy's pictures are part of what the bytes depend on."""
    first, second = write_pictures(tmp_path / "a"), write_pictures(tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
