"""What a device has to be, and what it is given. The installation itself: test_ssh_device.py."""

import ast
from pathlib import Path

import pytest

import benchmarks
from benchmarks import device_install
from benchmarks.device_install import check_machine, package_files, platforms, requirements
from deploy.errors import DeviceError

GOOD = {
    "python": [3, 11, 2], "executable": "/usr/bin/python3", "machine": "aarch64", "system": "Linux",
    "libc": "glibc 2.36", "venv": True, "missing": ["cv2"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"python": [3, 9, 2]}, "needs Python 3.11 or newer: /usr/bin/python3 there is 3.9.2"),
        ({"machine": "armv7l with a 32-bit Python"}, "it is Linux on armv7l with a 32-bit Python; install a 64-bit"),
        ({"machine": "aarch64 with a 32-bit Python"}, "install a 64-bit system"),
        ({"machine": "riscv64"}, "Linux on x86_64 or aarch64; Darwin on arm64"),
        ({"system": "FreeBSD"}, "it is FreeBSD"),
        ({"venv": False}, "apt install python3-venv"),
        ({"libc": ""}, "wheels need glibc"),
    ],
)
def test_each_lack_has_its_own_sentence(changed, said):
    with pytest.raises(DeviceError, match="^ssh:pi: ") as caught:
        check_machine("ssh:pi", {**GOOD, **changed}, None)
    assert said in str(caught.value)


def test_a_named_interpreter_only_has_to_have_everything():
    check_machine("ssh:pi", GOOD, None)
    check_machine("ssh:pi", {**GOOD, "missing": [], "machine": "riscv64", "venv": False, "libc": ""}, "/opt/python")
    with pytest.raises(DeviceError, match="/opt/python lacks cv2"):
        check_machine("ssh:pi", GOOD, "/opt/python")


def test_platforms_are_those_that_the_devices_glibc_loads():
    found = platforms(GOOD)
    assert found[0] == "manylinux_2_36_aarch64" and found[-2:] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]
    assert len(found) == 36 - 17 + 1 + 1


def test_the_package_is_whole():
    files = package_files()
    for name in ("deploy/__init__.py", "deploy/detector.py", "benchmarks/__main__.py", "benchmarks/latency_child.py"):
        assert files[name].is_file()
    assert not [name for name in files if "__pycache__" in name or name.startswith("toolchain")]
    # What it imports of ours is in it.
    for path in files.values():
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text())):
                module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
                if module.startswith(("deploy.", "benchmarks.")):
                    assert f"{module.replace('.', '/')}.py" in files, (path, module)


def test_requirements_are_those_of_the_device_side(monkeypatch):
    assert [line for line in requirements() if line.startswith("ai-edge-litert")]
    assert not [line for line in requirements() if "tensorflow" in line]
    monkeypatch.setattr(device_install.metadata, "requires", _not_installed)
    with pytest.raises(DeviceError, match="pip install ."):
        requirements()


def _not_installed(name):
    raise device_install.metadata.PackageNotFoundError(name)


def test_the_oldest_python_is_that_of_the_package():
    setup = (Path(benchmarks.__file__).parents[1] / "setup.cfg").read_text()
    assert "python_requires = >=" + ".".join(map(str, device_install.LEAST_PYTHON)) in setup
