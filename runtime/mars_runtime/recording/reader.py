"""Reads a recording from front to back, whole or cut off by a kill."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mars_edge.errors import UsageError
from mars_runtime.capture import Delivery, Sample
from mars_runtime.recording import payload
from mars_runtime.recording.plain import from_plain
from mars_runtime.recording.session import Session
from mars_runtime.recording.writer import LOOP, METADATA, load_mcap, topic
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.tick import LoopState, Plan, Readings

# A larger record is none of ours, and a damaged length must not be allocated.
_LARGEST_RECORD = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class RecordedDelivery:
    """What one sensor handed out, at `at_s` of the monotonic clock of the recording."""

    name: str
    delivery: Delivery
    traits: Traits
    at_s: float


@dataclass(frozen=True, kw_only=True)
class RecordedTick:
    """One decision and its causes.

    Attributes:
        state: of the loop before it; None where the tick before it is in the recording.
        decision: as `writer.exact` made it.
    """

    plan: Plan
    readings: Readings
    deliveries: dict[str, RecordedDelivery]
    decision: dict[str, Any]
    state: LoopState | None


Entry = RecordedDelivery | RecordedTick


@dataclass
class Recording:
    """One file; `entries` may be called again and again.

    Attributes:
        cut: the file ends in the middle, known once `entries` has come to its end.
    """

    path: Path
    session: Session
    cut: bool = field(default=False)

    def entries(self, only: Collection[str] | None = None) -> Iterator[Entry]:
        """Everything in the order it was written; with `only`, the deliveries of these sensors alone.

        Raises:
            UsageError: the file is damaged.
        """
        assembly = _Assembly(self.session, only)
        for where, schema, message in self._messages():
            entry = assembly.add(where, schema, message)
            if entry is not None:
                yield entry

    def ends_s(self) -> dict[str, float]:
        """By sensor, its last delivery in seconds after the first delivery of any; decodes no sample.

        Raises:
            UsageError: the file is damaged.
        """
        names = {topic(name, "events"): name for name in self.session.modalities}
        first_ns: int | None = None
        ends_ns: dict[str, int] = {}
        for where, _, message in self._messages():
            if where in names:
                first_ns = message.log_time if first_ns is None else min(first_ns, message.log_time)
                ends_ns[names[where]] = max(message.log_time, ends_ns.get(names[where], 0))
        return {name: (at_ns - (first_ns or 0)) * 1e-9 for name, at_ns in ends_ns.items()}

    def _messages(self) -> Iterator[tuple[str, str, Any]]:
        library = load_mcap()
        channels: dict[int, tuple[str, int]] = {}
        schemas: dict[int, str] = {0: ""}
        for record in _records(self):
            if isinstance(record, library.records.Schema):
                schemas[record.id] = record.name
            elif isinstance(record, library.records.Channel):
                channels[record.id] = (record.topic, record.schema_id)
            elif isinstance(record, library.records.Message):
                where, schema_id = channels[record.channel_id]
                yield where, schemas[schema_id], record


def open_recording(path: Path) -> Recording:
    """The recording in a file, complete or cut off.

    Raises:
        UsageError: no such file, not MCAP, or not recorded by mars-edge.
    """
    library = load_mcap()
    if not path.is_file():
        partial = path.with_name(path.name + ".partial")
        hint = f"; {partial} is there, of a run that was cut" if partial.is_file() else ""
        raise UsageError(f"{path}: no such recording{hint}")
    # Only the head is read, so the session given here is never used.
    for record in _records(Recording(path=path, session=_NO_SESSION)):
        if isinstance(record, library.records.Metadata) and record.name == METADATA:
            return Recording(path=path, session=Session.from_json(record.metadata.get("session", "")))
        if isinstance(record, library.records.Message | library.records.Footer):
            break
    raise UsageError(f"{path}: was not recorded by mars-edge")


_NO_SESSION = Session(modalities={}, traits={}, utc_offset_s=0.0)


def _records(recording: Recording) -> Iterator[Any]:
    library = load_mcap()
    errors = library.exceptions
    damage = (errors.McapError, struct.error, ValueError, KeyError, IndexError, OverflowError, *_zstd_errors())
    with recording.path.open("rb") as file:
        reader = library.stream_reader.StreamReader(file, validate_crcs=True, record_size_limit=_LARGEST_RECORD)
        try:
            yield from reader.records
        except errors.EndOfFile:
            recording.cut = True
        except errors.InvalidMagic as error:
            raise UsageError(f"{recording.path}: not an MCAP recording") from error
        except damage as error:
            if isinstance(error, struct.error) and not file.read(1):
                recording.cut = True
                return
            raise UsageError(f"{recording.path}: damaged at byte {file.tell()} ({error})") from error


def _zstd_errors() -> tuple[type[Exception], ...]:
    import zstandard

    return (zstandard.ZstdError,)


class _Assembly:
    """Puts payload, events and loop messages together again."""

    def __init__(self, session: Session, only: Collection[str] | None) -> None:
        names = [name for name in session.modalities if only is None or name in only]
        self._payload_of = {topic(name): name for name in names}
        self._events_of = {topic(name, "events"): name for name in names}
        self._with_ticks = only is None
        self._session = session
        self._payloads: dict[str, tuple[int, str, bytes]] = {}
        self._traits = dict(session.traits)
        self._pending: dict[str, RecordedDelivery] = {}

    def add(self, where: str, schema: str, message: Any) -> Entry | None:
        if where in self._payload_of:
            self._payloads[self._payload_of[where]] = (message.sequence, schema, message.data)
            return None
        if where in self._events_of:
            return self._delivered(self._events_of[where], json.loads(message.data), message.log_time)
        if where == LOOP and self._with_ticks:
            return self._tick(json.loads(message.data))
        return None

    def _delivered(self, name: str, entry: dict[str, Any], log_ns: int) -> RecordedDelivery | None:
        if "traits" in entry:
            self._traits[name] = from_plain(entry["traits"])
        events = tuple(from_plain(event) for event in entry["events"])
        sample = self._sample(name, entry["sample"]) if "sample" in entry else None
        delivered = RecordedDelivery(
            name=name,
            delivery=Delivery(sample=sample, events=events),
            traits=self._traits[name],
            at_s=log_ns * 1e-9 - self._session.utc_offset_s,
        )
        if not self._with_ticks or self._session.settings is None:
            return delivered
        self._pending[name] = delivered
        return None

    def _sample(self, name: str, entry: dict[str, Any]) -> Sample:
        index, schema, content = self._payloads.get(name, (-1, "", b""))
        if index != entry["index"]:
            raise UsageError(f"the recording lacks sample {entry['index']} of {name}")
        data = payload.decode(schema, content, tuple(entry["shape"]))
        rest = {key: from_plain(value) for key, value in entry["frame"].items()}
        return Sample(frame=Frame(data=data, **rest), at_s=entry["at_s"])

    def _tick(self, entry: dict[str, Any]) -> RecordedTick:
        deliveries, self._pending = self._pending, {}
        at_s = entry["readings"]["end_s"]
        nothing = Delivery(sample=None, events=())
        for name, traits in self._traits.items():
            if name not in deliveries:
                deliveries[name] = RecordedDelivery(name=name, delivery=nothing, traits=traits, at_s=at_s)
        return RecordedTick(
            plan=from_plain(entry["plan"]),
            readings=from_plain(entry["readings"]),
            deliveries=deliveries,
            decision=entry["decision"],
            state=from_plain(entry["state"]) if "state" in entry else None,
        )
