"""A stage's code version changes with everything that the stage can run, and with nothing else."""

import importlib.util
import sys
from pathlib import Path

import pytest

from toolchain import build, code_version, stages

STAGE = '''
from deploy import used_above

LIMIT = 3

def stage(work):
    """Runs."""
    import numpy
    from toolchain.followed import answer
    return answer() + inner() + LIMIT

def inner():
    return run("toolchain.child:main")

def other():
    import toolchain.unrelated
'''
FILES = {
    "toolchain/__init__.py": "",
    "toolchain/followed.py": "from toolchain.deeper import number\ndef answer(): return number\n",
    "toolchain/deeper.py": "import cv2\nnumber = 1\n",
    "toolchain/child.py": "def main(): import keras\n",
    "toolchain/unrelated.py": "import tensorflow\n",
    "deploy/__init__.py": "",
    "deploy/used_above.py": "",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(code_version, "_ROOT", tmp_path)
    for function in (code_version._imports_of_file, code_version._file_of):
        monkeypatch.setattr(code_version, function.__name__, function.__wrapped__)
    return tmp_path


def version(root: Path, text: str = STAGE) -> tuple[str, dict[str, str]]:
    path = root / "stage_module.py"
    path.write_text("def stage(work): pass")
    spec = importlib.util.spec_from_file_location("stage_module", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Its imports are never run: only their text counts.
    path.write_text(text)
    sys.modules["stage_module"] = module
    try:
        return code_version.code_version.__wrapped__(module.stage)
    finally:
        del sys.modules["stage_module"]


@pytest.mark.parametrize("changed", ["toolchain/followed.py", "toolchain/deeper.py", "toolchain/child.py"])
def test_follows_imports_inside_functions_and_modules_named_in_strings(root: Path, changed: str) -> None:
    before = version(root)[0]
    (root / changed).write_text(FILES[changed] + "# changed\n")
    assert version(root)[0] != before


@pytest.mark.parametrize("changed", ["toolchain/unrelated.py", "deploy/used_above.py"])
def test_what_the_stage_does_not_use_does_not_count(root: Path, changed: str) -> None:
    before = version(root)[0]
    (root / changed).write_text(FILES[changed] + "# changed\n")
    assert version(root)[0] == before


def test_its_own_module_counts_as_far_as_it_is_used(root: Path) -> None:
    before = version(root)[0]
    assert version(root, STAGE.replace("LIMIT = 3", "LIMIT = 4"))[0] != before
    assert version(root, STAGE.replace("return run(", "return 1 + run("))[0] != before
    assert version(root, STAGE.replace("import toolchain.unrelated", "pass"))[0] == before


def test_libraries_of_others_count_with_their_versions(root: Path) -> None:
    libraries = version(root)[1]
    assert set(libraries) == {"numpy", "cv2", "keras"}
    assert libraries["numpy"][0].isdigit()
    assert libraries["cv2"][0].isdigit()


def test_real_stages_depend_on_the_libraries_that_they_run() -> None:
    libraries = {stage.name: set(code_version.code_version(stage.run)[1]) for stage in build.STAGES}
    assert "tensorflow" in libraries["convert"]
    assert {"litert_quantizer", "ai_edge_litert", "cv2"} <= libraries["quantize"]
    assert "hotcoco" in libraries["benchmark"]
    assert "tensorflow" not in libraries["benchmark"] | libraries["report"]


def test_real_code_version_is_the_same_again() -> None:
    function = code_version.code_version.__wrapped__
    assert function(stages.convert) == function(stages.convert)
    assert function(stages.convert)[0] != function(stages.quantize)[0]
