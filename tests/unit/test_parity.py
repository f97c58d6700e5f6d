"""The parity gate passes the model itself and refuses what differs, by name, with the place to look at.

Axes: B samples, H = W = 16 pixels, N = 4 experts, K = 2.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.errors import EngineError, ParityError
from mars_export import parity, pieces, reference, tally
from mars_runtime.engines import Inference
from mars_training.data.split import Split
from mars_training.methods import build_model, deployed_of
from mars_training.model.mars import DeployedMars
from mars_training.recipe import Recipe
from tests.helpers.tiny_mars import MODALITIES, NAMES, SIZE, SOURCE, model, recipe, split
from tests.helpers.torch_engine import Arrays, TorchEngine, manifest_of

ALL = {subsets.label(s, NAMES) for s in subsets.all_subsets(NAMES)}


@pytest.fixture(scope="module")
def deployed() -> DeployedMars:
    return pieces.float_pieces(model().deployed)


def engine_of(deployed: DeployedMars, given: Recipe | None = None) -> TorchEngine:
    return TorchEngine(deployed, manifest_of(deployed, SOURCE, given or recipe()))


def check(engine: TorchEngine, deployed: DeployedMars, held_out: Split, **rest: Any) -> parity.Parity:
    return parity.check(engine, deployed, held_out, pieces=engine, **rest)


def refusal(engine: TorchEngine, deployed: DeployedMars, held_out: Split) -> str:
    with pytest.raises(ParityError) as caught:
        check(engine, deployed, held_out)
    return str(caught.value)


def test_a_faithful_engine_passes_and_every_subset_is_reported(deployed: DeployedMars) -> None:
    report = check(engine_of(deployed), deployed, split(40, 9))
    assert set(report.subsets) == ALL and report.unmeasured == ()
    assert set(report.methods) == set(report.method_parity) == set(pieces.pieces_of(deployed))
    assert report.samples == 40
    assert sum(report.experts_chosen) == 40 * 7 * 2
    assert all(p.label_agreement == 1.0 and p.max_steps < 0.1 and p.samples == 40 for p in report.subsets.values())
    assert report.to_dict() == json.loads(json.dumps(report.to_dict(), allow_nan=False))


def test_only_the_subsets_that_the_recipe_evaluates_are_compared(deployed: DeployedMars) -> None:
    given = replace(recipe(), data=replace(recipe().data, always_present=("depth",)))
    report = check(engine_of(deployed, given), deployed, split(10, 9))
    assert set(report.subsets) == {label for label in ALL if "depth" in label.split("+")}


def test_a_row_counts_only_where_it_has_the_subset(deployed: DeployedMars) -> None:
    present = torch.ones(20, 3, dtype=torch.bool)
    present[:15, 2] = False
    present[18:, :2] = False
    held_out = replace(split(20, 9), present=present)
    report = check(engine_of(deployed), deployed, held_out)
    assert {label: p.samples for label, p in report.subsets.items()} == {
        "rgb": 18,
        "depth": 18,
        "ir": 5,
        "rgb+depth": 18,
        "rgb+ir": 3,
        "depth+ir": 3,
        "rgb+depth+ir": 3,
    }


def test_a_subset_that_no_row_has_is_named_and_a_method_that_meets_no_row_is_refused(deployed: DeployedMars) -> None:
    present = torch.ones(9, 3, dtype=torch.bool)
    present[:, 2] = torch.arange(9) < 3
    present[:3, :2] = False
    report = check(engine_of(deployed), deployed, replace(split(9, 9), present=present))
    assert report.unmeasured == ("rgb+ir", "depth+ir", "rgb+depth+ir")
    present[:, 2] = False
    present[:, :2] = True
    held_out = replace(split(9, 9), present=present)
    expected = "method encode_ir was compared on no sample: none of 9 has its modality"
    assert refusal(engine_of(deployed), deployed, held_out) == expected


def test_swapped_experts_are_refused_by_name(deployed: DeployedMars) -> None:
    wrong = copy.deepcopy(deployed)
    wrong.experts[0], wrong.experts[1] = wrong.experts[1], wrong.experts[0]
    with pytest.raises(ParityError, match=r"^method expert_[01] is off by [\d.e+]+ output steps, allowed 2$"):
        check(engine_of(wrong), deployed, split(20, 9))


def test_swapped_experts_of_similar_outputs_are_refused_where_no_logit_shows_them(deployed: DeployedMars) -> None:
    alike, wrong = copy.deepcopy(deployed), copy.deepcopy(deployed)
    twin = copy.deepcopy(deployed.experts[0])
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.0009)
    alike.experts[1] = twin
    wrong.experts[0], wrong.experts[1] = twin, deployed.experts[0]
    report = parity.measure(engine_of(wrong), alike, split(20, 9), pieces=engine_of(wrong))
    assert all(p.max_steps < parity.MOST_STEPS and p.label_agreement == 1.0 for p in report.subsets.values())
    assert all(steps < parity.MOST_STEPS for steps in report.methods.values())
    with pytest.raises(ParityError, match=r"^method expert_[01] is off in \d\d\.\d\d% of its values, allowed 0\.5%$"):
        parity.require_parity(report)


@pytest.mark.parametrize("method", ["encode_depth", "route", "expert_3", "head"])
def test_a_wrong_scale_is_refused_with_its_method(deployed: DeployedMars, method: str) -> None:
    wrong = copy.deepcopy(deployed)
    with torch.no_grad():
        for parameter in pieces.pieces_of(wrong)[method].parameters():
            parameter.mul_(1.1)
    with pytest.raises(ParityError, match=rf"^method {method} is off by [\d.]+ output steps, allowed 2$"):
        check(engine_of(wrong), deployed, split(20, 9))
    report = parity.measure(engine_of(wrong), deployed, split(20, 9), pieces=engine_of(wrong))
    assert parity.worst_methods(report) == (method,)


def test_a_nan_weight_in_an_expert_that_never_ran_is_refused(deployed: DeployedMars) -> None:
    wrong = copy.deepcopy(deployed)
    report = check(engine_of(deployed), deployed, split(2, 9))
    idle = report.experts_chosen.index(0)
    with torch.no_grad():
        next(wrong.experts[idle].parameters()).flatten()[0] = math.nan
    expected = f"method expert_{idle} is off by nan output steps, allowed 2"
    assert refusal(engine_of(wrong), deployed, split(2, 9)) == expected


def test_a_nan_weight_in_the_model_itself_is_refused_even_where_the_artifact_has_it_too(deployed: DeployedMars) -> None:
    for piece, where in (
        ("head", "the logits of rgb"),
        ("encode_ir", "the feature of ir"),
        ("route", "the router logits of rgb"),
    ):
        wrong = copy.deepcopy(deployed)
        with torch.no_grad():
            list(pieces.pieces_of(wrong)[piece].parameters())[-1].flatten()[0] = math.nan
        report = parity.method_parity(engine_of(wrong), wrong, split(4, 9), "fp32") if piece == "head" else None
        assert report is None or math.isnan(report["head"].max_steps)
        with pytest.raises(ParityError) as caught:
            reference.answers(wrong, split(4, 9), subsets.all_subsets(NAMES))
        assert str(caught.value) == f"the model itself gives NaN or infinity: {where}"
        with pytest.raises(ParityError):
            check(engine_of(wrong), wrong, split(4, 9))


def test_a_weight_that_is_not_finite_is_named_before_anything_is_lowered(deployed: DeployedMars) -> None:
    parity.require_finite_weights(deployed)
    for value in (math.nan, math.inf):
        wrong = copy.deepcopy(deployed)
        name, parameter = next(iter(wrong.experts[1].named_parameters()))
        parameter.data.flatten()[0] = value
        with pytest.raises(ParityError) as caught:
            parity.require_finite_weights(wrong)
        assert str(caught.value) == f"the model itself holds NaN or infinity: {name} of method expert_1"


def test_an_engine_that_fails_is_refused_with_its_reason(deployed: DeployedMars) -> None:
    class Failing(TorchEngine):
        def infer(self, samples: Arrays, features: Arrays) -> Inference:
            raise EngineError("method 'head' failed: out of memory")

    wrong = Failing(deployed, engine_of(deployed).manifest)
    assert refusal(wrong, deployed, split(4, 9)) == "torch: method 'head' failed: out of memory"


def test_a_model_that_always_gives_the_same_proves_nothing(deployed: DeployedMars) -> None:
    dead = copy.deepcopy(deployed)
    with torch.no_grad():
        dead.head.out.weight.zero_()  # type: ignore[union-attr, operator]
    expected = "the model itself gives the same logits for every sample and subset: nothing to compare"
    assert refusal(engine_of(dead), dead, split(4, 9)) == expected


def test_nothing_to_compare_is_refused(deployed: DeployedMars) -> None:
    report = check(engine_of(deployed), deployed, split(4, 9))
    for empty in (replace(report, subsets={}), replace(report, samples=0), replace(report, method_parity={})):
        with pytest.raises(ParityError, match=r"^parity compared nothing: an empty check proves nothing$"):
            parity.require_parity(empty)
    with pytest.raises(ParityError, match=r"^parity compared nothing: an empty check proves nothing$"):
        tally.Tally().report()


# One answer beside one reference row.

SCALE = reference.Scale(logit_step=0.5, router_step=0.1)


def row(given: Sequence[float], wanted: Sequence[float], chosen: Sequence[int]) -> tally.RowParity:
    known = reference.Reference(
        logits=np.array([wanted], np.float32),
        router_logits=np.array([[3.0, 2.0, 1.9, 0.0]], np.float32),
        experts=np.array([[0, 1]], np.int64),
    )
    return tally.compare(inference(np.array(given, np.float32), chosen), known, 0, SCALE)


def inference(logits: NDArray[np.float32], chosen: Sequence[int], **features: NDArray[np.float32]) -> Inference:
    return Inference(logits=logits, experts=tuple((i, 0.5) for i in chosen), features=features, latency_ms={})


def tallied(*rows: tally.RowParity) -> tally.SubsetParity:
    count = tally.Tally()
    for found in rows:
        count.add(found)
    return count.report()


def test_logits_are_compared_in_output_steps() -> None:
    report = tallied(row([1.0, 0.0], [0.0, 0.5], [1, 0]))
    assert (report.max_steps, report.over_one_step, report.p99_steps) == (2.0, 1.0, 2.0)
    assert (report.routing_flips, report.label_agreement) == (0.0, 0.0)


def test_another_order_of_the_same_experts_is_no_flip_and_a_flip_is_counted_with_its_margin() -> None:
    assert not row([0.0, 1.0], [0.0, 1.0], [1, 0]).flipped
    flip = tallied(row([0.0, 4.0], [0.0, 1.0], [0, 2]))
    assert flip.routing_flips == 1.0
    assert flip.max_flip_margin_steps == pytest.approx(1.0, rel=1e-4)
    assert (flip.max_steps, flip.p99_steps, flip.max_steps_flipped) == (0.0, 0.0, 6.0)


def test_a_nan_stays_a_nan_and_passes_no_bound(deployed: DeployedMars) -> None:
    for found in (
        row([math.nan, 0.0], [0.0, 0.0], [0, 1]),
        row([math.nan, 0.0], [math.nan, 0.0], [0, 1]),
        row([0.0, 0.0], [math.nan, 0.0], [0, 1]),
    ):
        report = tallied(row([0.0, 1.0], [0.0, 1.0], [0, 1]), found, row([0.0, 1.0], [0.0, 1.0], [0, 1]))
        assert math.isnan(report.max_steps) and math.isnan(report.p99_steps) and report.over_one_step == 1 / 3
        bad = replace(check(engine_of(deployed), deployed, split(4, 9)), subsets={"rgb": replace(report)})
        bad = replace(bad, subsets={"rgb": replace(report, label_agreement=1.0)})
        with pytest.raises(ParityError) as caught:
            parity.require_parity(bad)
        assert str(caught.value) == "torch on rgb: a logit is off by nan output steps, allowed 2"
    assert math.isnan(tallied(row([math.nan, 0.0], [0.0, 0.0], [0, 2])).max_steps_flipped)


@pytest.mark.parametrize("chosen", [[0], [0, 0], [0, 4], [-1, 0], [0, 1, 2]])
def test_experts_that_are_not_k_different_ones_are_refused(chosen: list[int]) -> None:
    with pytest.raises(ParityError) as caught:
        row([0.0, 1.0], [0.0, 1.0], chosen)
    assert str(caught.value) == f"the experts {chosen} ran, expected 2 different ones of 0 to 3"


@pytest.mark.parametrize("given", [[], [0.0], [0.0, 1.0, 2.0]])
def test_other_shapes_are_refused(given: list[float]) -> None:
    with pytest.raises(ParityError) as caught:
        row(given, [0.0, 1.0], [0, 1])
    assert str(caught.value) == f"cannot compare logits of shapes ({len(given)},) and (2,)"


def test_a_nan_that_only_the_features_show_is_refused(deployed: DeployedMars) -> None:
    class Hiding(TorchEngine):
        def infer(self, samples: Arrays, features: Arrays) -> Inference:
            answer = super().infer(samples, features)
            held = {name: np.where(name == "ir", np.nan, x).astype(np.float32) for name, x in answer.features.items()}
            return dataclasses.replace(answer, features=held if samples else answer.features)

    engine = Hiding(deployed, engine_of(deployed).manifest)
    expected = "torch on rgb+depth+ir, sample 0: the feature of ir holds NaN or infinity"
    only_whole = replace(recipe(), data=replace(recipe().data, always_present=NAMES))
    engine.manifest = manifest_of(deployed, SOURCE, only_whole)
    assert refusal(engine, deployed, split(4, 9)) == expected


def test_the_worst_case_can_be_looked_up(deployed: DeployedMars, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slipping(TorchEngine):
        def infer(self, samples: Arrays, features: Arrays) -> Inference:
            answer = super().infer(samples, features)
            slip = (
                1e-3 if set(answer.features) == {"rgb", "ir"} and np.array_equal(answer.features["ir"], marked) else 0
            )
            return dataclasses.replace(answer, logits=answer.logits + np.float32([slip, 0.0]))

    held_out = split(12, 9)
    marked = engine_of(deployed).execute("encode_ir", [held_out.batch(torch.tensor([7]))["ir"].numpy()])[0]
    rows = [100 + 3 * i for i in range(12)]
    monkeypatch.setattr(parity, "_BATCH", 5)
    engine = Slipping(deployed, engine_of(deployed).manifest)
    worst = parity.measure(engine, deployed, held_out, pieces=engine, rows=rows).worst
    assert worst is not None
    assert (worst.subset, worst.row, worst.pixel, worst.flipped) == ("rgb+ir", 121, (), False)
    assert worst.sample == parity.sample_ids(held_out)[7]
    assert worst.artifact[0] - worst.model[0] == pytest.approx(1e-3, rel=1e-2)


def test_a_nan_is_a_worse_case_than_any_number_and_a_flip_a_better_one() -> None:
    finite, flipped = row([9.0, 0.0], [0.0, 0.5], [1, 0]), row([99.0, 0.0], [0.0, 0.5], [0, 2])
    unknown = row([math.nan, 0.0], [0.0, 0.0], [0, 1])
    assert tally.badness(unknown) > tally.badness(finite) > tally.badness(flipped)


def test_the_pieces_called_one_by_one_give_the_answer_of_the_whole_model(deployed: DeployedMars) -> None:
    held_out = split(3, 9)
    for subset in subsets.all_subsets(NAMES):
        *_, head = reference.calls(deployed, held_out.batch(torch.tensor([2])), subset)
        (answer,) = reference.answers(deployed, held_out, [subset]).values()
        np.testing.assert_allclose(head.outputs[0][0].numpy(), answer.logits[2], rtol=1e-4, atol=1e-5)


# Label maps.


def maps(classes: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(classes, 5, 7)).astype(np.float32)


def test_pixels_are_counted_one_by_one_and_the_worst_is_named() -> None:
    wanted = np.stack([maps(3, 1), maps(3, 2)])
    given = wanted + 0.3 * np.stack([maps(3, 3), maps(3, 4)])
    known = reference.Reference(
        logits=wanted, router_logits=np.zeros((2, 4), np.float32), experts=np.array([[0, 1]] * 2, np.int64)
    )
    rows = [tally.compare(inference(given[i], [0, 1]), known, i, SCALE) for i in range(2)]
    report = tallied(*rows)
    steps = np.abs(given - wanted).max(axis=1).ravel() / 0.5
    assert report.label_agreement == np.mean(given.argmax(axis=1) == wanted.argmax(axis=1))
    assert report.max_steps == pytest.approx(steps.max())
    assert report.over_one_step == np.mean(steps > 1.01)
    p99 = np.quantile(steps, 0.99, method="inverted_cdf")
    assert p99 - 0.01 <= report.p99_steps <= p99 + 1 / 64
    worst = tally.worst_place("rgb", 5, "id", inference(given[0], [0, 1]), wanted[0], rows[0])
    y, x = np.unravel_index(np.abs(given[0] - wanted[0]).max(axis=0).argmax(), (5, 7))
    assert worst.pixel == (y, x)
    assert worst.model == tuple(wanted[0][:, y, x].tolist())


def test_a_segmentation_is_compared_without_keeping_its_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(SOURCE, labels=("sky", "road", "tree"), positive_label=None, task="segmentation")
    torch.manual_seed(0)
    whole = deployed_of(build_model(recipe(), MODALITIES, 3, "segmentation"))
    for norm in (m for m in whole.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 1.0, 3.0)
        torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    given = pieces.float_pieces(whole)
    held_out = replace(split(6, 9), labels=torch.zeros(6, SIZE, SIZE, dtype=torch.uint8))
    engine = TorchEngine(given, manifest_of(given, source, recipe()))
    asked: list[int] = []
    plain = reference.answers
    monkeypatch.setattr(parity, "_MOST_BYTES", 2 * 7 * 3 * SIZE * SIZE * 4)
    monkeypatch.setattr(
        reference, "answers", lambda m, batch, wanted: asked.append(len(batch)) or plain(m, batch, wanted)
    )
    report = parity.check(engine, given, held_out, pieces=engine)
    assert asked == [2, 2, 2]
    assert (report.bounds["max_steps"], report.bounds["label_agreement"]) == (4.0, 0.98)
    assert report.worst is not None and len(report.worst.pixel) == 2
    assert all(p.label_agreement == 1.0 and p.samples == 6 for p in report.subsets.values())


# Bounds.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_agreement": 0.98}, "label agreement 98.00%, at least 99% is needed"),
        ({"max_steps": 2.5}, "a logit is off by 2.5 output steps, allowed 2"),
        ({"p99_steps": 2.5}, "1 logit in 100 is off by more than 2.5 output steps, allowed 2"),
        ({"routing_flips": 0.06}, "other experts ran in 6.00% of the samples, allowed 2%"),
        ({"max_flip_margin_steps": 3.0}, "an expert was replaced that led by 3 router steps, allowed 2"),
    ],
)
def test_every_bound_refuses_by_itself(deployed: DeployedMars, change: dict[str, float], message: str) -> None:
    good = check(engine_of(deployed), deployed, split(100, 9))
    for value in (*change.values(), math.nan):
        bad = {"ir": replace(good.subsets["ir"], **dict.fromkeys(change, value))}
        with pytest.raises(ParityError) as caught:
            parity.require_parity(replace(good, subsets={"rgb": good.subsets["rgb"], **bad}))
        assert str(caught.value) == f"torch on ir: {message}" or math.isnan(value)


def test_of_few_samples_one_tie_that_broke_the_other_way_is_allowed_and_a_second_is_not(deployed: DeployedMars) -> None:
    good = check(engine_of(deployed), deployed, split(4, 9))
    for key, one, two in (("label_agreement", 0.75, 0.5), ("routing_flips", 0.25, 0.5)):
        parity.require_parity(replace(good, subsets={"ir": replace(good.subsets["ir"], **{key: one})}))
        with pytest.raises(ParityError):
            parity.require_parity(replace(good, subsets={"ir": replace(good.subsets["ir"], **{key: two})}))


def test_a_method_may_round_the_other_way_as_often_as_it_has_quantizers() -> None:
    assert [parity.off_allowed(n) for n in (0, 3, 200)] == [0.005, pytest.approx(0.02), 0.5]


def test_the_worst_of_several_bad_methods_is_named_a_nan_before_any_number(deployed: DeployedMars) -> None:
    good = check(engine_of(deployed), deployed, split(4, 9))
    assert parity.worst_methods(good) == (max(good.methods, key=lambda name: good.methods[name]),)

    def with_(**steps: float) -> parity.Parity:
        changed = {name: replace(good.method_parity[name], max_steps=value) for name, value in steps.items()}
        return replace(good, method_parity={**good.method_parity, **changed})

    for bad, name, value in (
        (with_(route=9.0, head=3.0), "route", "9"),
        (with_(route=9.0, head=math.nan), "head", "nan"),
    ):
        with pytest.raises(ParityError) as caught:
            parity.require_parity(bad)
        assert str(caught.value) == f"method {name} is off by {value} output steps, allowed 2"
        assert parity.worst_methods(bad)[0] == name and len(parity.worst_methods(bad)) == 2


def test_samples_that_training_validation_or_calibration_saw_are_refused() -> None:
    train, held_out = split(30, 0), split(30, 1)
    parity.require_disjoint(held_out, {"train": train})
    with pytest.raises(ParityError) as caught:
        parity.require_disjoint(train.take(torch.tensor([4, 7])), {"validation": held_out, "calibration": train})
    assert str(caught.value) == "2 of 2 parity samples are in the calibration split: take others"


def test_float_steps_are_shares_of_the_largest_value(deployed: DeployedMars) -> None:
    values = np.array([-2.0, 1.0], np.float32)
    assert reference.step(deployed, "head", 0, values, "fp32") == 2.0 * 5e-4
    assert reference.step(deployed, "head", 0, values, "fp16") == 2.0 * 2e-3
    # A float piece in an int8 artifact: alone it is as exact as float32, behind int8 pieces it is not.
    assert reference.step(deployed, "head", 0, values, "int8") == 2.0 * 5e-4
    assert reference.step(deployed, "head", 0, values, "int8", alone=False) == pytest.approx(3.0 / 255.0)
    assert reference.step(deployed, "head", 0, 0.0 * values, "fp32") > 0.0


def test_a_modality_alone_that_was_seen_in_training_is_refused_although_its_partners_are_new() -> None:
    held, seen = split(20, 9), split(40, 1)
    mixed = dict(held.inputs)
    mixed["depth"] = torch.cat([seen.inputs["depth"][:2], held.inputs["depth"][2:]])
    with pytest.raises(ParityError) as caught:
        parity.require_disjoint(replace(held, inputs=mixed), {"train": seen})
    assert str(caught.value) == "2 of 20 parity samples have a depth that is in the train split: take others"
    mixed["depth"] = torch.cat([seen.inputs["depth"][:1], held.inputs["depth"][1:]])
    parity.require_disjoint(replace(held, inputs=mixed), {"train": seen})
