"""The parity gate passes the model itself and refuses every sabotage, by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.errors import EngineError, ParityError
from mars_edge.gates import top_k_gates
from mars_export import bundle, parity, pieces
from mars_export.evaluate import Answers
from mars_runtime.engines import Inference
from mars_training.model.mars import DeployedMars
from tests.helpers.tiny_mars import NAMES, info, model, split

Arrays = Mapping[str, NDArray[np.float32]]


class TorchEngine:
    """An engine whose pieces are torch modules: what a faithful, or a sabotaged, artifact would answer."""

    name = "torch"

    def __init__(self, deployed: DeployedMars) -> None:
        self.deployed = deployed
        self.manifest = bundle._draft(bundle.Model(deployed=deployed, precision="fp32", info=info(), provenance={}))
        self.runner = self

    @torch.no_grad()
    def execute(self, method: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        outputs = pieces.pieces_of(self.deployed)[method](*(torch.from_numpy(x) for x in inputs))
        return [o.numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,))]

    def infer(self, samples: Arrays, features: Arrays) -> Inference:
        used = dict(features) | {n: self.execute(f"encode_{n}", [x[None]])[0] for n, x in samples.items()}
        zeros = {n: np.zeros((1, *shape), np.float32) for n, shape in self.manifest.feature_shapes.items()}
        z, router_logits = self.execute("route", [used.get(n, zeros[n]) for n in NAMES])
        (ids,), (weights,) = top_k_gates(router_logits, self.deployed.active_experts)
        combined = sum(w * self.execute(f"expert_{i}", [z])[0] for i, w in zip(ids, weights, strict=True))
        (logits,) = self.execute("head", [combined])
        if np.isnan(logits).any():
            raise EngineError("logits holds NaN; every value must be finite")
        chosen = tuple((int(i), float(w)) for i, w in zip(ids, weights, strict=True))
        return Inference(logits=logits[0], experts=chosen, features=used, latency_ms={})

    def close(self) -> None: ...


class GraphEngine(TorchEngine):
    """The same without methods that can be called alone, as a .onnx is."""

    def __init__(self, deployed: DeployedMars) -> None:
        super().__init__(deployed)
        del self.runner


@pytest.fixture(scope="module")
def deployed() -> DeployedMars:
    return pieces.float_pieces(model().deployed)


def sabotaged(deployed: DeployedMars) -> DeployedMars:
    return copy.deepcopy(deployed)


def test_a_faithful_engine_passes_and_every_subset_is_reported(deployed: DeployedMars) -> None:
    report = parity.check(TorchEngine(deployed), deployed, split(40, 9))
    assert set(report.subsets) == {subsets.label(s, NAMES) for s in subsets.all_subsets(NAMES)}
    assert set(report.methods) == set(pieces.pieces_of(deployed))
    assert report.samples == 40
    assert sum(report.experts_chosen) == 40 * 7 * 2
    assert all(p.label_agreement == 1.0 and p.max_steps < 0.1 for p in report.subsets.values())


def test_swapped_experts_are_refused_by_name(deployed: DeployedMars) -> None:
    wrong = sabotaged(deployed)
    wrong.experts[0], wrong.experts[1] = wrong.experts[1], wrong.experts[0]
    with pytest.raises(ParityError, match=r"^method expert_[01] is off by [\d.e+]+ output steps, allowed 2$"):
        parity.check(TorchEngine(wrong), deployed, split(20, 9))


def test_swapped_experts_are_refused_in_a_graph_without_methods(deployed: DeployedMars) -> None:
    wrong = sabotaged(deployed)
    wrong.experts[0], wrong.experts[1] = wrong.experts[1], wrong.experts[0]
    with pytest.raises(ParityError, match=r"^torch on \S+: (label agreement|a logit is off by) "):
        parity.check(GraphEngine(wrong), deployed, split(60, 9))


@pytest.mark.parametrize("method", ["encode_depth", "route", "expert_3", "head"])
def test_a_wrong_scale_is_refused_with_its_method(deployed: DeployedMars, method: str) -> None:
    wrong = sabotaged(deployed)
    with torch.no_grad():
        for parameter in pieces.pieces_of(wrong)[method].parameters():
            parameter.mul_(1.1)
    with pytest.raises(ParityError, match=rf"^method {method} is off by [\d.]+ output steps, allowed 2$"):
        parity.check(TorchEngine(wrong), deployed, split(20, 9))


def test_a_nan_weight_in_the_artifact_is_refused(deployed: DeployedMars) -> None:
    wrong = sabotaged(deployed)
    with torch.no_grad():
        next(pieces.pieces_of(wrong)["expert_2"].parameters()).flatten()[0] = math.nan
    # By its method where no sample chose the expert, else by the engine's own refusal.
    with pytest.raises(
        ParityError, match=r"^(method expert_2 is off by nan output steps, allowed 2|torch: logits hold)"
    ):
        parity.check(TorchEngine(wrong), deployed, split(20, 9))
    never_chosen = parity.method_differences(TorchEngine(wrong), deployed, split(2, 9))
    assert math.isnan(never_chosen["expert_2"])


def test_a_nan_weight_in_the_model_itself_is_refused(deployed: DeployedMars) -> None:
    wrong = sabotaged(deployed)
    with torch.no_grad():
        next(wrong.head.parameters()).flatten()[0] = math.nan
    with pytest.raises(ParityError) as caught:
        parity.check(TorchEngine(wrong), wrong, split(20, 9))
    assert str(caught.value) == "the model itself gives NaN or infinity for rgb"


def row(*values: float) -> NDArray[np.float32]:
    return np.array([values], np.float32)


def compare(given: NDArray[np.float32], wanted: NDArray[np.float32], chosen: Sequence[int]) -> parity.SubsetParity:
    reference = parity.Reference(
        logits=wanted, router_logits=row(3.0, 2.0, 1.9, 0.0), experts=np.array([[0, 1]], np.int64)
    )
    answers = Answers(logits=given, experts=np.array([chosen], np.int64))
    return parity.compare_subset(answers, reference, logit_step=0.5, router_step=0.1)


def test_logits_are_compared_in_output_steps() -> None:
    report = compare(row(1.0, 0.0), row(0.0, 0.5), [1, 0])
    assert (report.max_steps, report.over_one_step, report.routing_flips) == (2.0, 1.0, 0.0)
    assert report.label_agreement == 0.0


def test_another_order_of_the_same_experts_is_no_flip_and_a_flip_is_counted_with_its_margin() -> None:
    assert compare(row(0.0, 1.0), row(0.0, 1.0), [1, 0]).routing_flips == 0.0
    flip = compare(row(0.0, 4.0), row(0.0, 1.0), [0, 2])
    assert flip.routing_flips == 1.0
    assert flip.max_flip_margin_steps == pytest.approx(1.0, rel=1e-4)
    assert (flip.max_steps, flip.max_steps_flipped) == (0.0, 6.0)


def test_nan_and_nothing_never_pass() -> None:
    with_nan = compare(row(math.nan, 0.0), row(0.0, 0.0), [0, 1])
    assert math.isnan(with_nan.max_steps)
    report = parity.Parity(engine="e", samples=1, subsets={"rgb": with_nan}, methods={}, experts_chosen=())
    with pytest.raises(ParityError) as caught:
        parity.require_parity(report)
    assert str(caught.value) == "e on rgb: a logit is off by nan output steps, allowed 2"
    for empty in (replace(report, subsets={}), replace(report, samples=0)):
        with pytest.raises(ParityError, match=r"^parity compared nothing: an empty check proves nothing$"):
            parity.require_parity(empty)
    nothing = np.zeros((0, 2), np.float32)
    with pytest.raises(ParityError, match=r"^cannot compare logits of shapes \(0, 2\) and \(0, 2\)$"):
        compare(nothing, nothing, [0, 1])


GOOD = parity.SubsetParity(
    label_agreement=1.0,
    max_steps=1.0,
    over_one_step=0.0,
    routing_flips=0.0,
    max_steps_flipped=0.0,
    max_flip_margin_steps=0.0,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_agreement": 0.98}, "label agreement 98.00%, at least 99% is needed"),
        ({"max_steps": 2.5}, "a logit is off by 2.5 output steps, allowed 2"),
        ({"routing_flips": 0.06}, "other experts ran in 6.00% of the samples, allowed 5%"),
        ({"max_flip_margin_steps": 3.0}, "an expert was replaced that led by 3 router steps, allowed 2"),
    ],
)
def test_every_bound_refuses_by_itself(change: dict[str, float], message: str) -> None:
    report = parity.Parity(
        engine="e", samples=9, subsets={"ir": replace(GOOD, **change)}, methods={"head": 1.0}, experts_chosen=()
    )
    with pytest.raises(ParityError) as caught:
        parity.require_parity(report)
    assert str(caught.value) == f"e on ir: {message}"
    parity.require_parity(replace(report, subsets={"ir": GOOD}))


def test_samples_that_training_or_calibration_saw_are_refused() -> None:
    train, held_out = split(30, 0), split(30, 1)
    parity.require_disjoint(held_out, {"train": train})
    with pytest.raises(ParityError) as caught:
        parity.require_disjoint(train.take(torch.tensor([4, 7])), {"train": train})
    assert str(caught.value) == "2 of 2 parity samples are in the train split: take others"
