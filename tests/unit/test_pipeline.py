"""The decision loop on a made-up clock, with a small engine that writes down what it was asked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from mars_edge.errors import EngineError, NoSensorError, UsageError
from mars_edge.manifest import Manifest, Policy
from mars_edge.modality import Modality
from mars_runtime.capture import Delivery, Doorbell, Sample
from mars_runtime.decision import Decision
from mars_runtime.health import Ended, Event, ReadFailed, SampleSeen
from mars_runtime.pipeline import Pipeline, Settings
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.tick import Plan
from tests.fake_engine import FakeEngine, manifest, point

RATE_HZ = 15.0
NAMES = ("rgb", "depth", "ir")
SMALL = tuple(
    Modality(name=name, kind="image", channels=channels, size=(8, 8), dtype="uint8", range=(0, 255))
    for name, channels in (("rgb", 3), ("depth", 1), ("ir", 1))
)


class Bench:
    """Time, feeds and a pipeline; `tick` advances one period and decides."""

    def __init__(self, model: Manifest | None = None, names: Sequence[str] = NAMES, **settings: Any) -> None:
        self.now_s = 500.0
        self.engine = FakeEngine(model or manifest(SMALL))
        self.feeds = {name: FakeFeed(self) for name in names}
        self.pipeline = Pipeline(
            self.engine,
            self.feeds,
            Settings(**{"policy": self.engine.manifest.policy, "gather_s": 0.0, "rate_hz": RATE_HZ, **settings}),
            doorbell=Doorbell(),
            clock=lambda: self.now_s,
            utc=lambda: 1_700_000_000.0,
            wait=self.wait,
        )
        self.pipeline.start()

    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    def tick(self, giving: Iterable[str] = (), **plan: Any) -> Decision:
        self.now_s += 1.0 / RATE_HZ
        for name in giving:
            self.feeds[name].give()
        return self.pipeline.decide(Plan(**plan))

    def ticks(self, count: int, giving: Iterable[str]) -> Decision:
        given = list(giving)
        decisions = [self.tick(given) for _ in range(count)]
        return decisions[-1]


class FakeFeed:
    """A capture thread without the thread."""

    def __init__(self, bench: Bench, **traits: Any) -> None:
        self.bench = bench
        self.traits = Traits(**{"description": "fake", "rate_hz": RATE_HZ, "raw": True, **traits})
        self.received = 0
        self.last_error: str | None = None
        self.sample: Sample | None = None
        self.events: list[Event] = []

    @property
    def waiting(self) -> bool:
        return self.sample is not None

    def give(
        self, data: Any = None, *, last: bool = False, usable: bool = True, captured_s: float | None = None
    ) -> None:
        name = next(name for name, feed in self.bench.feeds.items() if feed is self)
        channels = self.bench.engine.manifest.modality(name).channels
        default = np.full((8, 8, channels), 10 + self.received % 200, np.uint8)
        self.received += 1
        frame = Frame(data=default if data is None else data, last=last, captured_s=captured_s)
        self.sample = Sample(frame=frame, at_s=self.bench.now_s)
        self.events.append(SampleSeen(at_s=self.bench.now_s, usable=usable))
        if last:
            self.events.append(Ended(at_s=self.bench.now_s))

    def fail(self, *, gone: bool) -> None:
        self.last_error = "it broke"
        self.events.append(ReadFailed(at_s=self.bench.now_s, gone=gone, message=self.last_error))

    def take(self) -> Delivery:
        delivery = Delivery(sample=self.sample, events=tuple(self.events))
        self.sample, self.events = None, []
        return delivery


def test_a_decision_has_exactly_the_documented_fields() -> None:
    line = Bench().tick(NAMES).to_dict()
    assert json.loads(json.dumps(line, allow_nan=False)) == {
        "seq": 0,
        "t_utc": "2023-11-14T22:13:20.000Z",
        "label": "bona_fide",
        "score": pytest.approx(0.5, abs=0.5),
        "threshold": 0.5,
        "verdict": "accept",
        "reason": None,
        "shares": None,
        "subset": "rgb+depth+ir",
        "modalities": {name: {"status": "ok", "reason": None, "age_ms": 0.0} for name in NAMES},
        "experts": [{"id": 2, "gate": 0.75}, {"id": 3, "gate": 0.25}],
        "latency_ms": {
            "capture_wait": 0.0, "preprocess": 0.0, "encode.rgb": 0.1, "encode.depth": 0.1, "encode.ir": 0.1,
            "fuse": 0.1, "experts": 0.1, "head": 0.1, "total": 0.0,
        },
        "age_ms": 0.0,
        "alarm": [],
        "late_ms": 0.0,
        "skipped": 0,
        "schema": 1,
    }  # fmt: skip


def test_only_sensors_with_a_new_sample_are_encoded() -> None:
    bench = Bench()
    bench.tick(NAMES)
    decision = bench.tick(["ir"])
    assert bench.engine.calls[-1] == ({"ir"}, {"rgb", "depth"})
    assert decision.subset == "rgb+depth+ir"
    assert [stage for stage in decision.latency_ms if stage.startswith("encode.")] == ["encode.ir"]
    assert decision.age_ms == pytest.approx(1000.0 / RATE_HZ)
    assert decision.modalities["rgb"].age_s == pytest.approx(1.0 / RATE_HZ)


def test_a_silent_sensor_is_masked_within_300_ms_with_its_reason_and_others_go_on() -> None:
    bench = Bench()
    bench.ticks(30, NAMES)
    last_s = bench.now_s
    while (decision := bench.tick(["rgb", "ir"])).subset == "rgb+depth+ir":
        assert bench.now_s - last_s < 0.3
    assert bench.now_s - last_s <= 0.3
    assert decision.subset == "rgb+ir"
    assert (decision.modalities["depth"].status, decision.modalities["depth"].reason) == ("missing", "stale")
    assert "encode.depth" not in decision.latency_ms
    assert bench.engine.calls[-1] == ({"rgb", "ir"}, set())
    assert [index for index, _ in decision.experts] == [1, 3]
    assert decision.outcome.verdict == "accept"


def test_a_lost_sensor_comes_back_by_the_recovery_rule_and_is_encoded_afresh() -> None:
    bench = Bench()
    bench.ticks(30, NAMES)
    assert bench.ticks(20, ["rgb", "ir"]).modalities["depth"].reason == "lost"
    first_s, decision = bench.now_s + 1.0 / RATE_HZ, bench.tick(NAMES)
    assert decision.modalities["depth"].reason == "recovering"
    while (decision := bench.tick(NAMES)).subset == "rgb+ir":
        assert "encode.depth" not in decision.latency_ms
    assert bench.now_s - first_s == pytest.approx(1.0, abs=0.07)
    assert bench.engine.calls[-1] == (set(NAMES), set())


def test_a_feature_is_never_used_beyond_its_age_limit() -> None:
    bench = Bench(health={"rgb": {"stale_s": 0.1}})
    bench.ticks(30, NAMES)
    for _ in range(10):
        decision = bench.tick(["depth", "ir"])
        if "rgb" in decision.subset:
            assert decision.age_ms is not None
            assert decision.age_ms <= 100.0


def test_with_every_sensor_gone_it_abstains_and_keeps_going() -> None:
    bench = Bench()
    bench.ticks(30, NAMES)
    for feed in bench.feeds.values():
        feed.fail(gone=True)
    calls = len(bench.engine.calls)
    for _ in range(100):
        decision = bench.tick()
        assert (decision.outcome.verdict, decision.subset, decision.experts) == ("abstain", "none", ())
        assert decision.age_ms is None
        assert decision.outcome.reason == "no sensor is usable"
    assert len(bench.engine.calls) == calls
    assert bench.ticks(20, NAMES).outcome.verdict == "accept"


def test_sensors_that_were_not_configured_are_missing_and_say_so() -> None:
    decision = Bench(names=["ir"]).tick(["ir"])
    assert decision.subset == "ir"
    assert decision.to_dict()["modalities"]["rgb"] == {"status": "missing", "reason": "not configured", "age_ms": None}


def test_no_sensor_ever_is_an_error_only_after_the_grace() -> None:
    bench = Bench(health={name: {"start_grace_s": 2.0} for name in NAMES}, settle_share=0.0)
    bench.feeds["rgb"].fail(gone=True)
    verdicts = []
    begin_s = bench.now_s
    with pytest.raises(NoSensorError) as error:
        verdicts.extend(decision.outcome.verdict for decision in bench.pipeline.decisions())
    assert str(error.value) == "no sensor ever gave a sample (rgb: it broke; depth: no sample; ir: no sample)"
    assert bench.now_s - begin_s == pytest.approx(2.0, abs=0.1)
    assert set(verdicts) == {"abstain"}
    assert len(verdicts) >= 30


def test_one_sample_long_ago_is_enough_to_keep_trying() -> None:
    bench = Bench(health={name: {"start_grace_s": 2.0} for name in NAMES}, settle_share=0.0)
    bench.feeds["ir"].give()
    stream = bench.pipeline.decisions()
    for _ in range(200):
        decision = next(stream)
    assert decision.outcome.verdict == "abstain"
    assert {name: s.reason for name, s in decision.modalities.items()} == {
        "rgb": "absent", "depth": "absent", "ir": "lost",
    }  # fmt: skip


def test_a_first_sample_that_does_not_fit_names_sensor_given_and_expected() -> None:
    bench = Bench()
    bench.feeds["depth"].give(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UsageError) as error:
        bench.tick()
    expected = "sensor depth (fake): depth: image has shape (8, 8, 3), expected (H, W, 1) or (H, W)"
    assert str(error.value) == expected


def test_a_later_sample_that_does_not_fit_masks_the_sensor_until_it_recovers() -> None:
    bench = Bench()
    bench.ticks(3, NAMES)
    bench.now_s += 1.0 / RATE_HZ
    bench.feeds["rgb"].give()
    bench.feeds["ir"].give()
    bench.feeds["depth"].give(np.zeros((8, 8, 3), np.uint8))
    decision = bench.pipeline.decide()
    assert decision.subset == "rgb+ir"
    assert decision.modalities["depth"].reason == "unusable"
    assert bench.ticks(30, NAMES).subset == "rgb+depth+ir"


def test_samples_with_nan_never_reach_the_engine() -> None:
    sound = Modality(name="voice", kind="audio", rate_hz=1000, window_s=0.2)
    bench = Bench(manifest((sound,)), ["voice"])
    bench.feeds["voice"].give(np.zeros(200, np.float32))
    bench.pipeline.decide()
    bench.feeds["voice"].give(np.full(200, np.nan, np.float32), usable=False)
    decision = bench.pipeline.decide()
    assert decision.outcome.verdict == "abstain"
    assert decision.modalities["voice"].reason == "unusable"


def test_output_with_nan_abstains_and_is_valid_json() -> None:
    bench = Bench()
    bench.engine.logits = np.array([np.nan, 1.0], np.float32)
    line = bench.tick(NAMES).to_dict()
    assert (line["verdict"], line["score"], line["reason"]) == ("abstain", None, "the model gave no finite output")
    json.dumps(line, allow_nan=False)


def test_the_policy_of_the_settings_decides() -> None:
    bench = Bench(policy=Policy(require=("depth",)))
    assert bench.tick(["rgb", "ir"]).outcome.reason == "requires depth"


def test_uncertified_subsets_decide_only_when_asked_to() -> None:
    points = {"ir": point(certified=False)}
    model = manifest(SMALL, operating_points=points)
    assert Bench(model, ["ir"]).tick(["ir"]).outcome.verdict == "abstain"
    assert Bench(model, ["ir"], allow_uncertified=True).tick(["ir"]).outcome.verdict == "accept"


def finite(bench: Bench, name: str) -> None:
    bench.feeds[name].traits = Traits(description="file", rate_hz=RATE_HZ, finite=True)


def still(bench: Bench, name: str) -> None:
    bench.feeds[name].traits = Traits(description="still", rate_hz=RATE_HZ, static=True)


def test_the_stream_ends_after_the_decision_on_the_last_sample() -> None:
    bench = Bench(names=["rgb", "ir"])
    finite(bench, "rgb")
    still(bench, "ir")
    bench.feeds["rgb"].give(last=True)
    bench.feeds["ir"].give()
    decisions = list(bench.pipeline.decisions())
    assert [decision.subset for decision in decisions] == ["rgb+ir"]


def test_a_live_sensor_keeps_the_stream_going_after_a_file_has_ended() -> None:
    bench = Bench(names=["rgb", "ir"], settle_share=0.0)
    finite(bench, "rgb")
    bench.feeds["rgb"].give(last=True)
    stream = bench.pipeline.decisions()
    for _ in range(10):
        bench.feeds["ir"].give()
        decision = next(stream)
    assert decision.subset == "ir"
    assert decision.modalities["rgb"].reason == "ended"


def test_stop_ends_the_stream_after_the_decision_at_hand() -> None:
    bench = Bench(settle_share=0.0)
    bench.feeds["rgb"].give()
    count = 0
    for _ in bench.pipeline.decisions():
        count += 1
        bench.pipeline.stop()
    assert count == 1


def test_decisions_keep_their_rate_and_skip_periods_that_were_missed() -> None:
    bench = Bench(settle_share=0.0, rate_hz=10.0)
    stream = bench.pipeline.decisions()
    times_s = []
    for index in range(6):
        bench.feeds["rgb"].give()
        next(stream)
        times_s.append(round(bench.now_s - 500.0, 3))
        if index == 2:
            bench.now_s += 0.25
    assert times_s == [0.0, 0.1, 0.2, 0.5, 0.6, 0.7]
    assert bench.pipeline.skipped_ticks == 2


def test_silence_that_was_our_own_stall_does_not_mask_a_sensor() -> None:
    def after_stall(**decide: Any) -> Decision:
        bench = Bench()
        bench.ticks(30, NAMES)
        bench.now_s += 0.4
        return bench.tick(NAMES, **decide)

    assert after_stall().subset == "none"
    assert after_stall(excused_s=0.4).subset == "rgb+depth+ir"


def test_an_excused_stall_does_not_stretch_the_age_limit_of_features() -> None:
    bench = Bench()
    bench.ticks(30, NAMES)
    bench.now_s += 0.4
    decision = bench.tick(["rgb"], excused_s=0.4)
    assert decision.subset == "rgb"
    assert decision.to_dict()["modalities"]["ir"]["reason"] == "stale"


def test_the_first_decision_waits_for_every_sensor_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(arrivals: Callable[[Bench], None]) -> float:
        bench = Bench(gather_s=0.0)
        bench.pipeline._settings = Settings(policy=Policy(), gather_s=1.0, rate_hz=RATE_HZ)
        begin_s = bench.now_s

        def wait(timeout_s: float) -> bool:
            bench.now_s += timeout_s
            arrivals(bench)
            return True

        monkeypatch.setattr(bench.pipeline._doorbell, "wait", wait)
        bench.pipeline.start()
        return bench.now_s - begin_s

    def all_come(bench: Bench) -> None:
        if bench.now_s > 500.25:
            for feed in bench.feeds.values():
                feed.give()

    def one_comes_and_the_others_fail(bench: Bench) -> None:
        bench.feeds["rgb"].give()
        for name in ("depth", "ir"):
            bench.feeds[name].fail(gone=True)

    assert gathered(one_comes_and_the_others_fail) == pytest.approx(0.1)
    assert gathered(all_come) == pytest.approx(0.3)
    assert gathered(lambda bench: bench.feeds["rgb"].give()) == pytest.approx(1.0)


def test_a_late_but_due_sample_is_waited_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(settle_share=0.25)
    bench.ticks(5, NAMES)
    bench.now_s += 1.0 / RATE_HZ
    bench.feeds["rgb"].give()
    bench.feeds["ir"].give()

    def wait(timeout_s: float) -> bool:
        assert timeout_s <= 0.25 / RATE_HZ
        bench.now_s += 0.005
        bench.feeds["depth"].give()
        return True

    monkeypatch.setattr(bench.pipeline._doorbell, "wait", wait)
    bench.pipeline._settle(0.25 / RATE_HZ)
    decision = bench.pipeline.decide()
    assert bench.engine.calls[-1][0] == set(NAMES)
    assert decision.latency_ms["capture_wait"] == pytest.approx(5.0)


def test_age_counts_from_the_capture_where_the_device_stamps_it() -> None:
    bench = Bench()
    bench.now_s += 0.1
    for name in NAMES:
        bench.feeds[name].give(captured_s=bench.now_s - 0.06 if name == "ir" else None)
    decision = bench.pipeline.decide()
    assert decision.age_ms == pytest.approx(60.0)
    assert decision.to_dict()["modalities"]["ir"]["age_ms"] == 60.0
    assert decision.to_dict()["modalities"]["rgb"]["age_ms"] == 0.0


def test_a_stamp_from_the_future_makes_no_sample_younger_than_its_receipt() -> None:
    bench = Bench(names=["ir"])
    bench.feeds["ir"].give(captured_s=bench.now_s + 0.04)
    assert bench.pipeline.decide().age_ms == 0.0


def test_a_sample_that_was_captured_longer_ago_than_the_age_limit_is_not_used() -> None:
    bench = Bench()
    bench.ticks(3, NAMES)
    bench.now_s += 1.0 / RATE_HZ
    for name in NAMES:
        bench.feeds[name].give(captured_s=bench.now_s - 0.3 if name == "rgb" else None)
    decision = bench.pipeline.decide()
    assert bench.engine.calls[-1] == ({"depth", "ir"}, {"rgb"})
    assert decision.age_ms == pytest.approx(1000.0 / RATE_HZ)


def skewed(bench: Bench, **behind_s: float) -> Decision:
    bench.now_s += 1.0 / RATE_HZ
    for name in NAMES:
        bench.feeds[name].give(captured_s=bench.now_s - behind_s.get(name, 0.0))
    return bench.pipeline.decide()


def test_a_skewed_sensor_is_missing_in_that_decision_only() -> None:
    bench = Bench()
    assert skewed(bench).subset == "rgb+depth+ir"
    decision = skewed(bench, depth=0.11)
    assert decision.subset == "rgb+ir"
    assert (decision.modalities["depth"].status, decision.modalities["depth"].reason) == ("missing", "skew")
    assert bench.engine.calls[-1] == ({"rgb", "ir"}, set())
    assert decision.to_dict()["modalities"]["depth"]["evidence"] == {"skew_s": 0.11, "limit_s": 0.1}
    assert skewed(bench, depth=0.09).subset == "rgb+depth+ir"


def test_sensors_without_stamps_are_never_skewed() -> None:
    bench = Bench()
    bench.ticks(5, NAMES)
    decision = bench.tick(["rgb", "ir"])
    assert "depth" in decision.subset
    assert bench.tick(["rgb", "ir"]).subset == "rgb+depth+ir"


def test_a_late_decision_says_how_late_and_abstains_only_where_a_deadline_is_set() -> None:
    def made(late_s: float, **settings: Any) -> Decision:
        bench = Bench(**settings)
        return bench.tick(NAMES, deadline_s=bench.now_s + 1.0 / RATE_HZ - late_s)

    assert (made(-0.5).late_ms, made(0.0125).late_ms) == (0.0, pytest.approx(12.5))
    assert made(0.0125).outcome.verdict == "accept"
    assert made(-0.5, deadline_s=0.05).outcome.verdict == "accept"
    late = made(0.0125, deadline_s=0.05)
    assert (late.outcome.verdict, late.outcome.reason) == ("abstain", "made 12.5 ms after its deadline")


def test_the_decision_after_a_stall_says_how_many_were_skipped() -> None:
    bench = Bench(settle_share=0.0, rate_hz=10.0)
    stream = bench.pipeline.decisions()
    found = []
    for index in range(5):
        bench.feeds["rgb"].give()
        found.append(next(stream).skipped)
        if index == 2:
            bench.now_s += 0.25
    assert found == [0, 0, 0, 2, 0]


def test_newest_decides_when_a_sample_comes_and_says_so_when_none_does(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(newest=True, rate_hz=50.0, settle_share=0.0, names=["rgb"])
    arrivals = [0.01, 0.013, 0.09, 0.5]

    def wait(timeout_s: float) -> bool:
        next_s = min((500.0 + at_s for at_s in arrivals if 500.0 + at_s > bench.now_s + 1e-9), default=math.inf)
        bench.now_s = min(next_s, bench.now_s + timeout_s)
        arrive()
        return True

    def arrive() -> None:
        for at_s in [at_s for at_s in arrivals if 500.0 + at_s <= bench.now_s + 1e-9]:
            arrivals.remove(at_s)
            bench.feeds["rgb"].give()

    def slept(seconds: float) -> None:
        bench.now_s += seconds
        arrive()

    monkeypatch.setattr(bench.pipeline._doorbell, "wait", wait)
    monkeypatch.setattr(bench.pipeline, "_wait", slept)
    bench.feeds["rgb"].give()
    times_s = []
    for _ in bench.pipeline.decisions():
        times_s.append(round(bench.now_s - 500.0, 3))
        if len(times_s) == 6:
            bench.pipeline.stop()
    # At most 50 a second: the two first samples share a decision; then as they come, then at most 0.2 s apart.
    assert times_s == [0.0, 0.02, 0.09, 0.29, 0.49, 0.51]


class Failing(FakeEngine):
    """Fails as often as it is told to."""

    failures = 0

    def infer(self, samples: Any, features: Any) -> Any:
        if self.failures > 0:
            self.failures -= 1
            raise EngineError("logits holds NaN; every value must be finite")
        return super().infer(samples, features)


def test_an_engine_that_fails_makes_decisions_abstain_and_ends_the_stream_only_when_it_keeps_failing() -> None:
    bench = Bench()
    engine = Failing(bench.engine.manifest)
    bench.pipeline._engine = engine
    engine.failures = 9
    for _ in range(9):
        decision = bench.tick(NAMES)
        assert decision.outcome.verdict == "abstain"
        assert decision.outcome.reason == "the engine failed: logits holds NaN; every value must be finite"
    assert bench.tick(NAMES).outcome.verdict == "accept"
    engine.failures = 10
    with pytest.raises(EngineError, match="logits holds NaN"):
        bench.ticks(10, NAMES)


def test_a_restored_pipeline_decides_as_the_first_one_goes_on() -> None:
    first = Bench(latch_s=5.0, policy=Policy(require=("ir|depth",)))
    first.ticks(20, NAMES)
    first.tick(["rgb", "ir"])
    second = Bench(latch_s=5.0, policy=Policy(require=("ir|depth",)))
    second.now_s = first.now_s
    second.pipeline.restore(first.pipeline.state())
    for given in [["rgb"], [], ["rgb", "ir"], ["rgb", "ir"], ["rgb", "ir"], list(NAMES), ["depth"]]:
        for feed in second.feeds.values():
            feed.received = first.feeds["rgb"].received
        for feed in first.feeds.values():
            feed.received = first.feeds["rgb"].received
        assert first.tick(given).to_dict() == second.tick(given).to_dict()


def test_a_picture_that_may_mask_its_sensor_is_not_decided_on_until_that_is_known() -> None:
    bench = Bench(policy=Policy(masking_faults=("dark",)))

    def shown(share: float) -> Decision:
        bench.now_s += 1.0 / RATE_HZ
        for name in NAMES:
            bench.feeds[name].give()
        bench.feeds["rgb"].events = [SampleSeen(at_s=bench.now_s, dark=share)]
        return bench.pipeline.decide()

    assert shown(0.0).outcome.verdict == "accept"
    held = [shown(1.0).outcome for _ in range(5)]
    assert {(one.verdict, one.reason) for one in held} == {("abstain", "rgb may be dark: wait and see")}
    # It was a hand that passed by.
    assert shown(0.0).outcome.verdict == "accept"
    known = [shown(1.0) for _ in range(round(1.2 * RATE_HZ))][-1]
    assert (known.modalities["rgb"].status, known.modalities["rgb"].reason) == ("missing", "dark")
    assert known.outcome.verdict == "accept"


def test_a_fault_that_only_degrades_holds_no_decision() -> None:
    bench = Bench()
    bench.ticks(3, NAMES)
    bench.now_s += 1.0 / RATE_HZ
    for name in NAMES:
        bench.feeds[name].give()
    bench.feeds["rgb"].events = [SampleSeen(at_s=bench.now_s, dark=1.0)]
    assert bench.pipeline.decide().outcome.verdict == "accept"


def test_a_feature_beyond_its_age_limit_says_so_and_carries_no_other_faults_evidence() -> None:
    bench = Bench(health={"rgb": {"stale_s": 0.1}})
    bench.ticks(3, NAMES)
    # Excused silence: the sensor is well, its feature is too old.
    bench.now_s += 0.3
    decision = bench.tick(["depth", "ir"], excused_s=5.0)
    found = decision.modalities["rgb"]
    assert (found.status, found.reason) == ("missing", "stale")
    assert found.evidence["age_s"] > found.evidence["limit_s"] == 0.1


def test_a_loop_at_a_fixed_rate_decides_just_after_the_sample_that_the_longest_pause_follows() -> None:
    bench = Bench(names=["rgb", "ir"], settle_share=0.0)
    period_s = 1.0 / RATE_HZ
    due_s = {"rgb": 500.0 + 0.1 * period_s, "ir": 500.0 + 0.4 * period_s}

    def wait(seconds: float) -> None:
        end_s = bench.now_s + seconds
        while min(due_s.values()) <= end_s:
            name = min(due_s, key=lambda one: due_s[one])
            bench.now_s = due_s[name]
            bench.feeds[name].give()
            due_s[name] += period_s
        # A thread is woken a little late.
        bench.now_s = end_s + 1e-4

    bench.pipeline._wait = wait
    stream = bench.pipeline.decisions()
    made = [(next(stream), bench.now_s) for _ in range(40)]
    ages_s = [decision.age_ms / 1000.0 for decision, _ in made[5:] if decision.age_ms is not None]
    assert len(ages_s) == 35
    assert max(ages_s) < 0.4 * period_s
    assert np.diff([at_s for _, at_s in made[5:]]) == pytest.approx(period_s, rel=0.051)
