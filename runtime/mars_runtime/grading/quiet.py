"""How often health alarms although nothing is wrong: hours of normal streams on a simulated clock.

Pixels are rendered, and the facts about them measured, once for a stretch of samples; the stretch then repeats with new
times of arrival. Health sees facts and times only, and no rule looks back further than five seconds, which is shorter
than the stretch: rendering every hour anew would show it other noise, and no other kind of event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mars_runtime import fingerprint, health
from mars_runtime.facts import FactFinder
from mars_runtime.grading.delays import learned_from
from mars_runtime.grading.scenery import EXPECTED, STREAMS, SensorName, Source, StreamName, samples, source
from mars_runtime.grading.sensor import LATENCY_S
from mars_runtime.health import Health, SampleSeen
from mars_runtime.limits import Limits, kind_of, limits_of
from mars_runtime.sensors.driver import Frame

# Arrival: latency varies by so much (standard deviation, of the period), one sample in so many is lost on its way,
# and the device's clock runs fast by parts in a million.
_JITTER = 0.08
_LOST_EVERY = 900
_DRIFT = 50e-6
_DECIDED_AFTER_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Hours:
    """One sensor in one normal stream.

    Attributes:
        masks: how often it was masked after its first sample.
        alarms: how often it was called degraded.
        degraded_share: share of the decisions in which it was.
        reasons, mask_reasons: how often for which, of the degraded and of the masked.
    """

    stream: StreamName
    sensor: SensorName
    learned: bool
    hours: float
    masks: int
    alarms: int
    degraded_share: float
    reasons: dict[str, int] = field(default_factory=dict)
    mask_reasons: dict[str, int] = field(default_factory=dict)

    @property
    def false_alarms(self) -> int:
        """How often it was called degraded for a reason that the table does not call for in this stream."""
        expected = EXPECTED.get(self.stream, ())
        return self.alarms - sum(count for reason, count in self.reasons.items() if reason in expected)


def normal_streams(hours: float, *, pool: int, learn_from: int, seed: int) -> Iterator[Hours]:
    """`hours` of every sensor of every kind of normal stream, by the default limits and by learned ones."""
    for stream, sensors in STREAMS.items():
        for sensor in sensors:
            own = source(sensor)
            usual = limits_of(kind_of(own.modality), own.traits)
            found = learned_from(sensor, learn_from, seed=1)
            facts = _facts(stream, own, pool, seed)
            for learned in (False, True):
                limits = fingerprint.apply(usual, found) if learned else usual
                yield _lived(stream, own, facts, limits, hours, seed, learned=learned)


def _facts(stream: StreamName, own: Source, pool: int, seed: int) -> list[SampleSeen]:
    """Measured in the second of two rounds, so that the joint between two stretches is one of the facts."""
    finder = FactFinder.of(own.modality)
    frames = samples(stream, own.name, pool, seed)
    rounds = [
        finder.facts(Frame(data=data, sequence=number if own.numbered else None), own.traits, 0.0)
        for number, data in enumerate((*frames, *frames))
    ]
    return rounds[len(frames) :]


def _arrivals(own: Source, hours: float, seed: int) -> NDArray[np.float64]:
    """Capture times and receipts, (N, 2) seconds, of what is not lost."""
    rng = np.random.default_rng([seed, 4])
    period_s = own.traits.period_s
    captured_s = np.arange(round(hours * 3600.0 / period_s)) * period_s
    late_s = LATENCY_S + np.abs(rng.normal(0.0, _JITTER * period_s, captured_s.size))
    kept = rng.integers(_LOST_EVERY, size=captured_s.size) != 0
    # Samples of one cable never overtake each other.
    received_s = np.maximum.accumulate(captured_s + late_s)
    arrivals: NDArray[np.float64] = np.stack([captured_s * (1.0 + _DRIFT), received_s], axis=1)[kept]
    return arrivals


def _lived(
    stream: StreamName,
    own: Source,
    facts: list[SampleSeen],
    limits: Limits,
    hours: float,
    seed: int,
    *,
    learned: bool,
) -> Hours:
    state = Health(started_s=0.0)
    said: tuple[str, str | None] = ("ok", None)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    degraded = 0
    # The device's clock has its own zero; a driver brings it near the monotonic one.
    arrivals = _arrivals(own, hours, seed) + 100.0
    for number, (captured_s, received_s) in enumerate(arrivals.tolist()):
        seen = replace(facts[number % len(facts)], at_s=received_s, stamped_s=captured_s if own.stamped else None)
        now_s = received_s + _DECIDED_AFTER_S
        state = health.step(state, [seen], now_s, limits)
        found = health.summary(state, now_s)
        degraded += found.status == "degraded"
        if found.status != "ok" and (found.status, found.reason) != said:
            counts[found.status] += 1
            (reasons if found.status == "degraded" else masked)[found.reason or ""] += 1
        said = (found.status, found.reason)
    return Hours(
        stream=stream,
        sensor=own.name,
        learned=learned,
        hours=hours,
        masks=counts["missing"],
        alarms=counts["degraded"],
        degraded_share=degraded / len(arrivals),
        reasons=dict(reasons),
        mask_reasons=dict(masked),
    )
