"""Why the GPU's runtime would not compile a file, read from what it wrote to standard error, and what to do."""

from __future__ import annotations

import re
from collections import Counter

from deploy.delegated import Left, listed
from deploy.errors import BackendError

NO_LIBRARY = (
    "backend gpu needs LiteRT's GPU library (libLiteRtWebGpuAccelerator on Linux), which this machine's ai-edge-litert "
    "does not have or cannot load; install ai-edge-litert anew, or choose cpu"
)

_LIST = re.compile(r"Following operations are not supported by GPU delegate:\n((?:(?!No |\d).*\n)*)")
_CUSTOM = "CUSTOM "
_POSTPROCESS = "TFLite_Detection_PostProcess"
_NARROW_TYPES = re.compile(r"Tensor type\((INT64|INT16|UINT64|UINT16|FLOAT64)\)")
#: The runtime compiles such nodes and warns, and what they then compute was seen to be far off.
_WRONG_SHAPE = re.compile(r"Shape mismatch in GpuModelBuilder\S* ?\(output of ([^)(]+)")


def refusal(backend: str, said: str, failed: Exception | None, nodes: int) -> BackendError | None:
    """The error for what the runtime said and raised while it compiled a file of so many nodes; None where all is
    well."""
    if failed is None:
        wrong = Counter(_WRONG_SHAPE.findall(said))
        return BackendError(_wrong_shapes(backend, wrong)) if wrong else None
    if "Couldn't load Vulkan" in said:
        return BackendError(
            f"backend {backend} needs the Vulkan loader, which this machine lacks; install it (libvulkan1 on Debian "
            "and Ubuntu) and the driver of your GPU, or choose cpu"
        )
    if "No adapters found" in said or "Failed to initialize WebGPU environment" in said:
        return BackendError(
            f"backend {backend} needs a GPU with a driver, and none was found ({_driver_words(said)}); install your "
            "GPU's Vulkan driver, name its .json in VK_DRIVER_FILES where it lies elsewhere, or choose cpu"
        )
    left = refused_nodes(said)
    if left:
        return BackendError(_refused(backend, left, nodes))
    if "dynamic-sized tensors" in said:
        return BackendError(
            f"backend {backend} needs fixed shapes, but a tensor of this file gets its shape when it runs; convert the "
            "model with a fixed input shape, or choose cpu"
        )
    if "modify graph" in str(failed):  # of shapes it tells once a process
        return BackendError(
            f"backend {backend} cannot compile this file, and tells no reason; where a tensor gets its shape when it "
            "runs, convert the model with a fixed input shape, and else choose cpu"
        )
    return BackendError(
        f"backend {backend} cannot compile this file ({_last_error(said) or last_line(str(failed))}); choose cpu"
    )


def refused_nodes(said: str) -> tuple[Left, ...]:
    """The nodes that the runtime lists as refused, by type and reason."""
    found = _LIST.search(said)
    if not found:
        return ()
    reasons: Counter[tuple[str, str | None]] = Counter()
    for line in filter(None, (line.strip() for line in found[1].splitlines())):
        op, _, reason = line.removeprefix(_CUSTOM).partition(": ")
        # What follows the sentence is the tensor's name. Of a custom operation the name alone is repeated.
        sentence = reason.partition(". ")[0].strip()
        reasons[op, sentence if sentence and sentence != op else None] += 1
    return tuple(Left(op, count, reason) for (op, reason), count in reasons.items())


def _refused(backend: str, left: tuple[Left, ...], nodes: int) -> str:
    count, names = sum(one.count for one in left), {one.op for one in left}
    law = f"backend {backend} computes the whole file, but the GPU refuses {count} of {nodes} nodes: {listed(left)}"
    types = sorted({found[1].lower() for one in left if (found := _NARROW_TYPES.search(one.reason or ""))})
    if _POSTPROCESS in names:
        return f"{law}; the GPU suppresses no boxes: give the file without {_POSTPROCESS}, or choose cpu"
    if types:
        return f"{law}; convert the model without {' and '.join(types)} tensors, or choose cpu"
    return f"{law}; convert the model without such nodes, or choose cpu"


def _wrong_shapes(backend: str, wrong: Counter[str]) -> str:
    counted = ", ".join(f"{name} x{count}" if count > 1 else name for name, count in wrong.items())
    return (
        f"backend {backend} would compute wrong values: the GPU's runtime takes outputs of this file for larger than "
        f"they are ({counted}), as it does with int8 1x1 convolutions of a stride; give the float file, or choose cpu"
    )


def _driver_words(said: str) -> str:
    found = re.search(r"(vkCreateInstance[^\n]*)", said)
    return found[1].strip() if found else "No adapters found"


def _last_error(said: str) -> str:
    """The last line that the runtime itself calls an error, without its place in the source."""
    lines = [line for line in said.splitlines() if line.startswith("ERROR:")]
    return re.sub(r"^ERROR: (?:\[[^\]]*\] ?)?", "", lines[-1]).strip() if lines else ""


def last_line(text: str) -> str:
    """The last line that says something; the runtime puts places in its source before it."""
    lines = [line.strip(" └") for line in text.splitlines() if line.strip(" └")]
    return lines[-1] if lines else "the runtime gave no reason"
