"""What sensors deliver before each decision, and the decision: who is used, what is encoded, why the others are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.health_cases import event_table
from contract.manifest_cases import small_manifest
from mars_edge import subsets
from mars_edge.errors import EngineError
from mars_edge.manifest import Manifest, Policy
from mars_runtime.capture import Delivery, Doorbell, Sample
from mars_runtime.decision import Decision
from mars_runtime.engines.protocol import Inference
from mars_runtime.health import Ended, Event, ReadFailed, SampleSeen
from mars_runtime.pipeline import Pipeline, Settings
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.tick import Plan

_START_S = 10.0
_RATE_HZ = 10.0
_TICK_S = 0.1
_TRAITS = Traits(description="contract", rate_hz=_RATE_HZ, raw=True, start_grace_s=1.0)
_FITTING: dict[str, NDArray[Any]] = {
    "rgb": np.full((4, 4, 3), 100, np.uint8),
    "depth": np.full((4, 4), 500, np.uint16),
    "ir": np.full((4, 4), 100, np.uint8),
}
# Of another shape than any modality's.
_UNFIT = np.zeros((2, 2, 2, 2), np.uint8)
# What a sensor does in a run of decisions: by sensor, what it gives before decision number i.
Script = Mapping[str, "list[str]"]
Case = tuple[str, Policy, Script, float]


def loop_cases() -> list[dict[str, Any]]:
    """Each run of decisions; every sensor that has a script is connected, and gives at most one sample a decision."""
    return [_case(*case) for case in _cases()]


class _Feed:
    """Hands out what the script says for this decision."""

    def __init__(self) -> None:
        self.delivery = Delivery(sample=None, events=())
        self.traits = _TRAITS
        self.received = 0
        self.waiting = False
        self.last_error: str | None = None

    def take(self) -> Delivery:
        """What is new."""
        given, self.delivery = self.delivery, Delivery(sample=None, events=())
        return given


class _Engine:
    """Answers "live" for every subset, and notes what it was asked."""

    name = "contract"

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.asked: dict[str, str] | None = None
        self.failing = False

    def infer(self, samples: Mapping[str, Any], features: Mapping[str, Any]) -> Inference:
        """See `Engine.infer`."""
        if self.failing:
            raise EngineError("on purpose")
        order = self.manifest.names
        self.asked = {"encoded": subsets.label(samples, order), "cached": subsets.label(features, order)}
        used = {name: np.zeros((1, 2, 2, 2), np.float32) for name in (*samples, *features)}
        logits = np.array([0.0, 2.0], np.float32)
        return Inference(logits=logits, experts=((1, 1.0),), features=used, latency_ms={})

    def close(self) -> None:
        """See `Engine.close`."""


def _case(name: str, policy: Policy, script: Script, latch_s: float) -> dict[str, Any]:
    now_s = _START_S
    engine = _Engine(small_manifest(policy=policy))
    feeds = {sensor: _Feed() for sensor in script if sensor != "loop"}
    settings = Settings(policy=policy, gather_s=0.0, latch_s=latch_s)
    pipeline = Pipeline(engine, feeds, settings, doorbell=Doorbell(), clock=lambda: now_s, utc=lambda: 0.0)
    pipeline.start()
    steps = []
    for index in range(max(map(len, script.values()))):
        word = script["loop"][index] if "loop" in script else ""
        stall_s = 0.6 if word == "stall" else 0.0
        now_s = round(now_s + _TICK_S + stall_s, 6)
        engine.failing, engine.asked = word == "engine fails", None
        given = {sensor: _delivery(sensor, script[sensor][index], now_s) for sensor in feeds}
        for sensor, delivery in given.items():
            feeds[sensor].delivery = delivery
        decision = pipeline.decide(Plan(excused_s=stall_s))
        steps.append(
            {
                "now_s": now_s,
                "excused_s": stall_s,
                "engine_fails": engine.failing,
                "given": {sensor: _given(delivery) for sensor, delivery in given.items()},
                "asked": engine.asked,
                "decision": _told(decision),
            }
        )
    table = {"name": name, "policy": _policy(policy), "latch_s": latch_s}
    return table | {"started_s": _START_S, "rate_hz": _RATE_HZ, "steps": steps}


def _policy(policy: Policy) -> dict[str, Any]:
    return {
        "require": list(policy.require),
        "on_missing": policy.on_missing,
        "masking_faults": list(policy.masking_faults),
    }


def _delivery(sensor: str, word: str, now_s: float) -> Delivery:
    """`word`: good, dark, repeated, unfit, stamped, early (stamped 0.2 s before), gone, ended; "" is nothing."""
    at_s = round(now_s - 0.02, 6)
    events: list[Event] = []
    if word == "gone":
        events.append(ReadFailed(at_s=at_s, gone=True))
    if word == "ended":
        events.append(Ended(at_s=at_s))
    if word in ("", "gone", "ended"):
        return Delivery(sample=None, events=tuple(events))
    stamped_s = {"early": round(at_s - 0.2, 6), "stamped": round(at_s - 0.01, 6)}.get(word)
    seen = SampleSeen(at_s=at_s, stamped_s=stamped_s, repeated=word == "repeated", dark=float(word == "dark"))
    frame = Frame(data=_UNFIT if word == "unfit" else _FITTING[sensor], captured_s=stamped_s)
    return Delivery(sample=Sample(frame=frame, at_s=at_s), events=(seen,))


def _given(delivery: Delivery) -> dict[str, Any]:
    sample = delivery.sample
    fits = None if sample is None else sample.frame.data is not _UNFIT
    return {"events": [event_table(event) for event in delivery.events], "fits": fits}


def _told(decision: Decision) -> dict[str, Any]:
    return {
        "subset": decision.subset,
        "modalities": {
            name: {"status": found.status, "reason": found.reason, "age_s": found.age_s}
            for name, found in decision.modalities.items()
        },
        "verdict": decision.outcome.verdict,
        "reason": decision.outcome.reason,
        "age_ms": decision.age_ms,
        "alarm": list(decision.alarm),
    }


def _cases() -> Iterator[Case]:
    for name, policy, script in _scripts():
        yield name, policy, script, 0.0
    good, required = ["good"] * 60, Policy(require=("depth|ir",))
    lost = [*good[:3], *[""] * 14, *good[:20]]
    script = {"rgb": good[:37], "depth": lost, "ir": good[:37]}
    yield "the loss of a required sensor is an alarm", required, script, 0.0
    yield "the loss of a required sensor holds decisions back", required, script, 1.0


def _scripts() -> Iterator[tuple[str, Policy, Script]]:
    plain, strict = Policy(), Policy(require=("depth|ir",), on_missing="fail_closed")
    masking = Policy(masking_faults=("dark",))
    good = ["good"] * 60
    yield "all sensors well", plain, {"rgb": good[:4], "depth": good[:4], "ir": good[:4]}
    yield "a slow sensor is used again while its feature is young", plain, {
        "rgb": good[:9], "depth": ["good", "", "", "good", "", "good", "", "", ""], "ir": good[:9]
    }  # fmt: skip
    lost = [*good[:3], *[""] * 14, *good[:20]]
    yield "a sensor falls silent, is lost, and comes back", plain, {"rgb": good[:37], "depth": good[:37], "ir": lost}
    yield "the same where what is missing closes", strict, {"rgb": good[:37], "depth": good[:37], "ir": lost}
    gone = [*good[:3], "gone", *[""] * 4, *good[:16]]
    yield "a sensor is unplugged and plugged in", plain, {"rgb": gone, "ir": good[:24]}
    frozen = [*good[:3], *["repeated"] * 9, *good[:6]]
    yield "a sensor freezes and thaws", plain, {"depth": good[:18], "ir": frozen}
    dark = [*good[:3], *["dark"] * 24, *good[:24]]
    yield "a dark sensor is degraded and used", plain, {"depth": good[:51], "ir": dark}
    yield "a dark sensor is masked where the policy says so", masking, {"depth": good[:51], "ir": dark}
    unfit = [*good[:3], "unfit", *good[:14]]
    yield "a sample that does not fit masks its sensor", plain, {"rgb": unfit, "ir": good[:18]}
    early = ["stamped", "stamped", "early", "stamped", *["stamped"] * 3]
    stamped = ["stamped"] * 7
    yield (
        "a sample of another moment is left out of one decision",
        plain,
        {"rgb": early, "depth": stamped, "ir": stamped},
    )
    yield "a file ends", plain, {"rgb": good[:10], "ir": [*good[:4], "ended", *[""] * 5]}
    stall = ["", "", "", "stall", "", ""]
    yield "the loop's own stall is no sensor's silence", plain, {
        "rgb": [*good[:3], "", *good[:2]], "ir": [*good[:3], *good[:3]], "loop": stall
    }  # fmt: skip
    fails = ["engine fails", "", "engine fails", "engine fails", "", ""]
    yield "an engine that fails abstains", plain, {"depth": good[:6], "ir": good[:6], "loop": fails}
    yield "never a sample", plain, {"rgb": [""] * 14, "ir": [""] * 14}
    yield "one sensor that may not decide alone", plain, {"rgb": good[:3]}
    yield from _chance()


def _chance() -> Iterator[tuple[str, Policy, Script]]:
    words = ("good", "good", "good", "good", "", "dark", "repeated")
    for seed in range(3):
        random = np.random.default_rng(1100 + seed)
        script: Script = {name: _runs(random, words) for name in ("rgb", "depth", "ir")}
        policy = replace(Policy(), masking_faults=("dark",) if seed % 2 else ())
        yield f"chance {seed}", policy, script


def _runs(random: np.random.Generator, words: tuple[str, ...]) -> list[str]:
    """80 decisions of runs of one word; the first is good."""
    found = ["good"]
    while len(found) < 80:
        found += [words[int(random.integers(len(words)))]] * int(random.integers(1, 12))
        if random.random() < 0.1:
            found.append("gone")
    return found[:80]
