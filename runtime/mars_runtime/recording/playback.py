"""Decisions made again from a recording: bit for bit where decisions were recorded, on a made-up clock where not."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mars_edge.errors import UsageError
from mars_runtime.capture import Delivery, Doorbell
from mars_runtime.decision import Decision
from mars_runtime.engines.protocol import Engine
from mars_runtime.pipeline import Pipeline, Settings
from mars_runtime.recording.reader import RecordedDelivery, RecordedTick, Recording
from mars_runtime.recording.session import model_id
from mars_runtime.recording.writer import exact
from mars_runtime.sensors.driver import Traits
from mars_runtime.tick import LoopState, Plan, Readings

_RATE_LIMIT_HZ = 60.0
_NOTHING = Delivery(sample=None, events=())


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A decision made again.

    Attributes:
        at_s: when it was made first, on the clock of the recording.
        difference: the first field that differs from the recorded one; None where it is equal or none was recorded.
    """

    decision: Decision
    at_s: float
    difference: str | None


class _Feed:
    """A sensor that hands out what is put into it."""

    def __init__(self, traits: Traits) -> None:
        self.traits = traits
        self.delivery = _NOTHING
        self.received = 0
        self.last_error: str | None = None

    @property
    def waiting(self) -> bool:
        return self.delivery.sample is not None

    def put(self, recorded: RecordedDelivery) -> None:
        self.traits = recorded.traits
        events = (*self.delivery.events, *recorded.delivery.events)
        self.delivery = Delivery(sample=recorded.delivery.sample or self.delivery.sample, events=events)

    def take(self) -> Delivery:
        delivery, self.delivery = self.delivery, _NOTHING
        self.received += delivery.sample is not None
        return delivery


def settings_of(recording: Recording, engine: Engine) -> Settings:
    """Those the recorded decisions were made with; the model's own for a recording of sensors alone."""
    return recording.session.settings or Settings(policy=engine.manifest.policy)


def is_same_model(recording: Recording, engine: Engine) -> bool:
    """Whether the recorded decisions are of this very model."""
    return recording.session.model_id == model_id(engine.manifest)


def replay(engine: Engine, recording: Recording, settings: Settings) -> Iterator[Replayed]:
    """Every decision again, as fast as the engine can.

    Raises:
        UsageError: no sensor of the recording is one of the model's, a sample does not fit its modality, or the
            recording is damaged.
    """
    session = recording.session
    feeds = {name: _Feed(session.traits[name]) for name in engine.manifest.names if name in session.traits}
    if not feeds:
        raise UsageError(
            f"{recording.path}: has {', '.join(session.traits)}; {engine.manifest.name} takes "
            f"{', '.join(engine.manifest.names)}"
        )
    again = _Again(engine, feeds, settings, keep_features=is_same_model(recording, engine))
    if session.settings is None:
        yield from _on_made_up_clock(recording, again)
        return
    for entry in recording.entries():
        assert isinstance(entry, RecordedTick)
        decision = again.decide(entry.plan, entry.readings, entry.deliveries, entry.state)
        difference = first_difference(entry.decision, _as_read(exact(decision)))
        yield Replayed(decision=decision, at_s=entry.readings.end_s, difference=difference)


class _Again:
    """A pipeline whose clocks and feeds say what they said then."""

    def __init__(self, engine: Engine, feeds: Mapping[str, _Feed], settings: Settings, *, keep_features: bool) -> None:
        self.feeds = feeds
        self.settings = settings
        self._keep_features = keep_features
        self._readings: Iterator[float] = iter(())
        self._utc_s = 0.0
        self._pipeline = Pipeline(
            engine,
            feeds,
            replace(settings, gather_s=0.0),
            doorbell=Doorbell(),
            clock=lambda: next(self._readings),
            utc=lambda: self._utc_s,
        )
        self._started = False

    def decide(
        self,
        plan: Plan,
        readings: Readings,
        deliveries: Mapping[str, RecordedDelivery],
        state: LoopState | None,
    ) -> Decision:
        if not self._started:
            # Sensors without a recorded state begin their grace period here.
            self._readings = itertools.repeat(readings.begin_s)
            self._pipeline.start()
            self._started = True
        if state is not None:
            self._pipeline.restore(state if self._keep_features else _without_features(state))
        for name, recorded in deliveries.items():
            if name in self.feeds:
                self.feeds[name].put(recorded)
        self._readings = iter((readings.begin_s, readings.prepared_s, readings.end_s))
        self._utc_s = readings.utc_s
        return self._pipeline.decide(plan)


def _without_features(state: LoopState) -> LoopState:
    """Features are answers of one model's encoders and mean nothing to another's."""
    return replace(state, tracks={name: replace(track, feature=None) for name, track in state.tracks.items()})


def _on_made_up_clock(recording: Recording, again: _Again) -> Iterator[Replayed]:
    """Decisions at a fixed rate over a recording of sensors alone; equal for every machine and every speed."""
    entries = (entry for entry in recording.entries() if isinstance(entry, RecordedDelivery))
    upcoming = next(entries, None)
    if upcoming is None:
        return
    rates_hz = (feed.traits.rate_hz for feed in again.feeds.values())
    period_s = 1.0 / (again.settings.rate_hz or min(_RATE_LIMIT_HZ, max(rates_hz)))
    begin_s = upcoming.at_s
    for index in itertools.count():
        now_s = begin_s + index * period_s
        came: dict[str, RecordedDelivery] = {}
        while upcoming is not None and upcoming.at_s <= now_s:
            came[upcoming.name] = _joined(came.get(upcoming.name), upcoming)
            upcoming = next(entries, None)
        utc_s = now_s + recording.session.utc_offset_s
        readings = Readings(begin_s=now_s, prepared_s=now_s, end_s=now_s, utc_s=utc_s)
        decision = again.decide(Plan(), readings, came, None)
        yield Replayed(decision=decision, at_s=now_s, difference=None)
        if upcoming is None:
            return


def _joined(before: RecordedDelivery | None, after: RecordedDelivery) -> RecordedDelivery:
    """Two deliveries of one sensor as one, as a mailbox would have them."""
    if before is None:
        return after
    events = (*before.delivery.events, *after.delivery.events)
    return replace(after, delivery=Delivery(sample=after.delivery.sample or before.delivery.sample, events=events))


def _as_read(plain: dict[str, Any]) -> dict[str, Any]:
    """The same document after a way through a file, where tuples are lists."""
    table: dict[str, Any] = json.loads(json.dumps(plain))
    return table


def first_difference(recorded: Any, made: Any, where: str = "") -> str | None:
    """The first place at which two JSON documents differ, with both values; None when they are equal."""
    if isinstance(recorded, dict) and isinstance(made, dict):
        pairs = [(key, recorded.get(key), made.get(key)) for key in dict.fromkeys([*recorded, *made])]
    elif isinstance(recorded, list) and isinstance(made, list) and len(recorded) == len(made):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(recorded, made, strict=True))]
    elif type(recorded) is type(made) and recorded == made:
        return None
    else:
        place = ".".join(part for part in where.split(".") if part not in ("", "value"))
        return f"{place or 'decision'} was {recorded!r}, is {made!r}"
    found = (first_difference(old, new, f"{where}.{key}") for key, old, new in pairs)
    return next((each for each in found if each is not None), None)
