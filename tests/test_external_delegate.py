"""A delegate of our own, compiled here, in processes of its own, since a delegate may end them."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import open_child
import pytest
import tiny_tflite
import toy_detector
from ai_edge_litert import schema_py_generated as schema

from deploy.backend import Backend
from deploy.errors import BackendError
from deploy.external_delegate import load
from deploy.interpreter import Model

SOURCE = Path(__file__).with_name("one_op_delegate.c")


@pytest.fixture(scope="session")
def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("no C compiler: neither cc, gcc nor clang is installed")
    return found


@pytest.fixture(scope="session")
def library(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(compiler, SOURCE, tmp_path_factory.mktemp("delegate") / "one op.so")


def built(compiler: str, source: Path, library: Path) -> Path:
    command = [compiler, "-std=c11", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", str(source), "-o", str(library)]
    subprocess.run([*command, "-lm"], check=True)
    return library


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """ADD of the input to itself, LOGISTIC, and both again."""
    builder = tiny_tflite.Builder()
    tensors = [builder.tensor(name, (1, 2, 2, 3)) for name in ("image", "double", "curve", "again", "end")]
    for place, name in enumerate(("ADD", "LOGISTIC", "ADD", "LOGISTIC")):
        inputs = tensors[place : place + 1] * (2 if name == "ADD" else 1)
        options = schema.AddOptionsT() if name == "ADD" else None
        builder.operation(name, inputs, [tensors[place + 1]], options)
    path = tmp_path / "network.tflite"
    path.write_bytes(builder.finish({"image": tensors[0]}, {"end": tensors[-1]}))
    return path


def logistic(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def computed(path: Path) -> np.ndarray:
    return np.load(f"{path}.npz")["end"]


def test_it_computes_what_it_claimed_and_the_rest_is_told(library: Path, network: Path) -> None:
    told, done = open_child.opened(f"delegate:{library}", [network])
    assert done.returncode == 0, done.stderr
    assert told[0]["nodes"] == 2
    assert told[0]["delegated"] == {
        "state": "part",
        "left": [{"op": "LOGISTIC", "count": 2, "reason": "unavailable"}],
        "adapter": None,
        "software": None,
    }
    picture = open_child.example(Model(network.read_bytes()).inputs)["image"]
    np.testing.assert_allclose(computed(network), logistic(2 * logistic(2 * picture)), rtol=1e-5)


def test_its_options_arrive(library: Path, network: Path) -> None:
    told, _ = open_child.opened(f"delegate:{library}?op=LOGISTIC&offset=0.5", [network])
    assert told[0]["delegated"]["left"] == [{"op": "ADD", "count": 2, "reason": "unavailable"}]
    picture = open_child.example(Model(network.read_bytes()).inputs)["image"]
    expected = logistic(2 * (logistic(2 * picture) + 0.5)) + 0.5
    np.testing.assert_allclose(computed(network), expected, rtol=1e-5)


def test_a_file_of_which_it_claims_nothing_is_told_as_such(library: Path, tmp_path: Path) -> None:
    path = tmp_path / "dots.tflite"
    path.write_bytes(tiny_tflite.yolo()[0])
    told, _ = open_child.opened(f"delegate:{library}", [path])
    assert (told[0]["nodes"], told[0]["delegated"]["state"]) == (0, "none")
    assert told[0]["words"] == "0 of 4 nodes; left: CONV_2D x4"


def test_a_refusal_is_told_in_its_own_words(library: Path, network: Path) -> None:
    told, _ = open_child.opened(f"delegate:{library}?refuse=no such chip", [network])
    assert told[0]["error"] == "BackendError"
    assert "refused refuse=no such chip, and said: no such chip" in told[0]["message"]
    told, _ = open_child.opened(f"delegate:{library}?colour=red", [network])
    assert "refused colour=red, and said: unknown option" in told[0]["message"]


def test_a_node_that_fails_is_an_error_and_no_result(library: Path, network: Path) -> None:
    told, _ = open_child.opened(f"delegate:{library}?fail=yes", [network])
    assert told[0]["error"] == "BackendError"
    assert "failed on this input" in told[0]["message"]
    assert not Path(f"{network}.npz").exists()


def test_a_delegate_that_fails_on_a_file_is_an_error(library: Path, network: Path) -> None:
    told, _ = open_child.opened(f"delegate:{library}?fail=early", [network])
    assert told[0]["error"] == "BackendError"
    assert f"the delegate {library} failed on this file" in told[0]["message"]
    assert not Path(f"{network}.npz").exists()


def test_libraries_that_are_missing_or_none_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("no library")
    for path in (text, tmp_path / "missing.so", tmp_path):
        with pytest.raises(BackendError, match="a delegate is a shared library of this machine's kind") as caught:
            load(Backend("delegate", path=str(path)))
        assert str(path) in str(caught.value)


def test_a_library_without_the_functions_is_refused(compiler: str, tmp_path: Path) -> None:
    source = tmp_path / "other.c"
    source.write_text("int other(void) { return 1; }\n")
    library = built(compiler, source, tmp_path / "other.so")
    with pytest.raises(BackendError, match="has the function tflite_plugin_create_delegate, which .*other.so lacks"):
        load(Backend("delegate", path=str(library)))


def test_damaged_content_is_blamed_on_the_file(library: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.tflite"
    path.write_bytes(tiny_tflite.yolo()[0][:200])
    told, _ = open_child.opened(f"delegate:{library}", [path])
    assert told[0]["error"] == "InputError"
    assert "damaged or cut short" in told[0]["message"]


def test_detect_and_latency_take_it(library: Path, tmp_path: Path) -> None:
    model = toy_detector.write_toy(tmp_path / "toy.tflite")
    command = ["-m", "benchmarks", "latency", str(model), "--runs", "2", "--min-secs", "0", "--warmup-min-secs", "0"]
    done = open_child.child([*command, "--backend", f"delegate:{library}?op=ADD"])
    assert done.returncode == 0, done.stderr
    assert "0 of 5 nodes; left: AVERAGE_POOL_2D x1, CONV_2D x4" in done.stdout
    done = open_child.child([*command, "--backend", "delegate:/nowhere.so"])
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "/nowhere.so cannot be loaded" in done.stderr
