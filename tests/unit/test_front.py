"""The front of N and K: measured on validation alone, marked by brute force, timed in turns, said in one line if not.

Axes: N experts, K active experts.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mars_edge import subsets
from mars_edge.errors import UsageError
from mars_export import front, front_report, latency
from mars_export.commands import front as command
from mars_export.front import Candidate, Front, Plan, families, measure, not_dominated
from mars_export.lowering import Model
from mars_export.pieces import float_pieces
from mars_training.checkpoint import RunInfo, save_info, save_weights
from mars_training.costs import costs
from mars_training.data.split import Split
from mars_training.evaluate import evaluate, mean_error
from mars_training.methods import build_model
from mars_training.model.mars import TrainingMars
from mars_training.recipe import Recipe
from tests.helpers.tiny_mars import LABELS, MODALITIES, NAMES, SOURCE, info, model, recipe, split

ROWS = split(24, 7)
UNTIMED = Plan(rounds=0)


def tiny(experts: int, active: int = 2, **changes: object) -> Recipe:
    sizes = dataclasses.replace(recipe().model, experts=experts, active_experts=active)
    return dataclasses.replace(recipe(), model=sizes, **changes)  # type: ignore[arg-type]


def make_run(run: Path, made: Recipe, *, seed: int = 0) -> Path:
    torch.manual_seed(1000 * made.model.experts + seed)
    network = build_model(made, MODALITIES, len(LABELS))
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    save_info(run, RunInfo(recipe=made, seed=seed, source=SOURCE))
    save_weights(run / "selected.safetensors", network.state_dict(), epoch=0)
    return run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """N = 4 with seeds 0 and 1, N = 3 with seed 0; any split but validation is an error."""

    def validation_alone(made: Recipe, name: str, *, folder: Path | None = None) -> Split:
        assert name == "validation"
        return ROWS

    monkeypatch.setattr(front, "load_split", validation_alone)
    return [
        make_run(tmp_path / "four0", tiny(4)),
        make_run(tmp_path / "four1", tiny(4), seed=1),
        make_run(tmp_path / "three", tiny(3)),
    ]


def candidate(error: float, macs: int, *, deviation: float = 0.0, ms: float | None = None, **more: Any) -> Candidate:
    """With two seeds whose errors have this mean and sample standard deviation."""
    half = deviation / math.sqrt(2)
    taken = latency.Latency(median_ms=ms or 0.0, low_ms=ms or 0.0, high_ms=ms or 0.0, rounds=6)
    fields: dict[str, Any] = {
        "tag": "", "trained": (4, 2), "experts": 4, "active_experts": 2, "how": None,
        "errors": {(0, 0): error - half, (1, 0): error + half}, "subsets": {"a": error}, "parameters": 10,
        "macs": {"all": macs, "one": 1}, "latency": {} if ms is None else {"all": taken, "one": taken},
    }  # fmt: skip
    return Candidate(**{**fields, **more})


def front_of(*candidates: Candidate, engine: str = "") -> Front:
    return Front(name="tiny", note="random", candidates=candidates, full="all", fewest="one", engine=engine)


def beaten(point: tuple[float, ...], others: list[tuple[float, ...]]) -> bool:
    for other in others:
        if any(math.isnan(v) for v in other):
            continue
        if all(b <= a for a, b in zip(point, other, strict=True)) and other != point:
            return True
    return False


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_exactly_what_a_plain_loop_leaves(seed: int) -> None:
    # Few distinct values: ties in one coordinate, and equal points, are common.
    values = np.random.default_rng(seed).integers(0, 6, (40, 2)).astype(float)
    points = [(float(a), float(b)) for a, b in values]
    points[3] = (math.nan, 0.0)
    points[5] = (0.0, math.nan)
    expected = [not any(map(math.isnan, p)) and not beaten(p, points) for p in points]
    assert not_dominated(points) == expected
    assert any(expected)


def test_a_nan_is_never_on_the_front_and_beats_nothing() -> None:
    assert not_dominated([(math.nan, 0.0), (1.0, 1.0), (0.0, math.nan)]) == [False, True, False]
    assert not_dominated([(math.nan, 1.0)]) == [False]


def test_equal_points_are_both_on_the_front() -> None:
    assert not_dominated([(1.0, 1.0), (1.0, 1.0), (1.0, 2.0)]) == [True, True, False]


def test_every_k_below_n_is_a_candidate_and_the_trained_one_is_marked(runs: list[Path]) -> None:
    found = measure(runs, UNTIMED)
    assert [(c.label, len(c.errors), c.as_trained) for c in found.candidates] == [
        ("N=4 K=1", 2, False), ("N=4 K=2", 2, True), ("N=4 K=3", 2, False), ("N=3 K=1", 1, False), ("N=3 K=2", 1, True),
    ]  # fmt: skip


def test_the_error_of_a_candidate_is_that_of_the_deployed_path_with_its_k(runs: list[Path]) -> None:
    found = measure(runs, UNTIMED)
    for c in found.candidates[:3]:
        for run, seed in zip(runs[:2], (0, 1), strict=True):
            trained, _ = front.load_model(run)
            assert isinstance(trained, TrainingMars)
            trained.deployed.active_experts = c.active_experts
            scores = evaluate(trained.deployed, ROWS, SOURCE).scores
            assert c.errors[seed, 0] == mean_error(scores)
        assert c.mean_error == pytest.approx(statistics.fmean(c.errors.values()))
        assert c.deviation == pytest.approx(statistics.stdev(c.errors.values()))
    assert found.candidates[-1].deviation is None


def test_costs_follow_k_and_the_fewest_modalities_are_the_costliest_one(runs: list[Path]) -> None:
    found = measure(runs, UNTIMED)
    trained, _ = front.load_model(runs[0])
    assert isinstance(trained, TrainingMars)
    cost = costs(trained.deployed, MODALITIES)
    assert (found.full, found.fewest) == ("rgb+depth+ir", "rgb")
    each = {k: dataclasses.replace(cost, active_experts=k) for k in (1, 2, 3)}
    for c in found.candidates[:3]:
        assert c.macs == {
            "rgb+depth+ir": each[c.active_experts].macs(NAMES),
            "rgb": each[c.active_experts].macs(["rgb"]),
        }
        assert c.parameters == cost.parameters


def test_fewer_experts_than_trained_are_candidates_with_the_trained_k(runs: list[Path]) -> None:
    found = measure(runs, Plan(rounds=0, hows=("drop", "merge")))
    cut = [c for c in found.candidates if c.how is not None]
    assert [(c.label, len(c.errors)) for c in cut] == [("N=4>3 K=2 drop", 2), ("N=4>3 K=2 merge", 2)]
    whole = found.candidates[1]
    assert all(c.parameters < whole.parameters and not c.as_trained for c in cut)


def test_seeds_and_folds_are_one_family_and_other_recipes_are_told_apart(tmp_path: Path) -> None:
    sharper = dataclasses.replace(recipe().loss, balance=0.2)
    paths = [
        make_run(tmp_path / "a", tiny(4)),
        make_run(tmp_path / "b", tiny(4, loss=sharper)),
        make_run(tmp_path / "c", tiny(4), seed=1),
        make_run(tmp_path / "d", tiny(3)),
    ]
    found = families(paths)
    assert [(f.trained, f.tag, [run.name for run, _ in f.runs]) for f in found] == [
        ((4, 2), "a", ["a", "c"]),
        ((4, 2), "b", ["b"]),
        ((3, 2), "", ["d"]),
    ]


def test_runs_that_cannot_share_a_front_are_one_line(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", tiny(4))
    again = make_run(tmp_path / "again", tiny(4))
    with pytest.raises(UsageError) as caught:
        families([one, again])
    assert str(caught.value) == f"{again} and {one} are both seed 0, fold 0 of one recipe; give one"
    larger = make_run(tmp_path / "larger", tiny(4, data=dataclasses.replace(recipe().data, limit=50)))
    with pytest.raises(UsageError) as caught:
        families([one, larger])
    assert str(caught.value) == f"{larger} was trained on other data than {one}: their errors cannot be compared"
    plain = make_run(tmp_path / "plain", tiny(4, method="hemis"))
    with pytest.raises(UsageError) as caught:
        families([plain])
    assert str(caught.value) == f"{plain} was trained by 'hemis', which has no experts to count"


def test_the_choice_is_the_cheapest_within_one_standard_error_of_the_best() -> None:
    best = candidate(0.10, 300, deviation=0.02)
    bar = 0.10 + 0.02 / math.sqrt(2)
    near, over = candidate(bar - 1e-6, 200), candidate(bar + 1e-6, 100)
    assert front_of(over, best, near).choice() is near
    sure = candidate(0.10, 300)
    assert front_of(over, sure, near).choice() is sure
    small = candidate(0.10, 200, parameters=5)
    assert front_of(near, best, small).choice() is small


def test_each_cost_has_its_own_front_and_nothing_untimed_is_on_that_of_latency() -> None:
    slow, quick = candidate(0.1, 100, ms=2.0), candidate(0.1, 200, ms=1.0)
    both = front_of(slow, quick, engine="x")
    assert (both.on_front("macs"), both.on_front("latency")) == ([True, False], [False, True])
    assert front_of(candidate(0.1, 100)).on_front("latency") == [False]


@pytest.mark.parametrize(("rounds", "low", "high"), [(6, 1, 6), (9, 2, 8), (20, 6, 15), (100, 40, 61)])
def test_the_interval_of_a_median_is_between_two_of_the_times(rounds: int, low: int, high: int) -> None:
    # Ranks of the tables of the sign test, e.g. Conover 1999, "Practical Nonparametric Statistics", section 3.2.
    times = np.random.default_rng(0).permutation(np.arange(1, rounds + 1)) / 1000.0
    found = latency.latency(times.tolist())
    assert (found.low_ms, found.high_ms) == (pytest.approx(low), pytest.approx(high))
    assert found.median_ms == pytest.approx((rounds + 1) / 2)


def test_the_interval_covers_the_median_in_95_of_100_runs() -> None:
    drawn = np.random.default_rng(1).exponential(1.0, (2000, 31))
    found = [latency.latency(row.tolist()) for row in drawn]
    covered = statistics.fmean(f.low_ms <= 1000 * math.log(2) <= f.high_ms for f in found)
    assert 0.94 < covered < 0.99


class Recording:
    """An engine that notes when it was asked, and with what."""

    def __init__(self, name: str, log: list[tuple[str, tuple[str, ...]]]) -> None:
        self.name, self.log = name, log

    def infer(self, samples: Mapping[str, Any], features: Mapping[str, Any]) -> None:
        assert not features
        self.log.append((self.name, tuple(samples)))


def test_every_round_asks_every_engine_once_per_subset_in_a_new_order() -> None:
    log: list[tuple[str, tuple[str, ...]]] = []
    engines: Any = {(0, 1): Recording("a", log), (0, 2): Recording("b", log), (1, 1): Recording("c", log)}
    wanted = [("rgb", "ir"), ("ir",)]
    sample = {name: np.zeros(1, np.float32) for name in NAMES}
    times = latency._times(engines, sample, wanted, 10)
    turns = sorted(itertools.product("abc", wanted))
    rounds = [log[i : i + 6] for i in range(0, len(log), 6)]
    assert len(rounds) == 10 + latency._WARM_UP
    assert all(sorted(turn) == turns for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 5
    assert {len(taken) for taken in times.values()} == {10}


def test_too_few_rounds_are_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        latency.time_in_turns([], {}, [], rounds=5)
    assert str(caught.value) == "rounds is 5; at least 6 are needed for an interval"


def test_the_command_writes_three_whole_files_and_prints_the_table(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert command.main([*map(str, runs), "-o", str(output), "--rounds", "0", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert sorted(path.name for path in output.iterdir()) == ["front.json", "front.md", "front.png"]
    assert (output / "front.md").read_text() == printed.out
    assert (output / "front.png").read_bytes().startswith(b"\x89PNG")
    lines = [line for line in printed.out.splitlines() if line.startswith("| N=")]
    assert len(lines) == 5
    assert "| this |" in lines[1]
    assert "ms" not in printed.out.splitlines()[2]


def test_json_prints_what_the_file_holds(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    command.main([*map(str, runs), "-o", str(output), "--rounds", "0", "--quiet", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((output / "front.json").read_text())
    assert printed["split"] == "validation"
    marked = [c["label"] for c in printed["candidates"] if c["on_front"]["macs"]]
    assert marked and printed["choice"] in {c["label"] for c in printed["candidates"]}


def test_an_output_that_is_a_file_is_one_line(runs: list[Path], tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(UsageError) as caught:
        command.main([str(runs[0]), "-o", str(taken)])
    assert str(caught.value) == f"-o {taken} is a file; give a folder"


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        command.main([str(tmp_path), "-o", str(tmp_path / "out"), "--quiet"])
    message = f"{tmp_path} is not a run directory: it has no run.json; `mars-edge train` makes one"
    assert str(caught.value) == message


def test_a_timed_front_is_drawn_with_two_panels_and_has_latencies_in_its_table() -> None:
    found = front_of(candidate(0.1, 100, ms=2.0), candidate(0.2, 50, ms=1.0, active_experts=1), engine="some-engine")
    page = front_report.page(found)
    assert "| N=4 K=2 | this | 2 | 10.00 ± 0.00 | 10.00 (a) | 10 | 0.000 | 0.000 | 2.000 (2.000 - 2.000) |" in page
    assert "some-engine" in page
    alone = front_of(candidate(0.1, 100), candidate(0.2, 50, active_experts=1))
    assert len(front_report.picture(found)) > 1.3 * len(front_report.picture(alone))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pte", ".onnx"])
def test_the_artifact_that_is_timed_answers_as_the_model_with_its_k(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = model()
    ready = Model(deployed=float_pieces(trained.deployed), precision="fp32", info=info(), provenance={})
    sample = {name: x[0].numpy() for name, x in ROWS.batch(torch.tensor([0])).items()}
    opened: dict[tuple[int, int], Any] = {}

    def answers(engines: Any, sample: Any, wanted: Any, rounds: int) -> dict[Any, list[float]]:
        opened.update({key: engine.infer(sample, {}).logits for key, engine in engines.items()})
        return {(*key, subset): [1.0] * rounds for key in engines for subset in wanted}

    monkeypatch.setattr(latency, "_times", answers)
    latency.time_in_turns([(ready, (1, 2, 3))], sample, [NAMES], rounds=6, suffix=suffix)
    present = torch.from_numpy(subsets.mask(NAMES, NAMES))[None]
    for (_, k), given in opened.items():
        trained.deployed.active_experts = k
        with torch.no_grad():
            expected = trained.deployed(ROWS.batch(torch.tensor([0])), present)[0].numpy()
        np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-4)
    assert len(opened) == 3
