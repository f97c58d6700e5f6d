"""Decisions of a running stream: capture threads, the real loop, and caches that cool down between two decisions.

Axes: n decisions of one process; P processes.
The rows of a profile are handed their samples right before each decision, so only a stream can tell how long a sample
waits and how old it is when it is decided on. Sensors here have their samples ready and hand each out at its instant:
what a camera takes to expose, transfer and decode a picture is in no number, what a capture thread takes to look at it
is in all of them. How sensors and loop lie to each other decides how old a sample gets, and drifts in a long run: each
process opens several streams, at other phases.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from mars_runtime.decision import Decision
from mars_runtime.engines import Engine, open_engine
from mars_runtime.pipeline import Settings
from mars_runtime.profiling.child import Progress, in_child, part
from mars_runtime.profiling.inputs import Input
from mars_runtime.profiling.repeats import Opening
from mars_runtime.profiling.rows import numbers
from mars_runtime.profiling.statistics import Times, distribution
from mars_runtime.sensors.driver import Driver, Frame, Traits
from mars_runtime.sensors.pace import Clock, Sleep
from mars_runtime.stream import Stream
from mars_runtime.text import sentence, table

PROCESSES = 5
SECONDS = 5.0
# By name, whether the loop decides on the newest sample instead of at a fixed rate.
LOOPS = {"fixed_rate": False, "newest_sample": True}
_CALLED = {"fixed_rate": "at a fixed rate", "newest_sample": "on the newest sample"}
_STREAMS = 4
# The first decisions of a process meet code and memory that were never used, that of a stream new threads.
_WARMUP, _WARMUP_AGAIN = 5, 1
_LEAST_DECISIONS = 3
# Capture threads start in this time.
_LEAD_S = 0.02
_COUNTED = ("decisions", "late", "skipped", "incomplete", "new_samples", "wall_s", "cpu_s")
_HEADER = ("loop", "age p50", "p90", "p99", "wait p50", "total p50", "p99", "late", "skipped", "CPU")


class ReadySensor:
    """A sensor whose samples are ready: one per period, stamped with its instant; a late reader gets the newest.

    Args:
        given: handed out in turn, for ever.
        rate_hz: of the samples.
        first_s: instant of the first one, on `clock`.
    """

    def __init__(
        self, given: Input, rate_hz: float, first_s: float, *, clock: Clock = time.monotonic, sleep: Sleep = time.sleep
    ) -> None:
        self.traits: Traits = replace(given.traits, rate_hz=rate_hz)
        self._frames = given.frames
        self._first_s = first_s
        self._clock = clock
        self._sleep = sleep
        self._next = 0

    def open(self) -> None:
        """Nothing is to be made ready."""

    def read(self, timeout_s: float) -> Frame | None:
        """The sample of the next instant, or of the newest one that has passed."""
        ahead_s = self._instant_s(self._next) - self._clock()
        if ahead_s > timeout_s:
            self._sleep(timeout_s)
            return None
        if ahead_s > 0.0:
            self._sleep(ahead_s)
        passed = int((self._clock() - self._first_s) * self.traits.rate_hz)
        index = max(self._next, passed)
        self._next = index + 1
        return replace(self._frames[index % len(self._frames)], sequence=index, captured_s=self._instant_s(index))

    def _instant_s(self, index: int) -> float:
        return self._first_s + index / self.traits.rate_hz

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """What was seen of one loop; only decisions on every sensor have times.

    Attributes:
        times_ms: by stage, (n,) each.
        decisions: all of them, the warm-up left out.
        late: made after their deadline, one period after they were due.
        skipped: periods that passed without a decision.
        incomplete: decisions that lacked a sensor.
        new_samples: handed to all decisions.
        wall_s, cpu_s: from the end of the warm-up on; processor time is that of every thread of the process.
    """

    times_ms: Mapping[str, Times]
    decisions: int
    late: int
    skipped: int
    incomplete: int
    new_samples: int
    wall_s: float
    cpu_s: float


def live_times(
    opening: Opening,
    inputs: Mapping[str, Input],
    *,
    rate_hz: float | None = None,
    seconds: float = SECONDS,
    processes: int = PROCESSES,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Age, wait and time of decisions in a stream of every sensor, as JSON types; `reason` says why there are none.

    Args:
        inputs: of every modality; sensors of a stream hand them out.
        rate_hz: of every sensor and of the loop at a fixed rate; None means each sensor's own, and that of the fastest.
        seconds: of each loop, shared out among the processes.
        processes: one after the other; fewer where slow sensors would not give a sample in each.

    Raises:
        EngineError: the engine or a process failed.
    """
    rates = {name: rate_hz or given.traits.rate_hz for name, given in inputs.items()}
    reason = _reason(inputs, rates, seconds)
    if reason is not None:
        return _document(rates, seconds, processes, reason, {})
    processes = min(processes, _shares(rates, seconds))
    document = partial(_document, rates, seconds, processes)
    found: dict[str, list[Streamed]] = {loop: [] for loop in LOOPS}
    for index in range(processes):
        task = partial(_in_turn, opening, inputs, rates, rate_hz, seconds / processes, index)
        for loop, streamed in in_child(task, progress=part(progress, index, processes)).items():
            found[loop].append(streamed)
    if not all(any(one.decisions > one.incomplete for one in streams) for streams in found.values()):
        return document("no decision had every sensor: this machine is too slow for that rate", {})
    return document(None, {loop: _loop(streams) for loop, streams in found.items()})


def lines(live: Mapping[str, Any] | None) -> list[str]:
    """The object of `live_times` as lines for a screen, an empty one first; none where nothing was measured."""
    if live is None:
        return []
    if live["reason"] is not None:
        return ["", *sentence(f"as a stream: not measured: {live['reason']}")]
    rates = ", ".join(f"{name} {hz:g} Hz" for name, hz in live["sensors_hz"].items())
    count = live["processes"]
    where = "one process" if count == 1 else f"{count} processes"
    title = f"as a stream, ms: {rates}, {live['seconds']:g} s of each loop in {where}"
    cells = [_cells(loop, found) for loop, found in live["loops"].items()]
    return ["", *sentence(title), *table(_HEADER, cells, align="<" + ">" * (len(_HEADER) - 1)), *_remarks(live)]


def _cells(loop: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    age, wait, total = found["age"], found["capture_wait"], found["total"]
    times = (age["p50_ms"], age["p90_ms"], age["p99_ms"], wait["p50_ms"], total["p50_ms"], total["p99_ms"])
    counts = (str(found["late"]), str(found["skipped"]))
    return (_CALLED[loop], *(f"{ms:.3g}" if ms < 1.0 else f"{ms:.2f}" for ms in times), *counts, _percent(found))


def _percent(found: Mapping[str, Any]) -> str:
    return f"{100.0 * found['cpu_share']:.0f} %"


def _remarks(live: Mapping[str, Any]) -> list[str]:
    said = "age and wait count from the instant and the receipt of samples that are ready: a camera's own time is extra"
    missing = {loop: found["incomplete"] for loop, found in live["loops"].items() if found["incomplete"]}
    counts = ", ".join(f"{count} {_CALLED[loop]}" for loop, count in missing.items())
    return [*sentence(said), *(sentence(f"decisions that lacked a sensor, left out: {counts}") if missing else [])]


def _reason(inputs: Mapping[str, Input], rates: Mapping[str, float], seconds: float) -> str | None:
    """Why there can be no stream; None where there can."""
    texts = [name for name, given in inputs.items() if given.modality.kind == "text"]
    if texts:
        return f"no sensor gives text ({', '.join(texts)})"
    if _shares(rates, seconds) < 1:
        told = ", ".join(f"{name} {hz:g} Hz" for name, hz in rates.items())
        return f"{seconds:g} s are too few for sensors so slow ({told})"
    return None


def _phases(names: Sequence[str], streams: int, seed: int) -> Iterator[dict[str, float]]:
    """For each stream where in its period each sensor stands, 0..1; every part of a period is met by each sensor."""
    generator = np.random.default_rng(seed)
    parts = np.stack([generator.permutation(streams) for _ in names])
    for column in ((parts + generator.random(parts.shape)) / streams).T:
        yield dict(zip(names, column.tolist(), strict=True))


def _in_turn(
    opening: Opening,
    inputs: Mapping[str, Input],
    rates: Mapping[str, float],
    rate_hz: float | None,
    seconds: float,
    seed: int,
    progress: Progress,
) -> dict[str, Streamed]:
    """The child's part: streams of both loops in turn."""
    engine = open_engine(opening.model, threads=opening.threads, engine=opening.engine, self_test=False)
    streams = min(_STREAMS, _shares(rates, seconds))
    found: dict[str, list[Streamed]] = {loop: [] for loop in LOOPS}
    try:
        for index, phases in enumerate(_phases(sorted(inputs), streams, seed)):
            # Nothing is told during a stream: it would be work between two decisions.
            progress(index / streams)
            for loop, newest in LOOPS.items():
                found[loop].append(
                    streamed(
                        engine,
                        _ready(inputs, rates, phases),
                        _settings(engine, rate_hz, newest),
                        wait_s=_LEAD_S + 1.0 / min(rates.values()),
                        warmup=_WARMUP_AGAIN if found[loop] else _WARMUP,
                        seconds=seconds / streams,
                    )
                )
    finally:
        engine.close()
    return {loop: _together(each) for loop, each in found.items()}


def _shares(rates: Mapping[str, float], seconds: float) -> int:
    """Into how many parts a time can be cut so that each has a few decisions and a sample of the slowest sensor."""
    return int(min(max(rates.values()) * seconds / _LEAST_DECISIONS, min(rates.values()) * seconds) + 1e-9)


def _ready(
    inputs: Mapping[str, Input], rates: Mapping[str, float], phases: Mapping[str, float]
) -> dict[str, ReadySensor]:
    """Sensors that all give their first sample within one period of theirs after `_LEAD_S`."""
    begin_s = time.monotonic() + _LEAD_S
    return {
        name: ReadySensor(given, rates[name], begin_s + phases[name] / rates[name]) for name, given in inputs.items()
    }


def _settings(engine: Engine, rate_hz: float | None, newest: bool) -> Settings:
    """As `run` has them by default; what generated samples look like must not mask a sensor."""
    policy = replace(engine.manifest.policy, masking_faults=())
    # A limit at the sensors' own rate would keep the loop at one place in their period, as the fixed rate does.
    return Settings(policy=policy, rate_hz=None if newest else rate_hz, newest=newest)


def streamed(
    engine: Engine, sensors: Mapping[str, Driver], settings: Settings, *, wait_s: float, warmup: int, seconds: float
) -> Streamed:
    """What a stream of these sensors decides for `seconds`, after `warmup` decisions that are not counted.

    Args:
        wait_s: of the loop, after the sensors have started; a loop that starts with a sample keeps to its instants.

    Raises:
        EngineError: the engine failed ten times in a row.
    """
    decisions: list[Decision] = []
    with Stream(engine, [], settings, drivers=sensors) as stream:
        time.sleep(wait_s)
        running = stream.decisions()
        for _ in range(warmup):
            next(running)
        wall_s, cpu_s, handed = time.monotonic(), time.process_time(), _handed(stream)
        for decision in running:
            decisions.append(replace(decision, label_map=None))
            if time.monotonic() - wall_s >= seconds:
                break
        wall_s, cpu_s, handed = time.monotonic() - wall_s, time.process_time() - cpu_s, _handed(stream) - handed
    whole = "+".join(engine.manifest.names)
    complete = [one for one in decisions if one.subset == whole and one.experts]
    return Streamed(
        times_ms=_times(complete),
        decisions=len(decisions),
        late=sum(one.late_ms > 0.0 for one in decisions),
        skipped=sum(one.skipped for one in decisions),
        incomplete=len(decisions) - len(complete),
        new_samples=handed,
        wall_s=wall_s,
        cpu_s=cpu_s,
    )


def _handed(stream: Stream) -> int:
    """Samples that decisions were given so far; one that lies there still is one too many."""
    return sum(counts.received - counts.dropped for counts in stream.counts().values())


def _times(decisions: Sequence[Decision]) -> dict[str, Times]:
    return {
        "age": np.array([one.age_ms or 0.0 for one in decisions]),
        "capture_wait": np.array([one.latency_ms["capture_wait"] for one in decisions]),
        "total": np.array([one.latency_ms["total"] for one in decisions]),
    }


def _together(streams: Sequence[Streamed]) -> Streamed:
    """The streams of one process."""
    stages = streams[0].times_ms
    counts = {name: sum(getattr(one, name) for one in streams) for name in _COUNTED}
    return Streamed(
        times_ms={stage: np.concatenate([one.times_ms[stage] for one in streams]) for stage in stages}, **counts
    )


def _loop(streams: Sequence[Streamed]) -> dict[str, Any]:
    """All processes of one loop; at least one of them has a time."""
    told = [one for one in streams if one.decisions > one.incomplete]
    whole = _together(streams)
    return {
        "rate_hz": round(whole.decisions / whole.wall_s, 3),
        "decisions": whole.decisions,
        "late": whole.late,
        "skipped": whole.skipped,
        "incomplete": whole.incomplete,
        "new_samples": round(whole.new_samples / whole.decisions, 3),
        "cpu_share": round(whole.cpu_s / whole.wall_s, 4),
        **{stage: numbers(distribution([one.times_ms[stage] for one in told])) for stage in whole.times_ms},
    }


def _document(
    rates: Mapping[str, float],
    seconds: float,
    processes: int,
    reason: str | None,
    loops: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    return {
        "reason": reason,
        "sensors_hz": dict(rates),
        "seconds": seconds,
        "processes": processes,
        "loops": dict(loops),
    }
