"""A recording with faults added: what the sensors would have given had they been broken then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mars_edge.errors import SensorError, UsageError
from mars_edge.faults import Fault
from mars_runtime.capture import Delivery, Sample
from mars_runtime.facts import FactFinder
from mars_runtime.health import ReadFailed, SampleSeen
from mars_runtime.recording.reader import RecordedDelivery, RecordedTick, Recording
from mars_runtime.recording.recorder import Kept
from mars_runtime.recording.writer import RecordingWriter, partial
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.sensors.faulty import FaultyDriver


def inject(recording: Recording, target: Path, faults: Sequence[Fault], *, seed: int) -> Kept:
    """Write `recording` with `faults` as a recording of sensors alone; the faults' times count from its first entry.

    What is not broken stays as it is, to the bit and the microsecond; facts about broken samples are measured anew.

    Raises:
        UsageError: the recording is damaged, a fault meets no sample of its sensor, or the target exists.
    """
    _require_inside(recording, faults)
    session = replace(recording.session, model=None, model_id=None, settings=None, note=", ".join(map(str, faults)))
    writer = RecordingWriter(target, session)
    written = 0
    try:
        sensors: dict[str, _Broken] = {}
        first_s: float | None = None
        for entry in _deliveries(recording):
            first_s = entry.at_s if first_s is None else first_s
            if entry.name not in sensors:
                own = [fault for fault in faults if fault.sensor == entry.name]
                finder = FactFinder.of(session.modalities[entry.name])
                number = list(session.modalities).index(entry.name)
                sensors[entry.name] = _Broken(entry.traits, own, finder, seed=seed + number)
            delivery = sensors[entry.name].delivery(entry, entry.at_s - first_s)
            writer.delivery(entry.name, delivery, entry.traits, entry.at_s)
            written += 1
        _require_met(recording, faults, sensors)
        writer.close()
    except BaseException:
        # Unlike what a live sensor gave, it can be made again: a part of it is of no use.
        writer.abandon()
        partial(target).unlink(missing_ok=True)
        raise
    return Kept(path=target, written=written, dropped=0)


def _require_inside(recording: Recording, faults: Sequence[Fault]) -> None:
    """A fault that comes too late would leave the recording as it was, without a word."""
    ends_s = recording.ends_s()
    for fault in faults:
        end_s, length_s = ends_s.get(fault.sensor, 0.0), max(ends_s.values(), default=0.0)
        if fault.start_s > end_s:
            raise UsageError(
                f"--inject {fault}: would break nothing: {recording.path} is {length_s:.2f} s long, and "
                f"{fault.sensor} ends at {end_s:.2f} s"
            )


def _require_met(recording: Recording, faults: Sequence[Fault], sensors: Mapping[str, _Broken]) -> None:
    """Nor does a fault break anything in a gap, or of a sensor that never gave a sample."""
    for fault in faults:
        broken = sensors.get(fault.sensor)
        if broken is None or fault not in broken.met:
            count = 0 if broken is None else broken.samples
            raise UsageError(
                f"--inject {fault}: would break nothing: none of the {count} samples of {fault.sensor} in "
                f"{recording.path} is of that time"
            )


def _deliveries(recording: Recording) -> Iterator[RecordedDelivery]:
    for entry in recording.entries():
        found = entry.deliveries.values() if isinstance(entry, RecordedTick) else [entry]
        yield from (each for each in found if each.delivery.sample is not None or each.delivery.events)


class _Given:
    """A driver that gives the frame it was handed."""

    def __init__(self, traits: Traits) -> None:
        self.traits = traits
        self.frame: Frame | None = None

    def open(self) -> None:
        pass

    def read(self, timeout_s: float) -> Frame | None:
        frame, self.frame = self.frame, None
        return frame

    def close(self) -> None:
        pass


class _Broken:
    """One sensor of the recording behind its faults."""

    def __init__(self, traits: Traits, faults: Sequence[Fault], finder: FactFinder, *, seed: int) -> None:
        self._faults = faults
        self._given = _Given(traits)
        self._stream_s = 0.0
        self._driver = FaultyDriver(self._given, faults, stream_s=lambda: self._stream_s, seed=seed)
        self._finder = finder
        self.samples = 0
        self.met: set[Fault] = set()

    def delivery(self, entry: RecordedDelivery, stream_s: float) -> Delivery:
        """The delivery as the faults leave it; without a fault on this sensor, as it was."""
        if not self._faults or entry.delivery.sample is None:
            return entry.delivery
        self._stream_s = stream_s
        self.samples += 1
        self.met |= {fault for fault in self._faults if fault.active(stream_s)}
        sample = entry.delivery.sample
        self._given.frame = sample.frame
        others = tuple(event for event in entry.delivery.events if not isinstance(event, SampleSeen))
        try:
            frame = self._driver.read(0.0)
        except SensorError as error:
            failed = ReadFailed(at_s=sample.at_s, gone=error.gone, message=str(error))
            return Delivery(sample=None, events=(failed, *others))
        if frame is None:
            return Delivery(sample=None, events=others)
        seen = self._finder.facts(frame, entry.traits, sample.at_s)
        return Delivery(sample=Sample(frame=frame, at_s=sample.at_s), events=(seen, *others))
