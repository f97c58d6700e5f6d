"""Profiles: what is measured, what is said about it, and which comparisons are refused."""

from __future__ import annotations

import copy
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from mars_edge.errors import EngineError, MarsEdgeError, UsageError
from mars_edge.subsets import all_subsets, label
from mars_runtime.commands import profile
from mars_runtime.commands.profile import main
from mars_runtime.engines import Inference
from mars_runtime.profiling import comparison, objectives, report, schedule
from mars_runtime.profiling.inputs import generated
from mars_runtime.profiling.rows import Series, curve_of, histogram, numbers, row_of, series_of, sustained
from mars_runtime.profiling.schedule import run_rounds, schedule_of
from mars_runtime.profiling.session import measure
from mars_runtime.profiling.statistics import Times, distribution, paired_ratio, quantile, student
from mars_runtime.profiling.subject import Subject, Timed
from mars_runtime.profiling.timer import busy_wait, check_timer
from tests.fake_engine import FakeEngine, manifest, point

# statistics


def processes(generator: np.random.Generator, count: int, *, spread: float = 0.03, n: int = 2000) -> list[Times]:
    """Times of processes that differ by a factor of their own, with noise in bursts, as on a shared machine."""
    found = []
    for factor in np.exp(generator.normal(0.0, spread, count)):
        level = np.repeat(generator.exponential(1.0, n // 20 + 1), 20)[:n]
        found.append(factor * (10.0 + level + generator.normal(0.0, 0.05, n)))
    return found


@pytest.mark.parametrize("count", [5, 10])
@pytest.mark.parametrize(("name", "share"), [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)])
def test_the_quantile_of_one_more_process_lies_in_the_interval_as_often_as_it_says(
    name: str, share: float, count: int
) -> None:
    generator = np.random.default_rng(1)
    held, widths = 0, []
    for _ in range(200):
        *measured, other = processes(generator, count + 1, n=1000)
        found = distribution(measured).intervals[name]
        assert found.low is not None and found.high is not None
        held += found.low <= quantile(other, share) <= found.high
        widths.append(found.high / found.low)
    # Of 200 intervals of 95 %, 190 on average, fewer than 180 once in a thousand times.
    assert held >= 180
    # An interval without ends would hold everything.
    assert float(np.median(widths)) < 2.0


def test_rounds_of_one_process_say_nothing_of_another_however_many_they_are() -> None:
    one = processes(np.random.default_rng(2), 1, n=100_000)
    assert distribution(one).intervals["p50"].low is None
    assert distribution([one[0], one[0]]).intervals["p50"].high is None


def test_too_few_times_of_each_process_do_not_tell_a_high_quantile() -> None:
    found = distribution(processes(np.random.default_rng(0), 5, n=50))
    assert (found.intervals["p99"].low, found.intervals["p99"].high) == (None, None)
    assert found.intervals["p90"].low is not None and found.intervals["p50"].high is not None


def test_an_interval_holds_the_quantile_it_is_about_though_one_process_is_far_off() -> None:
    generator = np.random.default_rng(8)
    found = distribution([*processes(generator, 4), 3.0 * processes(generator, 1)[0]])
    for name, interval in found.intervals.items():
        assert interval.low is not None and interval.high is not None
        assert interval.low <= getattr(found, name) <= interval.high


def test_quantiles_are_times_that_were_measured_and_in_order() -> None:
    times = np.random.default_rng(3).exponential(1.0, 501)
    found = distribution([times[:200], times[200:]])
    points = [found.min, found.p50, found.p90, found.p95, found.p99, found.max]
    assert points == sorted(points)
    assert set(points) <= set(times)
    assert (found.n, found.p50) == (501, np.median(times))


def test_one_side_that_takes_twice_as_long_has_a_ratio_of_two_though_processes_differ_by_more() -> None:
    generator = np.random.default_rng(4)
    own = [2.0 * times for times in processes(generator, 10, spread=0.5)]
    base = [times / 2.0 * generator.normal(1.0, 0.01) for times in own]
    found = paired_ratio(own, base)
    assert found.low is not None and found.high is not None
    assert found.low <= 2.0 <= found.high
    assert found.high - found.low < 0.1
    assert found.verdict == "slower"


def test_equal_files_are_rarely_told_apart_in_any_of_seven_rows() -> None:
    generator = np.random.default_rng(7)
    wrong = 0
    for _ in range(200):
        rows = [(processes(generator, 10, n=20), processes(generator, 10, n=20)) for _ in range(7)]
        wrong += any(paired_ratio(own, base, beside=6).verdict != "no difference" for own, base in rows)
    # 10 of 200 on average, more than 21 once in a thousand times.
    assert wrong <= 21


@pytest.mark.parametrize(("processes", "confidence", "expected"), [
    (2, 0.95, 12.706), (3, 0.95, 4.303), (5, 0.95, 2.776), (10, 0.95, 2.262), (10, 0.99, 3.250), (31, 0.95, 2.042),
])  # fmt: skip
def test_student_is_that_of_the_tables(processes: int, confidence: float, expected: float) -> None:
    assert student(processes, confidence) == pytest.approx(expected, rel=2e-3)


def test_no_interval_of_a_tail_reaches_below_that_of_the_middle() -> None:
    generator = np.random.default_rng(9)
    times = [10.0 + generator.random(200) for _ in range(9)] + [np.r_[10.0 + generator.random(190), [500.0] * 10]]
    found = distribution(times).intervals
    lows = [found[name].low for name in ("p50", "p90", "p99")]
    assert None not in lows and lows == sorted(lows)  # type: ignore[type-var]


def test_two_processes_of_a_pair_give_a_ratio_and_no_verdict() -> None:
    found = paired_ratio(2 * [np.array([2.0, 2.1, 1.9])], 2 * [np.array([1.0, 1.0, 1.1])])
    assert (found.ratio, found.low, found.high, found.verdict) == (pytest.approx(2.0), None, None, "not known")


# timer and schedule


def test_a_busy_wait_of_known_length_is_measured_within_two_percent() -> None:
    assert abs(check_timer().error) <= 0.02


def test_a_clock_that_runs_five_percent_fast_is_not_believed() -> None:
    with pytest.raises(MarsEdgeError, match=r"^the timer of this device cannot be believed: .* allowed are 2 %$"):
        check_timer(clock=lambda: 1.05 * time.perf_counter())


def test_a_clock_that_jitters_around_the_right_time_is_not_believed() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(MarsEdgeError, match=r", the shortest of 100 attempts, allowed are 2 %$"):
        check_timer(clock=lambda: time.perf_counter() + generator.uniform(-0.002, 0.002))


def test_a_clock_that_is_right_now_and_then_is_not_believed() -> None:
    begin_s = time.perf_counter()
    readings = itertools.count()

    def clock() -> float:
        # Two readings per attempt; one attempt in four is measured rightly.
        return begin_s + (time.perf_counter() - begin_s) * (1.0 if next(readings) // 2 % 4 == 0 else 1.3)

    with pytest.raises(MarsEdgeError, match="the timer of this device cannot be believed"):
        check_timer(clock=clock)


def turns(rounds: int, generator: np.random.Generator | None = None) -> list[list[int]]:
    """What each round called, in order."""
    made: list[int] = []
    plan = schedule.Schedule(mode="quick", warmup=0, runs=rounds, min_seconds=0.0, processes=1)
    calls = [partial(made.append, place) for place in range(5)]
    run_rounds(calls, plan, begin_round=lambda *_: None, generator=generator)
    return [made[begin : begin + 5] for begin in range(0, len(made), 5)]


def test_every_turn_of_a_round_is_made_once_and_none_follows_another_more_often_than_the_rest() -> None:
    rounds = turns(2000, np.random.default_rng(0))
    assert len(rounds) == 2000
    assert all(sorted(made) == list(range(5)) for made in rounds)
    follows = np.zeros((5, 5))
    for made in rounds:
        for before, after in itertools.pairwise(made):
            follows[before, after] += 1
    # Four of twenty pairs per round: 400 of each, give or take five standard deviations.
    assert np.abs(follows[~np.eye(5, dtype=bool)] - 400).max() < 90


def test_every_process_has_orders_of_its_own() -> None:
    assert turns(50) != turns(50)


def test_rounds_go_on_until_both_runs_and_seconds_are_reached() -> None:
    made: list[int] = []
    clock = iter(float(second) for second in range(1000))
    plan = schedule.Schedule(mode="quick", warmup=2, runs=3, min_seconds=10.0, processes=1)
    run_rounds([lambda: None], plan, begin_round=lambda index, _: made.append(index), clock=lambda: next(clock))
    assert made[:2] == [-2, -1]
    assert len(made) > 3 + 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "standard", "runs": 100}, "profile: --runs is 100; mode standard means at least 1024"),
        ({"mode": "standard", "min_seconds": 3.0}, "profile: --min-seconds is 3; mode standard means at least 60"),
        ({"mode": "sustained", "min_seconds": 60.0}, "profile: --min-seconds is 60; mode sustained means at least 120"),
    ],
)
def test_a_mode_means_at_least_its_runs_and_seconds(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        schedule_of(**changes)
    assert str(caught.value) == message


# one subset, measured


class WaitingEngine(FakeEngine):
    """Spins for a known time in the stage "graph"."""

    def infer(self, samples: Mapping[str, Any], features: Mapping[str, Any]) -> Inference:
        busy_wait(0.004, time.perf_counter)
        return replace(super().infer(samples, features), latency_ms={"graph": 4.0})


def test_a_stage_that_waits_four_ms_is_found_in_the_total_and_not_outside_of_the_engine() -> None:
    engine = WaitingEngine(manifest())
    subject = Subject(engine, generated(engine.manifest, picture=(112, 112)), ("ir",))
    stages = series_of([subject.decide() for _ in range(40)], [0.0] * 40).stages_ms
    # The shortest of 40: another process can only lengthen one.
    assert stages["total"].min() == pytest.approx(4.0 + stages["outside_engine"].min(), rel=0.02)
    np.testing.assert_allclose(stages["total"] - stages["graph"], stages["outside_engine"])
    np.testing.assert_allclose(stages["loop"] + stages["preprocess"], stages["outside_engine"])


def test_a_subset_is_decided_on_with_new_samples_of_its_sensors_only() -> None:
    engine = FakeEngine(manifest())
    subject = Subject(engine, generated(engine.manifest, picture=(112, 112)), ("rgb", "ir"))
    for _ in range(3):
        subject.decide()
    assert engine.calls == [({"rgb", "ir"}, set())] * 3


def test_an_uncertified_subset_is_measured_like_the_others() -> None:
    names = [m.name for m in manifest().modalities]
    points = {label(s, names): point(certified=False) for s in all_subsets(names)}
    engine = FakeEngine(manifest(operating_points=points))
    Subject(engine, generated(engine.manifest, picture=(112, 112)), ("depth",)).decide()
    assert engine.calls == [({"depth"}, set())]


def test_an_engine_that_fails_ends_the_profile() -> None:
    class Failing(FakeEngine):
        def infer(self, samples: Mapping[str, Any], features: Mapping[str, Any]) -> Inference:
            raise EngineError("out of order")

    engine = Failing(manifest())
    subject = Subject(engine, generated(engine.manifest, picture=(112, 112)), ("ir",))
    with pytest.raises(EngineError, match=r"^profile: asked for ir, decided on ir .*out of order"):
        subject.decide()


def test_every_subset_of_every_artifact_is_measured_equally_often_and_the_warm_up_is_not_counted() -> None:
    engines = [FakeEngine(manifest()), FakeEngine(manifest())]
    inputs = generated(engines[0].manifest, picture=(112, 112))
    wanted = all_subsets(engines[0].manifest.names)
    shares: list[float] = []
    plan = schedule.Schedule(mode="quick", warmup=1, runs=4, min_seconds=0.0, processes=1)
    found = measure(engines, inputs, wanted, plan, read_conditions=dict, progress=shares.append)
    assert [{len(series.total_ms) for series in side.values()} for side in found.series] == [{4}, {4}]
    assert [len(engine.calls) for engine in engines] == [5 * len(wanted)] * 2
    assert shares[-1] == 1.0


def test_a_throttling_seen_once_stays_in_the_peak() -> None:
    readings = iter([
        {"hottest_c": 50.0, "throttled": False}, {"hottest_c": 80.0, "throttled": True},
        {"hottest_c": 60.0, "throttled": False}, *[{"hottest_c": 55.0, "throttled": False}] * 100,
    ])  # fmt: skip
    engine = FakeEngine(manifest())
    plan = schedule.Schedule(mode="quick", warmup=0, runs=2, min_seconds=2.5, processes=1)
    found = measure(
        [engine],
        generated(engine.manifest, picture=(112, 112)),
        [("ir",)],
        plan,
        read_conditions=lambda: next(readings),
        progress=lambda _: None,
    )
    assert found.peak == {"hottest_c": 80.0, "throttled": True}


def recorded(times_ms: Sequence[float], *, begin_s: float = 0.0) -> Series:
    """A decision per second."""
    stages = [{"capture_wait": 0.0, "preprocess": 0.1, "graph": ms - 0.2} for ms in times_ms]
    timed = [Timed(stages_ms=of, total_ms=ms) for of, ms in zip(stages, times_ms, strict=True)]
    return series_of(timed, [begin_s + index for index in range(len(times_ms))])


def test_misses_are_decisions_longer_than_the_deadline_in_any_process() -> None:
    row = row_of("ir", [recorded([1.0, 5.0]), recorded([9.0, 20.0])], manifest(), 8.0)
    assert (row["misses"], row["deadline_ms"], row["certified"]) == (2, 8.0, True)


def test_a_histogram_loses_no_decision() -> None:
    found = histogram(np.random.default_rng(0).exponential(1.0, 777))
    assert sum(found["counts"]) == 777
    assert found["edges_ms"] == sorted(found["edges_ms"])


def test_the_curve_lasts_until_the_last_decision() -> None:
    series = recorded([1.0] * 5 + [3.0] * 5 + [9.0] * 3)
    curve = curve_of(series.at_s, series.total_ms, 5.0)
    assert [(part["t_s"], part["p50_ms"]) for part in curve] == [(3.0, 1.0), (9.0, 3.0)]
    curve = curve_of(series.at_s, series.total_ms, 3.9)
    assert [part["p50_ms"] for part in curve] == [1.0, 3.0, 9.0]


def test_the_first_minute_is_the_first_process_and_the_last_minute_the_last_one() -> None:
    found = sustained([recorded([ms] * 60, begin_s=1000.0 + 61.0 * index) for index, ms in enumerate((1.0, 2.0, 4.0))])
    assert (found["first_minute_p50_ms"], found["last_minute_p50_ms"]) == (1.0, 4.0)


# objectives


def stage(ms: float) -> dict[str, Any]:
    return numbers(distribution([np.full(10, ms)]))


LIVE = {
    "reason": None, "sensors_hz": {"ir": 15.0}, "seconds": 5.0, "processes": 5,
    "loops": {
        loop: {
            "rate_hz": 15.0, "decisions": 75, "late": 0, "skipped": 0, "incomplete": 0, "new_samples": 1.0,
            "cpu_share": 0.02, "age": stage(2.0), "capture_wait": stage(0.1), "total": stage(1.0),
        }
        for loop in ("fixed_rate", "newest_sample")
    },
}  # fmt: skip


def small_report(**settings: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    series = [recorded(list(generator.normal(10.0 * factor, 0.5, 400))) for factor in (0.99, 1.0, 1.0, 1.0, 1.01)]
    rows = [row_of(name, series, manifest(), 12.0) for name in ("ir", "rgb+depth+ir")]
    return {
        **report.head(),
        "artifact": report.artifact("fake.pte", b"bytes", manifest()),
        "device": {
            "board": "Raspberry Pi 5", "processor": None, "architecture": "aarch64", "cores": 4,
            "governor": "performance", "power_mode": None, "ram_mb": 8000.0, "kernel": "6.6", "python": "3.11",
        },
        "settings": {
            "mode": "quick", "warmup": 3, "runs": 2000, "min_seconds": 0.0, "processes": 5, "niceness": 0,
            "rate_hz": 30.0, "threads": 1, "threads_chosen": False,
            "engine": "executorch-native", "engine_version": "ExecuTorch 1.5.1", "subsets": ["ir", "rgb+depth+ir"],
            "omp_num_threads": None, "pause_ms": 0.0,
            "inputs": {"ir": "generated"}, "beside": None, **settings,
        },
        "timer": {"resolution_ns": 40.0, "overhead_ns": 40.0, "asked_ms": 5.0, "measured_ms": 5.0, "error": 0.0},
        "elapsed_s": 4.0,
        "conditions": {"start": {}, "peak": {}, "end": {}, "slowed_down": False, "preempted": 3},
        "rows": rows,
        "beside": None,
        "sustained": None,
        "live": LIVE,
        "load": None,
        "memory": None,
        "operators": None,
        "comparison": None,
        "objectives": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("p90<=15ms", [True]),
        ("p50<=9ms", [False]),
        ("p50@ir<=11000us,p99<=0.02s", [True, True]),
        ("p50@ir+depth+rgb<=11ms", [True]),
        ("misses<=5%", [True]),
        ("age_p50<=1ms,age_p50<=3ms", [False, True]),
    ],
)
def test_objectives_are_judged_by_the_report(text: str, met: list[bool]) -> None:
    made = small_report()
    wished = objectives.parse(text, ("ir", "rgb+depth+ir"))
    assert [one.is_met for one in objectives.findings(wished, made)] == met


def test_an_objective_that_nothing_is_known_about_is_missed() -> None:
    (found,) = objectives.findings(objectives.parse("rss<=200MB", ("ir",)), small_report())
    assert (found.is_met, found.found) == (False, "not known here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--slo '' is not METRIC<=NUMBERUNIT"),
        ("p90<15ms", "--slo 'p90<15ms' is not METRIC<=NUMBERUNIT"),
        ("p42<=15ms", "--slo 'p42<=15ms': unknown metric 'p42'; known: mean, p50"),
        ("p90<=15MB", "--slo 'p90<=15MB': unit 'MB'; p90 takes: us, ms, s"),
        ("p90<=15", "--slo 'p90<=15': unit ''; p90 takes: us, ms, s"),
        ("p90@sonar<=15ms", "--slo 'p90@sonar<=15ms': subset 'sonar'; allowed: ir"),
        ("rss@ir<=15MB", "--slo 'rss@ir<=15MB': subset 'ir'; allowed: none, it is of the whole process"),
    ],
)
def test_what_is_no_objective_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        objectives.parse(text, ("ir",))
    assert str(caught.value).startswith(message)


# comparison

Change = Callable[[dict[str, Any]], Any]
UNLIKE: dict[str, Change] = {
    "board: Raspberry Pi 5 then, Jetson now": lambda r: r["device"].update(board="Jetson"),
    "usable cores: 4 then, 2 now": lambda r: r["device"].update(cores=2),
    "governor: performance then, powersave now": lambda r: r["device"].update(governor="powersave"),
    "power mode: unknown then, 15W now": lambda r: r["device"].update(power_mode="15W"),
    "threads: 1 then, 2 now": lambda r: r["settings"].update(threads=2),
    "mode: quick then, standard now": lambda r: r["settings"].update(mode="standard"),
    "processes: 5 then, 10 now": lambda r: r["settings"].update(processes=10),
    "runs: 2000 then, 50 now": lambda r: r["settings"].update(runs=50),
    "warm-up: 3 then, 500 now": lambda r: r["settings"].update(warmup=500),
    "seconds: 0.0 then, 60.0 now": lambda r: r["settings"].update(min_seconds=60.0),
    "niceness: 0 then, 19 now": lambda r: r["settings"].update(niceness=19),
    "target rate: 30.0 then, 15.0 now": lambda r: r["settings"].update(rate_hz=15.0),
    "subsets: ir, rgb+depth+ir then, ir now": lambda r: r["settings"].update(subsets=["ir"]),
    "inputs: ir generated then, ir file now": lambda r: r["settings"].update(inputs={"ir": "file"}),
    "engine: executorch-native then, onnxruntime now": lambda r: r["settings"].update(engine="onnxruntime"),
    "engine's version: ExecuTorch 1.5.1 then, ExecuTorch 2 now": lambda r: r["settings"].update(
        engine_version="ExecuTorch 2"
    ),
    "pause between decisions: 0.0 then, 30.0 now": lambda r: r["settings"].update(pause_ms=30.0),
    "OMP_NUM_THREADS: unknown then, 2 now": lambda r: r["settings"].update(omp_num_threads="2"),
    "kernel: 6.6 then, 6.7 now": lambda r: r["device"].update(kernel="6.7"),
    "something beside it: unknown then, abc now": lambda r: r["settings"].update(beside="abc"),
    "throttled: the device slowed itself down now": lambda r: r["conditions"].update(slowed_down=True),
}


@pytest.mark.parametrize("why", UNLIKE)
def test_unlike_runs_are_told_apart(why: str) -> None:
    base = small_report()
    this = copy.deepcopy(base)
    assert comparison.differences(base, this) == []
    UNLIKE[why](this)
    assert comparison.differences(base, this) == [why]


def test_a_run_against_itself_shows_no_difference_and_one_twice_as_slow_is_slower() -> None:
    base = small_report()
    slower = copy.deepcopy(base)
    for row in slower["rows"]:
        total = row["stages"]["total"]
        total["p50_ms"] *= 2.0
        total["p50_interval_ms"] = [2.0 * end for end in total["p50_interval_ms"]]
    assert {r.verdict for r in comparison.ratios(base, base)} == {"no difference"}
    a_little = copy.deepcopy(base)
    for row in a_little["rows"]:
        total = row["stages"]["total"]
        total["p50_ms"] *= 1.02
        total["p50_interval_ms"] = [1.02 * end for end in total["p50_interval_ms"]]
    # Processes of one file differ by as much.
    assert {r.verdict for r in comparison.ratios(base, a_little)} == {"no difference"}
    assert {r.verdict for r in comparison.ratios(base, slower)} == {"slower"}
    assert {r.verdict for r in comparison.ratios(slower, base)} == {"faster"}
    base["rows"][0]["stages"]["total"]["p50_interval_ms"] = [None, None]
    assert [r.verdict for r in comparison.ratios(base, slower)] == ["not known", "slower"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        ("{", "not JSON: "),
        ("[]", "is no report of `mars-edge profile --json`"),
        ('{"kind": "mars-edge profile", "schema": 99}', "schema 99, this version reads 1"),
        ('{"kind": "mars-edge profile", "schema": 1}', "damaged: KeyError at "),
        ('{"kind": "mars-edge profile", "schema": 1, "rows": 5}', "damaged: "),
    ],
)
def test_a_base_that_is_no_report_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "base.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=f"^--compare {path}: ") as caught:
        comparison.load(path)
    assert message in str(caught.value)


def damaged(change: Callable[[dict[str, Any]], Any]) -> str:
    report_ = copy.deepcopy(small_report())
    change(report_)
    return json.dumps(report_)


def total_of(made: dict[str, Any]) -> dict[str, Any]:
    total: dict[str, Any] = made["rows"][0]["stages"]["total"]
    return total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: total_of(r).update(p50_ms=math.nan), "not JSON: NaN is no number of JSON"),
        (lambda r: total_of(r).update(p50_ms=1e-320), "1e-320, which is no time in ms"),
        (lambda r: total_of(r).update(p50_ms=10**400), "which is no time in ms"),
        (lambda r: total_of(r).update(p50_ms=-1.0), "-1.0, which is no time in ms"),
        (lambda r: total_of(r).update(p90_ms=True), "True, which is no time in ms"),
        (lambda r: total_of(r).update(p50_interval_ms=[11.0, 9.0]), "p50 of ir: outside of its interval"),
        (lambda r: total_of(r).update(p50_interval_ms=[9.0, None]), "None, which is no time in ms"),
        (lambda r: r.update(rows=[]), "rows of []"),
        (lambda r: r.update(rows=[r["rows"][0]] * 2), "rows of ['ir', 'ir']"),
        (lambda r: r.update(t_utc=None), "t_utc 'None'"),
        (lambda r: r["artifact"].update(sha256="x" * 65), "sha256 'xxx"),
        (lambda r: r.update(schema=True), "schema True, this version reads 1"),
    ],
)
def test_a_damaged_base_is_refused_before_anything_is_measured(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "base.json"
    path.write_text(damaged(change))
    with pytest.raises(UsageError) as caught:
        comparison.load(path)
    assert str(caught.value).startswith(f"--compare {path}: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200 + len(str(path))


def test_a_base_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.write_text("[" * 200_000)
    with pytest.raises(UsageError, match="not JSON: "):
        comparison.load(path)


# the report and the command


def test_a_report_fits_its_schema_and_a_screen() -> None:
    made = json.loads(json.dumps(small_report()))
    jsonschema.validate(made, report.schema())
    made["memory"] = {
        "baseline": {"rss_mb": 40.123, "pss_mb": 30.0}, "loaded": {"rss_mb": 48.123, "pss_mb": 31.0},
        "peak": {"rss_mb": 148.123, "pss_mb": 131.0}, "grown_mb": 0.1, "grown_over": 200,
    }  # fmt: skip
    made["load"] = {
        "repeats": 3, "process_to_ready_ms": 1234.5, "model_warm_ms": 123.4, "model_cold_ms": 134.5,
        "first_inference_ms": 12.3, "second_inference_ms": 2.3,
    }  # fmt: skip
    unlike = copy.deepcopy(made)
    unlike["settings"]["beside"] = 64 * "a"
    made["comparison"] = comparison.to_dict(unlike, made, Path("a_base_with_a_long_name.json"), forced=True)
    made["objectives"] = [{"text": "p90<=15ms", "met": True, "value": 10.0, "found": "10 ms with rgb+depth+ir"}]
    jsonschema.validate(made, report.schema())
    lines = report.as_text(made)
    assert max(map(len, lines)) <= 100
    assert any("rgb+depth+ir" in line for line in lines)
    markdown = report.as_markdown(made)
    assert markdown.startswith("# Profile of fake.pte\n")


def run(*arguments: str, model: str = "face_antispoof.pte") -> int:
    return main(
        ["--model", model, "--mode", "quick", "--processes", "2", "--quiet", "--picture-size", "112x112", *arguments]
    )


def test_a_profile_is_written_compared_and_held_to_objectives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(profile._STREAM_S, "quick", 1.0)
    base = tmp_path / "base.json"
    assert run("--threads", "1", "--json", str(base), "--md", str(tmp_path / "base.md")) == 0
    written = json.loads(base.read_text())
    jsonschema.validate(written, report.schema())
    assert [row["subset"] for row in written["rows"]] == [
        "rgb", "depth", "ir", "rgb+depth", "rgb+ir", "depth+ir", "rgb+depth+ir",
    ]  # fmt: skip
    assert written["rows"][0]["stages"].keys() & {"encode.depth", "encode.ir"} == set()
    assert written["load"]["process_to_ready_ms"] > written["load"]["model_warm_ms"] > 0.0
    assert written["memory"]["peak"]["rss_mb"] >= written["memory"]["loaded"]["rss_mb"]
    capsys.readouterr()
    assert run("--threads", "1", "--no-processes", "--compare", str(base), "--slo", "p50<=0.001us") == 5
    out = capsys.readouterr().out
    assert "against base.json" in out
    assert "objective MISSED: p50<=0.001us" in out


def test_an_int8_file_is_measured_beside_its_float32_twin_unless_told_not_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "with.json"
    asked = ["--no-processes", "--processes", "3", "--subsets", "audio+image", "--json", str(path)]
    assert run(*asked, model="spoken_digits.pte") == 0
    beside = json.loads(path.read_text())["beside"]
    assert (beside["artifact"]["file"], beside["artifact"]["precision"]) == ("spoken_digits.fp32.pte", "fp32")
    assert [one["verdict"] in ("faster", "slower", "no difference") for one in beside["ratios"]] == [True]
    assert "beside spoken_digits.fp32.pte (fp32), in turn" in capsys.readouterr().out
    assert run(*asked, "--no-beside", model="spoken_digits.pte") == 0
    assert json.loads(path.read_text())["beside"] is None
    assert "which one is faster here is not known" in " ".join(capsys.readouterr().out.split())


def test_an_unlike_base_is_refused_before_anything_is_measured_and_forced_with_a_mark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base.json"
    assert run("--no-processes", "--json", str(base)) == 0
    with pytest.raises(UsageError) as caught:
        run("--no-processes", "--rate-hz", "7", "--compare", str(base))
    assert str(caught.value) == (
        f"--compare {base}: unlike runs (target rate: 15.0 then, 7.0 now); --force compares anyway"
    )
    capsys.readouterr()
    assert run("--no-processes", "--rate-hz", "7", "--compare", str(base), "--force") == 0
    assert "UNLIKE, compared by force: target rate: 15.0 then, 7.0 now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--subsets", "sonar"], "unknown modality 'sonar'; this model has: rgb, depth, ir"),
        (["--json", "nowhere/x.json"], "--json nowhere/x.json: no folder nowhere"),
        (["--json", "x.txt"], "--json x.txt: ends in '.txt'; allowed: .json"),
        (["--picture", "x.gif"], "--picture x.gif: ends in '.gif'; allowed: .svg, .png"),
        (
            ["--sonar", "x.png"],
            "profile: unknown argument '--sonar'; face_antispoof takes: --rgb, --depth, --ir",
        ),
        (["--rgb", "no.png"], "profile: --rgb no.png: no such file"),
        (["--rgb=no.png"], "profile: --rgb no.png: no such file"),
        (["--slo", "p90<=1s,rss<=1GB"], "--slo 'rss<=1GB': rss is not measured with --no-processes"),
        (
            ["--beside", "spoken_digits.pte"],
            "--beside spoken_digits: takes other inputs (audio, image) than face_antispoof",
        ),
    ],
)
def test_a_wrong_request_is_one_line_and_measures_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        run("--no-processes", *arguments)
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []
