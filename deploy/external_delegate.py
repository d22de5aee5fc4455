"""External delegates: shared libraries with TensorFlow Lite's two plug-in functions, such as an accelerator's maker
gives."""

from __future__ import annotations

import ctypes
from typing import Any

from ai_edge_litert.interpreter import load_delegate

from deploy.backend import Backend
from deploy.errors import BackendError

_ENTRIES = ("tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate")


def load(backend: Backend) -> Any:
    """The runtime's delegate from backend.path, which was told backend.options.

    Raises BackendError for a library that is missing or cannot be loaded, is no delegate, or refuses.
    """
    library = backend.path
    try:
        # The runtime's own loader leaves a broken object behind where one of these fails, which complains later.
        found = ctypes.CDLL(library)
    except OSError as error:
        raise BackendError(
            f"a delegate is a shared library of this machine's kind, but {library} cannot be loaded "
            f"({error}); give its path, with ./ before a file of this folder, and install what it needs"
        ) from error
    for name in _ENTRIES:
        if not hasattr(found, name):
            raise BackendError(f"a delegate's library has the function {name}, which {library} lacks; give another")
    try:
        return load_delegate(library, dict(backend.options))
    except ValueError as error:
        words = " ".join(str(error).split("\n", 1)[-1].split())  # after the runtime's line, which names the file
        told = ", ".join(f"{key}={value}" for key, value in backend.options) or "no options"
        raise BackendError(
            f"the delegate {library} refused {told}, and said: {words or 'nothing'}; see its documentation"
        ) from error
