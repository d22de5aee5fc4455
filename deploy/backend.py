"""What runs a model: the names that --backend takes, read in one place."""

from __future__ import annotations

import dataclasses

from deploy.errors import BackendError

#: cpu: XNNPACK takes what it can. cpu-builtin: the runtime's own optimised kernels. cpu-reference: its plain ones.
CPU_BACKENDS = ("cpu", "cpu-builtin", "cpu-reference")

#: Of the option --backend, for every command that has it.
BACKEND_HELP = (
    "What runs the model: cpu, cpu-builtin, cpu-reference, gpu, gpu:fp32 (in full precision), or an external delegate "
    "as delegate:LIBRARY?key=value&key=value."
)

_DELEGATE = "delegate:"
_KNOWN = ", ".join([*CPU_BACKENDS, "gpu", "gpu:fp32", "npu", f"{_DELEGATE}LIBRARY?key=value&key=value"])


@dataclasses.dataclass(frozen=True)
class Backend:
    #: One of CPU_BACKENDS, "gpu", "npu" or "delegate".
    kind: str
    #: Of a GPU: computes in float32 throughout; where False, in the precision that its runtime chooses, often float16.
    fp32: bool = False
    #: Of a delegate: its shared library, a path or a name for the system's own search.
    path: str = ""
    #: Of a delegate: what it is told, in this order.
    options: tuple[tuple[str, str], ...] = ()


def parse_backend(text: str) -> Backend:
    """The backend that the text names. Of delegate:LIBRARY?key=value&key=value the library ends at the first "?", a key
    at its first "=", a value at the next "&".

    Raises BackendError for a name that is unknown, a delegate without a library, and an option without a key or a value
    or that comes twice.
    """
    if text in (*CPU_BACKENDS, "npu"):
        return Backend(text)
    if text in ("gpu", "gpu:fp32"):
        return Backend("gpu", fp32=text != "gpu")
    if text.startswith(_DELEGATE):
        library, asked, listed = text.removeprefix(_DELEGATE).partition("?")
        if not library or "\0" in text:
            raise BackendError(f"a delegate is {_DELEGATE}LIBRARY, such as ./libx.so, not {text!r}; name its file")
        return Backend("delegate", path=library, options=_options(listed, text) if asked else ())
    raise BackendError(f"a backend is one of {_KNOWN}, not {text!r}; choose one")


def _options(listed: str, text: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for one in listed.split("&"):
        key, equals, value = one.partition("=")
        if not key or not equals:
            raise BackendError(f"a delegate's option is key=value, and & joins them, not {one!r} in {text!r}; mend it")
        if key in found:
            raise BackendError(f"a delegate's option comes once, but {key!r} stands twice in {text!r}; leave one out")
        found[key] = value
    return tuple(found.items())
