"""Diagnostics are those of plain loops over what the routers say, and of the history as it was written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from mars_edge import subsets
from mars_edge.modality import Modality
from mars_training.data.split import Split
from mars_training.diagnostics import (
    NO_ORDER,
    effective_number,
    expert_usage,
    loss_terms,
    measure_agreement,
    measure_routing,
    plateaus,
    sampling_history,
    validation_curves,
)
from mars_training.methods import build_model
from mars_training.model.mars import TrainingMars
from mars_training.recipe import DataRecipe, EncoderRecipe, ModelRecipe, Recipe

NAMES = ("rgb", "depth", "ir")
MODALITIES = tuple(Modality(name=n, kind="image", size=(8, 8), dtype="uint8", range=(0, 255)) for n in NAMES)
SMALL = EncoderRecipe(channels=(4,), strides=(2,))
EXPERTS, ACTIVE = 5, 2


def model_of(method: str = "mars") -> torch.nn.Module:
    recipe = Recipe(
        name="toy",
        data=DataRecipe(reader="rig"),
        method=method,  # type: ignore[arg-type]
        model=ModelRecipe(
            encoders=dict.fromkeys(NAMES, SMALL),
            experts=EXPERTS,
            active_experts=ACTIVE,
            width=8,
            expert_channels=(8,),
        ),
    )
    torch.manual_seed(0)
    return build_model(recipe, MODALITIES, 2)


def split_of(n: int = 30, present: torch.Tensor | None = None) -> Split:
    torch.manual_seed(1)
    return Split(
        inputs={name: torch.rand(n, 1, 8, 8) for name in NAMES},
        labels=torch.arange(n) % 2,
        groups=torch.zeros(n, dtype=torch.long),
        group_names=("x",),
        present=present,
    )


@pytest.fixture
def mars() -> TrainingMars:
    model = model_of()
    assert isinstance(model, TrainingMars)
    return model


def test_the_heat_map_is_the_mean_of_the_deployed_gates_row_by_row(mars: TrainingMars) -> None:
    split = split_of()
    found = measure_routing(mars, split)
    assert found is not None
    assert found.subsets == [subsets.label(s, NAMES) for s in subsets.all_subsets(NAMES)]
    for row, subset in enumerate(subsets.all_subsets(NAMES)):
        total, chosen = np.zeros(EXPERTS), np.zeros(EXPERTS)
        mask = torch.from_numpy(subsets.mask(subset, NAMES)).expand(30, -1)
        with torch.no_grad():
            _, logits = mars.deployed.route(mars.deployed.encode_all(split.batch(torch.arange(30))), mask)
        for row_logits in logits:
            best = row_logits.topk(ACTIVE)
            total[best.indices.numpy()] += best.values.softmax(0).numpy()
            chosen[best.indices.numpy()] += 1
        np.testing.assert_allclose(found.mean_gate[row], total / 30, atol=1e-5)
        np.testing.assert_allclose(found.selected[row], chosen / 30, atol=1e-9)
    np.testing.assert_allclose(np.sum(found.mean_gate, axis=1), 1.0)
    np.testing.assert_allclose(np.sum(found.selected, axis=1), ACTIVE)


def test_routing_is_read_on_rows_that_have_the_subset_and_knows_what_is_always_there(mars: TrainingMars) -> None:
    present = torch.ones(30, 3, dtype=torch.bool)
    present[10:, 2] = False
    present[:10, 1] = False
    found = measure_routing(mars, split_of(present=present), always_present=("rgb",))
    assert found is not None
    assert dict(zip(found.subsets, found.rows, strict=True)) == {"rgb": 30, "rgb+depth": 20, "rgb+ir": 10}


def test_usage_adds_up_and_tells_idle_experts(mars: TrainingMars) -> None:
    routing = measure_routing(mars, split_of())
    assert routing is not None
    usage = expert_usage(routing)
    assert sum(usage.gate) == pytest.approx(1.0) and sum(usage.load) == pytest.approx(1.0)
    assert 1.0 <= usage.effective_by_gate <= EXPERTS and 1.0 <= usage.effective_by_load <= EXPERTS
    never = [j for j in range(EXPERTS) if all(row[j] == 0 for row in routing.selected)]
    assert usage.idle == never


def test_the_effective_number_is_one_for_one_expert_and_n_for_equal_ones() -> None:
    assert effective_number(np.array([0.0, 1.0, 0.0])) == pytest.approx(1.0)
    assert effective_number(np.full(7, 1 / 7)) == pytest.approx(7.0)
    assert effective_number(np.array([0.5, 0.5, 0.0])) == pytest.approx(2.0)


def test_agreement_is_the_share_of_experts_that_both_routers_name(mars: TrainingMars) -> None:
    split = split_of()
    found = measure_agreement(mars, split)
    assert found is not None
    assert list(found.by_combination) == ["rgb", "depth", "ir", "rgb+depth", "rgb+ir", "depth+ir"]
    assert found.chance == ACTIVE / EXPERTS
    mars.eval()
    for subset in subsets.all_subsets(NAMES)[:-1]:
        total = 0.0
        mask = torch.from_numpy(subsets.mask(subset, NAMES)).expand(30, -1)
        with torch.no_grad():
            passes = mars(split.batch(torch.arange(30)), mask)
        for teacher, student in zip(passes.residual.clean, passes.student, strict=True):
            total += (
                len(set(teacher.topk(ACTIVE).indices.tolist()) & set(student.topk(ACTIVE).indices.tolist())) / ACTIVE
            )
        assert found.by_combination[subsets.label(subset, NAMES)] == pytest.approx(total / 30)


def test_agreement_needs_complete_rows(mars: TrainingMars) -> None:
    assert measure_agreement(mars, split_of(present=torch.tensor([[True, True, False]] * 30))) is None


def test_a_method_without_routers_has_neither_routing_nor_agreement() -> None:
    model = model_of("modality_dropout")
    assert measure_routing(model, split_of()) is None
    assert measure_agreement(model, split_of()) is None


def epoch(
    number: int, errors: dict[str, float], sampling: dict[str, tuple[float, float]], noise: float
) -> dict[str, Any]:
    scores = [{"subset": s, "metric": "accuracy", "value": 1 - e, "low": 0.0, "high": 1.0} for s, e in errors.items()]
    return {"epoch": number, "terms": {"loss": 2.0, "noise": noise}, "scores": scores, "sampling": sampling}


HISTORY = [
    epoch(0, {"a": 0.5, "a+b": 0.25}, {"a": (0.4, 0.5), "b": (0.2, 0.5)}, 0.8),
    epoch(1, {}, {"a": (0.3, 0.6), "b": (0.1, 0.4)}, 0.7),
    epoch(2, {"a": 0.3}, {"a": (0.2, 0.7), "b": (0.0, 0.3)}, 0.65),
]


def test_curves_are_of_the_validated_epochs_and_their_mean_is_over_what_was_measured() -> None:
    curves = validation_curves(HISTORY)
    assert curves.epochs == [1, 3]
    assert curves.subsets["a"] == pytest.approx([0.5, 0.3])
    assert curves.subsets["a+b"] == [0.25, None]
    assert curves.mean == pytest.approx([0.375, 0.3])


def test_the_error_of_an_acer_is_the_acer() -> None:
    report = epoch(0, {}, {}, 0.0)
    report["scores"] = [{"subset": "a", "metric": "acer", "value": 0.1}]
    assert validation_curves([report]).mean == [0.1]


def test_sampling_is_one_row_per_epoch_and_nothing_where_no_router_disagrees() -> None:
    found = sampling_history(HISTORY)
    assert found is not None
    assert found.combinations == ["a", "b"]
    assert found.discrepancy == [[0.4, 0.2], [0.3, 0.1], [0.2, 0.0]]
    assert found.probability == [[0.5, 0.5], [0.6, 0.4], [0.7, 0.3]]
    assert sampling_history([epoch(0, {}, {"a": (0.0, 0.5), "b": (0.0, 0.5)}, 0.0)]) is None


def test_plateaus_stand_beside_the_last_value_of_losses_that_were_on() -> None:
    terms = loss_terms(HISTORY)
    assert terms == {"loss": [2.0, 2.0, 2.0], "noise": [0.8, 0.7, 0.65]}
    assert plateaus(terms) == {"noise": {"last": 0.65, "paper_casia_surf": 0.72, "no_order": NO_ORDER}}
    assert math.log(2) == NO_ORDER
    assert plateaus({"loss": [1.0], "noise": [0.0]}) == {}
