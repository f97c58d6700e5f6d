"""A decision loop on a made-up clock whose sensors do everything sensors do, for recordings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mars_edge.manifest import Policy
from mars_edge.modality import Modality
from mars_runtime.capture import Delivery, Doorbell, Sample
from mars_runtime.decision import Decision
from mars_runtime.health import Event, ReadFailed, SampleSeen
from mars_runtime.pipeline import Pipeline, Settings
from mars_runtime.recording.recorder import Recorder
from mars_runtime.recording.session import Session, model_id
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.tick import Plan, Tick
from tests.fake_engine import FakeEngine, manifest

RATE_HZ = 15.0
MODALITIES = (
    Modality(name="rgb", kind="image", channels=3, size=(8, 8), dtype="uint8", range=(0, 255), rate_hz=RATE_HZ),
    Modality(name="depth", kind="image", size=(8, 8), dtype="uint16", range=(200, 1200), rate_hz=RATE_HZ),
    Modality(name="voice", kind="audio", rate_hz=1000, window_s=0.2),
)
NAMES = tuple(m.name for m in MODALITIES)


class WildFeed:
    """Samples that come, repeat, fail to come, and reads that fail, by chance."""

    def __init__(self, modality: Modality, seed: int, clock: Callable[[], float]) -> None:
        self.traits = Traits(description=f"wild {modality.name}", rate_hz=RATE_HZ, raw=True)
        self.received = 0
        self.last_error: str | None = None
        self._modality = modality
        self._clock = clock
        self._draw = np.random.default_rng(seed)
        self._silent_until_s = 0.0

    @property
    def waiting(self) -> bool:
        return False

    def data(self) -> np.ndarray[Any, Any]:
        if self._modality.kind == "audio":
            return self._draw.normal(0.0, 0.3, 200).astype(np.float32)
        top = 1300 if self._modality.dtype == "uint16" else 256
        shape = (9, 10, 3) if self._modality.channels == 3 else (9, 10)
        return self._draw.integers(0, top, shape, self._modality.dtype)

    def take(self) -> Delivery:
        now_s = self._clock()
        if self._draw.random() < 0.02:
            self._silent_until_s = now_s + self._draw.uniform(0.1, 2.0)
        if self._draw.random() < 0.01:
            self.traits = replace(self.traits, rate_hz=self._draw.uniform(8.0, 15.0))
        if self._draw.random() < 0.02:
            failed = ReadFailed(at_s=now_s, gone=self._draw.random() < 0.5, message=f"failed by {self._draw.random()}")
            return Delivery(sample=None, events=(failed,))
        if now_s < self._silent_until_s or self._draw.random() < 0.05:
            return Delivery(sample=None, events=())
        at_s = now_s - self._draw.uniform(0.0, 0.02)
        self.received += 1
        events: tuple[Event, ...] = (
            SampleSeen(at_s=at_s, repeated=self._draw.random() < 0.1, dark=float(self._draw.random())),
        )
        frame = Frame(data=self.data(), sequence=self.received)
        return Delivery(sample=Sample(frame=frame, at_s=at_s), events=events)


class WildRun:
    """A pipeline over three wild feeds; every decision goes to `witnesses`."""

    def __init__(self, seed: int, *witnesses: Callable[[Tick], None], model: Any = None, **settings: Any) -> None:
        self.now_s = 1000.0 + 0.1 * seed
        self._draw = np.random.default_rng(seed)
        self.engine = FakeEngine(model or manifest(MODALITIES))
        modalities = self.engine.manifest.modalities
        self.feeds = {m.name: WildFeed(m, 100 * seed + i, self.clock) for i, m in enumerate(modalities)}
        self.settings = Settings(**{"policy": Policy(), "rate_hz": RATE_HZ, "gather_s": 0.0, **settings})
        self.witnesses = list(witnesses)
        self.pipeline = Pipeline(
            self.engine,
            self.feeds,
            self.settings,
            doorbell=Doorbell(),
            witness=self.witness,
            clock=self.clock,
            utc=lambda: self.now_s + 1.7e9,
        )
        self.pipeline.start()

    def clock(self) -> float:
        # Every reading differs, as on a real machine.
        self.now_s += self._draw.uniform(1e-6, 1e-3)
        return self.now_s

    def witness(self, tick: Tick) -> None:
        for each in self.witnesses:
            each(tick)

    def session(self) -> Session:
        return Session(
            modalities={m.name: m for m in self.engine.manifest.modalities},
            traits={name: feed.traits for name, feed in self.feeds.items()},
            utc_offset_s=1.7e9,
            model=self.engine.manifest.name,
            model_id=model_id(self.engine.manifest),
            settings=self.settings,
        )

    def decide(self) -> Decision:
        self.now_s += 1.0 / RATE_HZ
        excused_s = 0.3 if self._draw.random() < 0.02 else 0.0
        return self.pipeline.decide(Plan(deadline_s=self.now_s + 0.001, excused_s=excused_s))

    def decisions(self, count: int) -> list[Decision]:
        return [self.decide() for _ in range(count)]


def record(path: Path, seed: int, count: int, **settings: Any) -> tuple[WildRun, list[Decision]]:
    """A complete recording of a wild run, the run, and its decisions."""
    run = WildRun(seed, **settings)
    recorder = Recorder(path, run.session())
    run.witnesses.append(recorder.tick)
    decisions = run.decisions(count)
    recorder.close()
    return run, decisions
