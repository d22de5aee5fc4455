"""What the stages of tensorflow-model-optimization are tried on: a few scenes, and a training of seconds."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from run_here import run_here
from toolchain.scenes import write_scenes
from toolchain.training import PictureFolder, Training, TrainingData
from toy_network import SIDE

PICTURES = 16
TRAINING = Training(epochs=2, batch=8, optimizer="sgd", learning_rate=1e-4, clip=10.0, seed=3)


@functools.cache
def data() -> TrainingData:
    folder = Path(tempfile.mkdtemp(prefix="slimdet-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_scenes(folder / "scenes", splits={"train": PICTURES, "val": 4}, seed=0, size=SIDE)
    scenes = folder / "scenes"
    return TrainingData((PictureFolder(scenes, "train"),), (PictureFolder(scenes, "val"),))


def train_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains in this process. tensorflow-model-optimization is imported, and what that does to the environment of other
    tests' processes is undone."""
    import keras  # noqa: F401
    import tensorflow_model_optimization  # noqa: F401

    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    run_here(monkeypatch)
