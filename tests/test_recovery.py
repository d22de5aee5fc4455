from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import recovery
from toolchain.recipe import read_recipe


def figures(ratio: float) -> dict[str, Any]:
    return {
        "map_original": 0.7, "map": 0.68,
        "flops": [100e6, 100e6 * ratio], "parameters": [1000, 500],
        "training": {"steps": 580, "best_epoch": 9, "device": "CPU", "precision": "float32", "seconds_per_step": 1.0},
        "epochs": 10,
    }  # fmt: skip


def test_every_recipe_that_it_writes_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[Sequence[str]] = []

    def slimdet(*command: str) -> None:
        commands.append(command)
        read_recipe(command[1], tmp_path)

    monkeypatch.setattr(recovery, "slimdet", slimdet)
    stages = [{"flops": 1, "trainable": 1, "non_trainable": 0}, {"name": "prune", "flops": 1}]
    training = {**figures(1)["training"], "settings": {"epochs": 3}}
    stages.append({"name": "finetune", "flops": 1, "trainable": 1, "non_trainable": 0, "training": training})
    stages[0]["name"] = "load"
    report = {"stages": stages, "files": [{"of": "original", "map": 0.7}, {"of": "float32", "map": 0.6}]}
    monkeypatch.setattr(recovery, "_report", lambda folder: report)
    assert len(recovery.curve(tmp_path, tmp_path, 3)) == len(recovery.STEPS)
    assert list(recovery.objectives(tmp_path, tmp_path, 3)) == list(recovery.OBJECTIVES)
    monkeypatch.setattr(recovery, "alternate", lambda files, **settings: {name: [2.0, 1.0] for name in files})
    monkeypatch.setattr(recovery, "ratio_interval", lambda one, other: (2.5, 2.4, 2.6))
    assert recovery.tiny(tmp_path, tmp_path, 3)["faster"] == 2.5
    assert list(recovery.tiny_objectives(tmp_path, tmp_path, 3)) == list(recovery.OBJECTIVES)
    assert recovery.long(tmp_path, tmp_path, 3)["map"] == 0.6
    assert len(commands) == len(recovery.STEPS) + 2 * len(recovery.OBJECTIVES) + 2
    # Each step goes on in the folder of the one before, where all before it is found again.
    assert len({command[3] for command in commands}) == 3


def test_the_tables_say_points_and_shares() -> None:
    found = {
        "environment": {"cpu": "a cpu", "usable_cores": 2},
        "curve": [figures(0.5)],
        "long": figures(0.4),
        "objectives": {"teacher alone": figures(0.5)},
        "tiny_objectives": {"labels alone": figures(0.3)},
        "tiny": {**figures(1 / 3), "faster": 2.5, "faster_low": 2.4, "faster_high": 2.6},
    }
    text = recovery.as_markdown(found)
    row = "| 50.0 M (0.50) | 500 (0.50) | 70.00 | 68.00 (-2.00) | 580, 9 of 10, CPU |"
    assert f"| MobileNetV2-YOLOv3-Nano {row}" in text and f"| teacher alone {row}" in text
    assert "| MobileNetV2-YOLOv3-Nano | 40.0 M (0.40)" in text and "| labels alone | 30.0 M (0.30)" in text
    assert "33.3 M (0.33)" in text and "2.50 [2.40, 2.60] times faster" in text
