"""The decision loop: samples in, health says who is present, only they are encoded, one decision out.

One thread, the caller's. It never waits for a device: it takes what the capture threads have left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.errors import EngineError, NoSensorError
from mars_edge.manifest import Policy
from mars_runtime import downgrade, health, phase, policy, region, skew
from mars_runtime.capture import Doorbell, Sample
from mars_runtime.decision import Decision
from mars_runtime.downgrade import Watch
from mars_runtime.engines.protocol import Engine, Inference
from mars_runtime.feed import Feed
from mars_runtime.health import Evidence, Summary
from mars_runtime.phase import Arrival
from mars_runtime.policy import Outcome
from mars_runtime.region import Box, Finder, RegionSettings, RegionState
from mars_runtime.sensors.pace import Clock
from mars_runtime.tick import LoopState, Plan, Readings, Tick
from mars_runtime.track import NO_SAMPLE, Track

_RATE_LIMIT_HZ = 60.0
# Without a new sample a decision is made all the same: somebody must say that the sensors are silent.
_LONGEST_WAIT_S = 0.2
_ENGINE_FAILURES = 10
NOT_CONFIGURED = Summary(status="missing", reason="not configured", age_s=None)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the loop runs.

    Attributes:
        rate_hz: decisions per second; None means one per sample of the fastest sensor, at most 60.
        newest: decide as soon as a sample is there, at most `rate_hz` times a second (default 60), instead of at a
            fixed rate; without samples every 0.2 s.
        gather_s: how long the first decision may wait for every sensor's first sample.
        settle_share: part of a period a decision may wait for a sample that is due at that moment.
        deadline_s: a decision made later than this after it was due abstains; None only says how late it was, by a
            deadline of one period.
        policy: the manifest's, possibly tightened.
        allow_uncertified: decide on subsets that are not certified (`--unsafe`).
        latch_s: how long no decision is made after a sensor that liveness depends on went missing.
        health: overrides of `Limits` by sensor.
        region: crop every picture to the face; None decides on whole pictures.
    """

    policy: Policy
    rate_hz: float | None = None
    newest: bool = False
    gather_s: float = 2.0
    settle_share: float = 0.25
    deadline_s: float | None = None
    allow_uncertified: bool = False
    latch_s: float = 0.0
    health: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    region: RegionSettings | None = None


class Pipeline:
    """Turns feeds into decisions; `feeds` maps modality names to running sensors.

    `witness`, if any, is told of every decision and all its causes before the decision is handed out.
    """

    def __init__(
        self,
        engine: Engine,
        feeds: Mapping[str, Feed],
        settings: Settings,
        *,
        doorbell: Doorbell,
        witness: Callable[[Tick], None] | None = None,
        clock: Clock = time.monotonic,
        utc: Clock = time.time,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        manifest = engine.manifest
        masking = frozenset(settings.policy.masking_faults)
        self._engine = engine
        self._manifest = manifest
        self._settings = settings
        self._doorbell = doorbell
        self._witness = witness
        self._clock = clock
        self._utc = utc
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._seq = 0
        self._watch = Watch()
        self._critical = downgrade.critical_sensors(manifest, settings.policy)
        self._finder = None if settings.region is None else Finder(settings.region, manifest.modalities)
        self._region = RegionState()
        self._engine_failures = 0
        self._followed: str | None = None
        self.skipped_ticks = 0
        self._tracks = {
            name: Track(manifest.modality(name), feeds[name], overrides=settings.health.get(name, {}), masking=masking)
            for name in manifest.names
            if name in feeds
        }

    def stop(self) -> None:
        """End `decisions` before its next decision; callable from a signal handler."""
        self._stop.set()

    def latest(self, name: str) -> Sample | None:
        """The newest sample the loop was given of a sensor, used or not; any thread may ask.

        Raises:
            KeyError: no source was named for `name`.
        """
        return self._tracks[name].newest

    def state(self) -> LoopState:
        """All that the next decision depends on beside what it is given."""
        tracks = {name: track.state for name, track in self._tracks.items()}
        return LoopState(seq=self._seq, tracks=tracks, watch=self._watch, region=self._region)

    def restore(self, state: LoopState) -> None:
        """Go on where another pipeline stood; a sensor it did not have begins its grace period with `start`."""
        self._seq, self._watch, self._region = state.seq, state.watch, state.region
        for name, track in self._tracks.items():
            if name in state.tracks:
                track.restore(state.tracks[name])

    def decisions(self) -> Iterator[Decision]:
        """One decision per period, or per new sample, until stopped or until every finite source has ended.

        A period that passes while a decision is made is skipped and counted.

        Raises:
            NoSensorError: every sensor's grace has passed and none ever gave a sample.
            UsageError: a sensor's first sample does not fit its modality.
            EngineError: the engine failed ten times in a row.
        """
        self.start()
        period_s = 1.0 / self._rate_hz()
        due_s = self._clock()
        settle_s = period_s * self._settings.settle_share
        deadline_s = period_s if self._settings.deadline_s is None else self._settings.deadline_s
        late_s, skipped = 0.0, 0
        while not self._stop.is_set():
            self._settle(settle_s)
            before_s, late_s = late_s, max(0.0, self._clock() - due_s - settle_s)
            # A sample delayed by a stall may arrive one decision after it.
            excused_s = max(late_s, before_s)
            yield self.decide(Plan(deadline_s=due_s + deadline_s, excused_s=excused_s, skipped=skipped))
            self._raise_if_nothing_ever_came()
            if self._stop.is_set() or self._finished():
                return
            due_s, skipped = (
                self._next_sample(due_s, period_s) if self._settings.newest else self._next_due(due_s, period_s)
            )

    def _settle(self, limit_s: float) -> None:
        """Wait a moment for samples that are due now: using them is fresher than their predecessors."""
        end_s = self._clock() + limit_s
        while (left_s := end_s - self._clock()) > 0.0 and not self._stop.is_set():
            if not any(track.due(self._clock(), limit_s) for track in self._tracks.values()):
                return
            self._doorbell.wait(left_s)

    def _rate_hz(self) -> float:
        if self._settings.newest:
            return self._settings.rate_hz or _RATE_LIMIT_HZ
        fastest_hz = max(track.feed.traits.rate_hz for track in self._tracks.values())
        return self._settings.rate_hz or min(_RATE_LIMIT_HZ, fastest_hz)

    def _next_due(self, due_s: float, period_s: float) -> tuple[float, int]:
        """Wait for the next period that has not passed yet: when it begins, and how many had passed."""
        late = int(max(0.0, self._clock() - due_s) / period_s)
        self.skipped_ticks += late
        due_s += (1 + late) * period_s + self._step_s(due_s, period_s)
        self._wait(max(0.0, due_s - self._clock()))
        return due_s, late

    def _step_s(self, due_s: float, period_s: float) -> float:
        """How much the next decision moves towards the instants at which samples come."""
        arrivals = [
            Arrival(name=name, at_s=track.health.sample_s, period_s=track.limits.period_s)
            for name, track in self._tracks.items()
            if track.health.present and track.health.sample_s is not None
        ]
        begins, leader = self._followed is None, phase.leader(arrivals, period_s, self._followed)
        if leader is None:
            return 0.0
        self._followed = leader.name
        return phase.jump_s(leader, due_s) if begins else phase.step_s(leader, due_s, period_s)

    def _next_sample(self, due_s: float, period_s: float) -> tuple[float, int]:
        """Wait until a sample is there, at least a period and at most 0.2 s after the last decision was due."""
        self._wait(max(0.0, due_s + period_s - self._clock()))
        end_s = max(due_s + _LONGEST_WAIT_S, self._clock())
        feeds = [track.feed for track in self._tracks.values()]
        while not self._stop.is_set() and not any(feed.waiting for feed in feeds):
            left_s = end_s - self._clock()
            if left_s <= 0.0:
                break
            self._doorbell.wait(left_s)
        return self._clock(), 0

    def start(self) -> None:
        """Begin the grace periods and wait for the first samples, at most `gather_s`; not for a sensor that failed."""
        begin_s = self._clock()
        for track in self._tracks.values():
            track.start(begin_s)
        feeds = [track.feed for track in self._tracks.values()]
        while not self._stop.is_set() and any(feed.received == 0 and feed.last_error is None for feed in feeds):
            left_s = begin_s + self._settings.gather_s - self._clock()
            if left_s <= 0.0:
                return
            self._doorbell.wait(min(left_s, 0.1))

    def decide(self, plan: Plan | None = None) -> Decision:
        """One decision on what the sensors have delivered up to now.

        A process that got no processor time has late samples from sensors that are well (`Plan.excused_s`); the age
        limit of features holds all the same.

        Raises:
            UsageError: a sensor's first sample does not fit its modality.
            EngineError: the engine failed ten times in a row; before that the decision abstains.
        """
        plan = plan or Plan()
        before = self.state() if self._witness is not None else None
        begin_s = self._clock()
        tracks = self._tracks.items()
        fresh = {n: s for n, t in tracks if (s := t.update(begin_s, excused_s=plan.excused_s)) is not None}
        skewed = self._skewed(fresh, begin_s)
        used = {name: fresh[name] for name in fresh if name not in skewed}
        boxes = self._boxes(used, begin_s)
        tensors = {} if boxes is None else self._preprocess(used, boxes, begin_s)
        prepared_s = self._clock()
        cached = {} if boxes is None else self._cached(tensors, skewed, begin_s)
        inference, failure = self._infer(tensors, cached)
        failure = region.NO_FACE if boxes is None else failure
        if inference is not None:
            self._remember(inference, {name: fresh[name] for name in tensors})
        present = tuple(name for name in self._manifest.names if name in tensors or name in cached)
        readings = Readings(begin_s=begin_s, prepared_s=prepared_s, end_s=self._clock(), utc_s=self._utc())
        waited_s = max((begin_s - fresh[name].at_s for name in tensors), default=0.0)
        faceless = boxes is None
        decision = self._decision(plan, readings, present, skewed, inference, failure, waited_s, faceless)
        self._seq += 1
        if self._witness is not None and before is not None:
            self._witness(self._tick(before, plan, readings, decision))
        return decision

    def _skewed(self, fresh: Mapping[str, Sample], now_s: float) -> dict[str, Evidence]:
        """Sensors whose sample shows another moment than the reference's, by the devices' own stamps."""
        stamps = {}
        for name, track in self._tracks.items():
            cached = track.cached(now_s)
            stamped_s = fresh[name].frame.captured_s if name in fresh else cached.stamped_s if cached else None
            if stamped_s is not None:
                stamps[name] = skew.Stamp(stamped_s=stamped_s, limits=track.limits)
        return skew.skewed(stamps)

    def _boxes(self, samples: Mapping[str, Sample], now_s: float) -> Mapping[str, Box] | None:
        """Where to crop each picture; nowhere without `Settings.region`; None when a face was asked for in vain."""
        if self._finder is None:
            return {}
        pictures = {name: sample.frame.data for name, sample in samples.items()}
        self._region, boxes = self._finder.find(self._region, pictures, now_s)
        return boxes

    def _preprocess(
        self, samples: Mapping[str, Sample], boxes: Mapping[str, Box], now_s: float
    ) -> dict[str, NDArray[np.float32]]:
        tensors = {
            name: self._tracks[name].preprocess(sample, now_s, boxes.get(name)) for name, sample in samples.items()
        }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def _cached(
        self, tensors: Mapping[str, Any], skewed: Mapping[str, Evidence], now_s: float
    ) -> dict[str, NDArray[np.float32]]:
        """Features of usable sensors that brought nothing new, within their age limit."""
        rest = [name for name in self._tracks if name not in tensors and name not in skewed]
        features = {name: self._tracks[name].cached(now_s) for name in rest}
        return {name: feature.value for name, feature in features.items() if feature is not None}

    def _remember(self, inference: Inference, samples: Mapping[str, Sample]) -> None:
        for name, sample in samples.items():
            self._tracks[name].remember(inference.features[name], sample)

    def _infer(
        self, tensors: Mapping[str, NDArray[np.float32]], cached: Mapping[str, NDArray[np.float32]]
    ) -> tuple[Inference | None, str | None]:
        """The inference, or why there is none although something is present."""
        if not (tensors or cached):
            return None, None
        try:
            inference = self._engine.infer(tensors, cached)
        except EngineError as error:
            self._engine_failures += 1
            if self._engine_failures >= _ENGINE_FAILURES:
                raise
            return None, f"the engine failed: {error}"
        self._engine_failures = 0
        return inference, None

    def _decision(
        self,
        plan: Plan,
        readings: Readings,
        present: Sequence[str],
        skewed: Mapping[str, Evidence],
        inference: Inference | None,
        failure: str | None,
        waited_s: float,
        faceless: bool,
    ) -> Decision:
        end_s = readings.end_s
        summaries = {name: self._summary(name, end_s, skewed, faceless) for name in self._manifest.names}
        late_s = 0.0 if plan.deadline_s is None else max(0.0, end_s - plan.deadline_s)
        # Without a face no sensor is used; the policy still asks which ones are well.
        usable = tuple(n for n, s in summaries.items() if s.status != "missing") if faceless else present
        outcome = self._outcome(usable, summaries, inference, failure, late_s, end_s)
        features = [self._tracks[name].feature for name in present]
        used_s = [feature.shown_s for feature in features if feature is not None]
        segmented = outcome.shares is not None and inference is not None
        return Decision(
            seq=self._seq,
            t_utc_s=readings.utc_s,
            outcome=outcome,
            subset=subsets.label(present, self._manifest.names),
            modalities=summaries,
            experts=() if inference is None else inference.experts,
            latency_ms=_latency_ms(readings, inference, waited_s),
            age_ms=1000.0 * max(end_s - at_s for at_s in used_s) if used_s else None,
            alarm=self._watch.missing,
            late_ms=1000.0 * late_s,
            skipped=plan.skipped,
            label_map=policy.label_map(inference.logits) if segmented and inference is not None else None,
        )

    def _outcome(
        self,
        present: Sequence[str],
        summaries: Mapping[str, Summary],
        inference: Inference | None,
        failure: str | None,
        late_s: float,
        now_s: float,
    ) -> Outcome:
        reasons = {name: summary.reason for name, summary in summaries.items()}
        latch_s = self._settings.latch_s
        self._watch = downgrade.step(self._watch, self._critical, present, reasons, now_s, latch_s)
        late = self._settings.deadline_s is not None and late_s > 0.0
        held = failure or downgrade.objection(self._watch, latch_s) or self._suspicion(present)
        return policy.decide(
            self._manifest,
            self._settings.policy,
            present,
            None if inference is None else inference.logits,
            allow_uncertified=self._settings.allow_uncertified,
            held=held or (f"made {1000.0 * late_s:.1f} ms after its deadline" if late else None),
        )

    def _suspicion(self, present: Sequence[str]) -> str | None:
        """Why sensors that are used may not be believed yet; None while none shows a fault that would mask it."""
        shown = ((name, self._tracks[name]) for name in present)
        found = {name: fault for name, track in shown if (fault := health.suspected(track.health, track.limits))}
        return "; ".join(f"{name} may be {fault}: wait and see" for name, fault in found.items()) or None

    def _summary(self, name: str, now_s: float, skewed: Mapping[str, Evidence], faceless: bool) -> Summary:
        """What the mask of this decision says."""
        track = self._tracks.get(name)
        if track is None:
            return NOT_CONFIGURED
        found = track.summary(now_s, needs_feature=not faceless)
        if found.reason == NO_SAMPLE and self._finder is not None:
            # It is well: the face is outside its picture.
            found = replace(found, reason=region.NO_FACE, evidence={})
        return replace(found, status="missing", reason="skew", evidence=skewed[name]) if name in skewed else found

    def _tick(self, before: LoopState, plan: Plan, readings: Readings, decision: Decision) -> Tick:
        return Tick(
            before=before,
            plan=plan,
            readings=readings,
            deliveries={name: track.delivery for name, track in self._tracks.items()},
            traits={name: track.traits for name, track in self._tracks.items()},
            decision=decision,
        )

    def _finished(self) -> bool:
        """Every finite source has ended and nothing but still images is left."""
        tracks = self._tracks.values()
        finite = [track for track in tracks if track.feed.traits.finite]
        live = [track for track in tracks if not (track.feed.traits.finite or track.feed.traits.static)]
        return bool(finite) and not live and all(track.health.ended for track in finite)

    def _raise_if_nothing_ever_came(self) -> None:
        tracks = self._tracks.values()
        if any(track.health.sample_s is not None or track.health.reason == "starting" for track in tracks):
            return
        raise nothing_came({name: track.feed.last_error for name, track in self._tracks.items()})


def nothing_came(errors: Mapping[str, str | None]) -> NoSensorError:
    """The error of a stream without a single sample; by sensor its newest failure, None for one that was silent."""
    found = [f"{name}: {error or 'no sample'}" for name, error in errors.items()]
    return NoSensorError(f"no sensor ever gave a sample ({'; '.join(found)})")


def _latency_ms(readings: Readings, inference: Inference | None, waited_s: float) -> dict[str, float]:
    return {
        "capture_wait": 1000.0 * waited_s,
        "preprocess": 1000.0 * (readings.prepared_s - readings.begin_s),
        **({} if inference is None else inference.latency_ms),
        "total": 1000.0 * (readings.end_s - readings.begin_s),
    }
