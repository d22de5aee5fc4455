"""Where the real weights and pictures are. Tests that need them are skipped, saying so, where they are missing."""

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
