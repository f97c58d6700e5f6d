"""The measurement itself: every subset of one artifact, or of two side by side, in turn until the schedule is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mars_runtime.engines import Engine
from mars_runtime.profiling.inputs import Input
from mars_runtime.profiling.rows import Record
from mars_runtime.profiling.schedule import Schedule, run_rounds
from mars_runtime.profiling.subject import Subject

_WATCH_EVERY_S = 1.0

Conditions = Mapping[str, Any]
Progress = Callable[[float], None]


@dataclass(kw_only=True)
class Watch:
    """The state of the device at the start, at its hottest and at the end; read outside of what is timed."""

    read: Callable[[], Conditions]
    start: Conditions = field(default_factory=dict)
    peak: Conditions = field(default_factory=dict)
    end: Conditions = field(default_factory=dict)
    _next_s: float = 0.0

    def begin(self) -> None:
        """Just before the first round."""
        self.start = self.peak = self.read()
        self._next_s = _WATCH_EVERY_S

    def look(self, elapsed_s: float) -> None:
        """Once a second."""
        if elapsed_s >= self._next_s:
            self._next_s = elapsed_s + _WATCH_EVERY_S
            self._keep(self.read())

    def finish(self) -> None:
        """Just after the last round."""
        self.end = self.read()
        self._keep(self.end)

    def _keep(self, now: Conditions) -> None:
        """The hottest reading; a throttling that was seen once stays seen."""
        was = self.peak
        hotter = (now.get("hottest_c") or -273.0) >= (was.get("hottest_c") or -273.0)
        throttled = was.get("throttled") or now.get("throttled")
        self.peak = {**(now if hotter else was), "throttled": throttled}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Times by artifact (in the order given) and subset label; `elapsed_s` without the warm-up."""

    records: Sequence[Mapping[str, Record]]
    elapsed_s: float
    watch: Watch


def measure(
    engines: Sequence[Engine],
    inputs: Mapping[str, Input],
    subsets: Sequence[Sequence[str]],
    schedule: Schedule,
    *,
    read_conditions: Callable[[], Conditions],
    progress: Progress,
    pause_s: float = 0.0,
) -> Measured:
    """Decide in turns until the schedule is done.

    Args:
        engines: of one artifact, or of two that take the same modalities.
        subsets: what is present.
        progress: told the share that is done, about ten times a second.
        pause_s: sleep before every decision, as a device does between two frames; 0 makes them back to back.

    Raises:
        EngineError: an engine failed, or decided with other sensors than it was given.
    """
    subjects = [[Subject(engine, inputs, subset) for subset in subsets] for engine in engines]
    records = [{subject.label: Record() for subject in side} for side in subjects]
    watch, shown = Watch(read=read_conditions), _Throttled(progress)
    round_s = _Round()

    def begin_round(index: int, elapsed_s: float) -> None:
        round_s.index, round_s.elapsed_s = index, elapsed_s
        if index == 0:
            watch.begin()
        if index >= 0:
            watch.look(elapsed_s)
            shown(schedule.share_done(index, elapsed_s))

    def call(subject: Subject, record: Record) -> Callable[[], None]:
        def decide() -> None:
            if pause_s > 0.0:
                time.sleep(pause_s)
            timed = subject.decide()
            if round_s.index >= 0:
                record.add(timed, round_s.elapsed_s)

        return decide

    calls = [
        call(subject, own[subject.label])
        for place in range(len(subsets))
        for subject, own in ((side[place], kept) for side, kept in zip(subjects, records, strict=True))
    ]
    elapsed_s = run_rounds(calls, schedule, begin_round=begin_round)
    watch.finish()
    progress(1.0)
    return Measured(records=records, elapsed_s=elapsed_s, watch=watch)


@dataclass(kw_only=True)
class _Round:
    index: int = 0
    elapsed_s: float = 0.0


class _Throttled:
    """Passes the share on at most ten times a second."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._next_s = 0.0

    def __call__(self, share: float) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + 0.1
            self._progress(share)
