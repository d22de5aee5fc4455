import statistics
from pathlib import Path

import pytest

from squares import squares_data, toy_graph, write_squares

pytest.importorskip("tensorflow")

from toolchain.step_time import measure  # noqa: E402


@pytest.mark.slow
def test_both_steps_are_timed_in_turns(tmp_path: Path) -> None:
    write_squares(tmp_path, {"train": 12, "val": 1})
    found = measure(toy_graph(tmp_path), squares_data(tmp_path), batch=4, steps=2)
    assert (found["batch"], found["steps_per_turn"]) == (4, 2)
    assert found["finetune_s"] > 0 and found["plain_s"] > 0 and found["pipeline_s"] > 0
    assert found["ratio"] == pytest.approx(found["finetune_s"] / found["plain_s"])
    assert len(found["ratios"]) == 5
    assert min(found["ratios"]) <= statistics.median(found["ratios"]) <= max(found["ratios"])
