"""One sensor as the decision loop follows it: its health, its newest sample, its cached feature.

Age counts from the capture of a sample where the device stamps it, else from its receipt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_runtime import health
from mars_runtime.capture import Delivery, Sample
from mars_runtime.feed import Feed
from mars_runtime.health import Health, SampleSeen, Summary
from mars_runtime.limits import Limits, kind_of, limits_of
from mars_runtime.preprocessing import preprocess
from mars_runtime.region import Box
from mars_runtime.sensors.driver import Traits

NO_SAMPLE = "no sample"


@dataclass(frozen=True, kw_only=True)
class Feature:
    """An encoder's output and when the sample it came from was seen.

    Attributes:
        shown_s: capture where the device stamps it, else receipt.
        stamped_s: capture by the device's own stamp; None where it has none.
    """

    value: NDArray[np.float32]
    shown_s: float
    stamped_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrackState:
    """All that a track remembers between two decisions; the same state and deliveries give the same decisions.

    Attributes:
        accepted: a sample of it has fitted the modality.
        shown_s: when its newest sample was seen; None before the first.
    """

    health: Health
    feature: Feature | None = None
    accepted: bool = False
    shown_s: float | None = None


def shown_s(sample: Sample) -> float:
    """When a sample was seen: its capture, but never after its receipt; its receipt where the device says nothing."""
    captured_s = sample.frame.captured_s
    return sample.at_s if captured_s is None else min(captured_s, sample.at_s)


class Track:
    """One sensor followed over time; used by the decision loop's thread."""

    def __init__(
        self, modality: Modality, feed: Feed, *, overrides: Mapping[str, Any], masking: frozenset[str]
    ) -> None:
        self.modality = modality
        self.feed = feed
        self.newest: Sample | None = None
        self.delivery = Delivery(sample=None, events=())
        self.traits = feed.traits
        self._overrides = overrides
        self._masking = masking
        self._state: TrackState | None = None
        self.limits = self._new_limits(self.traits)

    @property
    def state(self) -> TrackState:
        """What it remembers; only after `start`."""
        assert self._state is not None
        return self._state

    @property
    def health(self) -> Health:
        """The state of the fault table; only after `start`."""
        return self.state.health

    @property
    def feature(self) -> Feature | None:
        """The newest encoder output, if its sensor has been usable ever since."""
        return self.state.feature

    def _new_limits(self, traits: Traits) -> Limits:
        base = limits_of(kind_of(self.modality), traits, masking=self._masking)
        return health.with_overrides(base, self._overrides, f"sensor.{self.modality.name}.health")

    def start(self, now_s: float) -> None:
        """Begin the grace period."""
        self._state = TrackState(health=Health(started_s=now_s))

    def restore(self, state: TrackState) -> None:
        """Go on where another track, of this sensor, stood."""
        self._state = state

    def remember(self, value: NDArray[np.float32], sample: Sample) -> None:
        """Keep the encoder's output for `sample` until the age limit."""
        state = self.state
        feature = Feature(value=value, shown_s=shown_s(sample), stamped_s=sample.frame.captured_s)
        self._state = TrackState(health=state.health, feature=feature, accepted=state.accepted, shown_s=state.shown_s)

    def update(self, now_s: float, *, excused_s: float = 0.0) -> Sample | None:
        """Take what is new and judge; the new sample if it may be used.

        `excused_s` is silence that was this process's own stall and not the sensor's.
        """
        self._refresh_traits()
        self.delivery = self.feed.take()
        sample = self.delivery.sample
        limits = self.limits.excusing(excused_s)
        judged = health.step(self.health, self.delivery.events, now_s, limits)
        seen_s = self.state.shown_s
        if sample is not None:
            self.newest, seen_s = sample, shown_s(sample)
        feature = self.feature if judged.present else None
        # Not replace(): this runs for every sensor in every decision.
        self._state = TrackState(health=judged, feature=feature, accepted=self.state.accepted, shown_s=seen_s)
        if sample is None or not judged.present or now_s - shown_s(sample) > limits.stale_after_s:
            return None
        return sample

    def _refresh_traits(self) -> None:
        """The rate of a source may be known only after opening, and may change."""
        traits = self.feed.traits
        if traits is not self.traits and traits != self.traits:
            self.traits, self.limits = traits, self._new_limits(traits)

    def preprocess(self, sample: Sample, now_s: float, box: Box | None = None) -> NDArray[np.float32] | None:
        """The network's input, of the part inside `box` if there is one; None where less than 8 pixels of it are seen.

        Also None if the sample turned out unusable, which health then knows.

        Raises:
            UsageError: the very first sample does not fit: the wrong device was named.
        """
        data = sample.frame.data if box is None else box.cut(sample.frame.data)
        if data is None:
            return None
        try:
            tensor = preprocess(self.modality, data)
        except UsageError as error:
            if not self.state.accepted:
                raise UsageError(f"sensor {self.modality.name} ({self.traits.description}): {error}") from error
            unusable = SampleSeen(at_s=sample.at_s, usable=False)
            judged = health.step(self.health, [unusable], now_s, self.limits)
            self._state = replace(self.state, health=judged, feature=None)
            return None
        if not self.state.accepted:
            self._state = replace(self.state, accepted=True)
        return tensor

    def due(self, now_s: float, within_s: float) -> bool:
        """Whether a usable sensor's next sample is expected about now and is not there yet."""
        if self.health.sample_s is None or not self.health.present or self.feed.waiting:
            return False
        return abs(self.health.sample_s + self.limits.period_s - now_s) <= within_s

    def cached(self, now_s: float) -> Feature | None:
        """The feature of an earlier sample while it is within the age limit."""
        if self.feature is not None and now_s - self.feature.shown_s > self.limits.stale_after_s:
            self._state = replace(self.state, feature=None)
        return self.feature

    def summary(self, now_s: float, *, needs_feature: bool = True) -> Summary:
        """What a decision at `now_s` says; a usable sensor without a young feature is missing as well.

        Not so with `needs_feature` off, for a decision that uses no sensor.
        """
        found = health.summary(self.health, now_s)
        if self.state.shown_s not in (None, self.health.sample_s):
            found = replace(found, age_s=max(0.0, now_s - self.state.shown_s))
        if needs_feature and self.health.present and self.feature is None:
            limit_s = self.limits.stale_after_s
            if found.age_s is not None and found.age_s > limit_s:
                return replace(
                    found, status="missing", reason="stale", evidence={"age_s": found.age_s, "limit_s": limit_s}
                )
            return replace(found, status="missing", reason=NO_SAMPLE, evidence={})
        return found
