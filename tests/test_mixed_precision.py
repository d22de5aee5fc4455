"""Which layers stay float: the fewest that keep the loss, really float inside, and told by name."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given
from hypothesis import strategies as st
from toy_network import converted, toy_graph

from deploy.errors import ConversionError, InputError
from toolchain import mixed_precision as module
from toolchain.calibration import written
from toolchain.mixed_precision import mixed
from toolchain.quantize import Int8, Prepared, prepare

pytestmark = pytest.mark.filterwarnings("ignore:Warning. Enabling .experimental_preserve_all_tensors")

#: The toy's first layer by its node's name, and what it writes: the second tensor is the activation's, which alone
#: reads the first. Others read that one in int8, in whatever form the layer computes.
NODE = "conv_0_bn"
INNER = "conv_0_bn_1/batchnorm/add_1;conv_0_1/convolution;conv_0_bn_1/batchnorm/sub1"
WRITES = frozenset({INNER, "conv_0_activation_1/LeakyRelu"})


def original() -> bytes:
    return (converted() / "float32.tflite").read_bytes()


def pictures() -> list[Path]:
    return sorted((converted() / "pictures").iterdir())


@functools.cache
def whole() -> Prepared:
    graph = toy_graph()
    assert graph.input is not None
    return prepare(original(), graph.input, pictures(), Int8())


@functools.cache
def spoilt() -> Prepared:
    """Inside one layer a range is a hundred times too wide: in int8 it is left with two or three values."""
    ends = whole().ranges[INNER]
    wide = {key: 100 * value for key, value in ends.items()}
    return dataclasses.replace(whole(), ranges={**whole().ranges, INNER: wide})


def loss(content: bytes, place: Path) -> float:
    detect = module._Detecting(toy_graph(), pictures(), place)
    return module.expected_loss(detect(original(), "float32"), detect(content, "int8_mixed"), 2)


def mix(prepared: Prepared, allowed: float, place: Path) -> tuple[bytes, tuple[str, ...]]:
    return mixed(original(), prepared, toy_graph(), pictures(), allowed, place / "told.jsonl")


def dtypes(content: bytes) -> dict[str, str]:
    details = Interpreter(model_content=content).get_tensor_details()
    return {one["name"]: np.dtype(one["dtype"]).name for one in details}


def test_where_everything_is_allowed_nothing_stays_float(tmp_path: Path) -> None:
    content, notes = mix(whole(), 1.0, tmp_path)
    assert content == (converted() / "int8.tflite").read_bytes()
    assert len(notes) == 1 and notes[0].startswith(
        "0 of 14 convolutions stay float, with 0 % of the multiplications: int8 throughout loses "
    )
    assert notes[0].endswith("by the float network's own detections, and so it loses "
                             f"{100 * loss(content, tmp_path):.2f}; 100 are allowed")  # fmt: skip
    assert " points of mAP on 12 pictures" in notes[0]


def test_the_layer_that_costs_most_stays_float_and_no_other(tmp_path: Path) -> None:
    before = loss(spoilt().quantized(frozenset()), tmp_path)
    after = loss(spoilt().quantized(WRITES), tmp_path)
    assert before > after
    allowed = (before + after) / 2
    content, notes = mix(spoilt(), allowed, tmp_path)
    assert loss(content, tmp_path) <= allowed
    layers = module._measured(spoilt(), toy_graph(), pictures()[:: 12 // 8])
    share = next(layer.work for layer in layers if layer.names == (NODE,)) / sum(layer.work for layer in layers)
    assert notes[0].startswith(
        f"1 of 14 convolutions stay float, with {100 * share:.2g} % of the multiplications: int8 throughout loses "
        f"{100 * before:.2f} points"
    )
    assert len(notes) == 2 and notes[1].startswith(f"{NODE}: stays float, in int8 it would add ")
    assert notes[1].endswith(" % of noise to the outputs")
    # Inside, no other operation of the network writes floats.
    plain, found = dtypes(spoilt().quantized(frozenset())), dtypes(content)
    names = written(original()).values()
    assert {name for name in names if plain[name] == "float32"} == set()
    assert {name for name in names if found[name] == "float32"} == WRITES
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    # In each of the two orders with none and with one; at most with 0, 1, 2, 4, 8, 14 (all layers), and three between
    # the last.
    assert told == [{"done": done, "of": 2 * 9} for done in (1, 2, 3, 4)]
    (tmp_path / "again").mkdir()
    assert mix(spoilt(), allowed, tmp_path / "again") == (content, notes)


def losing(monkeypatch: pytest.MonkeyPatch, of: Callable[[frozenset[str]], float]) -> list[frozenset[str]]:
    """Lets a mixture lose what `of` says of the tensors that are float in it; returns those that are asked for."""
    asked: list[frozenset[str]] = []
    quantized = Prepared.quantized

    def recorded(self: Prepared, floats: frozenset[str]) -> bytes:
        asked.append(floats)
        return quantized(self, floats)

    monkeypatch.setattr(Prepared, "quantized", recorded)
    monkeypatch.setattr(module, "expected_loss", lambda *_: of(asked[-1]))
    return asked


def orders() -> list[list[module._Layer]]:
    layers = module._measured(whole(), toy_graph(), pictures()[:: 12 // 8])
    return [sorted(layers, key=key) for key in module._ORDERS.values()]


def test_what_no_mixture_keeps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, lambda floats: 0.25 if floats else 0.3)
    with pytest.raises(ConversionError) as caught:
        mix(whole(), 0.005, tmp_path)
    losses = "30.00 with 0, 25.00 with 1, 25.00 with 2, 25.00 with 4, 25.00 with 8, 25.00 with 14"
    assert str(caught.value) == (
        f"int8_mixed loses at most 0.5 points of mAP: it loses by noise {losses}; by noise for their work {losses} of"
        " 14 layers in float; allow more by max_map_loss, fine-tune by quantization_aware, or take float16"
    )


@pytest.mark.parametrize("better", [0, 1])
def test_the_order_that_keeps_fewer_multiplications_in_float_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: int
) -> None:
    """What one order finds with its first three layers the other finds not at all."""
    wanted = module._writes(orders()[better][:3])
    others = [module._writes(orders()[1 - better][:count]) for count in range(1, 15)]
    assert not any(wanted <= floats for floats in others[:3])
    asked = losing(monkeypatch, lambda floats: 0.0 if wanted <= floats and floats not in others else 0.25)
    content, notes = mix(whole(), 0.01, tmp_path)
    assert asked[-1] == wanted and len(notes) == 1 + 3
    assert [note.partition(":")[0] for note in notes[1:]] == [
        name for layer in orders()[better][:3] for name in layer.names
    ]


def test_of_two_mixtures_the_one_with_less_work_in_float_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_noise, by_share = (order[:4] for order in orders())
    losing(monkeypatch, lambda floats: 0.0 if floats in (module._writes(by_noise), module._writes(by_share)) else 0.25)
    content, notes = mix(whole(), 0.01, tmp_path)
    kept = min((by_noise, by_share), key=module._work)
    assert module._work(by_noise) != module._work(by_share)
    assert [note.partition(":")[0] for note in notes[1:]] == [name for layer in kept for name in layer.names]
    assert all(": stays float, in int8 it would add " in note for note in notes[1:])
    floats = {name for name, dtype in dtypes(content).items() if dtype == "float32"}
    assert module._writes(kept) <= floats
    # Their names are nodes of the network, or outputs of the file. The converter drops that of a grouped convolution.
    known = {node.name for node in toy_graph().nodes} | {"convolution1"} | {
        f"{role}_{scale}" for role in ("xy", "wh", "objectness", "classes") for scale in (16, 8)
    }
    assert {note.partition(":")[0] for note in notes[1:]} <= known


def test_layers_bring_noise_and_take_work() -> None:
    graph, some = toy_graph(), pictures()[:2]
    layers = module._measured(spoilt(), graph, some)
    # Five plain convolutions, a depthwise one, and four roles at two scales.
    assert len(layers) == 5 + 1 + 4 * 2
    by_noise = sorted(layers, key=module._ORDERS["noise"])
    assert by_noise[0].names == (NODE,) and by_noise[0].noise > 100 * by_noise[1].noise and by_noise[-1].noise > 0
    shares = [layer.noise / layer.work for layer in sorted(layers, key=module._ORDERS["noise for their work"])]
    assert shares == sorted(shares, reverse=True)
    work = {layer.names[0]: layer.work for layer in layers}
    # At 8 x 8: 3 * 3 * 32 products and the value itself for each of 32 channels.
    assert work["conv_2"] == 8 * 8 * 32 * (1 + 3 * 3 * 32)
    # At 4 x 4 conv_3 writes 48 channels of 32, and at 8 x 8 the resize that goes with it.
    assert work["conv_3"] == 4 * 4 * 48 * (1 + 32) + 8 * 8 * 48
    assert work["xy_16"] == 4 * 4 * 4 * (1 + 48)


def test_nothing_to_measure_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(InputError, match="a loss of mAP is measured on pictures: none of 1 can be read"):
        mixed(original(), whole(), toy_graph(), [broken], 0.1, tmp_path / "told.jsonl")
    monkeypatch.setattr(module, "_CONF", 0.999)
    with pytest.raises(InputError, match="the float network finds none on 12; give calibration pictures that show its"):
        mix(whole(), 0.1, tmp_path)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=200), st.floats(0, 1))
def test_the_fewest_of_losses_that_fall(losses: list[float], allowed: float) -> None:
    losses.sort(reverse=True)
    most, asked = len(losses) - 1, set()

    def one(count: int) -> float:
        assert 0 <= count <= most
        asked.add(count)
        return losses[count]

    fitting = [count for count, value in enumerate(losses) if value <= allowed]
    assert module._fewest(one, most, allowed) == (fitting[0] if fitting else None)
    # What is told as the most there can be.
    assert len(asked) <= 1 + max(1, 2 * (most - 1).bit_length())


@given(st.lists(st.floats(0, 1), min_size=2, max_size=100), st.floats(0, 1))
def test_any_losses_end_in_one_that_is_allowed(losses: list[float], allowed: float) -> None:
    found = module._fewest(losses.__getitem__, len(losses) - 1, allowed)
    assert losses[-1] > allowed if found is None else losses[found] <= allowed


@given(st.integers(1, 1000))
def test_many_layers_are_looked_at_together(count: int) -> None:
    layers = [module._Layer((f"{index}",), (f"w{index}", f"v{index}"), float(index)) for index in range(count)]
    found = module._grouped(layers)
    assert len(found) <= 128 and (found == layers or count > 128)
    assert [name for one in found for name in one.names] == [f"{index}" for index in range(count)]
    assert [name for one in found for name in one.writes] == [name for one in layers for name in one.writes]
    assert sum(one.work for one in found) == count * (count - 1) / 2
    # Equally many, but the last.
    assert len({len(one.names) for one in found[:-1]}) <= 1


def test_noise_is_a_share_of_what_varies_within_channels() -> None:
    """A channel's mean is no signal: 1 and 3 vary by 1 about 2, 10 and 10 by nothing."""
    values = np.array([[1.0, 10.0], [3.0, 10.0]])
    found = values + np.array([[0.5, 0.0], [0.0, 0.0]])
    assert module._noise({"a": values}, {"a": found}) == pytest.approx((0.25 / 4) / (2 / 4))
    both = {"a": values, "b": values}
    assert module._noise(both, {"a": found, "b": values}) == pytest.approx(0.125 / 2)
