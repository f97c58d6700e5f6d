"""The decision loop: samples in, health says who is present, only they are encoded, one decision out.

One thread, the caller's. It never waits for a device: it takes what the capture threads have left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.errors import NoSensorError, UsageError
from mars_edge.manifest import Policy
from mars_edge.modality import Modality
from mars_runtime import health, policy
from mars_runtime.capture import Delivery, Doorbell, Sample
from mars_runtime.decision import Decision
from mars_runtime.engines.protocol import Engine, Inference
from mars_runtime.health import Health, Limits, SampleSeen, Summary
from mars_runtime.sensors.driver import Traits
from mars_runtime.sensors.pace import Clock

_RATE_LIMIT_HZ = 60.0
NOT_CONFIGURED = Summary(status="missing", reason="not configured", age_s=None)


class Feed(Protocol):
    """One sensor as the loop sees it; `capture.Capture` is one."""

    @property
    def traits(self) -> Traits:
        """Of the source."""

    @property
    def received(self) -> int:
        """Samples that have arrived so far."""

    @property
    def waiting(self) -> bool:
        """Whether a sample is there to be taken."""

    @property
    def last_error(self) -> str | None:
        """The newest failure in the driver's words."""

    def take(self) -> Delivery:
        """What is new since the last call."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the loop runs.

    Attributes:
        rate_hz: decisions per second; None means one per sample of the fastest sensor, at most 60.
        gather_s: how long the first decision may wait for every sensor's first sample.
        settle_share: part of a period a decision may wait for a sample that is due at that moment.
        policy: the manifest's, possibly tightened.
        allow_uncertified: decide on subsets that are not certified (`--unsafe`).
        health: overrides of `Limits` by sensor.
    """

    policy: Policy
    rate_hz: float | None = None
    gather_s: float = 2.0
    settle_share: float = 0.25
    allow_uncertified: bool = False
    health: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Feature:
    """An encoder's output and the receipt time of the sample it came from."""

    value: NDArray[np.float32]
    at_s: float


class Track:
    """One sensor followed over time: its health, its newest sample, its cached feature."""

    def __init__(
        self, modality: Modality, feed: Feed, *, overrides: Mapping[str, Any], masking: frozenset[str]
    ) -> None:
        self.modality = modality
        self.feed = feed
        self.feature: Feature | None = None
        self.newest: Sample | None = None
        self._overrides = overrides
        self._masking = masking
        self._accepted = False
        self._health: Health | None = None
        self._limits = self._new_limits(feed.traits)

    @property
    def limits(self) -> Limits:
        """For the rate the source has now; it may be known only after opening."""
        traits = self.feed.traits
        if traits.period_s != self._limits.period_s:
            self._limits = self._new_limits(traits)
        return self._limits

    @property
    def health(self) -> Health:
        """The state; only after `start`."""
        assert self._health is not None
        return self._health

    def _new_limits(self, traits: Traits) -> Limits:
        base = Limits(period_s=traits.period_s, start_grace_s=traits.start_grace_s, masking=self._masking)
        return health.with_overrides(base, self._overrides, f"sensor.{self.modality.name}.health")

    def start(self, now_s: float) -> None:
        """Begin the grace period."""
        self._health = Health(started_s=now_s)

    def update(self, now_s: float, *, excused_s: float = 0.0) -> Sample | None:
        """Take what is new and judge; the new sample if the sensor may be used.

        `excused_s` is silence that was this process's own stall and not the sensor's.
        """
        delivery = self.feed.take()
        self.newest = delivery.sample or self.newest
        limits = self.limits
        if excused_s > 0.0:
            stale_s, lost_s = limits.stale_after_s + excused_s, limits.lost_after_s + excused_s
            limits = replace(limits, stale_s=stale_s, lost_s=lost_s)
        self._health = health.step(self.health, delivery.events, now_s, limits)
        if not self.health.present:
            self.feature = None
        return delivery.sample if self.health.present else None

    def preprocess(self, sample: Sample, now_s: float) -> NDArray[np.float32] | None:
        """The network's input, or None if the sample turned out unusable, which health then knows.

        Raises:
            UsageError: the very first sample does not fit: the wrong device was named.
        """
        try:
            tensor = self.modality.preprocess(sample.frame.data)
        except UsageError as error:
            if not self._accepted:
                raise UsageError(f"sensor {self.modality.name} ({self.feed.traits.description}): {error}") from error
            unusable = SampleSeen(at_s=sample.at_s, usable=False)
            self._health = health.step(self.health, [unusable], now_s, self.limits)
            self.feature = None
            return None
        self._accepted = True
        return tensor

    def due(self, now_s: float, within_s: float) -> bool:
        """Whether a usable sensor's next sample is expected about now and is not there yet."""
        if self.health.sample_s is None or not self.health.present or self.feed.waiting:
            return False
        return abs(self.health.sample_s + self.limits.period_s - now_s) <= within_s

    def cached(self, now_s: float) -> Feature | None:
        """The feature of an earlier sample while it is within the age limit."""
        if self.feature is not None and now_s - self.feature.at_s > self.limits.stale_after_s:
            self.feature = None
        return self.feature


class Pipeline:
    """Turns feeds into decisions at a fixed rate; `feeds` maps modality names to running sensors."""

    def __init__(
        self,
        engine: Engine,
        feeds: Mapping[str, Feed],
        settings: Settings,
        *,
        doorbell: Doorbell,
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
        self._clock = clock
        self._utc = utc
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._seq = 0
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

    def decisions(self) -> Iterator[Decision]:
        """One decision per period until stopped or until every finite source has ended.

        A period that passes while a decision is made is skipped and counted.

        Raises:
            NoSensorError: every sensor's grace has passed and none ever gave a sample.
            UsageError: a sensor's first sample does not fit its modality.
        """
        self.start()
        period_s = 1.0 / self._rate_hz()
        due_s = self._clock()
        settle_s = period_s * self._settings.settle_share
        late_s = 0.0
        while not self._stop.is_set():
            self._settle(settle_s)
            before_s, late_s = late_s, max(0.0, self._clock() - due_s - settle_s)
            # A sample delayed by a stall may arrive one decision after it.
            yield self.decide(excused_s=max(late_s, before_s))
            self._raise_if_nothing_ever_came()
            if self._stop.is_set() or self._finished():
                return
            due_s = self._next_due(due_s, period_s)

    def _settle(self, limit_s: float) -> None:
        """Wait a moment for samples that are due now: using them is fresher than their predecessors."""
        end_s = self._clock() + limit_s
        while (left_s := end_s - self._clock()) > 0.0 and not self._stop.is_set():
            if not any(track.due(self._clock(), limit_s) for track in self._tracks.values()):
                return
            self._doorbell.wait(left_s)

    def _rate_hz(self) -> float:
        fastest_hz = max(track.feed.traits.rate_hz for track in self._tracks.values())
        return self._settings.rate_hz or min(_RATE_LIMIT_HZ, fastest_hz)

    def _next_due(self, due_s: float, period_s: float) -> float:
        """Wait for the next period that has not passed yet, and return when it begins."""
        late = int(max(0.0, self._clock() - due_s) / period_s)
        self.skipped_ticks += late
        due_s += (1 + late) * period_s
        self._wait(max(0.0, due_s - self._clock()))
        return due_s

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

    def decide(self, *, excused_s: float = 0.0) -> Decision:
        """One decision on what the sensors have delivered up to now.

        `excused_s`: how much later than planned the loop itself runs. A process that got no processor
        time has late samples from sensors that are well; the age limit of features holds all the same.
        """
        begin_s = self._clock()
        samples = {n: s for n, t in self._tracks.items() if (s := t.update(begin_s, excused_s=excused_s)) is not None}
        tensors = self._preprocess(samples, begin_s)
        prepared_s = self._clock()
        cached = self._cached(tensors, begin_s)
        inference = self._engine.infer(tensors, cached) if tensors or cached else None
        if inference is not None:
            self._remember(inference, tensors, samples)
        present = tuple(name for name in self._manifest.names if name in tensors or name in cached)
        outcome = policy.decide(
            self._manifest,
            self._settings.policy,
            present,
            None if inference is None else inference.logits,
            allow_uncertified=self._settings.allow_uncertified,
        )
        end_s = self._clock()
        latency_ms = {
            "capture_wait": 1000.0 * max((begin_s - samples[name].at_s for name in tensors), default=0.0),
            "preprocess": 1000.0 * (prepared_s - begin_s),
            **({} if inference is None else inference.latency_ms),
            "total": 1000.0 * (end_s - begin_s),
        }
        return self._decision(present, outcome, inference, latency_ms, end_s)

    def _preprocess(self, samples: Mapping[str, Sample], now_s: float) -> dict[str, NDArray[np.float32]]:
        tensors = {name: self._tracks[name].preprocess(sample, now_s) for name, sample in samples.items()}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def _cached(self, tensors: Mapping[str, Any], now_s: float) -> dict[str, NDArray[np.float32]]:
        """Features of usable sensors that brought nothing new, within their age limit."""
        features = {name: track.cached(now_s) for name, track in self._tracks.items() if name not in tensors}
        return {name: feature.value for name, feature in features.items() if feature is not None}

    def _remember(
        self, inference: Inference, tensors: Mapping[str, NDArray[np.float32]], samples: Mapping[str, Sample]
    ) -> None:
        for name in tensors:
            self._tracks[name].feature = Feature(value=inference.features[name], at_s=samples[name].at_s)

    def _decision(
        self,
        present: Sequence[str],
        outcome: policy.Outcome,
        inference: Inference | None,
        latency_ms: Mapping[str, float],
        now_s: float,
    ) -> Decision:
        used_s = [track.feature.at_s for n, track in self._tracks.items() if n in present and track.feature]
        decision = Decision(
            seq=self._seq,
            t_utc_s=self._utc(),
            outcome=outcome,
            subset=subsets.label(present, self._manifest.names),
            modalities={name: self._summary(name, now_s) for name in self._manifest.names},
            experts=() if inference is None else inference.experts,
            latency_ms=latency_ms,
            age_ms=1000.0 * max(now_s - at_s for at_s in used_s) if used_s else None,
        )
        self._seq += 1
        return decision

    def _summary(self, name: str, now_s: float) -> Summary:
        """What the mask of this decision says; a usable sensor without a young feature is missing as well."""
        track = self._tracks.get(name)
        if track is None:
            return NOT_CONFIGURED
        found = health.summary(track.health, now_s)
        if track.health.present and track.feature is None:
            stale = found.age_s is not None and found.age_s > track.limits.stale_after_s
            return replace(found, status="missing", reason="stale" if stale else "no sample")
        return found

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
        errors = [f"{name}: {track.feed.last_error or 'no sample'}" for name, track in self._tracks.items()]
        raise NoSensorError(f"no sensor ever gave a sample ({'; '.join(errors)})")
