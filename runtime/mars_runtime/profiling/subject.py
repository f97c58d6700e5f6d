"""One artifact with some of its sensors, decided on as in a stream: the real loop, on samples handed to it.

Capture threads are left out (`live` has them): a sample is handed over right before the decision.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mars_edge.errors import EngineError
from mars_edge.manifest import Policy
from mars_edge.subsets import label
from mars_runtime.capture import Delivery, Doorbell, Sample
from mars_runtime.decision import Decision
from mars_runtime.engines import Engine
from mars_runtime.pipeline import Pipeline, Settings
from mars_runtime.profiling.inputs import Input

# Nothing here is late because a sensor is: rounds of a large model take longer than a camera may be silent.
_PATIENT = {"stale_s": 3600.0, "lost_s": 7200.0, "callback_s": 7200.0, "skew_s": 7200.0}


class HandedFeed:
    """A feed whose next sample somebody hands over."""

    def __init__(self, given: Input) -> None:
        self._given = given
        self._delivery = Delivery(sample=None, events=())
        self.traits = given.traits
        self.received = 0
        self.waiting = False
        self.last_error: str | None = None

    def hand(self, number: int, at_s: float) -> None:
        """The sample `number`, in turn, as received at `at_s` on the monotonic clock."""
        place = number % len(self._given.frames)
        frame = replace(self._given.frames[place], sequence=number)
        seen = replace(self._given.facts[place], at_s=at_s, repeated=False)
        self._delivery = Delivery(sample=Sample(frame=frame, at_s=at_s), events=(seen,))
        self.received += 1
        self.waiting = True

    def take(self) -> Delivery:
        """What was handed over since the last call."""
        delivery, self._delivery = self._delivery, Delivery(sample=None, events=())
        self.waiting = False
        return delivery


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One decision's times.

    Attributes:
        stages_ms: by stage, as in the decision line.
        total_ms: from the first look at the sensors to the finished decision.
    """

    stages_ms: Mapping[str, float]
    total_ms: float


class Subject:
    """An engine that decides with the sensors of one subset; the other ones are missing."""

    def __init__(self, engine: Engine, inputs: Mapping[str, Input], subset: Sequence[str]) -> None:
        self.label = label(subset, engine.manifest.names)
        self._feeds = {name: HandedFeed(inputs[name]) for name in subset}
        self._number = 0
        policy: Policy = replace(engine.manifest.policy, masking_faults=())
        self._pipeline = Pipeline(
            engine,
            self._feeds,
            Settings(policy=policy, gather_s=0.0, health=dict.fromkeys(subset, _PATIENT)),
            doorbell=Doorbell(),
        )
        self._pipeline.start()

    def decide(self) -> Timed:
        """One decision on a new sample of every present sensor.

        Raises:
            EngineError: the engine failed, or decided with other sensors than it was given.
        """
        self._number += 1
        at_s = time.monotonic()
        for feed in self._feeds.values():
            feed.hand(self._number, at_s)
        begin_s = time.perf_counter()
        decision = self._pipeline.decide()
        total_ms = 1000.0 * (time.perf_counter() - begin_s)
        self._need_all(decision)
        stages = {stage: ms for stage, ms in decision.latency_ms.items() if stage != "total"}
        return Timed(stages_ms=stages, total_ms=total_ms)

    def _need_all(self, decision: Decision) -> None:
        if decision.subset != self.label or not decision.experts:
            why = decision.outcome.reason or "; ".join(
                f"{name}: {summary.reason}" for name, summary in decision.modalities.items() if summary.reason
            )
            raise EngineError(f"profile: asked for {self.label}, decided on {decision.subset} ({why})")
