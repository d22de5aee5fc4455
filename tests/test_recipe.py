"""A recipe is checked whole before anything runs; what is wrong is told with its place."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import InputError
from toolchain import recipe as recipe_module
from toolchain.recipe import Recipe, RecipeFile, carried_recipes, json_schema, read_recipe
from toolchain.recipe_yaml import MAX_BYTES, MAX_DEPTH

DARKNET = "name: net\nmodel: {cfg: a.cfg, weights: a.weights, names: a.names}\n"
MODEL = "name: net\nmodel: {}\nprecisions: [float32]\n"
FLOAT = DARKNET + "precisions: [float32]\n"

KEYS = ["scenes", "train", "val", "test", "seed", "other"]


def read(folder: Path, text: str) -> RecipeFile:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return read_recipe(str(path))


def refusal(folder: Path, text: str) -> str:
    """The sentence with which a recipe is refused, without the folder."""
    with pytest.raises(InputError) as caught:
        read(folder, text)
    return str(caught.value).removeprefix(f"{folder}/recipe.yaml:")


def test_paths_start_in_the_recipes_folder(tmp_path: Path) -> None:
    found = read(tmp_path, FLOAT + "verify: {pictures: below/photos}\nbenchmark: {data: /voc}\n").recipe
    assert found.model.cfg == tmp_path / "a.cfg"
    assert found.verify.pictures == tmp_path / "below" / "photos"
    assert str(found.benchmark.data) == "/voc"


def test_defaults(tmp_path: Path) -> None:
    found = read(tmp_path, DARKNET + "calibration: {pictures: photos}\n").recipe
    assert found.precisions == ("float32", "int8")
    assert found.input.resize is None
    assert (found.calibration.count, found.verify.count, found.benchmark.threads) == (64, 8, 1)


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    found = read(tmp_path, FLOAT).recipe
    with pytest.raises(ValueError, match="frozen"):
        found.name = "other"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        # Unknown keys, at any depth, with the nearest known one.
        (DARKNET + "precison: [float32]\n", "3:1: unknown key 'precison' in a recipe; did you mean 'precisions'?"),
        (FLOAT + "benchmark:\n  thread: 2\n", "5:3: unknown key 'thread' in benchmark; did you mean 'threads'?"),
        (FLOAT + "zzz: 1\n", "4:1: unknown key 'zzz' in a recipe; known keys are name, model,"),
        (FLOAT + "stages:\n  - trian: {}\n", "5:5: unknown key 'trian' in stages.0; did you mean 'train'?"),
        (FLOAT + "stages:\n  - train: {epoch: 1}\n", "5:13: unknown key 'epoch' in stages.0.train; did you mean"),
        # Missing ones.
        ("model: {built_in: x}\n", "1:1: the key 'name' is missing in a recipe; add it"),
        # Types and ranges are exact.
        ("name: 1.10\n" + FLOAT.partition("\n")[2], "1:1: name: input should be a valid string, but 1.1 came"),
        (FLOAT + "benchmark: {threads: '4'}\n", "4:13: benchmark.threads: input should be a valid integer, but '4'"),
        (FLOAT + "benchmark: {threads: 0}\n", "4:13: benchmark.threads: input should be greater than or equal to 1"),
        (FLOAT + "verify: {count: 0}\n", "4:10: verify.count: input should be greater than or equal to 1"),
        (FLOAT + "input: {resize: crop}\n", "4:9: input.resize: input should be 'letterbox' or 'stretch'"),
        (FLOAT + "benchmark: {min_secs: .nan}\n", "4:13: benchmark.min_secs: input should be a finite number"),
        (FLOAT + "model2: &a {}\n", "4:9: a recipe has no anchors and aliases"),
        ("name: ../net\n" + FLOAT.partition("\n")[2], "1:1: name: string should match pattern"),
        (FLOAT + "benchmark: {data: voc, split: ../test}\n", "4:24: benchmark.split: string should match pattern"),
        (DARKNET + "precisions: [float32, int9]\n", "3:23: precisions.1: input should be 'float32', 'float16'"),
        (DARKNET + "precisions: []\n", "3:1: precisions: tuple should have at least 1 item"),
        # Impossible combinations.
        (DARKNET + "precisions: [int8]\n", "3:1: int8 needs pictures to calibrate on"),
        (DARKNET, "1:1: int8 needs pictures to calibrate on"),
        (DARKNET + "precisions: [float32, float32]\n", "3:1: each precision is listed once"),
        (FLOAT + "calibration: {count: 3}\n", "4:1: calibration needs `pictures`, or `data`"),
        (FLOAT + "stages:\n  - train: {}\n", "4:1: the stage train needs data to train on"),
        (FLOAT + "stages:\n  - {}\n", "5:5: an entry of stages is one stage, such as"),
        (FLOAT + "benchmark: {protocol: voc07}\n", "4:13: benchmark's 'protocol' needs pictures with truths"),
        (FLOAT + "data: {scenes: {}}\nbenchmark: {split: val}\n", "5:13: the drawn scenes are measured on"),
        (FLOAT.replace("names: a.names", "names: a.names, head: h.yaml"), "2:1: a model with cfg takes no 'head'"),
        (FLOAT.replace(", names: a.names", ""), "2:1: a model with cfg needs 'names' too; add it"),
        (FLOAT.replace("cfg: a.cfg", "cfg: a.cfg, keras: b.keras"), "2:1: a model is one of cfg, keras, built_in or"),
        (MODEL.format("{}"), "2:1: a model is one of cfg, keras, built_in or yolov4, but none came"),
        (MODEL.format("{keras: a.keras}"), "2:1: a model with keras needs 'head' too"),
        (MODEL.format("{built_in: net9}"), "2:9: there is no built-in network 'net9'"),
        # What is no plain YAML.
        (FLOAT + "name: again\n", "4:1: the key 'name' stands twice, first on line 1; remove one"),
        (FLOAT + "verify: {count: 1, count: 2}\n", "4:20: the key 'count' stands twice, first on line 4"),
        ("a:\n\t- b\n", "2:1: this is not YAML: found character '\\t'"),
        ("a: [1\n", "2:1: this is not YAML:"),
        ("name: !!python/object/apply:os.system [ls]\n", "1:7: a recipe is plain data: the tag"),
        ("name: !!set {a}\n", "1:7: a recipe is plain data: the tag"),
        ("name: !!binary aGk=\n", "1:7: expected text, a number, true or false, got bytes"),
        ("name: 2020-01-01\n", "1:7: expected text, a number, true or false, got date"),
        ("[a, b]: 1\n", "1:1: a key is a plain word; got a sequence"),
        ("- a\n", " expected a mapping of keys to values, got list"),
        ("", " expected a mapping of keys to values, got NoneType"),
        ("a: " + "[" * (MAX_DEPTH + 1), "1:23: a recipe is at most 20 levels deep"),
        ("a: 1\n---\nb: 2\n", "2:1: this is not YAML: but found another document"),
    ],
)  # fmt: skip
def test_refused_with_the_place(tmp_path: Path, text: str, sentence: str) -> None:
    found = refusal(tmp_path, text)
    assert found.startswith(sentence)
    assert "\n" not in found


def test_says_how_many_more_are_wrong(tmp_path: Path) -> None:
    assert refusal(tmp_path, FLOAT + "one: 1\ntwo: 2\nthree: 3\n").endswith("(and 2 more)")


def test_numbers_with_an_exponent_need_no_point(tmp_path: Path) -> None:
    text = FLOAT + "data: {scenes: {}}\nstages:\n  - train: {learning_rate: 1e-3}\n"
    assert read(tmp_path, text).recipe.stages[0].train.learning_rate == 0.001


def test_too_large_and_no_text(tmp_path: Path) -> None:
    assert refusal(tmp_path, "#" * MAX_BYTES + FLOAT).startswith(" a recipe has at most 64 KiB")
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: é".encode("latin-1"))
    with pytest.raises(InputError, match="a recipe is UTF-8 text, but byte 6 is not"):
        read_recipe(str(path))


def test_carried_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes.yaml").write_text(FLOAT)
    monkeypatch.setattr(recipe_module, "carried_recipes", lambda: {"shapes": tmp_path / "shapes.yaml"})
    assert read_recipe("shapes").recipe.name == "net"
    with pytest.raises(
        InputError, match="the name of a carried one .shapes.: there is no file 'shape'; did you mean 'shapes'?"
    ):
        read_recipe("shape")


def test_every_carried_recipe_is_one() -> None:
    for name in carried_recipes():
        assert read_recipe(name).recipe.name == name


def test_hash_is_the_files(tmp_path: Path) -> None:
    assert read(tmp_path, FLOAT).sha256 != read(tmp_path, FLOAT + "# more\n").sha256


def test_schema_lists_every_key_and_forbids_others() -> None:
    schema = json_schema()
    json.dumps(schema)
    assert set(schema["properties"]) == set(Recipe.model_fields)
    parts = [schema, *schema["$defs"].values()]
    assert all(part["additionalProperties"] is False for part in parts if part["type"] == "object")
    assert schema["$defs"]["Benchmark"]["properties"]["protocol"]["enum"] == ["voc07", "voc", "darknet", "coco"]


@given(st.text(max_size=60) | st.text(alphabet="{}[]:,-&*!|>'\"#%@ \n\tab1", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_other_text_is_refused_with_the_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError) as caught:
        read_recipe(str(path))
    assert str(path) in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
        max_leaves=12,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_data_is_a_recipe_or_refused(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump({"name": "net", "model": {"built_in": "shapes"}, "data": value}))
    try:
        assert read_recipe(str(path)).recipe.name == "net"
    except InputError as error:
        assert str(error).startswith(f"{path}:")


def test_settings_belong_to_what_trains() -> None:
    from toolchain.recipe_stages import Train
    from toolchain.train import Training

    # Each setting of the recipe's stage is one of the training's, with values that it takes.
    assert set(Train.model_fields) <= {field.name for field in dataclasses.fields(Training)}
    Training(**Train().model_dump())


FLOAT_NET = "name: net\nmodel: {cfg: a.cfg, weights: a.weights, names: a.names}\nprecisions: [float32]\n"


def _read(tmp_path: Path, text: str) -> Recipe:
    (tmp_path / "r.yaml").write_text(text)
    return read_recipe(str(tmp_path / "r.yaml")).recipe


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("tucker: {}", "the key 'ranks' is missing"),
        ("tucker: {ranks: {}}", "one rule, vbmf, energy or ratio, but none came"),
        ("tucker: {ranks: {vbmf: 0.2, ratio: 0.2}}", "but vbmf and ratio came"),
        ("tucker: {ranks: {ratio: 0.2, v: [0.1, 0.1]}}", "v stands in place of what vbmf estimates"),
        ("tucker: {ranks: {vbmf: 1.5}}", "1.5 came"),
        ("tucker: {ranks: {ratio: 0}}", "0 came"),
        ("tucker: {ranks: {energy: 1.01}}", "1.01 came"),
        ("tucker: {ranks: {layers: {conv: [0, 1]}}}", "0 came"),
        ("tucker: {ranks: {ratio: 0.5}, excludes: [a]}", "did you mean 'exclude'"),
        ("tucker: {ranks: {rate: 0.5}}", "did you mean 'ratio'"),
        ("tucker: {ranks: {ratio: 0.5}, weighted: true}", "weighted of the stage tucker needs pictures"),
        ("tucker: {ranks: {ratio: 0.5}, correct: true}", "correct of the stage tucker needs pictures"),
        ("prune: {}", "the key 'ratio' is missing"),
        ("prune: {ratio: 1}", "1 came"),
        ("prune: {ratio: -0.1}", "-0.1 came"),
        ("prune: {ratio: 0.5, criterion: l3}", "'l3' came"),
        ("prune: {ratio: 0.5, multiple: 0}", "0 came"),
        ("prune: {ratio: 0.5, criterion: taylor}", "criterion of the stage prune needs pictures"),
        ("prune: {ratio: 0.5, correct: true}", "correct of the stage prune needs pictures"),
        ("prune: {ratio: 0.5}\n    tucker: {ranks: {ratio: 0.5}}", "is one stage"),
    ],
)
def test_refused_stages(tmp_path: Path, stage: str, words: str) -> None:
    with pytest.raises(InputError) as raised:
        _read(tmp_path, f"{FLOAT_NET}stages:\n  - {stage}\n")
    assert words in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path}/r.yaml:5:") or "tucker" in stage and ":6:" in str(raised.value)


def test_compression_settings_are_those_of_the_passes() -> None:
    from toolchain import recipe_stages
    from toolchain.prune import Pruning
    from toolchain.ranks import Ranks

    assert set(recipe_stages.Ranks.model_fields) == {field.name for field in dataclasses.fields(Ranks)}
    assert {field.name for field in dataclasses.fields(Pruning)} <= set(recipe_stages.Prune.model_fields)
    for field in dataclasses.fields(Pruning):
        if field.name != "ratio":
            assert recipe_stages.Prune.model_fields[field.name].default == field.default


def test_yolov4_settings_are_those_of_the_builder() -> None:
    from toolchain.recipe import Yolov4
    from toolchain.yolov4 import YoloV4

    assert set(Yolov4.model_fields) == {field.name for field in dataclasses.fields(YoloV4)}
    assert YoloV4(**Yolov4(labels=("cat",)).model_dump(exclude_none=True)) == YoloV4(("cat",))


@pytest.mark.parametrize("name", sorted(carried_recipes()))
def test_carried_recipes_are_recipes(name: str, tmp_path: Path) -> None:
    found = read_recipe(name, tmp_path)
    assert found.recipe.name == name
    for path in (found.recipe.model.cfg, found.recipe.model.weights, found.recipe.benchmark.data):
        assert path is None or path.is_relative_to(tmp_path)


def test_where_relative_paths_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.yaml").write_text(FLOAT_NET)
    assert read_recipe(str(tmp_path / "r.yaml")).recipe.model.cfg == tmp_path / "a.cfg"
    assert read_recipe(str(tmp_path / "r.yaml"), tmp_path / "x").recipe.model.cfg == tmp_path / "x" / "a.cfg"


def test_the_reference_recipes_leave_out_what_was_published() -> None:
    backbone = "block1a_se_reduce ~ block7b_add"
    tucker, prune = (entry.settings for entry in read_recipe("reference_compressed_1").recipe.stages)
    assert tucker.exclude == (backbone, "conv2d_37", "conv2d_29", "conv2d_21")
    last = [f"conv2d_{number}_tucker_2" for number in (36, 28, 20)]
    assert prune.exclude == (backbone, "top_conv", *last)
    assert (tucker.ranks.vbmf, prune.ratio, prune.cut, prune.criterion) == (0.2, 0.6, "slamp", "l2")
    (prune,) = (entry.settings for entry in read_recipe("reference_compressed_2").recipe.stages)
    assert prune.exclude == (backbone, "top_conv", "conv2d_36", "conv2d_28", "conv2d_20")
    assert (prune.ratio, prune.cut, prune.criterion) == (0.8, "slamp", "l2")
