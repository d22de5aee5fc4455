"""What may import what: the device side stays light whatever the build side pulls in."""

import subprocess
import sys

import pytest

HEAVY = ("tensorflow", "keras", "tf_keras", "tensorly", "pydantic", "yaml", "rich")


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh process has loaded after the statement."""
    code = f"import sys; {statement}; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import deploy, deploy.detector, deploy.cli", "import benchmarks.cli, deploy.cli"]
)
def test_device_side_loads_nothing_of_the_build_side(statement: str) -> None:
    loaded = modules_after(statement)
    assert "deploy" in loaded
    assert not loaded & {*HEAVY, "toolchain"}


def test_deploy_loads_neither_benchmarks_nor_toolchain() -> None:
    assert not modules_after("import deploy, deploy.detector, deploy.cli") & {"benchmarks", "toolchain"}


def test_the_command_line_starts_without_tensorflow() -> None:
    loaded = modules_after("import toolchain.cli")
    assert "toolchain" in loaded
    assert not loaded & set(HEAVY)
