"""Where the real weights and pictures are: tests that need them are skipped, saying so, where they are missing. And
what keeps one module's leavings from disturbing the next."""

import gc
import os
from pathlib import Path

import pytest

_FOLDER = Path(os.environ.get("SLIMDET_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real weights (weights/), VOC pictures (voc2007/), others' .tflite files (tflite/), videos (video/)."""
    if not (_FOLDER / "weights").is_dir():
        pytest.skip(f"no real data: {_FOLDER} is missing; set SLIMDET_DATA to its folder")
    return _FOLDER


@pytest.fixture(scope="module", autouse=True)
def _short_pauses() -> None:
    """What earlier modules have left (TensorFlow's graphs: a million objects) is not looked at again.

    Collecting it takes up to two seconds, in which no thread runs: servers that tests start in threads then answer too
    late, and a feed takes them for dead.
    """
    gc.collect()
    gc.freeze()
