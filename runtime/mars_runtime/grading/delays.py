"""How long an injected fault goes unnoticed: every kind of fault on every kind of sensor, on a simulated clock.

The path is the runtime's: `FaultyDriver`, `FactFinder`, `health.step`, `skew`; only the threads are missing, and the
pictures come from a pool that is rendered once and read from another place in each trial.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mars_edge.faults import TIMING_FAULTS, Fault, IntermittentPhases
from mars_runtime import fingerprint, health, skew
from mars_runtime.capture import Sample
from mars_runtime.facts import FactFinder
from mars_runtime.fingerprint import Fingerprint
from mars_runtime.grading.scenery import SENSORS, SensorName, Source, samples, source
from mars_runtime.grading.sensor import LATENCY_S, Clock, HealthySensor, StepFeed
from mars_runtime.health import Event, Health
from mars_runtime.limits import Limits, kind_of, limits_of
from mars_runtime.sensors.driver import Frame
from mars_runtime.sensors.faulty import FaultyDriver
from mars_runtime.skew import Stamp

BEFORE_S = 2.0
FAULT_S = 5.0
AFTER_S = 3.0
_STEP_S = 1.0 / 60.0
_TICK_STEPS = 2
TICK_S = _STEP_S * _TICK_STEPS
# The slowest sensor that is watched beside the one with the fault.
_REFERENCE_PERIOD_S = 1.0 / 15.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One fault on one sensor once.

    Attributes:
        delay_s: from the start of the fault until it was noticed; None if it was not while it lasted.
        mask_delay_s: until the sensor was masked; None if it was not.
        reason: what it was first taken for; "" where it was not noticed.
        held: share of the fault, after it was noticed, during which the sensor was masked or degraded.
        back_s: from the end of the fault until the sensor was in full use; None if not within 3 s.
        early: a fault was reported before there was one.
        limit_s: by when the table wants it masked; None where it does not.
    """

    fault: str
    sensor: SensorName
    learned: bool
    seed: int
    delay_s: float | None
    mask_delay_s: float | None
    reason: str
    held: float
    back_s: float | None
    early: bool
    limit_s: float | None

    @property
    def in_time(self) -> bool:
        """Whether it was masked by when the table wants it to be; true where it does not."""
        return self.limit_s is None or (self.mask_delay_s is not None and self.mask_delay_s <= self.limit_s)


def learned_from(sensor: SensorName, count: int, seed: int) -> Fingerprint:
    """The fingerprint of the moving stream, arriving on time."""
    own = source(sensor)
    frames = samples("moving", sensor, count, seed)
    given = [
        Sample(frame=Frame(data=data, sequence=n if own.numbered else None), at_s=n / own.traits.rate_hz)
        for n, data in enumerate(frames)
    ]
    return fingerprint.learn(given, own.modality, own.traits)


def table_limit_s(fault: str, own: Source, limits: Limits, seed: int) -> float | None:
    """By when the fault table wants a timing fault masked; None for faults that it does not mask.

    One decision later than the limit, and one sample later where only a sample can show it. An intermittent connection
    is a fault of the table once it is down for as long as that.
    """
    if fault not in TIMING_FAULTS:
        return None
    late_s = limits.period_s + TICK_S
    if fault == "unplug":
        return late_s
    if fault == "stuck":
        # Of compressed video a standing picture is only suspect.
        return max(limits.frozen_frames * limits.period_s, limits.frozen_s) + late_s if own.traits.raw else None
    silent_s = min(limits.stale_after_s, limits.callback_s) + late_s
    return silent_s + (_first_long_silence_s(silent_s, seed) if fault == "intermittent" else 0.0)


def _first_long_silence_s(longer_than_s: float, seed: int) -> float:
    """When an intermittent connection first goes down for that long, seconds from its beginning."""
    phases, began_s, number = IntermittentPhases(seed), 0.0, 0
    while number * _STEP_S - began_s <= longer_than_s:
        if phases.up(number * _STEP_S):
            began_s = (number + 1) * _STEP_S
        number += 1
    return began_s


def trials(
    faults: Sequence[str], sensors: Sequence[SensorName], seeds: int, *, pool: int, learn_from: int
) -> Iterator[Trial]:
    """Every fault on every sensor with every seed, each judged twice: by the default limits and by learned ones."""
    for sensor in sensors:
        found = learned_from(sensor, learn_from, seed=1)
        for fault in faults:
            for seed in range(seeds):
                yield from _trial(fault, sensor, seed, pool, found)


def _trial(fault: str, sensor: SensorName, seed: int, pool: int, found: Fingerprint) -> Iterator[Trial]:
    own = source(sensor)
    usual = limits_of(kind_of(own.modality), own.traits)
    rng = np.random.default_rng([SENSORS.index(sensor), seed])
    start_s = BEFORE_S + float(rng.uniform(0.0, own.traits.period_s))
    clock = Clock()
    first, phase_s = int(rng.integers(pool)), float(rng.uniform(0.0, 0.06))
    driver = HealthySensor(own, samples("moving", sensor, pool, 1), clock, first=first, phase_s=phase_s)
    injected = Fault(sensor=sensor, kind=fault, start_s=start_s, length_s=FAULT_S)
    faulty = FaultyDriver(driver, [injected], stream_s=clock, seed=seed)
    watches = [_Watch(limits) for limits in (usual, fingerprint.apply(usual, found))]
    feed = StepFeed(faulty, FactFinder.of(own.modality), clock)
    for number in range(1, round((start_s + FAULT_S + AFTER_S) / _STEP_S)):
        clock.now_s = number * _STEP_S
        feed.step()
        if number % _TICK_STEPS == 0:
            events = feed.take().events
            for watch in watches:
                watch.tick(events, clock.now_s)
    for watch, learned in zip(watches, (False, True), strict=True):
        limit_s = table_limit_s(fault, own, watch.limits, seed)
        yield watch.trial(fault, sensor, seed, start_s, learned=learned, limit_s=limit_s)


class _Watch:
    """What health says of one sensor, tick by tick."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._state = Health(started_s=0.0)
        self._said: list[tuple[float, str, str]] = []
        self._stamped_s: float | None = None

    def tick(self, events: Sequence[Event], now_s: float) -> None:
        """One decision."""
        self._state = health.step(self._state, events, now_s, self.limits)
        for event in events:
            self._stamped_s = getattr(event, "stamped_s", self._stamped_s)
        said = health.summary(self._state, now_s)
        status, reason = said.status, said.reason or ""
        if status != "missing" and self._stamped_s is not None:
            # As the loop does with a sample whose stamp is off or too old.
            status, reason = self._by_stamp(now_s) or (status, reason)
        self._said.append((now_s, status, reason))

    def _by_stamp(self, now_s: float) -> tuple[Any, str] | None:
        assert self._stamped_s is not None
        if now_s - self._stamped_s > self.limits.stale_after_s:
            return "missing", "stale"
        # A sensor that is well beside it has the newest picture there can be.
        newest_s = now_s - LATENCY_S - ((now_s - LATENCY_S) % _REFERENCE_PERIOD_S)
        reference = Stamp(stamped_s=newest_s, limits=Limits(period_s=_REFERENCE_PERIOD_S))
        own = Stamp(stamped_s=self._stamped_s, limits=self.limits)
        return ("missing", "skew") if "own" in skew.skewed({"reference": reference, "own": own}) else None

    def trial(
        self, fault: str, sensor: SensorName, seed: int, start_s: float, *, learned: bool, limit_s: float | None
    ) -> Trial:
        """What was said of a fault that began at `start_s`."""
        end_s = start_s + FAULT_S
        # A sensor says "starting" until its first sample.
        before = [said for said in self._said if 0.5 <= said[0] < start_s]
        during = [said for said in self._said if start_s <= said[0] < end_s]
        after = [said for said in self._said if said[0] >= end_s]
        noticed = [said for said in during if said[1] != "ok"]
        masked = [said for said in noticed if said[1] == "missing"]
        since = [said for said in during if noticed and said[0] >= noticed[0][0]]
        bad = [said[0] for said in after if said[1] != "ok"]
        back_s = (bad[-1] + TICK_S if bad else end_s) - end_s
        return Trial(
            fault=fault,
            sensor=sensor,
            learned=learned,
            seed=seed,
            delay_s=noticed[0][0] - start_s if noticed else None,
            mask_delay_s=masked[0][0] - start_s if masked else None,
            reason=noticed[0][2] if noticed else "",
            held=len(noticed) / len(since) if since else 0.0,
            back_s=None if bad and bad[-1] >= after[-1][0] else back_s,
            early=any(said[1] != "ok" for said in before),
            limit_s=limit_s,
        )


@dataclass(frozen=True, kw_only=True)
class Grade:
    """All trials of one fault on one sensor, judged by one set of limits.

    Attributes:
        found: trials in which it was noticed.
        masked: trials in which the sensor was masked.
        p50_s, p95_s: delay until it was noticed, over the trials in which it was; None where there is none.
        limit_s: by when the fault table wants it masked, at the latest; None where the table does not want that.
        within: trials masked by the limit of each.
        reason: what it was taken for most often; "" where it was never noticed.
        held: mean share of the fault's time, once noticed, in which the sensor was masked or degraded.
        back_p50_s: time until full use after the end of the fault; None where it was not back within 3 s.
        early: trials in which something was reported before the fault.
    """

    fault: str
    sensor: SensorName
    learned: bool
    trials: int
    found: int
    masked: int
    p50_s: float | None
    p95_s: float | None
    limit_s: float | None
    within: int
    reason: str
    held: float
    back_p50_s: float | None
    early: int


def grade(given: Sequence[Trial]) -> Grade:
    """The grade of trials of one fault on one sensor."""
    first = given[0]
    limits_s = [trial.limit_s for trial in given if trial.limit_s is not None]
    delays_s = [trial.delay_s for trial in given if trial.delay_s is not None]
    backs_s = [trial.back_s for trial in given if trial.back_s is not None]
    masks_s = [trial.mask_delay_s for trial in given if trial.mask_delay_s is not None]
    reasons = Counter(trial.reason for trial in given if trial.reason)
    return Grade(
        fault=first.fault,
        sensor=first.sensor,
        learned=first.learned,
        trials=len(given),
        found=len(delays_s),
        masked=len(masks_s),
        p50_s=float(np.quantile(delays_s, 0.5)) if delays_s else None,
        p95_s=float(np.quantile(delays_s, 0.95)) if delays_s else None,
        limit_s=max(limits_s, default=None),
        within=sum(trial.in_time for trial in given) if limits_s else 0,
        reason=reasons.most_common(1)[0][0] if reasons else "",
        held=float(np.mean([trial.held for trial in given if trial.reason] or [0.0])),
        back_p50_s=float(np.quantile(backs_s, 0.5)) if len(backs_s) > len(given) / 2 else None,
        early=sum(trial.early for trial in given),
    )
