"""Results and events to an MQTT broker, in topics as frigate has them.

| topic | payload |
|---|---|
| PREFIX/available | online, or offline also after a crash or a cut line (last will); retained |
| PREFIX/FEED/state | the feed's state; retained |
| PREFIX/FEED/LABEL, PREFIX/FEED/all | how many are in view, when that changes, twice a second at most; retained |
| PREFIX/FEED/counts | what zones hold and lines have counted, as JSON, without dwell times; likewise |
| PREFIX/events | each event as JSON |
| PREFIX/stats | the run's state as JSON, every fifteen seconds |
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
import secrets
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploy.errors import InputError
from deploy.output import label_of
from deploy.result import Event, Result
from deploy.result_json import event_json, plain, snapshot_json
from deploy.status import Snapshot

#: Seconds between two messages about what a feed has in view, and between two states of the run.
_COUNT_SECONDS, _STATS_SECONDS = 0.5, 15.0
#: Messages that wait for a broker at most: events alone do.
_MOST_QUEUED = 256
#: Seconds that a connection may take before its lack is a failure.
_GRACE = 3.0
_QUEUE_IS_FULL = 15  # paho's MQTT_ERR_QUEUE_SIZE
_FEED_STATES = ("opening", "running", "stalled", "waiting", "ended", "failed")


@dataclasses.dataclass(frozen=True)
class MqttSettings:
    host: str
    port: int = 1883
    #: Encrypted, with the machine's own authorities.
    tls: bool = False
    user: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    prefix: str = "slimdet"


def parse_mqtt(url: str) -> MqttSettings:
    """mqtt://[USER[:PASSWORD]@]HOST[:PORT][/PREFIX], or mqtts:// for TLS; user and password are percent-decoded.

    Raises InputError, whose text does not repeat the address.
    """
    law = "MQTT is given as mqtt(s)://[user:password@]host[:port][/prefix]"
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InputError(f"{law}; host or port of the one given cannot be read, correct it") from None
    if parts.scheme not in ("mqtt", "mqtts") or not host or parts.query or parts.fragment:
        raise InputError(f"{law}; the one given begins otherwise, lacks its host or has more, correct it")
    prefix = urllib.parse.unquote(parts.path).strip("/") or MqttSettings.prefix
    if not re.fullmatch(r"[^#+\0$][^#+\0]*", prefix) or len(prefix.encode("utf-8", "replace")) > 200:
        raise InputError("an MQTT prefix has no # and +, no $ at its begin and 200 bytes at most; choose another one")
    tls = parts.scheme == "mqtts"
    user, password = (None if one is None else urllib.parse.unquote(one) for one in (parts.username, parts.password))
    return MqttSettings(host, port or (8883 if tls else 1883), tls, user, password, prefix)


class Mqtt:
    """Connects and connects anew by itself; nothing here waits for the broker.

    What is in view is lost while there is no connection, and sent as it then is with the next one; events wait for it.
    """

    name = "mqtt"

    def __init__(self, settings: MqttSettings, labels: Sequence[str], snapshot: Callable[[], Snapshot]) -> None:
        """Raises InputError where paho-mqtt is missing."""
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise InputError("MQTT needs paho-mqtt, which is not here; pip install 'slimdet[mqtt]'") from error
        self._settings, self._labels, self._snapshot = settings, labels, snapshot
        self._lock = threading.Lock()
        #: Retained messages as they should stand at the broker, by topic, and those that it was sent.
        self._wanted: dict[str, str] = {}
        self._sent: dict[str, str] = {}
        self._counted: dict[str, float] = {}
        self._connected = False
        self._since = time.monotonic()
        self._trouble = "no answer"
        self._end = threading.Event()
        name = f"slimdet-{secrets.token_hex(6)}"
        self._client = client = Client(CallbackAPIVersion.VERSION2, name, clean_session=True)
        if settings.user is not None:
            client.username_pw_set(settings.user, settings.password)
        if settings.tls:
            client.tls_set()
        client.will_set(self._topic("available"), "offline", qos=1, retain=True)
        client.max_queued_messages_set(_MOST_QUEUED)
        client.reconnect_delay_set(1, 30)
        client.connect_timeout = 5.0
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_connect_fail = self._on_connect_fail
        client.connect_async(settings.host, settings.port, keepalive=20)
        client.loop_start()
        self._timer = threading.Thread(target=self._send_stats, name="mqtt stats", daemon=True)
        self._timer.start()

    def result(self, result: Result) -> None:
        """Raises InputError where there has been no broker for three seconds."""
        if time.monotonic() - self._counted.get(result.feed, float("-inf")) >= _COUNT_SECONDS:
            self._counted[result.feed] = time.monotonic()
            counts = collections.Counter(label_of(self._labels, number) for number in result.found.class_ids.tolist())
            self._want_counts(result.feed, counts)
            if result.counts:
                with self._lock:
                    self._wanted[self._topic(result.feed, "counts")] = json.dumps(_without_times(result.counts))
            self._send_wanted()
        for event in result.events:
            self.event(event)
        self._check()

    def event(self, event: Event) -> None:
        """Raises InputError where too many events wait for the broker."""
        if event.feed and event.kind in _FEED_STATES:
            with self._lock:
                self._wanted[self._topic(event.feed, "state")] = event.kind
            if event.kind not in ("running", "opening"):
                self._want_counts(event.feed, {})  # nobody is seen where nothing is looked at
            self._send_wanted()
        sent = self._client.publish(self._topic("events"), json.dumps(event_json(event), allow_nan=False), qos=1)
        if sent.rc == _QUEUE_IS_FULL:
            raise InputError(f"more than {_MOST_QUEUED} events wait for the broker: {self._trouble}; look after it")

    def close(self) -> None:
        """Says offline, where someone listens, and disconnects."""
        self._end.set()
        if self._connected:
            said = self._client.publish(self._topic("available"), "offline", qos=1, retain=True)
            try:
                said.wait_for_publish(0.4)
            except (RuntimeError, ValueError):  # the connection has gone meanwhile: the broker says it for us
                pass
        # A connection that is just being tried cannot be broken off; it is left to its timeout.
        stop = threading.Thread(target=self._stop, name="mqtt stop", daemon=True)
        stop.start()
        stop.join(0.4)

    def _stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _check(self) -> None:
        if not self._connected and time.monotonic() - self._since > _GRACE:
            where = f"{self._settings.host}:{self._settings.port}"
            raise InputError(f"no connection to the MQTT broker {where}: {self._trouble}; it is tried again")

    def _want_counts(self, feed: str, counts: collections.Counter[str] | dict[str, int]) -> None:
        with self._lock:
            begin = self._topic(feed, "")
            others = self._topic(feed, "state"), self._topic(feed, "counts")
            for topic in [one for one in self._wanted if one.startswith(begin) and one not in others]:
                self._wanted[topic] = "0"
            for label, count in counts.items():
                self._wanted[self._topic(feed, label)] = str(count)
            self._wanted[self._topic(feed, "all")] = str(sum(counts.values()))

    def _send_wanted(self) -> None:
        """Those of the retained messages that changed."""
        with self._lock:
            changed = {topic: text for topic, text in self._wanted.items() if self._sent.get(topic) != text}
            if not self._connected:
                return
            self._sent.update(changed)
        for topic, text in changed.items():
            self._client.publish(topic, text, qos=0, retain=True)

    def _send_stats(self) -> None:
        while not self._end.wait(_STATS_SECONDS):
            if self._connected:
                state = json.dumps(snapshot_json(self._snapshot()), allow_nan=False)
                self._client.publish(self._topic("stats"), state, qos=0)

    def _topic(self, *levels: str) -> str:
        """Below the prefix; what has a meaning in topics becomes an underscore."""
        return "/".join([self._settings.prefix, *(re.sub(r"[/+#\0]", "_", level) for level in levels)])

    # From here on in paho's thread.

    def _on_connect(self, client: Any, _: Any, __: Any, reason: Any, ___: Any) -> None:
        if reason.is_failure:
            self._trouble = f"it refused the connection: {reason}"
            return
        with self._lock:
            self._sent.clear()  # a broker may have forgotten
            self._connected = True
        client.publish(self._topic("available"), "online", qos=1, retain=True)
        self._send_wanted()

    def _on_disconnect(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        if self._connected:
            self._since = time.monotonic()
        self._connected = False
        if reason.is_failure and not self._trouble.startswith("it refused"):
            self._trouble = "the connection was lost"

    def _on_connect_fail(self, _: Any, __: Any) -> None:
        self._connected = False
        self._trouble = _why_not(self._settings.host, self._settings.port)


def _without_times(counts: Mapping[str, Any]) -> Any:
    """Dwell times change with each frame, and come with the event when someone leaves."""
    return plain(
        {
            name: {key: one for key, one in value.items() if key != "dwell_s"} if isinstance(value, Mapping) else value
            for name, value in counts.items()
        }
    )


def _why_not(host: str, port: int) -> str:
    """paho keeps the reason to itself, so it is asked once more; in its thread, where a second does no harm."""
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError as error:
        return str(error.strerror or error)
    return "no MQTT is spoken there, or TLS failed"
