"""A recipe is checked whole before anything runs; what is wrong is told with its place."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from deploy.errors import InputError
from toolchain import recipe_stages, recipe_training
from toolchain import recipe as recipe_module
from toolchain.clustering import Clustering
from toolchain.quantization_aware import QuantizationAware
from toolchain.recipe import Recipe, RecipeFile, carried_recipes, json_schema, read_recipe
from toolchain.recipe_checks import check_stages
from toolchain.recipe_settings import Impossible
from toolchain.recipe_stages import COMPRESSING
from toolchain.recipe_training import Cluster, Finetune, Sparsify, Train, learns_from
from deploy.strict_yaml import MAX_BYTES, MAX_DEPTH
from toolchain.sparsity import Sparsity
from toolchain.training import Training

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


def test_a_loss_that_is_allowed_adds_the_mixed_file(tmp_path: Path) -> None:
    pictures = "calibration: {pictures: photos}\n"
    assert read(tmp_path, DARKNET + pictures).recipe.all_precisions == ("float32", "int8")
    found = read(tmp_path, DARKNET + pictures + "int8: {max_map_loss: 0.01}\n").recipe
    assert found.precisions == ("float32", "int8") and found.all_precisions == ("float32", "int8", "int8_mixed")
    listed = DARKNET + pictures + "precisions: [int8_mixed, float32]\nint8: {max_map_loss: 0.0}\n"
    assert read(tmp_path, listed).recipe.all_precisions == ("int8_mixed", "float32")


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
        (FLOAT + "data: {scenes: {}}\nbenchmark: {split: null}\n", "5:13: the drawn scenes are measured on the split"),
        (DARKNET + "precisions: [float32, int9]\n", "3:23: precisions.1: input should be 'float32', 'float16'"),
        (FLOAT + "int8: {max_map_loss: 1.5}\n", "4:8: int8.max_map_loss: input should be less than or equal to 1"),
        (FLOAT + "int8: {equalise: true}\n", "4:8: unknown key 'equalise' in int8; did you mean 'equalize'?"),
        (FLOAT + "int8: {float_io: 1}\n", "4:8: int8.float_io: input should be a valid boolean, but 1 came"),
        (DARKNET + "calibration: {pictures: a, ranges: max}\n", "3:28: calibration.ranges: input should be 'mean', "),
        (FLOAT + "int8: {max_map_loss: 0.01}\n", "3:1: int8 needs pictures to calibrate on"),
        (DARKNET + "precisions: [int8_float_head]\n", "3:1: int8 needs pictures to calibrate on"),
        (DARKNET + "precisions: []\n", "3:1: precisions: tuple should have at least 1 item"),
        # Impossible combinations.
        (DARKNET + "precisions: [int8]\n", "3:1: int8 needs pictures to calibrate on"),
        (DARKNET, "1:1: int8 needs pictures to calibrate on"),
        (DARKNET + "precisions: [float32, float32]\n", "3:1: each precision is listed once"),
        (FLOAT + "calibration: {count: 3}\n", "4:1: calibration needs `pictures`, or `data` whose"),
        (FLOAT + "stages:\n  - train: {}\n", "5:5: the stage train needs data to train on"),
        (FLOAT + "data: {}\n", "4:1: data are drawn scenes or your own pictures (train, pictures), but none"),
        (FLOAT + "data: {scenes: {}, pictures: [a]}\n", "4:1: data are drawn scenes or your own pictures (train, pic"),
        (FLOAT + "data: {scenes: {}, validation: {share: 0.1}}\n", "4:1: drawn scenes have a split val"),
        (FLOAT + "data: {train: [{folder: a, splits: b}]}\n", "4:28: unknown key 'splits' in data.train.0; did you"),
        (FLOAT + "data: {train: [{folder: a, split: ../b}]}\n", "4:28: data.train.0.split: string should match"),
        (FLOAT + "data: {pictures: [a], validation: {}}\n", "4:23: a validation is one of folder, pictures or share"),
        (FLOAT + "data: {pictures: [a], validation: {share: 0.1, split: b}}\n", "4:23: a validation's split is"),
        (FLOAT + "data: {pictures: [a], validation: {share: 0}}\n", "4:36: data.validation.share: input should be gr"),
        (FLOAT + "data: {train: [{folder: a}], validation: {pictures: b}}\n", "4:1: a training from labels is watched"),
        (FLOAT + "data: {pictures: [a]}\nbenchmark: {split: val}\n", "5:13: benchmark's 'split' needs pictures with"),
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


#: What a stage that trains has beside the training itself.
OWN: dict[type[BaseModel], set[str]] = {Train: set(), Finetune: set()}
WRAPPED = {Sparsify: Sparsity, Cluster: Clustering, recipe_training.QuantizationAware: QuantizationAware}
OWN |= {stage: {field.name for field in dataclasses.fields(kind)} for stage, kind in WRAPPED.items()}


@pytest.mark.parametrize("stage", OWN)
def test_settings_belong_to_what_trains(stage: type[BaseModel]) -> None:
    known = {field.name: field.default for field in dataclasses.fields(Training)}
    settings = stage().model_dump(exclude=OWN[stage])
    assert set(settings) <= set(known)
    # Left open, so that the data and the stages before decide.
    decided = {key: value for key, value in settings.items() if value is not None or known[key] is None}
    assert Training(**decided).epochs == (10 if stage is Train else 30)


def test_a_training_from_nothing_has_the_trainings_own_defaults_but_for_the_seed() -> None:
    assert Training(**Train().model_dump()) == Training(seed=1)


def test_every_setting_of_a_training_is_in_finetune() -> None:
    assert set(Finetune.model_fields) == {field.name for field in dataclasses.fields(Training)}


WHOLE = ("epochs", "batch", "patience", "seed")
REAL = (
    "learning_rate", "warmup", "weight_decay", "momentum", "clip", "ema", "mosaic", "close_mosaic", "scale", "shift",
    "color", "multi_scale", "distill",
)  # fmt: skip


@pytest.mark.parametrize("key", [*WHOLE, *REAL])
def test_limits_are_those_of_the_training(key: str) -> None:
    def accepts(make: Callable[[], object]) -> bool:
        try:
            make()
        except (ValidationError, InputError):
            return False
        return True

    whole = [-1, 0, 1, 4096, 4097, 100_000, 100_001, 2**32 - 1, 2**32]
    real = [-1e-9, 0.0, 1e-13, 1e-12, 1e-7, 1e-6, 0.5, 0.51, 0.9, 0.91, 0.99999, 0.999999, 1.0, 1.01, 2.0, 2.1, 4.0,
            4.1, 10.0, 10.1, 1000.0, 1001.0, 1e6, 2e6]  # fmt: skip
    values = whole if key in WHOLE else real
    ours = [value for value in values if accepts(lambda: Finetune.model_validate({key: value}))]
    assert ours == [value for value in values if accepts(lambda: Training(**{key: value}))]
    assert ours and len(ours) < len(values)


@pytest.mark.parametrize(("stage", "kind"), WRAPPED.items())
def test_settings_of_what_wraps_weights_are_those_of_its_stage(stage: type[BaseModel], kind: type) -> None:
    assert kind(**stage().model_dump(include=OWN[stage])) == kind()


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
        ("prune: {}", "pruning has one aim, flops (what stays) or ratio (what goes), but neither came"),
        ("prune: {ratio: 0.5, flops: 0.5}", "but both came"),
        ("prune: {flops: 0.5, cut: uniform}", "cut chooses the filters of a ratio"),
        ("prune: {flops: 0.5}", "flops of the stage prune needs pictures"),
        ("prune: {ratio: 1}", "1 came"),
        ("prune: {ratio: -0.1}", "-0.1 came"),
        ("prune: {ratio: 0.5, criterion: l3}", "'l3' came"),
        ("prune: {ratio: 0.5, multiple: 0}", "0 came"),
        ("prune: {ratio: 0.5, criterion: taylor}", "criterion of the stage prune needs pictures"),
        ("prune: {ratio: 0.5, correct: true}", "correct of the stage prune needs pictures"),
        ("prune: {ratio: 0.5}\n    tucker: {ranks: {ratio: 0.5}}", "is one stage"),
        ("batch_norm: {}", "the stage batch_norm makes up for a compression, and no stage before it compresses"),
        ("finetune: {}", "the stage finetune needs data to train on"),
        ("finetune: {epoch: 1}", "did you mean 'epochs'"),
        ("sparsify: {begin: 0.5, end: 0.5}", "from begin to a later end, but 0.5 and 0.5 came"),
        ("cluster: {clusters: 2, keep_zeros: true}", "with keep_zeros clusters are at least 3"),
        ("sparsify: {ema: 0.9}", "unknown key 'ema'"),
    ],
)
def test_refused_stages(tmp_path: Path, stage: str, words: str) -> None:
    with pytest.raises(InputError) as raised:
        _read(tmp_path, f"{FLOAT_NET}stages:\n  - {stage}\n")
    assert words in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path}/r.yaml:5:") or "tucker" in stage and ":6:" in str(raised.value)


LABELLED = "data: {train: [{folder: voc, split: trainval}]}\n"
ALONE = "data: {pictures: [photos]}\n"
PRUNED = "stages:\n  - prune: {ratio: 0.5}\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (ALONE + "stages:\n  - train: {}\n", "6:5: the stage train learns from labels, and `data` has"),
        (ALONE + "stages:\n  - finetune: {labels: true}\n", "6:16: the stage finetune learns from labels, and"),
        (ALONE + "stages:\n  - finetune: {}\n", "6:5: the stage finetune learns from labels or from"),
        (LABELLED + "stages:\n  - finetune: {distill: 1}\n", "6:16: distill of the stage finetune learns from the"),
        (LABELLED + "stages:\n  - finetune: {features: [a]}\n", "6:16: features of the stage finetune are compared"),
        (LABELLED + "stages:\n  - finetune: {labels: false}\n", "6:5: the stage finetune learns from labels or from"),
        (LABELLED + PRUNED + "  - finetune: {labels: false, distill: 0}\n", "7:5: the stage finetune learns from"),
        (LABELLED + PRUNED + "  - finetune: {distill: 0, features: [a]}\n", "7:28: features of the stage finetune are"),
        (ALONE + PRUNED + "  - sparsify: {labels: true}\n", "7:16: the stage sparsify learns from labels, and"),
    ],
)
def test_a_training_that_has_nothing_to_learn_from_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    assert refusal(tmp_path, FLOAT + text).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "labels", "distill"),
    [
        (LABELLED + "stages:\n  - finetune: {}\n", True, 0.0),
        (LABELLED + PRUNED + "  - finetune: {}\n", True, 1.0),
        (LABELLED + PRUNED + "  - finetune: {distill: 0.0}\n", True, 0.0),
        (LABELLED + PRUNED + "  - finetune: {labels: false, distill: 3.0}\n", False, 3.0),
        (ALONE + PRUNED + "  - finetune: {}\n", False, 1.0),
        (LABELLED + PRUNED + "  - train: {}\n", True, 0.0),
        # Zeros compress: what teaches is the network before them.
        (ALONE + "stages:\n  - sparsify: {}\n", False, 1.0),
        ("data: {scenes: {}}\nstages:\n  - sparsify: {}\n", True, 1.0),
    ],
)
def test_a_recovery_learns_from_all_that_there_is(tmp_path: Path, text: str, labels: bool, distill: float) -> None:
    found = read(tmp_path, FLOAT + text).recipe
    compressed = any(stage.name in COMPRESSING for stage in found.stages)
    last = found.stages[-1].settings
    assert learns_from(last, labelled=found.data.labelled, compressed=compressed) == (labels, distill)


def test_a_skipped_compression_teaches_nothing(tmp_path: Path) -> None:
    found = read(tmp_path, FLOAT + ALONE + PRUNED + "  - finetune: {}\n").recipe
    check_stages(found.stages, found.data, pictures=True, skip={"prune", "finetune"})
    with pytest.raises(Impossible, match="learns from labels or from the network before a compression"):
        check_stages(found.stages, found.data, pictures=True, skip={"prune"})


def test_paths_of_data_start_in_the_recipes_folder(tmp_path: Path) -> None:
    text = "data: {train: [{folder: voc}], pictures: [a, /b], validation: {folder: c, split: val}}\n"
    data = read(tmp_path, FLOAT + text).recipe.data
    assert data.train[0].folder == tmp_path / "voc"
    assert data.pictures == (tmp_path / "a", Path("/b"))
    assert data.validation.folder == tmp_path / "c"


def test_compression_settings_are_those_of_the_passes() -> None:
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


STRETCHED = FLOAT + "input: {resize: stretch}\n"


def test_files_for_other_programs_are_one_or_several(tmp_path: Path) -> None:
    assert read(tmp_path, FLOAT).recipe.clients == ()
    assert read(tmp_path, STRETCHED + "package: {for: mediapipe}\n").recipe.clients == ("mediapipe",)
    several = read(tmp_path, STRETCHED + "package: {for: [task-library, mediapipe]}\n").recipe
    assert several.clients == ("task-library", "mediapipe")


@pytest.mark.parametrize(
    ("package", "sentence"),
    [
        ("{for: [mediapipe, mediapipe]}", "each program is listed once"),
        ("{for: []}", "at least 1 item"),
        ("{for: android}", "'mediapipe' or 'task-library'"),
        ("{for: mediapipe, form: x}", "did you mean 'for'"),
        ("{}", "the key 'for' is missing"),
    ],
)
def test_what_is_no_other_program_is_refused(tmp_path: Path, package: str, sentence: str) -> None:
    assert sentence in refusal(tmp_path, STRETCHED + f"package: {package}\n")


@pytest.mark.parametrize("given", ["", "input: {resize: letterbox}\n"])
def test_other_programs_stretch_pictures(tmp_path: Path, given: str) -> None:
    sentence = refusal(tmp_path, FLOAT + given + "package: {for: task-library}\n")
    assert "task-library stretch pictures" in sentence and "add `input: {resize: stretch}`" in sentence
