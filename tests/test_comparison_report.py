"""What is told of two compared files: the layers that add most, what stays float and why, and nothing that was not
measured."""

import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from toolchain.comparison_report import COLUMNS, as_text, plot, remarks, row, sentence, worst


def layer(name: str, added: float = 0.0, **changes: Any) -> dict[str, Any]:
    told = {"name": f"{name}_1/Relu;{name}_1/convolution", "op": "CONV_2D", "dtype": "int8", "decibels": 20.0,
            "added": added, "range": [-1.5, 6.0], "holds": [-1.0, 5.0], "clipped": 0.0025, "used": 1.0}  # fmt: skip
    return told | changes


def floating(name: str) -> dict[str, Any]:
    return layer(name, dtype="float32", holds=None, clipped=None, used=None)


def found(*layers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    told = {"file": "a.tflite", "against": "b.tflite", "pictures": 8, "skipped": [], "layers": list(layers)}
    return told | {"outputs": [], "not_compared": [], "notes": [], "warnings": []} | changes


def test_a_row_says_what_was_measured() -> None:
    told = dict(zip(COLUMNS, row(layer("conv_3", 0.12345)), strict=True))
    assert told == {"layer": "conv_3_1/Relu", "op": "CONV_2D", "type": "int8", "dB": "20.0", "adds": "12.35 %",
                    "range": "-1.5 to 6", "holds": "-1 to 5", "clipped": "0.25 %", "used": "100 %"}  # fmt: skip
    told = dict(zip(COLUMNS, row(floating("conv_3")), strict=True))
    assert (told["type"], told["holds"], told["clipped"], told["used"]) == ("float32", "float", "", "")


def test_the_sentence_names_the_worst_three_and_counts() -> None:
    layers = [layer("a", 0.01), layer("b", 0.2), layer("c", 0.1), layer("d"), layer("e", 0.02, clipped=0.0101)]
    assert sentence("net_int8.tflite", found(*layers, floating("f"))) == (
        "net_int8.tflite against float32, layer by layer on 8 pictures: of 6 layers, most noise is added at b_1/Relu "
        "(20.00 % of its signal), c_1/Relu (10.00 % of its signal) and e_1/Relu (2.00 % of its signal); 1 stays float; "
        "1 cuts off more than 1 % of the values."
    )
    alone = sentence("x.tflite", found(layer("a"), pictures=1))
    assert alone.endswith(
        "on 1 picture: of 1 layers, none adds noise; none stays float; none cuts off more than 1 % of the values."
    )


@given(st.lists(st.floats(0, 1e15), max_size=30), st.integers(1, 12))
def test_the_worst_come_first(values: list[float], count: int) -> None:
    listed = [one["added"] for one in worst([layer(str(place), value) for place, value in enumerate(values)], count)]
    assert listed == sorted((value for value in values if value), reverse=True)[:count]


def test_what_stays_float_is_told_with_its_reason() -> None:
    notes = [
        "conv_1: split by role, so that int8 gives each role its own scale",
        "conv_1: stays float, it alone loses 3 dB",
        "classes_32: stays float, it is an output",
        "conv: stays float, another",
    ]
    outputs = floating("classes_32") | {"name": "classes_32"}
    told = remarks(found(floating("conv_1"), layer("conv_2"), floating("conv_3"), outputs, floating("conv_4")), notes)
    assert told == [
        "stays float, it alone loses 3 dB: conv_1_1/Relu",
        "stays float, kept float by the quantizer: conv_3_1/Relu, conv_4_1/Relu",
        "stays float, it is an output: classes_32",
    ]


def test_what_was_not_compared_and_what_is_wrong_is_told() -> None:
    told = remarks(
        found(layer("a"), warnings=["w"], notes=["n"], skipped=["s.jpg: damaged"], not_compared=list("abcdefghijklmn")),
        (),
    )
    assert told[:3] == ["w", "n", "not read: s.jpg: damaged"]
    assert told[3].endswith("no such tensor: a, b, c, d, e, f, g, h, i, j, k, l and 2 more") and len(told) == 4


def test_the_text_names_what_is_float_and_what_adds_most() -> None:
    text = as_text(found(layer("a", 0.5), floating("b"), warnings=["it is broken"]))
    assert "most noise is added at a_1/Relu (50.00 % of its signal)" in text
    assert "a.tflite against b.tflite on 8 pictures: 2 layers compared, 1 of integers, 1 float" in text
    assert "stays float: b_1/Relu" in text and text.endswith("warning: it is broken")
    assert "stays float" not in as_text(found(floating("b")))


def test_the_plot_is_a_picture_and_always_the_same() -> None:
    # Copied exactly: far above the rest.
    told = found(layer("pad", decibels=150.0), layer("a", 0.01), layer("b", 0.2, decibels=7.0))
    drawn = plot(told)
    assert drawn == plot(told)
    for one in (drawn, plot(found(layer("pad", decibels=150.0))), plot(found())):
        with Image.open(io.BytesIO(one)) as image:
            assert image.format == "PNG" and image.size == (1100, 550)
