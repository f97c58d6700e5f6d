"""What happened at one sensor, decision by decision, and what its health is after each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from contract.encoding import number
from contract.facts_cases import seen_table
from mars_edge.modality import Modality
from mars_runtime import health
from mars_runtime.health import Ended, Event, Health, ReadFailed, SampleSeen
from mars_runtime.limits import Limits, SensorKind, kind_of, limits_of
from mars_runtime.sensors.driver import Traits

_START_S = 50.0
_RATE_HZ = 10.0
_LIVE = Traits(description="live", rate_hz=_RATE_HZ, raw=True)
_FILE = Traits(description="file", rate_hz=_RATE_HZ, finite=True)
_FAST = Traits(description="fast", rate_hz=60.0, raw=True)
_SLOW = Traits(description="slow", rate_hz=0.5, raw=True, start_grace_s=4.0)
Timeline = list[Event]
Case = tuple[str, Limits, Timeline, float]


def limits_cases() -> list[dict[str, Any]]:
    """Every number of the fault table by what a modality is and how its sensor is read."""
    modalities = (
        Modality(name="rgb", kind="image", channels=3, size=(8, 8), dtype="uint8", range=(0.0, 255.0)),
        Modality(name="ir", kind="image", size=(8, 8), dtype="uint8", range=(0.0, 255.0)),
        Modality(name="depth", kind="image", size=(8, 8), dtype="uint16", range=(0.0, 4000.0)),
        Modality(name="float", kind="image", size=(8, 8)),
        Modality(name="voice", kind="audio", rate_hz=16000.0, window_s=1.0),
        Modality(name="motion", kind="sequence", channels=3, length=8),
    )
    return [_limits_case(modality, traits) for modality in modalities for traits in (_LIVE, _FILE, _FAST, _SLOW)]


def _limits_case(modality: Modality, traits: Traits) -> dict[str, Any]:
    kind = kind_of(modality)
    kept = {key: getattr(traits, key) for key in ("rate_hz", "finite", "start_grace_s")}
    limits = limits_of(kind, traits, masking=frozenset({"dark"}))
    return {"modality": modality.to_dict(), "traits": kept, "kind": kind, "limits": limits_table(limits)}


def limits_table(limits: Limits) -> dict[str, Any]:
    """Every number, those that follow from others included."""
    table = {f.name: getattr(limits, f.name) for f in fields(Limits)}
    table |= {key: getattr(limits, key) for key in ("skew_after_s", "stale_after_s", "lost_after_s", "noise_most")}
    plain = {key: number(value) if isinstance(value, float) else value for key, value in table.items()}
    return plain | {"masking": sorted(limits.masking)}


def health_cases() -> list[dict[str, Any]]:
    """Each timeline as steps: the events up to a moment, and the summary then."""
    return [_case(*case) for case in _cases()]


def _case(name: str, limits: Limits, timeline: Timeline, until_s: float) -> dict[str, Any]:
    state, steps = Health(started_s=_START_S), []
    pending = sorted(timeline, key=lambda event: event.at_s)
    # Decisions at another rate than the samples, so that they fall between, upon and after them.
    for tick in range(1, round((until_s - _START_S) / 0.13) + 1):
        now_s = _START_S + 0.13 * tick
        due = [event for event in pending if event.at_s <= now_s]
        pending = pending[len(due) :]
        state = health.step(state, due, now_s, limits)
        steps.append(
            {"events": [event_table(event) for event in due], "now_s": now_s, "summary": _summary(state, now_s)}
        )
    return {"name": name, "limits": limits_table(limits), "started_s": _START_S, "steps": steps}


def event_table(event: Event) -> dict[str, Any]:
    """An event with its type; of a sample the facts that differ from their defaults."""
    if isinstance(event, SampleSeen):
        return {"type": "sample", **seen_table(event)}
    if isinstance(event, Ended):
        return {"type": "ended", "at_s": event.at_s}
    # What a driver says changes no judgement.
    return {"type": "failed", "at_s": event.at_s, "gone": event.gone}


def _summary(state: Health, now_s: float) -> dict[str, Any]:
    found = health.summary(state, now_s)
    table: dict[str, Any] = {"status": found.status, "reason": found.reason, "age_s": found.age_s}
    return table | ({"evidence": {k: number(v) for k, v in found.evidence.items()}} if found.evidence else {})


def _limits(kind: SensorKind, *, masking: tuple[str, ...] = (), traits: Traits = _LIVE, **overrides: Any) -> Limits:
    return health.with_overrides(limits_of(kind, traits, masking=frozenset(masking)), overrides, "contract")


def _samples(begin_s: float, end_s: float, *, hz: float = _RATE_HZ, **facts: Any) -> Timeline:
    count = round((end_s - begin_s) * hz)
    return [SampleSeen(at_s=_START_S + begin_s + index / hz, **facts) for index in range(count)]


def _stamped(begin_s: float, end_s: float, *, late_s: float = 0.01) -> Timeline:
    times = [_START_S + begin_s + index / _RATE_HZ for index in range(round((end_s - begin_s) * _RATE_HZ))]
    return [SampleSeen(at_s=at_s, stamped_s=at_s - late_s) for at_s in times]


def _cases() -> Iterator[Case]:
    yield from _transport()
    yield from _clocks()
    yield from _content()
    yield from _sound()
    yield from _chance()


def _transport() -> Iterator[Case]:
    well = _limits("other")
    gone = ReadFailed(at_s=_START_S + 1.0, gone=True)
    failed = [ReadFailed(at_s=_START_S + 1.0 + 0.1 * index) for index in range(4)]
    end = Ended(at_s=_START_S + 1.0)
    yield "never there", _limits("other", start_grace_s=1.0), [], _START_S + 2.0
    yield "starts late", _limits("other", start_grace_s=1.0), _samples(1.5, 2.5), _START_S + 2.6
    yield "well", well, _samples(0.0, 2.0), _START_S + 2.0
    yield "silent for a moment", well, [*_samples(0.0, 1.0), *_samples(1.6, 4.0)], _START_S + 4.0
    yield "lost and back", well, [*_samples(0.0, 1.0), *_samples(3.0, 5.5)], _START_S + 5.5
    yield "unplugged and back", well, [*_samples(0.0, 1.0), gone, *_samples(1.4, 4.0)], _START_S + 4.0
    yield "three errors in a row", well, [*_samples(0.0, 1.0), *failed, *_samples(1.5, 4.0)], _START_S + 4.0
    yield "one error", well, [*_samples(0.0, 1.0), failed[0], *_samples(1.1, 2.0)], _START_S + 2.0
    yield "a file that ends", _limits("other", traits=_FILE), [*_samples(0.0, 1.0), end], _START_S + 2.0
    unusable = [*_samples(0.0, 1.0), *_samples(1.0, 1.3, usable=False), *_samples(1.3, 3.5)]
    yield "unusable samples", well, unusable, _START_S + 3.5
    frozen = [*_samples(0.0, 1.0), *_samples(1.0, 2.5, repeated=True), *_samples(2.5, 3.5)]
    yield "frozen and back", well, frozen, _START_S + 3.5
    yield "a few repeats", well, [*_samples(0.0, 1.0), *_samples(1.0, 1.4, repeated=True)], _START_S + 1.5
    yield "slow", well, [*_samples(0.0, 1.0), *_samples(1.0, 9.0, hz=4.5), *_samples(9.0, 15.0)], _START_S + 15.0
    quick = _limits("other", good_s=0.2, good_samples=2, flap_hold_s=2.0)
    flapping = [event for index in range(6) for event in _samples(1.2 * index, 1.2 * index + 0.7)]
    yield "flapping", quick, [*flapping, *_samples(7.2, 11.0)], _START_S + 11.0


def _clocks() -> Iterator[Case]:
    well = _limits("other")
    yield "stamps that are right", well, _stamped(0.0, 1.5), _START_S + 1.5
    jump = [*_stamped(0.0, 1.0), *_stamped(1.0, 4.0, late_s=0.4)]
    yield "a clock that jumps once", well, jump, _START_S + 4.0
    # How late samples usually are follows slowly: neither side of a change that is waited out is a jump.
    drifts = [*_stamped(0.0, 1.0), *_stamped(1.0, 1.1, late_s=0.1), *_stamped(1.1, 2.0, late_s=-0.06)]
    yield "a clock that is late once", well, drifts, _START_S + 2.0
    uneven = [_stamped(0.1 * i, 0.1 * i + 0.1, late_s=0.01 + 0.02 * (i % 5)) for i in range(15)]
    late = [event for each in uneven for event in each]
    yield "an uneven clock that jumps", well, [*late, *_stamped(1.5, 2.5, late_s=0.4)], _START_S + 2.5
    bound = [*_stamped(0.0, 1.0), *_stamped(1.0, 1.5, late_s=0.1099), *_stamped(1.5, 2.5, late_s=0.3)]
    yield "a clock that jumps by less than it may, then by more", well, bound, _START_S + 2.5
    stands = [*_stamped(0.0, 1.0), *_samples(1.0, 2.0, stamped_s=_START_S + 0.99), *_stamped(2.0, 4.5)]
    yield "a clock that stands", well, stands, _START_S + 4.5
    yield "a clock at zero", well, _samples(0.0, 1.0, stamped_s=0.0), _START_S + 1.0
    yield "a clock that stands just after zero", well, _samples(0.0, 1.0, stamped_s=0.001), _START_S + 1.0
    yield "a stamp that is missing", well, [*_stamped(0.0, 0.5), *_samples(0.5, 1.0), *_stamped(1.0, 1.5)], 51.5


def _content() -> Iterator[Case]:
    fault: dict[str, tuple[SensorKind, dict[str, float]]] = {
        "dark": ("colour", {"dark": 0.99}),
        "saturated": ("colour", {"saturated": 0.6}),
        "depth-invalid": ("depth", {"invalid_depth": 0.95}),
        "covered": ("colour", {"flat": 0.92}),
        "noise": ("colour", {"noise": 0.2}),
        "frozen?": ("colour", {"still": 0.0005}),
    }
    fine = {"flat": 0.1, "noise": 0.01, "still": 0.05}
    for name, (kind, facts) in fault.items():
        timeline = [*_samples(0.0, 1.0, **fine), *_samples(1.0, 4.0, **(fine | facts)), *_samples(4.0, 6.0, **fine)]
        yield f"{name}, degrades", _limits(kind), timeline, _START_S + 6.0
        yield f"{name}, masks", _limits(kind, masking=(name,)), timeline, _START_S + 6.0
    brief = [*_samples(0.0, 1.0, **fine), *_samples(1.0, 1.8, **(fine | {"dark": 1.0})), *_samples(1.8, 2.5, **fine)]
    yield "dark for a moment", _limits("colour"), brief, _START_S + 2.5
    broken = [*_samples(0.0, 1.0, dark=1.0), *_samples(1.6, 2.2, dark=1.0)]
    yield "dark with a gap", _limits("colour", good_samples=1, good_s=0.0), broken, _START_S + 2.5
    strobe: Timeline = [
        event if index % 4 else SampleSeen(at_s=event.at_s, dark=0.2)
        for index, event in enumerate(_samples(0.0, 3.0, dark=1.0))
        if isinstance(event, SampleSeen)
    ]
    yield "an infrared strobe is not dark", _limits("infrared"), strobe, _START_S + 3.0
    unlit = [*_samples(0.0, 1.0, dark=0.2), *_samples(1.0, 4.5, dark=1.0), *_samples(4.5, 7.5, dark=0.1)]
    yield "infrared without its emitter", _limits("infrared", masking=("dark",)), unlit, _START_S + 7.5
    still = [*_samples(0.0, 3.0, still=0.0), *_samples(3.0, 3.5, still=0.1)]
    yield "the rule for stillness switched off", _limits("colour", still_share=0.0), still, _START_S + 3.5


def _sound() -> Iterator[Case]:
    heard: dict[str, Any] = {"zeros_s": 0.0, "loudness_dbfs": -20.0, "clipped": 0.0}
    dead = _samples(0.0, 1.0, **heard)
    dead += [SampleSeen(at_s=_START_S + 1.0 + 0.1 * i, zeros_s=0.1 * (i + 1), loudness_dbfs=-120.0) for i in range(12)]
    yield "zeros from a microphone", _limits("audio"), [*dead, *_samples(2.2, 5.0, **heard)], _START_S + 5.0
    gap = [*_samples(0.0, 1.0, **heard), *_samples(1.8, 4.5, **heard)]
    yield "a microphone without a callback", _limits("audio", stale_s=2.0), gap, _START_S + 4.5
    quiet, loud = heard | {"loudness_dbfs": -70.0}, heard | {"clipped": 0.05}
    silent = [*_samples(0.0, 1.0, **heard), *_samples(1.0, 4.0, **quiet), *_samples(4.0, 7.0, **heard)]
    yield "silence", _limits("audio"), silent, _START_S + 7.0
    clipped = [*_samples(0.0, 1.0, **heard), *_samples(1.0, 3.0, **loud), *_samples(3.0, 5.0, **heard)]
    yield "clipped sound", _limits("audio"), clipped, _START_S + 5.0


def _chance() -> Iterator[Case]:
    """Everything that can happen, in a seeded order, with short limits so that much of it does."""
    short: dict[str, Any] = {
        "start_grace_s": 1.0, "good_samples": 3, "good_s": 0.3, "dark_s": 0.3, "covered_s": 0.4, "noise_s": 0.3,
        "saturated_s": 0.3, "still_s": 0.4, "flap_hold_s": 1.0, "flap_window_s": 8.0, "rate_window_s": 2.0,
    }  # fmt: skip
    masks = ((), ("dark", "covered"), ("noise", "frozen?", "saturated"))
    for seed, masking in enumerate(masks):
        limits = _limits("infrared" if seed == 1 else "colour", masking=masking, **short)
        yield f"chance {seed}", limits, _random_timeline(800 + seed), _START_S + 20.0


def _random_timeline(seed: int) -> Timeline:
    random, at_s, timeline = np.random.default_rng(seed), _START_S + 0.5, Timeline()
    while at_s < _START_S + 19.0:
        length = int(random.integers(1, 14))
        facts = _random_facts(random)
        for _ in range(length):
            at_s += float(random.uniform(0.05, 0.15))
            if random.random() < 0.02:
                timeline.append(ReadFailed(at_s=at_s, gone=bool(random.random() < 0.3)))
            else:
                stamp: dict[str, Any] = (
                    {} if random.random() < 0.7 else {"stamped_s": at_s - float(random.choice([0.01, 0.01, 0.3]))}
                )
                timeline.append(SampleSeen(at_s=at_s, **facts, **stamp))
        if random.random() < 0.3:
            at_s += float(random.uniform(0.2, 1.5))
    return timeline


def _random_facts(random: np.random.Generator) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {"dark": 1.0}, {"saturated": 0.7}, {"flat": 0.96}, {"noise": 0.3}, {"still": 0.0}, {"repeated": True},
        {"usable": False}, {}, {}, {},
    ]  # fmt: skip
    fine: dict[str, Any] = {"flat": 0.1, "noise": 0.01, "still": 0.05}
    chosen = kinds[int(random.integers(len(kinds)))]
    return fine | chosen
