"""Opens models on a backend in a process of its own, which may die: `python open_child.py BACKEND FILE…`.

One line of JSON a file on standard output: {"error": class, "message": …}, or {"delegated": …, "words": …} where it ran
on `example`'s inputs; its outputs are then in FILE.npz, those of a second invoke in FILE.again.npz.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deploy.contract import Tensor
from deploy.errors import SlimdetError

ROOT = Path(__file__).parents[1]


def example(tensors: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Always the same inputs: 0 to 1, or all values of 8 bits, or 0 to 9."""
    generator, found = np.random.default_rng(0), {}
    for tensor in tensors:
        if tensor.dtype.startswith("float"):
            found[tensor.name] = generator.random(tensor.shape).astype(tensor.dtype)
        elif tensor.dtype.endswith("int8"):
            found[tensor.name] = generator.integers(0, 256, tensor.shape, np.uint8).view(tensor.dtype)
        else:
            found[tensor.name] = generator.integers(0, 10, tensor.shape).astype(tensor.dtype)
    return found


def opened(
    backend: str, files: Sequence[Path], changes: Mapping[str, str] | None = None
) -> tuple[list[dict], subprocess.CompletedProcess[str]]:
    """What the child says of each file, and how it ended. changes: of its environment."""
    done = child(["tests/open_child.py", backend, *map(str, files)], changes)
    return [json.loads(line) for line in done.stdout.splitlines()], done


def child(arguments: Sequence[str], changes: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Python with the arguments, in the repository's root."""
    variables = {**os.environ, **(changes or {})}
    paths = [(changes or {}).get("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return subprocess.run(
        [sys.executable, *arguments], env=variables, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def tell(backend: str, file: Path) -> dict:
    from deploy.open_model import open_model

    try:
        model = open_model(file.read_bytes(), backend)
        first = model.run(example(model.inputs))
        np.savez(f"{file}.npz", **first)
        model.invoke()
        np.savez(f"{file}.again.npz", **model.run(example(model.inputs)))
    except SlimdetError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"delegated": model.delegated.as_json(), "words": str(model.delegated), "nodes": model.delegated.nodes}


if __name__ == "__main__":
    for path in sys.argv[2:]:
        print(json.dumps(tell(sys.argv[1], Path(path))), flush=True)
