from pathlib import Path

import numpy as np
import pytest

from deploy.errors import InputError
from squares import toy_graph
from toolchain import checkpoint


def test_a_state_comes_back(tmp_path: Path) -> None:
    arrays = [np.float32([[1, 2], [3, 4]]), np.int64(7), np.arange(3, dtype=np.uint32)]
    facts = {"step": 3, "history": [{"loss": 1.5}], "best": {}, "ended": "für immer"}
    checkpoint.save_state(tmp_path, arrays, facts)
    state = checkpoint.load_state(tmp_path)
    assert state is not None
    found, told = state
    assert told == facts == checkpoint.told(tmp_path)
    for one, other in zip(found, arrays, strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_a_newer_state_takes_the_olders_place(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save_state(tmp_path, [np.float32(step)], {"step": step})
    assert checkpoint.load_state(tmp_path) == ([np.float32(2)], {"step": 2})


def test_a_write_that_fails_leaves_the_older_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save_state(tmp_path, [np.float32(1)], {"step": 1})

    def full(file: object, **arrays: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_state(tmp_path, [np.float32(2)], {"step": 2})
    assert checkpoint.told(tmp_path) == {"step": 1}


def test_nothing_is_there_before_the_first(tmp_path: Path) -> None:
    assert checkpoint.load_state(tmp_path) is None
    assert checkpoint.told(tmp_path) is None
    assert checkpoint.load_best(tmp_path) is None


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_damaged_state_is_refused(tmp_path: Path, kept: int) -> None:
    checkpoint.save_state(tmp_path, [np.zeros(100, np.float32)], {"step": 1})
    content = (tmp_path / "state.npz").read_bytes()
    (tmp_path / "state.npz").write_bytes(content[:kept])
    with pytest.raises(InputError, match="state.npz is damaged"):
        checkpoint.load_state(tmp_path)


def test_a_pickle_in_its_place_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "state.npz", facts=np.array([{"step": 1}], object), v0=np.zeros(1))
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load_state(tmp_path)


def test_the_best_graph_comes_back(tmp_path: Path) -> None:
    graph = toy_graph(tmp_path)
    checkpoint.save_best(tmp_path, graph)
    best = checkpoint.load_best(tmp_path)
    assert best is not None
    for one, other in zip(best.nodes, graph.nodes, strict=True):
        assert one.name == other.name
        assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)
