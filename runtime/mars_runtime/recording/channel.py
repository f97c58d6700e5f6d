"""One sensor of a recording as a source: `replay:run.mcap#depth`, with the original timing and failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary

from mars_edge.errors import SensorError, UsageError
from mars_runtime.health import Ended, ReadFailed
from mars_runtime.recording.reader import RecordedDelivery, Recording, open_recording
from mars_runtime.sensors.driver import Driver, Frame, SourceEndedError, Traits
from mars_runtime.sensors.pace import Clock, Sleep


class Playback:
    """When the time of one recording runs: from the first channel that is opened, for all of its channels."""

    def __init__(self, path: Path) -> None:
        self.recording = open_recording(path)
        self._lock = threading.Lock()
        self._begin_s: float | None = None
        self._first_s: float | None = None

    def shift_s(self, now_s: float) -> float:
        """What is added to a recorded time to get the present one."""
        with self._lock:
            if self._begin_s is None:
                self._begin_s, self._first_s = now_s, _first_s(self.recording)
            assert self._first_s is not None
            return self._begin_s - self._first_s


# Channels of one stream share their time; it ends with the last of them.
_PLAYBACKS: WeakValueDictionary[Path, Playback] = WeakValueDictionary()


def open_channel(path: Path | str, name: str, *, clock: Clock = time.monotonic, sleep: Sleep = time.sleep) -> Driver:
    """The driver of one sensor of a recording, not yet opened.

    Raises:
        UsageError: no such recording, damaged, or without that sensor.
    """
    place = Path(path).resolve()
    playback = _PLAYBACKS.get(place) or Playback(Path(path))
    _PLAYBACKS[place] = playback
    return RecordedSensor(playback, name, clock=clock, sleep=sleep)


def is_empty(path: Path | str, name: str) -> bool:
    """Whether a recording holds neither a sample nor a failure of a sensor; reads no further than the first.

    Raises:
        UsageError: as `open_channel`.
    """
    return next(_happenings(open_recording(Path(path)), name), None) is None


class RecordedSensor:
    """Gives what was recorded when it was recorded; a gap is silence, a failed read fails again.

    A reader that is late gets the newest of what has passed, as from a live source.
    """

    def __init__(self, playback: Playback, name: str, *, clock: Clock, sleep: Sleep) -> None:
        recording = playback.recording
        if name not in recording.session.traits:
            known = ", ".join(recording.session.traits) or "none"
            raise UsageError(f"{recording.path}: has no sensor {name!r}; its sensors: {known}")
        self.traits = _as_file(recording, name, recording.session.traits[name])
        self._playback = playback
        self._name = name
        self._clock = clock
        self._sleep = sleep
        self._happenings: Iterator[_Happening] | None = None
        self._next: _Happening | None = None

    def open(self) -> None:
        """Start the recording's time, or go on where an earlier failure stopped.

        Raises:
            UsageError: the recording is damaged.
        """
        self._playback.shift_s(self._clock())
        if self._happenings is None:
            self._happenings = _happenings(self._playback.recording, self._name)
            self._next = next(self._happenings, None)

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame when its time has come.

        Raises:
            SourceEndedError: nothing follows.
            SensorError: reading failed at this point of the recording.
        """
        if self._happenings is None:
            raise SensorError(f"{self.traits.description}: read before open")
        if self._next is None:
            raise SourceEndedError(f"{self.traits.description}: at its end")
        shift_s = self._playback.shift_s(self._clock())
        ahead_s = self._next.at_s + shift_s - self._clock()
        if ahead_s > timeout_s:
            self._sleep(timeout_s)
            return None
        if ahead_s > 0.0:
            self._sleep(ahead_s)
        happening = self._take_newest(shift_s)
        if isinstance(happening.what, ReadFailed):
            said = happening.what.message or "failed"
            raise SensorError(f"{self.traits.description}: {said} (recorded)", gone=happening.what.gone)
        return _moved(happening.what, shift_s, last=self._next is None)

    def _take_newest(self, shift_s: float) -> _Happening:
        """The next happening, or a later one that is due as well; a failure is passed over by nothing."""
        assert self._next is not None and self._happenings is not None
        taken, self._next = self._next, next(self._happenings, None)
        while self._next is not None and isinstance(taken.what, Frame) and self._next.at_s + shift_s <= self._clock():
            taken, self._next = self._next, next(self._happenings, None)
        self.traits = _as_file(self._playback.recording, self._name, taken.traits)
        return taken

    def close(self) -> None:
        """Keep the position: the recording's time runs on."""


@dataclass(frozen=True, kw_only=True)
class _Happening:
    """A frame or a failed read, at its recorded time."""

    at_s: float
    what: Frame | ReadFailed
    traits: Traits


def _happenings(recording: Recording, name: str) -> Iterator[_Happening]:
    for entry in recording.entries(only=[name]):
        assert isinstance(entry, RecordedDelivery)
        failures = [event for event in entry.delivery.events if isinstance(event, ReadFailed)]
        found = [_Happening(at_s=failure.at_s, what=failure, traits=entry.traits) for failure in failures]
        sample = entry.delivery.sample
        if sample is not None:
            found.append(_Happening(at_s=sample.at_s, what=sample.frame, traits=entry.traits))
        yield from sorted(found, key=lambda happening: happening.at_s)
        if any(isinstance(event, Ended) for event in entry.delivery.events):
            return


def _moved(frame: Frame, shift_s: float, *, last: bool) -> Frame:
    captured_s = None if frame.captured_s is None else frame.captured_s + shift_s
    return replace(frame, last=last, captured_s=captured_s)


def _as_file(recording: Recording, name: str, traits: Traits) -> Traits:
    return replace(traits, description=f"recording {recording.path}#{name}", finite=True, static=False)


def _first_s(recording: Recording) -> float:
    """When the first thing of any sensor happened."""
    first = next(iter(recording.entries(only=list(recording.session.traits))), None)
    if first is None:
        return 0.0
    assert isinstance(first, RecordedDelivery)
    times = [event.at_s for event in first.delivery.events]
    return min([*times, first.at_s])
