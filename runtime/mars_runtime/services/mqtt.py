"""Decisions to an MQTT broker: one JSON message each, and whether this device is there as a retained status.

TOPIC/decision   every decision, the JSON of the output lines; quality of service 0
TOPIC/status     "online" or "offline", retained; "offline" is the last will, so a dead device says so
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from mars_edge.errors import UsageError
from mars_runtime.decision import Decision

_QUEUED = 100
_RECONNECT_S = (1, 30)
_EXAMPLE = "mqtt://broker.local:1883/cameras/door"
PASSWORD = "MARS_EDGE_MQTT_PASSWORD"


@dataclass(frozen=True, kw_only=True)
class Broker:
    """Where to publish."""

    host: str
    port: int
    topic: str
    tls: bool
    user: str | None


def broker_of(url: str) -> Broker:
    """The broker of mqtt://[USER@]HOST[:PORT]/TOPIC, or mqtts:// with TLS; a password comes from the environment.

    Raises:
        UsageError: another scheme, no host, no topic, a wildcard in it, or a password in the open.
    """
    where = f"--mqtt {url!r}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{where}: {error}; an example: {_EXAMPLE}") from error
    topic = unquote(parts.path.strip("/"))
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or not topic:
        raise UsageError(f"{where} is not mqtt://[USER@]HOST[:PORT]/TOPIC; an example: {_EXAMPLE}")
    if parts.password is not None:
        raise UsageError(f"--mqtt: the address holds a password, which every user of this machine sees; use {PASSWORD}")
    if parts.query or parts.fragment or "#" in url:
        raise UsageError(f"{where}: a topic holds neither ? nor #; an example: {_EXAMPLE}")
    if set(topic) & {"+", "#"}:
        raise UsageError(f"{where}: the topic {topic!r} holds a wildcard; allowed: none of + and #")
    tls = parts.scheme == "mqtts"
    return Broker(
        host=parts.hostname, port=port or (8883 if tls else 1883), topic=topic, tls=tls, user=parts.username or None
    )


class Mqtt:
    """A sink that publishes; decisions are dropped and counted without a connection, and while 100 wait to be sent.

    Args:
        say: told in a line when the broker cannot be reached, when it can again, and in the end what was dropped.

    Raises:
        UsageError: the client library is not installed.
    """

    def __init__(self, broker: Broker, *, say: Callable[[str], None] = lambda line: None) -> None:
        try:
            from paho.mqtt import client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise UsageError("--mqtt needs a package: pip install 'mars-edge[mqtt]'") from error
        self._broker = broker
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._sending: deque[Any] = deque()
        self.dropped = 0
        self._say = say
        self._lost = False
        self._closed = False
        if broker.user is not None:
            self._client.username_pw_set(broker.user, os.environ.get(PASSWORD))
        if broker.tls:
            self._client.tls_set()
        self._client.reconnect_delay_set(*_RECONNECT_S)
        self._client.will_set(self._status, "offline", qos=1, retain=True)
        self._client.on_connect = self._greet
        self._client.on_connect_fail = self._miss
        self._client.on_disconnect = self._miss
        self._client.connect_async(broker.host, broker.port, keepalive=15)
        self._client.loop_start()

    @property
    def _status(self) -> str:
        return f"{self._broker.topic}/status"

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return bool(self._client.is_connected())

    @property
    def waiting(self) -> int:
        """Messages given to the client and not known to be sent, at most 100."""
        return len(self._sending)

    def _greet(self, client: Any, *told: Any) -> None:
        client.publish(self._status, "online", qos=1, retain=True)
        if self._lost:
            self._lost = False
            self._say(f"MQTT broker {self._where}: connected")

    def _miss(self, *told: Any) -> None:
        if not (self._lost or self._closed):
            self._lost = True
            self._say(f"MQTT broker {self._where} cannot be reached: decisions are dropped until it can")

    @property
    def _where(self) -> str:
        return f"{self._broker.host}:{self._broker.port}"

    def write(self, decision: Decision) -> None:
        """Publish one decision, or drop it."""
        # The client's own limit leaves out messages of quality of service 0: a broker that reads nothing fills memory.
        while self._sending and _sent(self._sending[0]):
            self._sending.popleft()
        if not self.connected or len(self._sending) >= _QUEUED:
            self.dropped += 1
            return
        line = json.dumps(decision.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        sent = self._client.publish(f"{self._broker.topic}/decision", line, qos=0)
        self.dropped += sent.rc != 0
        self._sending.append(sent)

    def close(self) -> None:
        """Say goodbye within a second; may be called twice."""
        if self._closed:
            return
        self._closed = True
        if self.connected:
            self._client.publish(self._status, "offline", qos=1, retain=True).wait_for_publish(1.0)
        self._client.disconnect()
        self._client.loop_stop()
        if self.dropped:
            self._say(f"MQTT broker {self._where}: {self.dropped} decisions were dropped")


def _sent(message: Any) -> bool:
    """Whether a message needs no more room; after an error the client raises instead of answering."""
    return message.rc != 0 or bool(message.is_published())
