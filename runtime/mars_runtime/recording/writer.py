"""Writes one recording: to FILE.partial, which gets its name when it is complete.

A killed recording stays readable under the .partial name: MCAP is written chunk by chunk, and a reader needs no index.
"""

from __future__ import annotations

import importlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mars_edge.errors import UsageError
from mars_runtime import decision as decisions
from mars_runtime.capture import Delivery, Sample
from mars_runtime.decision import Decision
from mars_runtime.health import Summary
from mars_runtime.recording import payload
from mars_runtime.recording.plain import to_plain
from mars_runtime.recording.session import Session
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.tick import Tick

PARTIAL = ".partial"
METADATA = "mars-edge"
LOOP, DECISION, HEALTH, MAP = "/loop", "/decision", "/health", "/map"
# What a kill can cost. The index in memory grows by about a KiB per chunk until the file is complete.
_CHUNK_BYTES = 1024 * 1024
_ANY = {"type": "object"}
_RAW_IMAGE_MODULE = "foxglove_schemas_protobuf.RawImage_pb2"


def load_mcap() -> Any:
    """The `mcap` package with its writer and reader.

    Raises:
        UsageError: it, or the messages pictures are stored in, is not installed; says how to install them.
    """
    try:
        for name in ("mcap.writer", "mcap.stream_reader", "mcap_protobuf.schema", _RAW_IMAGE_MODULE):
            importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"a recording needs {error.name}: pip install 'mars-edge[record]'") from error
    return importlib.import_module("mcap")


def topic(name: str, kind: str = "") -> str:
    """`/sensors/NAME`, or `/sensors/NAME/KIND`."""
    return f"/sensors/{name}/{kind}" if kind else f"/sensors/{name}"


def check_target(path: Path) -> None:
    """A recording never replaces a file.

    Raises:
        UsageError: `path` names no file, it or its partial exists, or its folder does not.
    """
    if not path.name:
        raise UsageError(f"{str(path)!r} names no file to record into")
    for taken in (path, partial(path)):
        if taken.exists():
            raise UsageError(f"{taken}: exists already; a recording does not replace a file")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")


def partial(path: Path) -> Path:
    """The name of a recording that is not complete."""
    return path.with_name(path.name + PARTIAL)


class RecordingWriter:
    """One MCAP file; used by one thread at a time.

    Raises:
        UsageError: the packages are not installed, or the file exists.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, session: Session) -> None:
        library = load_mcap()
        check_target(path)
        self.path = path
        self._session = session
        self._file = partial(path).open("xb")
        self._writer = library.writer.Writer(self._file, chunk_size=_CHUNK_BYTES)
        self._writer.start(profile="mars-edge", library=f"mars-edge {session.version}")
        self._writer.add_metadata(METADATA, {"session": session.to_json()})
        self._channels: dict[str, tuple[int, str]] = {}
        self._schemas: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._traits: dict[str, Traits] = {}
        self._said: dict[str, tuple[str, str | None]] = {}

    def delivery(self, name: str, delivery: Delivery, traits: Traits, at_s: float) -> None:
        """What one sensor handed out at `at_s`: its sample as a picture or an array, its events, its changed traits."""
        sample = delivery.sample
        entry: dict[str, Any] = {"events": [to_plain(event) for event in delivery.events]}
        if sample is not None:
            entry["sample"] = self._sample(name, sample)
        if self._traits.get(name) != traits:
            self._traits[name] = traits
            entry["traits"] = to_plain(traits)
        if len(entry) > 1 or delivery.events:
            self._json(topic(name, "events"), "mars_edge.Delivery", entry, at_s)

    def _sample(self, name: str, sample: Sample) -> dict[str, Any]:
        data, at_ns = sample.frame.data, self._session.utc_ns(sample.at_s)
        schema = payload.schema_of(data)
        index = self._message(topic(name), schema, payload.encode(data, at_ns, name), sample.at_s)
        self._sound(name, sample, first=index == 0)
        rest = {f.name: to_plain(getattr(sample.frame, f.name)) for f in fields(Frame) if f.name != "data"}
        return {"index": index, "at_s": sample.at_s, "shape": list(data.shape), "frame": rest}

    def _sound(self, name: str, sample: Sample, *, first: bool) -> None:
        modality = self._session.modalities[name]
        if modality.kind != "audio":
            return
        traits = self._session.traits[name]
        new = sample.frame.data if first else sample.frame.data[-max(1, round(modality.rate_hz * traits.period_s)) :]
        content = payload.encode_sound(new, modality.rate_hz, self._session.utc_ns(sample.at_s))
        self._message(topic(name, "audio"), payload.RAW_AUDIO, content, sample.at_s)

    def tick(self, tick: Tick, *, state: bool) -> None:
        """One decision with all its causes; `state` makes it one that a replay can begin with."""
        end_s = tick.readings.end_s
        for name, delivery in tick.deliveries.items():
            self.delivery(name, delivery, tick.traits[name], end_s)
        entry: dict[str, Any] = {
            "plan": to_plain(tick.plan),
            "readings": to_plain(tick.readings),
            "decision": exact(tick.decision),
        }
        if state:
            entry["state"] = to_plain(tick.before)
        self._json(LOOP, "mars_edge.Loop", entry, end_s)
        self._json(DECISION, "mars_edge.Decision", tick.decision.to_dict(), end_s, schema=decisions.schema())
        self._changes(tick.decision.modalities, end_s)
        if tick.decision.label_map is not None:
            content = payload.encode(tick.decision.label_map, self._session.utc_ns(end_s), "map")
            self._message(MAP, payload.RAW_IMAGE, content, end_s)

    def _changes(self, modalities: Mapping[str, Summary], at_s: float) -> None:
        """Status changes as messages of their own, so that a viewer can list them."""
        for name, summary in modalities.items():
            now = (summary.status, summary.reason)
            if self._said.get(name) != now:
                self._said[name] = now
                entry = {"sensor": name, "status": summary.status, "reason": summary.reason}
                self._json(HEALTH, "mars_edge.Health", entry, at_s)

    def _json(self, where: str, name: str, entry: Any, at_s: float, *, schema: dict[str, Any] | None = None) -> None:
        content = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode()
        self._message(where, name, content, at_s, schema=schema)

    def _message(
        self, where: str, schema_name: str, content: bytes, at_s: float, *, schema: dict[str, Any] | None = None
    ) -> int:
        """Write one message and return its number on its topic."""
        at_ns = self._session.utc_ns(at_s)
        channel = self._channel(where, schema_name, schema)
        index = self._counts.get(where, 0)
        self._counts[where] = index + 1
        self._writer.add_message(channel, log_time=at_ns, data=content, publish_time=at_ns, sequence=index)
        return index

    def _channel(self, where: str, schema_name: str, schema: dict[str, Any] | None) -> int:
        known = self._channels.get(where)
        if known is not None and known[1] == schema_name:
            return known[0]
        is_protobuf = schema_name.startswith("foxglove.")
        encoding = "protobuf" if is_protobuf else "json"
        number: int = self._writer.register_channel(where, encoding, self._schema(schema_name, schema))
        self._channels[where] = (number, schema_name)
        return number

    def _schema(self, name: str, schema: dict[str, Any] | None) -> int:
        if name not in self._schemas:
            if name.startswith("foxglove."):
                encoding, content = "protobuf", payload.protobuf_schema(name)
            else:
                given = schema or (payload.ARRAY_SCHEMA if name == payload.ARRAY else _ANY)
                encoding, content = "jsonschema", json.dumps({"title": name, **given}).encode()
            self._schemas[name] = self._writer.register_schema(name, encoding, content)
        return self._schemas[name]

    def flush(self) -> None:
        """Hand complete chunks to the operating system: a killed process does not lose them."""
        self._file.flush()

    def close(self) -> None:
        """Complete the file and give it its name."""
        if self._file.closed:
            return
        self._writer.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        partial(self.path).replace(self.path)

    def abandon(self) -> None:
        """Leave what there is under the partial name."""
        self._file.close()


def exact(decision: Decision) -> dict[str, Any]:
    """A decision without its latency as plain JSON, every bit of it."""
    entry = {"value": to_plain(replace(decision, latency_ms={}))}
    if decision.label_map is not None:
        entry["map_crc32"] = zlib.crc32(decision.label_map.tobytes())
    return entry
