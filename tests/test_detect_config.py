"""A run's settings from YAML: what can be used, and where the rest is told to be wrong."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deploy.detect_config import read_config
from deploy.errors import InputError

WHOLE = """\
models: [exact.tflite, fast.tflite]
backend: cpu
threads: 2
sources:
  door: rtsp://10.0.0.7/live
  yard:
    address: rtsp://10.0.0.8:554/live
    user: admin
    password: {env: YARD_PASSWORD}
    zones: {porch: [[0.1, 0.5], [0.6, 0.5], [0.6, 1]]}
    lines: {gate: [[0.2, 0.9], [0.8, 0.9]]}
    transport: udp
    low_delay: true
    stall: 5
  desk: {address: 0, size: 1280x720, fps: 30, codec: MJPG}
  film: {address: street.mp4, realtime: true, loop: true}
conf: 0.3
classes: {person: 0.5}
iou: 0.4
track: true
page: {host: 0.0.0.0, port: 8081, token: {file: token.txt}, fps: 5}
jsonl: seen.jsonl
record: {folder: recordings, seconds: 60, most_gb: 1.5, most_width: 640}
mqtt: {url: "mqtt://broker:1883/slimdet", user: cam, password: {env: YARD_PASSWORD}}
webhook: {url: "https://example.org/hook", secret: {env: YARD_PASSWORD}, results_every: 60}
adapt: {age_ms: 150, temperature: 75}
for: 3600
"""
LEAST = "model: m.tflite\nsources: {a: pattern}\n"


def refused(folder: Path, text: str) -> str:
    """The sentence, without the file's name."""
    (folder / "c.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_config(folder / "c.yaml")
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence.removeprefix(f"{folder}/c.yaml:")


def test_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YARD_PASSWORD", "s/e@c")
    (tmp_path / "token.txt").write_text("tok-1\n")
    (tmp_path / "c.yaml").write_text(WHOLE)
    found = read_config(tmp_path / "c.yaml")
    assert found.models == (tmp_path / "exact.tflite", tmp_path / "fast.tflite")
    assert (found.backend, found.threads, found.conf, found.classes, found.iou) == ("cpu", 2, 0.3, {"person": 0.5}, 0.4)
    door, yard, desk, film = found.sources
    assert (door.name, door.address.kind, door.address.shown) == ("door", "stream", "rtsp://10.0.0.7/live")
    assert yard.address.text == "rtsp://admin:s%2Fe%40c@10.0.0.8:554/live"
    assert yard.zones == {"porch": ((0.1, 0.5), (0.6, 0.5), (0.6, 1.0))}
    assert yard.lines == {"gate": ((0.2, 0.9), (0.8, 0.9))}
    assert (yard.options.transport, yard.options.low_delay, yard.options.stall) == ("udp", True, 5)
    assert desk.address.kind == "camera"
    assert (desk.options.width, desk.options.height, desk.options.fps, desk.options.codec) == (1280, 720, 30, "MJPG")
    assert (film.address.text, film.options.realtime, film.options.loop) == (str(tmp_path / "street.mp4"), True, True)
    assert found.page is not None and (found.page.host, found.page.port, found.page.token) == ("0.0.0.0", 8081, "tok-1")
    assert found.page.fps == 5
    assert found.jsonl == str(tmp_path / "seen.jsonl")
    assert found.record is not None and found.record.folder == tmp_path / "recordings"
    assert (found.record.seconds, found.record.most_bytes, found.record.fps) == (60, 1_500_000_000, 15)
    assert found.record.most_width == 640
    assert found.mqtt is not None and found.mqtt.url == "mqtt://cam:s%2Fe%40c@broker:1883/slimdet"
    assert found.webhook is not None and found.webhook.secret == "s/e@c"
    assert found.webhook.results_seconds == 60
    assert (found.most_age, found.most_temperature, found.seconds, found.track) == (150, 75, 3600, True)
    for secret in ("s/e@c", "s%2Fe%40c", "tok-1"):
        assert secret not in repr(found)


def test_the_least(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(LEAST)
    found = read_config(tmp_path / "c.yaml")
    assert found.models == (tmp_path / "m.tflite",) and found.sources[0].address.kind == "pattern"
    assert (found.conf, found.iou, found.threads) == (0.25, 0.45, 1)
    assert (found.page, found.record, found.track) == (None, None, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", " expected a mapping of keys to values, got list"),
        ("sources: {a: pattern}", "1:1: a config has either model or models"),
        ("model: m\nmodels: [m]\nsources: {a: pattern}", "1:1: a config has either model or models"),
        ("models: []\nsources: {a: pattern}", "1:1: models is a list of 1 to 16 files"),
        ("model: m", "1:1: sources names 1 to 64 feeds, not 0"),
        ("model: m\nsources: {}", "2:1: sources names 1 to 64 feeds, not 0"),
        ("model: m\nsources: {a/b: pattern}", "2:11: a name has 1 to 64 letters"),
        ("model: m\nsources: {a: 7000}", "2:11: address is text, not a number"),
        (LEAST + "sorces: 1", "3:1: a config has no 'sorces'; did you mean sources?"),
        (LEAST + "conf: 2", "3:1: conf is a number from 0 to 1, not 2"),
        (LEAST + "conf: yes", "3:1: conf is a number from 0 to 1, not true"),
        (LEAST + "conf: .nan", "3:1: conf is a number from 0 to 1, not nan"),
        (LEAST + "threads: 1.5", "3:1: threads is a whole number from 1 to 256, not 1.5"),
        (LEAST + "backend: quantum", "3:1: a backend is one of cpu"),
        (LEAST + "track: 1", "3:1: track is true or false, not a number"),
        (LEAST + "page: {port: 70000}", "3:8: port is a whole number from 0 to 65535, not 70000"),
        (LEAST + "record: {}", "3:1: record has a folder"),
        (LEAST + "record: {folder: r, codec: av1}", "3:21: codec is one of auto, h264, mpeg4, not 'av1'"),
        (LEAST + "mqtt: ftp://u:secret@h", "3:1: mqtt has a url that begins with mqtt:// or mqtts://"),
        (LEAST + "webhook: {url: http://h, password: {env: A, file: B}}", "3:26: password is text, {env: NAME}"),
        (LEAST + "webhook: {url: {env: NOT_SET_ANYWHERE}}", "3:11: url comes from the environment, but NOT_SET"),
        (LEAST + "webhook: {url: {file: no.txt}}", "3:11: url comes from no.txt, but No such file"),
        (LEAST + "webhook: {url: http://h, results_every: 0}", "3:26: results_every is a number from 0.1 to 86400"),
        (LEAST + "mqtt: {url: mqtt://h, results_every: 9}", "3:23: mqtt has no 'results_every'"),
        (LEAST + "page: {fps: 0}", "3:8: fps is a number from 0.1 to 240, not 0"),
        (LEAST + "record: {folder: r, most_width: 1}", "3:21: most_width is a whole number from 16 to 65536, not 1"),
        (LEAST + "adapt: {age_ms: 0}", "3:9: age_ms is a number from 1 to 60000, not 0"),
        (LEAST + "classes: {dog: -1}", "3:11: dog is a number from 0 to 1, not -1"),
        ("model: m\nsources: {a: {address: pattern, size: 1x}}", "2:33: size is WIDTHxHEIGHT"),
        ("model: m\nsources: {a: {address: pattern, codec: H264x}}", "2:11: a camera's codec is four letters"),
        ("model: m\nsources: {a: {address: pattern, zones: {z: [[0, 0], [1, 1]]}}}", "2:41: zones have three"),
        ("model: m\nsources: {a: {address: pattern, lines: {z: [[0, 0], [1, 2]]}}}", "2:41: lines have two points"),
        ("model: m\nsources: {a: {address: pattern, user: u, password: secret}}", "2:33: user and"),
        ("model: m\nsources: {a: {address: 'gopher://u:secret@h/x'}}", "2:15: a stream's address begins with one of"),
        ("model: m\nsources: {a: {address: pattern, lines: {z: [[0, 0], [0, 0]]}}}", "2:33: a line has two ends"),
        (LEAST + "mqtt: 'mqtt://host:port:secret/x'", "3:1: "),
        (LEAST + "conf: *x", "3:7: a config has no anchors"),
        (LEAST + "conf: 0.2\nconf: 0.3", "4:1: the key 'conf' stands twice, first on line 3"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    sentence = refused(tmp_path, text)
    assert sentence.startswith(said) and "secret" not in sentence


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read .*no.yaml: No such file"):
        read_config(tmp_path / "no.yaml")


_KEYS = st.sampled_from(
    "model models sources address a page port token env file url mqtt webhook record folder zones lines z conf classes "
    "adapt age_ms size fps track threads for".split()
)
_TEXTS = st.text("ab0/:@.\n{é", max_size=8) | st.sampled_from(
    ["pattern", "0", "rtsp://h/x", "m.tflite", "1x1", "/dev/null"]
)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=12
)


@given(value=st.dictionaries(_KEYS, _VALUES, max_size=6), usable=st.booleans())
def test_any_yaml_is_used_or_refused_in_one_sentence(tmp_path_factory: pytest.TempPathFactory, value, usable) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    if usable:  # else hardly one gets past its first key
        value = {**value, "model": "m", "sources": {"a": "pattern"}}
        value.pop("models", None)
    path.write_text(yaml.safe_dump(value))
    try:
        assert read_config(path).models
    except InputError as error:
        assert "\n" not in str(error) and str(error).startswith(str(path))
