"""Keras configs from files are other people's: only objects of Keras itself are built from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.errors import GraphError

#: Layers of ours that Keras knows by registration.
OWN_LAYERS = frozenset(("slimdet>DarknetReorg",))
#: Plain values that Keras writes as objects.
_VALUES = frozenset(
    ("__keras_tensor__", "__tensor__", "__numpy__", "__slice__", "__ellipsis__", "__tuple__", "__bytes__")
)


def refuse_foreign_objects(config: Any, *, allow_lambda: bool, place: str) -> None:
    """Raises GraphError for code, and for objects that are not Keras's own, anywhere inside a config.

    Args:
        config: plain JSON as Keras 3 writes it; objects are {"module", "class_name", "config", "registered_name"}.
        allow_lambda: let Lambda layers and the code in them pass.
        place: who has the config, for the message.
    """
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting.extend(reversed(value))
        elif isinstance(value, Mapping):
            if isinstance(value.get("class_name"), str):
                _refuse_object(value, value["class_name"], allow_lambda, place)
            waiting.extend(reversed(list(value.values())))


def _refuse_object(config: Mapping[str, Any], name: str, allow_lambda: bool, place: str) -> None:
    inner = config.get("config")
    where = (
        f"{inner['name']!r} in {place}" if isinstance(inner, Mapping) and isinstance(inner.get("name"), str) else place
    )
    if name in ("Lambda", "__lambda__"):
        if not allow_lambda:
            raise GraphError(
                f"a Lambda runs code from the file: {where} has one; "
                "allow it (--allow-lambda, or allow_lambda: true in a recipe) only if you trust the file"
            )
        return
    module, registered = config.get("module"), config.get("registered_name")
    if registered in OWN_LAYERS or (name in _VALUES and module is None):
        return
    own_module = isinstance(module, str) and module.split(".")[0] in ("keras", "builtins")
    if name == "function" and (not own_module or module == "builtins"):
        raise GraphError(
            f"functions of the user's own are not read: {where} uses {inner!r}; build it of Keras's layers"
        )
    if module is None and registered is None and not name.startswith("__"):
        # The form of Keras before 3, without modules: keras_legacy.py checks it by name.
        return
    if not own_module or registered not in (None, name):
        label = registered or name
        raise GraphError(
            f"only Keras's own layers and objects are read: {where} is or uses {label!r}; build it of Keras's layers"
        )
