"""What a fault costs in decisions before it is noticed and after: a model on the simulated rig, truth known.

Two subjects take turns before the cameras, and the fault begins at the very moment of the change: a sensor that shows
the past then shows somebody else, which is the worst moment there is. The loop is the runtime's own, without threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.faults import Fault
from mars_edge.manifest import Manifest
from mars_runtime.capture import Doorbell
from mars_runtime.decision import Decision
from mars_runtime.engines.protocol import Engine
from mars_runtime.facts import FactFinder
from mars_runtime.grading.scenery import RATE_HZ
from mars_runtime.grading.sensor import Clock, StepFeed
from mars_runtime.pipeline import Pipeline, Settings
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.sensors.faulty import FaultyDriver

BEFORE_S = 1.0
# What is known of the fault: nothing, that the sensor is doubtful, that it is missing.
Phase = Literal["gap", "degraded", "masked"]
_PHASES: dict[str, Phase] = {"ok": "gap", "degraded": "degraded", "missing": "masked"}
NO_FAULT = "none"


@dataclass(kw_only=True)
class Cost:
    """The decisions made while one fault held on one sensor, by what was known of it.

    Attributes:
        fault: "none" for a stream without one, whose decisions all count as "gap".
        right, wrong, abstained: decisions by phase.
    """

    fault: str
    sensor: str
    right: Counter[Phase] = field(default_factory=Counter)
    wrong: Counter[Phase] = field(default_factory=Counter)
    abstained: Counter[Phase] = field(default_factory=Counter)

    def decisions(self, phase: Phase) -> int:
        """How many were made in a phase."""
        return self.right[phase] + self.wrong[phase] + self.abstained[phase]

    def accuracy(self, phase: Phase) -> float | None:
        """Share of the decisions that did not abstain that are right; None where there is none."""
        decided = self.right[phase] + self.wrong[phase]
        return self.right[phase] / decided if decided else None

    def add(self, decision: Decision, phase: Phase, *, live: bool) -> None:
        """Count one decision about a subject who is live or not."""
        verdict = decision.outcome.verdict
        if verdict not in ("accept", "reject"):
            self.abstained[phase] += 1
        elif (verdict == "accept") == live:
            self.right[phase] += 1
        else:
            self.wrong[phase] += 1


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """The frames of all cameras around one change of subject, and whether the one who comes is live."""

    frames: Mapping[str, Sequence[NDArray[Any]]]
    live: bool


class _Camera:
    def __init__(self, name: str, frames: Sequence[NDArray[Any]], clock: Clock) -> None:
        self.traits = Traits(description=name, rate_hz=RATE_HZ, raw=True, simulated=True)
        self._frames = frames
        self._clock = clock

    def open(self) -> None:
        """Nothing to open."""

    def read(self, timeout_s: float) -> Frame | None:
        """The frame of now."""
        number = round(self._clock() * RATE_HZ)
        return Frame(data=self._frames[number], sequence=number, captured_s=self._clock())

    def close(self) -> None:
        """Nothing to close."""


def costs(engine: Engine, faults: Sequence[str], changes: int, *, seed: int) -> Iterator[Cost]:
    """First that of no fault at all, then that of every fault on every sensor, over `changes` of subject.

    Raises:
        UsageError: the model does not tell live from spoof on the sensors of the rig.
    """
    manifest = engine.manifest
    _check(manifest)
    scenes = [_scene(manifest, seed, turn) for turn in range(changes)]
    yield _cost(engine, scenes, NO_FAULT, "", seed)
    for sensor in manifest.names:
        for fault in faults:
            yield _cost(engine, scenes, fault, sensor, seed)


def _check(manifest: Manifest) -> None:
    from mars_edge.rig import MODALITIES

    if not set(manifest.names) <= set(MODALITIES) or manifest.positive_label is None:
        raise UsageError(f"{manifest.name} is no live/spoof model of the simulated rig ({', '.join(MODALITIES)})")


def _scene(manifest: Manifest, seed: int, turn: int) -> _Scene:
    """The end of turn number `turn` and the whole of the next."""
    from mars_edge.rig import Rig
    from mars_edge.rig.live import STAGE_S

    rig = Rig(seed=seed, rate_hz=RATE_HZ)
    start_s = (turn + 1) * STAGE_S - BEFORE_S
    times_s = [start_s + number / RATE_HZ for number in range(round((BEFORE_S + STAGE_S) * RATE_HZ))]
    frames = {name: [rig.frame(name, t_s) for t_s in times_s] for name in manifest.names}
    return _Scene(frames=frames, live=rig.scene_at(times_s[-1]).live)


def _cost(engine: Engine, scenes: Sequence[_Scene], fault: str, sensor: str, seed: int) -> Cost:
    cost = Cost(fault=fault, sensor=sensor)
    for number, scene in enumerate(scenes):
        for decision in _played(engine, scene, fault, sensor, seed + number):
            phase = _PHASES[decision.modalities[sensor].status] if sensor else "gap"
            cost.add(decision, phase, live=scene.live)
    return cost


def _played(engine: Engine, scene: _Scene, fault: str, sensor: str, seed: int) -> list[Decision]:
    """The decisions from the change of subject on."""
    clock, manifest = Clock(), engine.manifest
    feeds = {}
    for name in manifest.names:
        own = [Fault(sensor=name, kind=fault, start_s=BEFORE_S - 0.5 / RATE_HZ)] if name == sensor else []
        driver = FaultyDriver(_Camera(name, scene.frames[name], clock), own, stream_s=clock, seed=seed)
        feeds[name] = StepFeed(driver, FactFinder.of(manifest.modality(name)), clock)
    settings = Settings(policy=manifest.policy, rate_hz=RATE_HZ, gather_s=0.0)
    pipeline = Pipeline(engine, feeds, settings, doorbell=Doorbell(), clock=clock, utc=lambda: 0.0)
    pipeline.start()
    decisions = []
    for number in range(len(next(iter(scene.frames.values())))):
        clock.now_s = number / RATE_HZ
        for feed in feeds.values():
            feed.step()
        decisions.append(pipeline.decide())
    return decisions[round(BEFORE_S * RATE_HZ) :]
