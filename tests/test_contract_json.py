import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.contract import ROLES, Contract, Input, PostprocessHead, Scale, Tensor, YoloHead
from deploy.contract_json import from_json, to_json
from deploy.errors import ContractError

SCALES = tuple(
    Scale(stride, ((10.5, 20.0), (33.0, 7.25)), {role: f"{role}_{stride}" for role in ROLES}, 1.05)
    for stride in (32, 16)
)
YOLO = Contract(
    "net",
    ("cat", "dog"),
    Input("image", 320, 416, "stretch", "BGR", (1.0, 2.0, 3.0), (4.0, 5.0, 6.5), 0),
    YoloHead(SCALES, "scaled", "softmax"),
    "int8",
    (Tensor("image", (1, 320, 416, 3), "int8", 1 / 255, -128), Tensor("xy_32", (1, 10, 13, 4), "float32")),
    {"recipe": {"hash": "ab", "steps": [1, 2.5, None, True]}},
    {"map": 0.625},
)
SSD = dataclasses.replace(YOLO, head=PostprocessHead("b", "c", "s", "n"), precision="float16", lineage={}, measured={})


@pytest.mark.parametrize("contract", [YOLO, SSD])
def test_a_contract_comes_back_equal_through_text(contract: Contract) -> None:
    assert from_json(json.loads(json.dumps(to_json(contract), allow_nan=False))) == contract


names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20)
sides = st.floats(0.25, 1e5)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
contracts = st.builds(
    Contract,
    name=names,
    labels=st.lists(names, min_size=1, max_size=5).map(tuple),
    input=st.builds(
        Input,
        names,
        st.integers(1, 2000),
        st.integers(1, 2000),
        st.sampled_from(["letterbox", "stretch"]),
        st.sampled_from(["RGB", "BGR"]),
        st.tuples(*[st.floats(-300, 300)] * 3),
        st.tuples(*[st.floats(0.001, 300)] * 3),
        st.integers(0, 255),
    ),
    head=st.builds(
        YoloHead,
        st.lists(
            st.builds(
                Scale,
                st.integers(1, 64),
                st.lists(st.tuples(sides, sides), min_size=1, max_size=5).map(tuple),
                st.fixed_dictionaries({role: names for role in ROLES}),
                st.floats(1, 2),
            ),
            min_size=1,
            max_size=3,
        ).map(tuple),
        st.sampled_from(["exp", "scaled"]),
        st.sampled_from(["sigmoid", "softmax"]),
    )
    | st.builds(PostprocessHead, names, names, names, names),
    precision=st.sampled_from(["float32", "float16", "dynamic", "int8"]),
    tensors=st.lists(
        st.builds(
            Tensor,
            names,
            st.lists(st.integers(0, 9999), max_size=4).map(tuple),
            st.sampled_from(["float32", "int8", "uint8"]),
            st.floats(0, 10),
            st.integers(-128, 255),
        ),
        max_size=4,
    ).map(tuple),
    lineage=st.dictionaries(st.text(max_size=5), plain, max_size=3),
    measured=st.dictionaries(st.text(max_size=5), plain, max_size=3),
)


@settings(deadline=None, max_examples=60)
@given(contracts)
def test_every_contract_comes_back_equal(contract: Contract) -> None:
    assert from_json(json.loads(json.dumps(to_json(contract)))) == contract


@settings(deadline=None, max_examples=200)
@given(plain)
def test_whatever_comes_is_a_contract_or_a_contract_error(value: object) -> None:
    with pytest.raises(ContractError):
        from_json(value)


def _places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values inside, but not into lineage and measured, which are free."""
    inner: list[tuple[Any, ...]] = [path] if path else []
    if path in (("lineage",), ("measured",)):
        return inner
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        inner += _places(entry, (*path, key))
    return inner


def _replaced(path: tuple[Any, ...], new: object) -> dict[str, Any]:
    fields = json.loads(json.dumps(to_json(YOLO)))
    parent = fields
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = new
    return fields


def _written(path: tuple[Any, ...]) -> str:
    return "contract" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)


@pytest.mark.parametrize("path", _places(to_json(YOLO)), ids=_written)
@pytest.mark.parametrize("new", [None, True, math.nan, math.inf, -1e31, b"x"], ids=repr)
def test_a_wrong_value_at_any_place_is_refused_and_the_place_is_named(path: tuple[Any, ...], new: object) -> None:
    with pytest.raises(ContractError) as caught:
        from_json(_replaced(path, new))
    assert _written(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [path for path in _places(to_json(YOLO)) if isinstance(path[-1], str)], ids=_written)
def test_every_key_is_needed(path: tuple[Any, ...]) -> None:
    fields = json.loads(json.dumps(to_json(YOLO)))
    parent = fields
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    with pytest.raises(ContractError, match=repr(path[-1]) if path[-1] != "kind" else "kind"):
        from_json(fields)


@pytest.mark.parametrize("path", [(), ("input",), ("head",), ("head", "scales", 0), ("tensors", 1)])
def test_an_unknown_key_is_refused(path: tuple[Any, ...]) -> None:
    with pytest.raises(ContractError, match="'extra'"):
        from_json(_replaced((*path, "extra"), 1))


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("labels",), []),
        (("labels", 0), ""),
        (("labels", 0), "two\nlines"),
        (("labels", 0), "two\u2028lines"),
        (("labels", 0), "\ud800"),
        (("labels", 0), "nul\0"),
        (("labels", 0), "x" * 1001),
        (("labels",), ["x"] * 10_001),
        (("input", "height"), 0),
        (("input", "width"), 16385),
        (("input", "width"), 416.0),
        (("input", "std", 1), 0),
        (("input", "mean"), [0, 0]),
        (("input", "fill"), 256),
        (("input", "resize"), "crop"),
        (("head", "kind"), "ssd"),
        (("head", "scales"), []),
        (("head", "scales", 0, "stride"), 0),
        (("head", "scales", 0, "anchors"), []),
        (("head", "scales", 0, "anchors", 0), [1, 2, 3]),
        (("head", "scales", 0, "anchors", 0), [0, 2]),
        (("tensors", 0, "shape"), [1] * 9),
        (("tensors", 0, "dtype"), "complex64"),
        (("precision",), "int4"),
    ],
)
def test_values_out_of_range_are_refused(path: tuple[Any, ...], new: object) -> None:
    with pytest.raises(ContractError, match="contract"):
        from_json(_replaced(path, new))


def test_lineage_and_measured_hold_plain_finite_values_only() -> None:
    assert to_json(dataclasses.replace(YOLO, measured={"map": np.float32(0.5), "runs": (1, 2)}))["measured"] == {
        "map": 0.5,
        "runs": [1, 2],
    }
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"a": deep}
    for value in ({"map": math.nan}, {"array": np.zeros(2)}, {1: "number as key"}, {"set": {1}}, deep):
        with pytest.raises(ContractError, match="contract.measured"):
            to_json(dataclasses.replace(YOLO, measured=value))
