"""The bench that grades the fault detector: what it measures, what it refuses, and the detector's own bounds."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mars_edge.errors import UsageError
from mars_edge.faults import FAULTS, TIMING_FAULTS
from mars_runtime.commands import health_bench
from mars_runtime.facts import FactFinder
from mars_runtime.grading import bounds
from mars_runtime.grading.bounds import Bounds, beyond
from mars_runtime.grading.delays import FAULT_S, Grade, Trial, grade, trials
from mars_runtime.grading.gap import NO_FAULT, Cost, Phase
from mars_runtime.grading.quiet import Hours, normal_streams
from mars_runtime.grading.scenery import RATE_HZ, STREAMS, SensorName, samples, source
from mars_runtime.grading.sensor import LATENCY_S, Clock, HealthySensor, StepFeed, there_and_back
from mars_runtime.grading.table import Report, as_markdown, as_text

POOL = 45
SENSORS: tuple[SensorName, ...] = ("rgb", "depth", "ir")
UNSTAMPED = ("off", "unplug", "stuck")


@pytest.fixture(scope="module")
def played() -> list[Trial]:
    """Every fault on three sensors with one seed, and what two without time stamps are told by; both sets of limits."""
    raw = trials(FAULTS, SENSORS, 1, pool=POOL, learn_from=POOL)
    return [*raw, *trials(UNSTAMPED, ("video", "audio"), 1, pool=POOL, learn_from=POOL)]


@pytest.fixture(scope="module")
def grades(played: list[Trial]) -> list[Grade]:
    cells = sorted({(t.fault, t.sensor, t.learned) for t in played})
    return [grade([t for t in played if (t.fault, t.sensor, t.learned) == cell]) for cell in cells]


@pytest.fixture(scope="module")
def hours() -> list[Hours]:
    """Two minutes of every normal stream."""
    return list(normal_streams(2.0 / 60.0, pool=POOL, learn_from=POOL, seed=5))


def test_every_transport_fault_is_masked_within_the_limit_of_the_table(played: list[Trial]) -> None:
    judged = [trial for trial in played if trial.fault in TIMING_FAULTS and trial.sensor in SENSORS]
    assert len(judged) == len(TIMING_FAULTS) * len(SENSORS) * 2
    late = [trial for trial in judged if trial.mask_delay_s is None or trial.mask_delay_s > (trial.limit_s or 0.0)]
    assert late == []


def test_nothing_is_reported_before_a_fault(played: list[Trial]) -> None:
    assert [trial for trial in played if trial.early] == []


def test_no_healthy_sensor_is_ever_masked(hours: list[Hours]) -> None:
    assert {(each.stream, each.sensor) for each in hours} == {(s, n) for s, names in STREAMS.items() for n in names}
    assert [each for each in hours if each.masks] == []


def test_the_detector_keeps_the_bounds_of_the_project(grades: list[Grade], hours: list[Hours]) -> None:
    assert beyond(bounds.load(), grades, hours) == []


def test_a_still_scene_is_never_called_frozen_neither_raw_nor_compressed(hours: list[Hours]) -> None:
    still = [each for each in hours if each.stream == "still"]
    assert {each.sensor for each in still} == {"rgb", "depth", "ir", "video"}
    assert all(each.reasons == {} and each.mask_reasons == {} for each in still)


def test_content_faults_degrade_and_never_mask_without_a_policy(played: list[Trial]) -> None:
    for trial in played:
        if trial.fault in ("black", "saturate", "garbage", "cover", "scatter", "blur", "wrong"):
            assert trial.mask_delay_s is None, trial


def test_a_covered_depth_camera_is_noticed_without_a_fingerprint_whatever_the_cover_lets_through(
    played: list[Trial],
) -> None:
    for fault, reason in (("cover", "depth-invalid"), ("scatter", "noise")):
        covered = [t for t in played if (t.fault, t.sensor) == (fault, "depth")]
        assert [(t.learned, t.reason, t.held) for t in covered] == [(False, reason, 1.0), (True, reason, 1.0)]


def test_the_same_seed_gives_the_same_trials(played: list[Trial]) -> None:
    again = list(trials(["garbage"], ["depth"], 1, pool=POOL, learn_from=POOL))
    assert again == [t for t in played if (t.fault, t.sensor) == ("garbage", "depth")]


def test_a_pool_is_read_there_and_back_without_a_repeat() -> None:
    order = [there_and_back(number, 4) for number in range(13)]
    assert order == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0]


def test_a_bench_sensor_gives_each_frame_once_when_it_arrives_with_its_stamp() -> None:
    clock, own = Clock(), source("depth")
    pool = [np.full((8, 8), number, np.uint16) for number in range(100)]
    feed = StepFeed(HealthySensor(own, pool, clock), FactFinder.of(own.modality), clock)
    seen = []
    for step in range(600):
        clock.now_s = step / 200.0
        feed.step()
        sample = feed.take().sample
        if sample is not None:
            seen.append(sample)
    assert [int(sample.frame.data[0, 0]) for sample in seen] == list(range(len(seen)))
    assert len(seen) == pytest.approx(3.0 * RATE_HZ, abs=1)
    for number, sample in enumerate(seen):
        assert sample.frame.captured_s == pytest.approx(number / RATE_HZ)
        assert LATENCY_S - 1e-9 <= sample.at_s - number / RATE_HZ < LATENCY_S + 1.0 / 200.0 + 1e-9


@pytest.mark.parametrize(("stream", "names"), STREAMS.items(), ids=list(STREAMS))
def test_the_samples_of_a_stream_are_what_its_sensors_declare(stream: str, names: tuple[SensorName, ...]) -> None:
    for name in names:
        pictures = samples(stream, name, POOL, 5)  # type: ignore[arg-type]
        assert len(pictures) == POOL
        source(name).modality.preprocess(pictures[0])
        assert not any(np.array_equal(a, b) for a, b in itertools.pairwise(pictures))


def test_a_stream_refuses_a_sensor_it_has_not() -> None:
    with pytest.raises(ValueError, match="stream strobe has no rgb"):
        samples("strobe", "rgb", 3, 0)


def a_trial(delay_s: float | None, **rest: object) -> Trial:
    """A trial of silence on the colour camera; masked when noticed."""
    values = {
        **{"fault": "off", "sensor": "rgb", "learned": False, "seed": 0, "held": 1.0, "back_s": 1.0, "early": False},
        **{"delay_s": delay_s, "mask_delay_s": delay_s, "reason": "stale" if delay_s is not None else ""},
        **{"limit_s": 0.3},
    }
    return Trial(**{**values, **rest})  # type: ignore[arg-type]


def test_a_grade_is_the_plain_quantile_of_the_delays_that_were_noticed() -> None:
    delays_s = [0.1 + 0.01 * number for number in range(20)]
    found = grade([*map(a_trial, delays_s), a_trial(None), a_trial(0.9)])
    assert (found.trials, found.found, found.masked, found.within) == (22, 21, 21, 20)
    assert found.p50_s == pytest.approx(np.quantile([*delays_s, 0.9], 0.5))
    assert found.p95_s == pytest.approx(np.quantile([*delays_s, 0.9], 0.95))
    assert found.reason == "stale"


def test_a_fault_that_is_never_noticed_has_no_delay() -> None:
    found = grade([a_trial(None), a_trial(None)])
    assert (found.found, found.p50_s, found.p95_s, found.within, found.reason) == (0, None, None, 0, "")


def test_each_way_to_be_worse_than_the_bounds_is_a_line() -> None:
    allowed = bounds.load()
    late = grade([a_trial(0.2), a_trial(0.4)])
    early = grade([a_trial(0.2, early=True)])
    black = {"fault": "black", "limit_s": None, "reason": "dark"}
    missed, slow = grade([a_trial(None, **black), a_trial(1.0, **black)]), grade([a_trial(2.0, **black)])
    masked = Hours(
        stream="still", sensor="rgb", learned=False, hours=2.0, masks=1, alarms=0, degraded_share=0.0,
        mask_reasons={"frozen": 1},
    )  # fmt: skip
    alarmed = replace(masked, stream="moving", learned=True, masks=0, alarms=3, reasons={"noise": 3}, mask_reasons={})
    night = replace(alarmed, stream="night", reasons={"dark": 3})
    assert beyond(allowed, [late, early, missed, slow], [masked, alarmed, night]) == [
        "off on rgb: 1 of 2 masked within 300 ms",
        "off on rgb: 95 % noticed after 0.39 s, at most 0.30 s wanted",
        "off on rgb: 1 of 1 trials report something before the fault",
        "black on rgb: 1 of 2 noticed, at least 100% wanted",
        "black on rgb: 95 % noticed after 2.00 s, at most 1.15 s wanted",
        "still rgb: 1 masks in 2 hours of a healthy sensor (frozen 1)",
        "moving rgb (learned limits): 3 false alarms in 2 hours, at most 0 wanted (noise 3)",
    ]


def test_a_model_that_errs_although_the_mask_is_right_is_beyond_its_bound() -> None:
    def cost(fault: str, phase: Phase, right: int, wrong: int) -> Cost:
        sensor = "" if fault == NO_FAULT else "ir"
        return Cost(fault=fault, sensor=sensor, right=Counter({phase: right}), wrong=Counter({phase: wrong}))

    well = [
        cost(NO_FAULT, "gap", 95, 5),
        cost("off", "masked", 95, 5),
        cost("stuck", "gap", 0, 9),
        Cost(fault="a", sensor="ir"),
    ]
    ill = [cost(NO_FAULT, "gap", 94, 6), cost("off", "masked", 9, 1)]
    assert beyond(bounds.load(), [], [], [*well, *ill]) == [
        "without a fault: 94.0% of the decisions right, at least 95.0% wanted",
        "off on ir, masked: 90.0% of the decisions right, at least 95.0% wanted",
    ]


def test_every_bound_is_of_a_fault_and_a_stream_there_is() -> None:
    shipped = bounds.load()
    assert {fault for fault, _ in shipped.faults} <= set(FAULTS)
    assert {sensor for _, sensor in shipped.faults} <= {"rgb", "depth", "ir", "video", "audio"}
    assert set(shipped.alarms_per_hour) == set(STREAMS)
    assert all(0.0 < bound.found <= 1.0 and 0.0 < bound.p95_s < FAULT_S for bound in shipped.faults.values())
    assert (shipped.within, shipped.early, shipped.masks_per_hour) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--bounds FILE: No such file or directory"),
        ("within = ", "--bounds FILE: not TOML: Invalid value (at end of document)"),
        ("[transport]\nwithin = 1.0\n", "--bounds FILE: not of the form of the shipped bounds (KeyError: 'faults')"),
    ],
)
def test_bad_bounds_are_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "bounds.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        bounds.load(path)
    assert str(error.value) == message.replace("FILE", str(path))


def test_the_tables_have_a_line_per_cell_and_the_same_cells_in_both_layouts(
    grades: list[Grade], hours: list[Hours]
) -> None:
    report = Report(grades=grades, hours=hours, costs=[], beyond=[])
    text, markdown = as_text(report), as_markdown(report)
    rows = len(FAULTS) * len(SENSORS) + 2 * len(UNSTAMPED) + sum(map(len, STREAMS.values()))
    assert len([line for line in markdown.splitlines() if line.startswith("| ")]) == rows + 2
    assert len([line for line in text.splitlines() if line]) == rows + 3
    assert text.endswith("nothing is beyond its bound")
    assert as_text(replace(report, beyond=["off on rgb: late"])).endswith("beyond its bound: off on rgb: late")
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_command_ends_with_1_exactly_when_something_is_beyond_its_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], grades: list[Grade], hours: list[Hours]
) -> None:
    monkeypatch.setattr(health_bench, "_grades", lambda seeds, *, fast: grades)
    monkeypatch.setattr(health_bench, "normal_streams", lambda *args, **rest: iter(hours))
    assert health_bench.main(["--fast", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["beyond"] == []

    def strict(path: Path | None) -> Bounds:
        return replace(shipped, masks_per_hour=-1.0)

    shipped = bounds.load()
    monkeypatch.setattr(bounds, "load", strict)
    assert health_bench.main(["--fast", "--markdown", "--quiet"]) == 1
    assert "beyond its bound: moving rgb: 0 masks" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_bench_keeps_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert health_bench.main(["--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(each["trials"] for each in report["faults"]) == len(FAULTS) * 5 * 20 * 2
