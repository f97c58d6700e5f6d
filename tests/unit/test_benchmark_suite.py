"""What benchmarks/suite.py computes, writes and refuses, and that its contestants answer alike."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from mars_edge import rig
from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.preprocess import preprocess
from mars_edge.subsets import all_subsets
from mars_export.pieces import float_pieces
from mars_training.recipe import EncoderRecipe, Recipe, load_recipe
from tests.helpers.tiny_artifact import NAMES, TinyModel, sample, write_onnx

SMALL_PART = {"command": "python it", "machine": "a machine", "date": "2026-01-02", "notes": []}


@pytest.fixture(scope="module")
def folder(repository: Path) -> Iterator[None]:
    """The benchmarks can be imported, as they import each other."""
    sys.path.insert(0, str(repository / "benchmarks"))
    yield
    sys.path.remove(str(repository / "benchmarks"))


@pytest.fixture(scope="module")
def common(folder: None) -> ModuleType:
    return importlib.import_module("common")


@pytest.fixture(scope="module")
def suite(folder: None) -> ModuleType:
    return importlib.import_module("suite")


@pytest.fixture(scope="module")
def networks(folder: None) -> ModuleType:
    return importlib.import_module("networks")


@pytest.fixture(scope="module")
def contestants(folder: None) -> ModuleType:
    return importlib.import_module("contestants")


def field(common: ModuleType) -> list[Any]:
    return [
        common.Who(name="our fp32", ours=True, precision="fp32"),
        common.Who(name="our int8", ours=True, precision="int8"),
        common.Who(name="slow", precision="fp32"),
        common.Who(name="fast", precision="fp32"),
        common.Who(name="other int8", precision="int8"),
    ]


def rounds_of(*medians: float) -> NDArray[np.float64]:
    """Twenty rounds with the same noise for all, so that every ratio is certain."""
    noise = np.random.default_rng(0).uniform(1.0, 3.0, (21, 1))
    return noise / np.median(noise) * np.array([medians])


def table(common: ModuleType, *medians: float, **more: Any) -> Any:
    return common.table_of("all present", "ms", field(common), rounds_of(*medians), base="slow", **more)


def part(common: ModuleType, *tables: Any, name: str = "engines", **changes: Any) -> Any:
    return common.Part(**(SMALL_PART | {"name": name, "title": name, "quick": False, "tables": tables} | changes))


def test_a_row_is_the_median_and_its_ratio_to_the_base(common: ModuleType) -> None:
    rows = {row.who.name: row for row in table(common, 3.0, 1.0, 4.0, 2.0, 5.0).rows}
    assert rows["our fp32"].value == pytest.approx(3.0)
    ratio = rows["our fp32"].ratio
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((0.75, 0.75, 0.75))
    assert rows["slow"].ratio.value == 1.0


def test_a_loss_is_against_the_best_alternative_of_the_same_precision(common: ModuleType) -> None:
    (loss,) = table(common, 3.0, 1.0, 4.0, 2.0, 5.0).losses
    assert (loss.ours, loss.against, loss.ratio.value) == ("our fp32", "fast", pytest.approx(1.5))


def test_a_row_that_beats_its_like_is_no_loss_and_an_equal_one_is_none_either(common: ModuleType) -> None:
    assert table(common, 2.0, 5.0, 4.0, 2.0, 5.0).losses == []
    assert [loss.ours for loss in table(common, 2.1, 5.1, 4.0, 2.0, 5.0).losses] == ["our fp32", "our int8"]


def test_the_best_is_judged_whatever_its_precision(common: ModuleType) -> None:
    best = table(common, 3.0, 2.5, 4.0, 2.0, 5.0).best
    assert (best.ours, best.against, best.ratio.value) == ("our int8", "fast", pytest.approx(1.25))
    alone = common.table_of("t", "ms", field(common)[:2], rounds_of(1.0, 2.0), base="our fp32")
    assert alone.best is None and alone.losses == []


def test_a_loss_that_chance_explains_says_so(common: ModuleType) -> None:
    rng = np.random.default_rng(3)
    measured = rng.lognormal(0.0, 0.5, (30, 5))
    measured[:, 0] *= 1.02 * np.median(measured[:, 3]) / np.median(measured[:, 0])
    measured[:, 2] += 9.0
    found = common.table_of("t", "ms", field(common), measured, base="slow")
    text = common.losses_markdown([part(common, found)])
    (line,) = [line for line in text.splitlines() if "our fp32" in line]
    assert line.endswith("times that of fast (no difference shown)")


def test_the_losses_of_all_parts_are_listed_and_counted(common: ModuleType) -> None:
    lost, won = table(common, 3.0, 1.0, 4.0, 2.0, 5.0, group="g"), table(common, 1.0, 1.0, 4.0, 2.0, 5.0)
    lines = common.losses_markdown([part(common, lost, name="a"), part(common, won, name="b")]).splitlines()
    assert lines[2].startswith("1 of 4 rows of ours are above")
    assert lines[4:] == ["- a, g, all present: our fp32 has 1.50 times that of fast"]


def test_a_best_row_that_another_precision_beats_is_listed_apart(common: ModuleType) -> None:
    # Ours wins among its like in fp32 and int8, and loses to bfloat16.
    who = [*field(common), common.Who(name="half", precision="bf16")]
    found = common.table_of("t", "ms", who, rounds_of(1.5, 1.4, 4.0, 2.0, 5.0, 0.7), base="slow")
    assert found.losses == []
    text = common.losses_markdown([part(common, found)])
    assert "another precision" in text and "our int8 has 2.00 times that of half" in text


def test_a_table_shows_ours_in_bold_and_why_a_row_is_empty(common: ModuleType) -> None:
    absent = common.Row(who=common.Who(name="absent"), reason="not installed: absent")
    found = table(common, 3.0, 1.0, 4.0, 2.0, 5.0, skipped=[absent], more={"fast": {"rate": "30"}})
    lines = common.as_markdown(part(common, found)).splitlines()
    assert "| all present | ms | of slow (95 % interval) | rate |" in lines
    assert "| **our fp32** | 3.00 | 0.75 |  |" in lines
    assert "| absent | - | not measured: not installed: absent |  |" in lines
    assert any(line.startswith("| fast | 2.00 | 0.50") and line.endswith("| 30 |") for line in lines)


def test_tables_of_a_group_stand_side_by_side(common: ModuleType) -> None:
    one = dataclasses.replace(table(common, 3.0, 1.0, 4.0, 2.0, 5.0, group="g"), title="one")
    two = dataclasses.replace(table(common, 6.0, 1.0, 4.0, 2.0, 5.0, group="g"), title="two")
    lines = common.as_markdown(part(common, one, two)).splitlines()
    assert "| g: ms; of slow (95 % interval) | one | two |" in lines
    (row,) = [line for line in lines if line.startswith("| **our fp32** |")]
    assert row == "| **our fp32** | 3.00; 0.75 | 6.00; 1.50 |"


def test_a_quick_run_is_marked_as_no_result(common: ModuleType) -> None:
    found = table(common, 3.0, 1.0, 4.0, 2.0, 5.0)
    assert "Not a result" in common.as_markdown(part(common, found, quick=True))
    assert "Not a result" not in common.as_markdown(part(common, found))


def test_results_survive_their_file(common: ModuleType, suite: ModuleType, tmp_path: Path) -> None:
    absent = common.Row(who=common.Who(name="absent"), reason="gone")
    found = part(common, table(common, 3.0, 1.0, 4.0, 2.0, 5.0, skipped=[absent]))
    suite.save(tmp_path / "r.json", {"engines": found})
    again = suite.load(tmp_path / "r.json")["engines"]
    assert common.as_markdown(again) == common.as_markdown(found)
    assert common.losses_markdown([again]) == common.losses_markdown([found])
    assert suite.load(tmp_path / "none.json") == {}


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"schema": 99, "parts": []}'])
def test_another_file_is_not_taken_for_results(suite: ModuleType, tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UsageError) as error:
        suite.load(tmp_path / "r.json")
    assert str(error.value).startswith(f"{tmp_path / 'r.json'} is no results file of this suite: ")


def test_tables_replace_what_is_between_the_markers_and_nothing_else(common: ModuleType, suite: ModuleType) -> None:
    parts = [part(common, table(common, 3.0, 1.0, 4.0, 2.0, 5.0))]
    first = suite.document(parts, "# Title\n\nBefore.\n")
    assert first.startswith(f"# Title\n\nBefore.\n\n{suite.BEGIN}\n") and "### Where we lose" in first
    second = suite.document(parts, first.replace("3.00", "9.99") + "\nAfter.\n")
    assert second == first + "\nAfter.\n"


def test_a_document_with_one_marker_is_refused(suite: ModuleType) -> None:
    for text in (suite.BEGIN, suite.END, f"{suite.END}\n{suite.BEGIN}"):
        with pytest.raises(UsageError, match="the document needs both markers, in this order"):
            suite.document([], text)


def test_parts_that_are_not_run_are_kept(
    common: ModuleType, suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = table(common, 3.0, 1.0, 4.0, 2.0, 5.0)
    monkeypatch.setattr(suite, "run_part", lambda plan, *rest: part(common, found, name=plan.name))
    files = ["--md", str(tmp_path / "d.md"), "--json", str(tmp_path / "r.json")]
    assert suite.main(["--only", "subsets", *files]) == 0
    assert suite.main(["--only", "engines", *files]) == 0
    stored = json.loads((tmp_path / "r.json").read_text())
    assert [p["name"] for p in stored["parts"]] == ["engines", "subsets"]
    text = (tmp_path / "d.md").read_text()
    assert text.index("### engines (") < text.index("### subsets (") < text.index("### Where we lose")


def test_a_document_that_cannot_take_the_tables_is_refused_before_anything_runs(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "run_part", lambda *given: pytest.fail("it ran"))
    (tmp_path / "d.md").write_text(suite.END)
    assert suite.main(["--md", str(tmp_path / "d.md"), "--json", str(tmp_path / "r.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def answering(contestants: ModuleType, common: ModuleType, name: str, precision: str, off: float) -> Any:
    who = common.Who(name=name, precision=precision, ours=name.startswith("our"))
    return contestants.Contestant(who=who, decide=lambda given: np.array([0.5 + off, 1.0]))


def test_an_engine_whose_answers_differ_is_not_timed(contestants: ModuleType, common: ModuleType) -> None:
    given = [("our", "fp32", 0.0), ("same", "fp32", 5e-4), ("other", "fp32", 2e-3), ("nan", "fp32", np.nan)]
    field = [answering(contestants, common, *each) for each in given]
    kept, skipped = contestants.judged(field, [{"rgb": np.zeros(1, np.float32)}], [("rgb",)])
    assert [one.who.name for one in kept] == ["our", "same"]
    assert [row.reason for row in skipped] == [
        "answers off by 0.002, allowed 0.001",
        "answers off by nan, allowed 0.001",
    ]


def test_a_lower_precision_may_be_twice_as_far_from_fp32_as_our_int8(
    contestants: ModuleType, common: ModuleType
) -> None:
    given = [("our", "fp32", 0.0), ("our8", "int8", 0.1), ("near", "int8", -0.19), ("far", "bf16", 0.21)]
    field = [answering(contestants, common, *each) for each in given]
    kept, skipped = contestants.judged(field, [{"rgb": np.zeros(1, np.float32)}], [("rgb",)])
    assert [one.who.name for one in kept] == ["our", "our8", "near"]
    assert [row.who.name for row in skipped] == ["far"]


def test_a_contestant_that_is_not_here_has_a_row_with_its_reason_in_the_tables_of_scaling(
    contestants: ModuleType, common: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scaling = importlib.import_module("scaling")

    def absent(*given: Any, **more: Any) -> Any:
        raise contestants.UnavailableError(reason="not installed: onnxruntime")

    monkeypatch.setattr(contestants, "onnxruntime", absent)
    monkeypatch.setattr(contestants, "ours", lambda *given: answering(contestants, common, "ours, .pte", "fp32", 0.0))
    monkeypatch.setattr(scaling, "files", lambda *given: dict.fromkeys(("pte fp32", "onnx fp32", "dense", "gathered")))
    monkeypatch.setattr(scaling.networks, "samples_of", lambda *given: [{"rgb": np.zeros(1, np.float32)}])
    source = dataclasses.make_dataclass("Source", ["modalities"])([])
    network = dataclasses.make_dataclass("Net", ["info", "names"])(
        dataclasses.make_dataclass("Info", ["source"])(source), ("rgb",)
    )
    for table in (
        scaling.sized(network, tmp_path, "t", "g", 1, 1),
        scaling.faces(network, tmp_path, 1, "g", 1, 1),
    ):
        reasons = {row.who.name: row.reason for row in table.rows if row.value is None}
        assert reasons == dict.fromkeys((scaling.ORT_DENSE, scaling.GATHERED), "not installed: onnxruntime")


def test_a_file_that_was_not_converted_says_what_the_converter_said(contestants: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "dense.tflite"
    assert contestants.not_converted(path) == "not converted: give --litert-python, see benchmarks/to_litert.py"
    (tmp_path / "dense.failed").write_text("MemoryError")
    assert contestants.not_converted(path) == "not converted: MemoryError"


def test_what_other_tables_have_and_this_one_cannot_has_a_row_with_its_reason(folder: None) -> None:
    engines = importlib.import_module("engines")
    assert engines._ungathered({"gathered": Path("g")}) == []
    rows = engines._ungathered({})
    assert [row.who.name for row in rows] == ["onnxruntime, gathered, fp32", "OpenVINO, gathered, fp32"]
    assert {row.reason for row in rows} == {"no graph gathers experts that are not plain convolutions"}


def test_a_turn_warms_its_contestant_alone_and_counts_each_of_its_calls_once(
    folder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = importlib.import_module("turns")
    done: list[str] = []

    def calls_of(name: str, seconds: float) -> list[Any]:
        return [lambda at=at: (done.append(f"{name}{at}"), time.sleep(seconds * (at + 1))) for at in range(2)]

    measured = turns.times([calls_of("a", 1e-3), calls_of("b", 4e-3)], 3, threads=1)
    assert measured.shape == (3, 2, 2)
    # By contestant and by call, whatever the order of the round.
    assert (measured.min(axis=0) >= [[1.0, 2.0], [4.0, 8.0]]).all()
    turn = turns._UNCOUNTED + 2
    blocks = [done[at : at + turn] for at in range(0, len(done), turn)]
    assert len(blocks) == 2 * (turns.WARM_UP + 3)
    assert all(len({call[0] for call in block}) == 1 and len(set(block[-2:])) == 2 for block in blocks)


def test_with_several_threads_no_turn_begins_while_the_pool_of_another_may_spin(
    folder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = importlib.import_module("turns")
    slept: list[float] = []
    monkeypatch.setattr(turns.time, "sleep", slept.append)
    turns.one_round([[lambda: slept.append(-1.0)], [lambda: slept.append(-2.0)]], np.random.default_rng(0), threads=2)
    ends = [i for i in range(1, len(slept)) if slept[i] >= 0.03]
    first, last = slept[: ends[0]], slept[ends[0] :]
    assert first[0] == last[0] >= 0.035
    assert {value for value in first if value < 0.0} != {value for value in last if value < 0.0}


def test_artifacts_for_timing_run_a_self_test_of_every_subset_when_they_are_opened(
    networks: ModuleType, repository: Path
) -> None:
    from mars_training.data.load import describe

    recipe = small_recipe(repository)
    network = networks.random_network(recipe, describe(recipe.data))
    golden = networks._untested(network)
    assert len(golden.logits) == len(all_subsets(NAMES))
    for modality in network.info.source.modalities:
        assert golden.sample(modality).shape == modality.shape


def test_zeros_for_a_missing_picture_are_made_once(networks: ModuleType) -> None:
    given = {NAMES[0]: sample(1)[NAMES[0]]}
    first, again = (networks.decision_inputs(TinyModel.create().manifest().modalities, given) for _ in range(2))
    assert first[f"x_{NAMES[1]}"] is again[f"x_{NAMES[1]}"] and not first[f"x_{NAMES[1]}"].any()


def test_an_unrolled_graph_answers_as_the_lazy_one_under_every_subset(networks: ModuleType, tmp_path: Path) -> None:
    model = TinyModel.create()
    write_onnx(model, tmp_path / "lazy.onnx")
    networks.write_unrolled(tmp_path / "lazy.onnx", NAMES, tmp_path / "dense.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "dense.onnx"), providers=["CPUExecutionProvider"])
    for subset in all_subsets(NAMES):
        given = {name: sample(1)[name] for name in subset}
        expected, _, _ = model.answer(given, {})
        (logits,) = session.run(None, networks.decision_inputs(model.manifest().modalities, given))
        assert logits[0] == pytest.approx(expected, abs=1e-5)


def test_a_graph_without_branches_is_not_unrolled(networks: ModuleType, tmp_path: Path) -> None:
    write_onnx(TinyModel.create(), tmp_path / "lazy.onnx")
    networks.write_unrolled(tmp_path / "lazy.onnx", NAMES, tmp_path / "dense.onnx")
    with pytest.raises(UsageError) as error:
        networks.write_unrolled(tmp_path / "dense.onnx", NAMES, tmp_path / "again.onnx")
    assert str(error.value) == f"{tmp_path / 'dense.onnx'} has no branches: not a graph of mars-edge"


def small_recipe(repository: Path, **changes: Any) -> Recipe:
    recipe = load_recipe(repository / "training/recipes/face_antispoof.toml")
    encoder = EncoderRecipe(channels=(4, 8), strides=(4, 4))
    model = dataclasses.replace(
        recipe.model, width=8, expert_channels=(6, 5), encoders=dict.fromkeys(NAMES, encoder), **changes
    )
    return dataclasses.replace(recipe, model=model, data=dataclasses.replace(recipe.data, size=32))


@pytest.mark.parametrize("shared", [False, True])
def test_gathered_experts_answer_as_all_of_them_weighted_by_their_gates(
    networks: ModuleType, repository: Path, shared: bool
) -> None:
    from mars_training.data.load import describe

    recipe = small_recipe(repository, shared_expert=shared)
    network = networks.random_network(recipe, describe(recipe.data))
    assert all(networks.is_plain(expert) for expert in network.model.deployed.experts)
    dense, gathered = (networks.dense_torch(network, gathered=form) for form in (False, True))
    chosen = set()
    for row in networks.samples_of(network.info.source.modalities, 4):
        for subset in all_subsets(NAMES):
            given = {name: row[name] for name in subset}
            inputs = list(
                map(torch.from_numpy, networks.decision_inputs(network.info.source.modalities, given).values())
            )
            with torch.no_grad():
                expected, found = dense(*inputs), gathered(*inputs)
                features = network.model.deployed.encode_all(dict(zip(NAMES, inputs[1:], strict=True)))
                chosen |= set(network.model.deployed.route(features, inputs[0])[1].topk(2).indices[0].tolist())
            assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    assert len(chosen) > 2, "the test is vacuous where the same experts are always chosen"


def test_equal_seeds_give_equal_random_networks(networks: ModuleType, repository: Path) -> None:
    from mars_training.data.load import describe

    recipe = small_recipe(repository)
    first, again, other = (networks.random_network(recipe, describe(recipe.data), seed=s) for s in (1, 1, 2))
    states = [network.model.state_dict() for network in (first, again, other)]
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())
    assert not all(torch.equal(t, states[2][name]) for name, t in states[0].items())
    assert float_pieces(first.model.deployed) is not first.model.deployed


def test_pictures_are_made_small_by_hand_as_the_runtime_does(folder: None) -> None:
    worker = importlib.import_module("streaming_worker")
    frames = worker.rendered()
    for modality in rig.modalities():
        picture = frames[modality.name][0]
        assert picture.shape[:2] == (480, 640)
        made, expected = worker.small(picture, modality.size, modality.range), preprocess(modality, picture)
        assert made.shape == (1, *modality.shape) and made.dtype == np.float32
        # By hand depth is not averaged, because zeros would be: along edges it is another pixel's.
        off = np.abs(made[0] - expected)
        assert (np.median(off) if modality.name == "depth" else off.max()) <= 1.0 / 255.0


def test_a_camera_hands_out_no_picture_twice_and_drops_what_was_not_read(folder: None) -> None:
    worker = importlib.import_module("streaming_worker")
    camera = worker.Camera("rgb", [np.zeros(1)] * 3, time.monotonic() - 10.0)
    numbers = [frame.sequence for _ in range(3) if (frame := camera.read(0.2)) is not None]
    assert numbers[0] >= 300 and numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]


def test_an_age_counts_from_the_moment_a_picture_was_due_at_its_camera(folder: None) -> None:
    worker = importlib.import_module("streaming_worker")
    begin_s = time.monotonic() - 10.0
    camera = worker.Camera("rgb", [np.zeros(1)] * 3, begin_s, 25.0)
    frame = camera.read(0.2)
    # The frame that is read late is the newest of those that were due, and is as old as it was left lying.
    assert 0.0 <= time.monotonic() - camera.due_s(frame.sequence) < 1.0 and frame.sequence >= 250
    assert camera.due_s(251) == pytest.approx(begin_s + 10.0)
    cameras = {"rgb": camera, "ir": worker.Camera("ir", [np.zeros(1)], begin_s + 0.01, 25.0)}
    decided = [(begin_s + 10.05, {"rgb": 251, "ir": 250}), (begin_s + 10.07, {"rgb": 252})]
    found = worker._summary(decided, cameras, 0.03, 0.1)
    assert found["age_ms"] == pytest.approx(0.5 * (80.0 + 30.0)) and found["whole_percent"] == 50.0
    assert (found["cpu_percent"], found["rate_hz"]) == pytest.approx((30.0, 20.0))


def test_the_cameras_of_a_run_meet_every_phase_of_each_other_and_of_a_fixed_rate(folder: None) -> None:
    streaming = importlib.import_module("streaming")
    rng, seconds = np.random.default_rng(1), 6.0
    begins = set()
    for _ in range(4):
        clocks = streaming.clocks_of(rng, seconds)
        begins.add(tuple(clocks.phases_ms))
        rates = [30.0, *clocks.rates_hz]
        gained = [seconds * abs(a - b) for i, a in enumerate(rates) for b in rates[:i]]
        # Whole periods, and never none: no pair of clocks keeps the phase that it happened to begin with.
        assert all(turns == pytest.approx(round(turns), abs=1e-6) and round(turns) >= 1 for turns in gained)
    assert len(begins) == 4


def test_a_round_has_the_same_clocks_for_every_contestant(folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    streaming = importlib.import_module("streaming")
    seen: list[tuple[str, Any]] = []

    def run(job: Any, paths: Any, clocks: Any, seconds: float) -> Any:
        if seconds == 0.2:
            return "not here" if job.kind == "gstreamer" else {}
        seen.append((job.who.name, clocks))
        return {"age_ms": 20.0, "age_p95_ms": 30.0, "cpu_percent": 9.0, "rate_hz": 30.0, "whole_percent": 100.0}

    monkeypatch.setattr(streaming, "run", run)
    tables = streaming.measure({}, 2, 1.0)
    here = len(streaming.JOBS) - 1
    rounds = [seen[:here], seen[here:]]
    assert len(seen) == 2 * here and all(len({id(clocks) for _, clocks in each}) == 1 for each in rounds)
    assert rounds[0][0][1] != rounds[1][0][1]
    assert all(len({name for name, _ in each}) == here for each in rounds)
    assert [row.reason for table in tables for row in table.rows if row.value is None] == ["not here"] * 3


def test_at_a_fixed_rate_a_decision_by_hand_does_not_wait_for_a_camera(folder: None) -> None:
    worker = importlib.import_module("streaming_worker")
    newest, frame = worker.Newest("rgb", "fixed"), worker.Frame(data=np.zeros(1), sequence=7)
    newest.put("ir", frame)
    begin_s = time.monotonic()
    assert [newest.take() for _ in range(3)] == [{"ir": frame}] * 3
    assert time.monotonic() - begin_s >= 2.0 / worker.RATE_HZ


def test_a_pace_that_a_contestant_lacks_is_refused(folder: None) -> None:
    worker = importlib.import_module("streaming_worker")
    with pytest.raises(UsageError) as error:
        worker.measure("ours", "none.pte", pace="first", phases_ms=[0.0] * 3, rates_hz=[30.0] * 3, seconds=1.0)
    assert str(error.value) == "--pace first: ours has fixed or newest"


def test_a_size_is_of_everything_that_is_required_and_of_no_byte_code(folder: None) -> None:
    footprint = importlib.import_module("footprint")
    found = footprint.closure(["onnxruntime"])
    assert {"onnxruntime", "numpy", "flatbuffers"} <= found and "torch" not in found
    specs = importlib.util.find_spec("mars_edge")
    assert specs is not None and specs.submodule_search_locations is not None
    files = [f for place in specs.submodule_search_locations for f in Path(place).rglob("*.py")]
    assert footprint.size_bytes("mars-edge") > sum(f.stat().st_size for f in files)


SERVING = """
import os, sys
sys.path[:0] = {folders!r}
import turns
def prepare():
    print("a library that talks")
    os.write(1, b"even past Python")
    return {{"threads": os.environ["OMP_NUM_THREADS"]}}, [[lambda: open({log!r}, "a").write(os.environ["NAME"])] * 2]
{line}
"""


def serving(repository: Path, tmp_path: Path, name: str, line: str = "turns.serve(prepare, threads=1)") -> Any:
    folders = [str(repository / folder) for folder in ("benchmarks", ".", "runtime")]
    code = SERVING.format(folders=folders, log=str(tmp_path / "log"), line=line)
    return [sys.executable, "-c", code], {**os.environ, "NAME": name, "OMP_NUM_THREADS": name}


def test_processes_take_turns_round_by_round_and_each_has_its_own_environment(
    folder: None, repository: Path, tmp_path: Path
) -> None:
    turns = importlib.import_module("turns")
    played = turns.play([serving(repository, tmp_path, name) for name in ("1", "2")], 20)
    assert [one.found for one in played] == [{"threads": "1"}, {"threads": "2"}]
    assert [one.measured.shape for one in played] == [(20, 1, 2)] * 2
    assert all((one.measured > 0.0).all() for one in played)
    called = (tmp_path / "log").read_text()
    calls = turns._UNCOUNTED + 2
    rounds = [called[at : at + 2 * calls] for at in range(0, len(called), 2 * calls)]
    # A turn of each process in every round, and not always the same process first.
    assert len(rounds) == 20 + turns.WARM_UP
    assert set(rounds) == {"1" * calls + "2" * calls, "2" * calls + "1" * calls}


def test_a_process_that_ends_ends_its_benchmark(folder: None, repository: Path, tmp_path: Path) -> None:
    turns = importlib.import_module("turns")
    for line in ("sys.exit(3)", "turns.serve(lambda: ({}, [[lambda: os._exit(3)]]), threads=1)"):
        with pytest.raises(MarsEdgeError) as error:
            turns.play([serving(repository, tmp_path, "1", line)], 1)
        assert str(error.value) == "a process of this benchmark ended with exit code 3"


def test_the_best_over_all_numbers_of_threads_takes_each_side_where_it_is_fastest(
    folder: None, common: ModuleType
) -> None:
    engines = importlib.import_module("engines")
    fields = [
        engines.Field(threads=threads, who=field(common), skipped=[], measured=rounds_of(*medians)[:, :, None])
        for threads, medians in ((1, (3.0, 1.0, 4.0, 2.0, 5.0)), (2, (3.0, 2.0, 4.0, 0.8, 5.0)))
    ]
    network = dataclasses.make_dataclass("Net", ["names"])(("rgb",))
    first, last = engines.tables(network, fields, "all")
    assert (first.title, first.overall, last.title) == ("all present, 1 thread", None, "all present, 2 threads")
    best = last.overall
    assert (best.ours, best.against) == ("our int8, 1 thread", "fast, 2 threads")
    assert (best.ratio.low, best.ratio.high) == pytest.approx((1.25, 1.25))
    (again,) = common.tables_from([dataclasses.asdict(last)])
    text = common.as_markdown(part(common, again))
    said = "best of ours against the best other: our int8, 1 thread, 1.25 times fast, 2 threads."
    assert f"Result, each with the number of threads that suits it best: {said}" in text
    assert "our int8, 1 thread has 1.25 times that of fast, 2 threads" in common.losses_markdown([part(common, again)])
    assert engines.tables(network, fields[:1], "all")[0].overall is None


def test_results_from_before_there_was_a_best_over_all_threads_are_read(common: ModuleType) -> None:
    given = dataclasses.asdict(table(common, 3.0, 1.0, 4.0, 2.0, 5.0))
    del given["overall"]
    assert common.tables_from([given])[0].overall is None


def test_a_script_that_fails_ends_the_suite(common: ModuleType) -> None:
    with pytest.raises(UsageError) as error:
        common.run_json("suite.py", ["--only", "none"])
    assert str(error.value) == "suite.py --only none ended with exit code 2"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_suite_runs(suite: ModuleType, tmp_path: Path) -> None:
    files = ["--md", str(tmp_path / "d.md"), "--json", str(tmp_path / "r.json")]
    assert suite.main(["--only", "engines", "--quick", *files]) == 0
    found = suite.load(tmp_path / "r.json")["engines"]
    assert [t.title for t in found.tables] == ["all present, 1 thread", "all present, 2 threads"]
    for each in found.tables:
        measured = {row.who.name for row in each.rows if row.value is not None}
        assert {
            "ours, .pte, fp32",
            "ours, .onnx, int8",
            "onnxruntime, dense, fp32",
            "onnxruntime, dense, int8 unrolled",
        } <= measured
    assert "### Where we lose" in (tmp_path / "d.md").read_text()
