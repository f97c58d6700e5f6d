"""What a fault costs in decisions: how they are counted, and what the bundled model answers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_edge.rig import Rig
from mars_edge.rig.live import STAGE_S
from mars_runtime.decision import Decision
from mars_runtime.engines.opening import open_engine
from mars_runtime.engines.protocol import Engine, Inference
from mars_runtime.grading.gap import NO_FAULT, Cost, costs
from mars_runtime.grading.scenery import RATE_HZ
from mars_runtime.policy import Outcome

STAGE = round(STAGE_S * RATE_HZ)


def decided(verdict: str) -> Decision:
    outcome = Outcome(label=None, score=None, threshold=None, verdict=verdict)
    return Decision(
        seq=0, t_utc_s=0.0, outcome=outcome, subset="none", modalities={}, experts=(), latency_ms={}, age_ms=None
    )


def test_an_abstention_is_neither_right_nor_wrong() -> None:
    cost = Cost(fault="off", sensor="rgb")
    for verdict, live in (("accept", True), ("accept", False), ("reject", False), ("reject", False), ("abstain", True)):
        cost.add(decided(verdict), "gap", live=live)
    cost.add(decided("abstain"), "masked", live=True)
    assert (cost.decisions("gap"), cost.accuracy("gap")) == (5, 0.75)
    assert (cost.decisions("masked"), cost.accuracy("masked")) == (1, None)
    assert (cost.decisions("degraded"), cost.accuracy("degraded")) == (0, None)


class Watching:
    """The bundled model, which keeps what its colour encoder was given."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.name = inner.name
        self.manifest: Manifest = inner.manifest
        self.colour: list[NDArray[np.float32] | None] = []

    def infer(
        self, samples: Mapping[str, NDArray[np.float32]], features: Mapping[str, NDArray[np.float32]]
    ) -> Inference:
        self.colour.append(samples.get("rgb"))
        return self.inner.infer(samples, features)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_engine("face_antispoof.pte", threads=1)


def test_every_decision_since_the_fault_is_counted_once(engine: Engine) -> None:
    found = list(costs(engine, ["black"], 1, seed=3))
    assert [(cost.fault, cost.sensor) for cost in found] == [
        (NO_FAULT, ""),
        *[("black", sensor) for sensor in engine.manifest.names],
    ]
    for cost in found:
        assert sum(cost.decisions(phase) for phase in ("gap", "degraded", "masked")) == STAGE
    healthy, *_ = found
    assert healthy.decisions("gap") == STAGE
    assert (healthy.accuracy("gap") or 0.0) > 0.8


def test_a_fault_begins_with_the_new_subject_and_a_sensor_that_stands_shows_the_old_one(engine: Engine) -> None:
    watching = Watching(engine)
    played = costs(watching, ["stuck"], 1, seed=3)
    assert next(played).fault == NO_FAULT
    healthy = watching.colour[-STAGE:]
    assert next(played).sensor == "rgb"
    stuck = watching.colour[-STAGE:]
    rig, colour = Rig(seed=3, rate_hz=RATE_HZ), engine.manifest.modality("rgb")
    before, after = (colour.preprocess(rig.frame("rgb", STAGE_S + step / RATE_HZ)) for step in (-1, 0))
    assert healthy[0] is not None
    assert np.array_equal(healthy[0], after)
    held = [each for each in stuck if each is not None]
    assert len(held) >= 5
    assert all(np.array_equal(each, before) for each in held)


def test_a_model_of_other_sensors_is_refused() -> None:
    digits = open_engine("spoken_digits.pte", threads=1)
    with pytest.raises(UsageError) as error:
        list(costs(digits, ["off"], 1, seed=0))
    assert str(error.value) == "spoken_digits is no live/spoof model of the simulated rig (rgb, depth, ir)"
