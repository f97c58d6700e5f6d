"""One process's measurement: every subset of one artifact, or of two, in turn until the schedule is done."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mars_runtime.engines import Engine
from mars_runtime.profiling.child import Progress
from mars_runtime.profiling.inputs import Input
from mars_runtime.profiling.rows import Series, series_of
from mars_runtime.profiling.schedule import Schedule, run_rounds
from mars_runtime.profiling.subject import Subject, Timed

_WATCH_EVERY_S = 1.0

Conditions = Mapping[str, Any]


@dataclass(kw_only=True)
class Watch:
    """The state of the device at its hottest; read once a second, outside of what is timed."""

    read: Callable[[], Conditions]
    peak: Conditions = field(default_factory=dict)
    _next_s: float = 0.0

    def look(self, elapsed_s: float) -> None:
        """Before a round; the first look reads always."""
        if elapsed_s >= self._next_s:
            self._next_s = elapsed_s + _WATCH_EVERY_S
            now = self.read()
            self.peak = hotter(self.peak, now) if self.peak else now


def hotter(was: Conditions, now: Conditions) -> Conditions:
    """The hotter one of two readings; a throttling that was seen once stays seen."""
    is_hotter = (now.get("hottest_c") or -273.0) >= (was.get("hottest_c") or -273.0)
    return {**(now if is_hotter else was), "throttled": was.get("throttled") or now.get("throttled")}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One process's times by artifact (in the order given) and subset label.

    Attributes:
        elapsed_s: without the warm-up.
        peak: of the device.
        preempted: how often the kernel gave this process's core to another one meanwhile.
    """

    series: Sequence[Mapping[str, Series]]
    elapsed_s: float
    peak: Conditions
    preempted: int


@dataclass(kw_only=True)
class _Turn:
    """One subject's place in every round, and what it measured."""

    subject: Subject
    timed: list[Timed] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)

    def series(self) -> Series:
        return series_of(self.timed, self.at_s)


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
    sides = [[_Turn(subject=Subject(engine, inputs, subset)) for subset in subsets] for engine in engines]
    watch, shown = Watch(read=read_conditions), _Throttled(progress)
    counted = False

    def begin_round(index: int, elapsed_s: float) -> None:
        nonlocal counted
        counted = index >= 0
        if counted:
            watch.look(elapsed_s)
            shown(schedule.share_done(index, elapsed_s))

    def call(turn: _Turn) -> Callable[[], None]:
        def decide() -> None:
            if pause_s > 0.0:
                time.sleep(pause_s)
            at_s, timed = time.monotonic(), turn.subject.decide()
            if counted:
                turn.timed.append(timed)
                turn.at_s.append(at_s)

        return decide

    calls = [call(side[place]) for place in range(len(subsets)) for side in sides]
    before = _preemptions()
    elapsed_s = run_rounds(calls, schedule, begin_round=begin_round)
    preempted = _preemptions() - before
    progress(1.0)
    series = [{turn.subject.label: turn.series() for turn in side} for side in sides]
    return Measured(series=series, elapsed_s=elapsed_s, peak=watch.peak, preempted=preempted)


def _preemptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


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
