"""What a broker hears, with a last will, through refusals, losses and returns; and that nothing waits for it."""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import feed_values
import pytest
from fake_broker import FakeBroker
from feed_values import LABELS
from test_outbox import wait_until

from deploy import mqtt
from deploy.detections import no_detections
from deploy.errors import InputError
from deploy.mqtt import Mqtt, MqttSettings, parse_mqtt
from deploy.outbox import Outbox

paho = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not here: pip install 'slimdet[mqtt]'")


def open_mqtt(broker: FakeBroker, **changes) -> Mqtt:
    return Mqtt(MqttSettings("127.0.0.1", broker.port, **changes), LABELS, feed_values.snapshot)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker", MqttSettings("broker")),
        ("mqtts://broker/home/cams/", MqttSettings("broker", 8883, tls=True, prefix="home/cams")),
        ("mqtt://me:a%40b%2F@[::1]:99/p", MqttSettings("::1", 99, user="me", password="a@b/", prefix="p")),
    ],
)
def test_an_address_is_read(url: str, expected: MqttSettings) -> None:
    assert parse_mqtt(url) == expected
    assert "a@b/" not in repr(expected)


@pytest.mark.parametrize(
    "url",
    ["", "broker", "http://u:hunter2@b", "mqtt://u:hunter2@", "mqtt://u:hunter2@b:x", "mqtt://u:hunter2@b:70000"]
    + ["mqtt://u:hunter2@b/a%23", "mqtt://u:hunter2@b/+", "mqtt://u:hunter2@[b", "mqtt://u:hunter2@b/$SYS"]
    + ["mqtt://u:hunter2@b?x", "mqtt://u:hunter2@b/" + "a" * 201],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_mqtt(url)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


def test_topics_are_frigate_s() -> None:
    broker = FakeBroker()
    output = open_mqtt(broker, user="me", password="hunter2", prefix="home/cams")
    wait_until(lambda: broker.last("home/cams/available") == "online")
    (connect,) = broker.connects
    assert (connect["protocol"], connect["level"]) == ("MQTT", 4)
    assert connect["will"] == ("home/cams/available", "offline", 1, True)
    assert (connect["user"], connect["password"]) == ("me", "hunter2")
    output.event(feed_values.event("running"))
    output.result(feed_values.result(events=(feed_values.event("crossed", line="gate"),)))
    wait_until(lambda: len([one for one in broker.published if one[0] == "home/cams/events"]) == 2)
    assert ("home/cams/door/state", "running", 0, True) in broker.published
    for label, count in (("person", "1"), ("dog", "1"), ("all", "2")):
        assert (f"home/cams/door/{label}", count, 0, True) in broker.published
    crossed = json.loads(broker.last("home/cams/events"))
    assert crossed["kind"] == "crossed" and crossed["facts"] == {"line": "gate"}
    output.close()
    wait_until(lambda: broker.goodbyes == [True])
    assert broker.last("home/cams/available") == "offline"
    broker.close()


def test_counts_are_sent_when_they_change_and_not_more_often_than_twice_a_second(monkeypatch) -> None:
    broker = FakeBroker()
    output = open_mqtt(broker)
    wait_until(lambda: broker.last("slimdet/available") == "online")
    for _ in range(50):
        output.result(feed_values.result())
    output.result(feed_values.result(found=no_detections(), tracks=()))  # within the half second: waits
    monkeypatch.setattr(mqtt, "_COUNT_SECONDS", 0.0)
    for _ in range(50):
        output.result(feed_values.result())
    output.result(feed_values.result(found=no_detections(), tracks=()))
    wait_until(lambda: broker.last("slimdet/door/all") == "0")
    assert [payload for topic, payload, _, _ in broker.published if topic == "slimdet/door/person"] == ["1", "0"]
    output.close()
    broker.close()


def test_zones_and_lines_are_said_without_the_times_that_never_rest(monkeypatch) -> None:
    monkeypatch.setattr(mqtt, "_COUNT_SECONDS", 0.0)
    broker = FakeBroker()
    output = open_mqtt(broker)
    wait_until(lambda: broker.last("slimdet/available") == "online")
    for seconds in range(20):
        counts = {"grass": {"inside": {"dog": 1}, "dwell_s": {"7": seconds}}, "gate": {"in": {}, "out": {"person": 2}}}
        output.result(feed_values.result(counts=counts))
    output.event(feed_values.event("stalled"))
    wait_until(lambda: broker.last("slimdet/door/all") == "0")
    sent = [json.loads(payload) for topic, payload, _, _ in broker.published if topic == "slimdet/door/counts"]
    assert sent == [{"grass": {"inside": {"dog": 1}}, "gate": {"in": {}, "out": {"person": 2}}}]
    output.close()
    broker.close()


def test_a_feed_that_stands_still_has_nobody_in_view() -> None:
    broker = FakeBroker()
    output = open_mqtt(broker)
    wait_until(lambda: broker.last("slimdet/available") == "online")
    output.result(feed_values.result(feed="a/b+#"))
    output.event(feed_values.event("stalled", "a/b+#"))
    wait_until(lambda: broker.last("slimdet/a_b__/all") == "0")
    assert broker.last("slimdet/a_b__/person") == "0" and broker.last("slimdet/a_b__/state") == "stalled"
    output.close()
    broker.close()


def test_statistics_come_by_themselves(monkeypatch) -> None:
    monkeypatch.setattr(mqtt, "_STATS_SECONDS", 0.05)
    broker = FakeBroker()
    output = open_mqtt(broker)
    wait_until(lambda: broker.last("slimdet/stats") is not None)
    assert json.loads(broker.last("slimdet/stats"))["model"] == "yolo_int8.tflite"
    output.close()
    broker.close()


def test_a_broker_that_vanishes_and_returns_hears_what_is_now_and_every_event(monkeypatch) -> None:
    monkeypatch.setattr(mqtt, "_COUNT_SECONDS", 0.0)
    broker = FakeBroker()
    output = open_mqtt(broker)
    output._client.reconnect_delay_set(1, 1)
    wait_until(lambda: broker.last("slimdet/available") == "online")
    output.result(feed_values.result())
    wait_until(lambda: broker.last("slimdet/door/all") == "2")
    broker.close()
    wait_until(lambda: not output._connected)
    output.result(feed_values.result())  # it may come back at once
    monkeypatch.setattr(mqtt, "_GRACE", 0.0)
    with pytest.raises(InputError, match="no connection to the MQTT broker 127.0.0.1:.*; it is tried again"):
        output.result(feed_values.result())
    output.event(feed_values.event("entered"))
    broker = FakeBroker(broker.port)
    wait_until(lambda: broker.last("slimdet/events") is not None)
    wait_until(lambda: broker.last("slimdet/door/all") == "2")  # said again, though it has not changed
    assert broker.last("slimdet/available") == "online"
    output.close()
    broker.close()


def test_a_refusal_is_told_and_nothing_waits_for_a_dead_broker(monkeypatch) -> None:
    monkeypatch.setattr(mqtt, "_GRACE", 0.0)
    broker = FakeBroker(refuse=5)
    output = open_mqtt(broker, user="me", password="hunter2")
    wait_until(lambda: "refused" in output._trouble)
    told: list[str] = []
    outbox = Outbox(output, warn=told.append)
    begin = time.monotonic()
    for index in range(100):
        outbox.offer(feed_values.result(index))
    outbox.offer_event(feed_values.event())
    wait_until(lambda: outbox.status().waiting == 0)
    outbox.close(5)
    assert time.monotonic() - begin < 10
    assert len(told) == 1 and "it refused the connection: Not authorized" in told[0] and "hunter2" not in told[0]
    broker.close()


def test_events_that_nobody_takes_are_bounded(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    output = Mqtt(MqttSettings("127.0.0.1", port), LABELS, feed_values.snapshot)
    wait_until(lambda: output._trouble == "Connection refused")
    with pytest.raises(InputError, match="more than 256 events wait for the broker: Connection refused"):
        for _ in range(300):
            output.event(feed_values.event("entered"))
    output.close()


def test_without_the_package_it_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(InputError, match=r"MQTT needs paho-mqtt, which is not here; pip install 'slimdet\[mqtt\]'"):
        Mqtt(MqttSettings("127.0.0.1"), LABELS, feed_values.snapshot)


@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="no mosquitto here")
def test_a_real_broker_keeps_what_is_retained_and_speaks_the_last_will(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    (tmp_path / "m.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\n")
    broker = subprocess.Popen(["mosquitto", "-c", str(tmp_path / "m.conf")], stderr=subprocess.DEVNULL)
    heard: dict[str, str] = {}
    listener = paho.Client(paho.CallbackAPIVersion.VERSION2)
    listener.on_message = lambda _, __, message: heard.update({message.topic: message.payload.decode()})
    listener.on_connect = lambda client, *_: client.subscribe("cams/#")
    script = (
        "import sys, os, time; sys.path[:0] = ['tests', '.']\n"
        "import feed_values; from deploy.mqtt import *\n"
        "output = Mqtt(parse_mqtt(sys.argv[1]), feed_values.LABELS, feed_values.snapshot)\n"
        "while not output._connected: time.sleep(0.01)\n"
        "output.result(feed_values.result()); output.event(feed_values.event('entered'))\n"
        "print('sent', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", script, f"mqtt://127.0.0.1:{port}/cams"]
    sender = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE)
    try:
        assert sender.stdout.readline() == b"sent\n"
        time.sleep(0.3)
        listener.connect("127.0.0.1", port)  # after it was all sent: only what is retained comes
        listener.loop_start()
        wait_until(lambda: {"cams/available", "cams/door/all", "cams/door/person"} <= set(heard))
        assert heard["cams/available"] == "online" and heard["cams/door/all"] == "2" and "cams/events" not in heard
        sender.kill()
        wait_until(lambda: heard["cams/available"] == "offline")
    finally:
        sender.kill()
        sender.communicate()
        listener.disconnect()
        listener.loop_stop()
        broker.kill()
        broker.wait()
