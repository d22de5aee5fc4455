"""The settings under which a process finds a software GPU. Tests that need one are skipped, saying why, without."""

import functools
import subprocess
import tempfile
from pathlib import Path

import open_child
import pytest
import tiny_tflite

_SCRIPT = open_child.ROOT / ".ci" / "software_gpu"


def settings() -> dict[str, str]:
    """Environment variables for a child; skips the test where there is no GPU."""
    found = _found()
    if isinstance(found, str):
        pytest.skip(f"no software GPU: {found}")
    return found


@functools.cache
def _found() -> dict[str, str] | str:
    """The variables, or why there are none. A GPU counts when it computes a model."""
    folder = Path(tempfile.mkdtemp(prefix="slimdet-test-gpu-"))
    try:
        done = subprocess.run(
            [str(_SCRIPT), str(folder), "--installed"], capture_output=True, text=True, timeout=60, check=False
        )
    except OSError as error:
        return f"{_SCRIPT} does not run here ({error})"
    if done.returncode:
        return done.stderr.strip()
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines())
    (folder / "dots.tflite").write_bytes(tiny_tflite.yolo()[0])
    told, trial = open_child.opened("gpu", [folder / "dots.tflite"], variables)
    if not told:
        return f"a process that opened one ended with {trial.returncode}: {trial.stderr.strip()[-200:]}"
    return variables if "error" not in told[0] else told[0]["message"]
