"""The fusion shared out to the encoders: the same answers, and no part of it for what is missing."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from mars_edge import subsets
from mars_export.fusion_share import SummedFusion, share_fusion
from mars_export.pieces import fold_batch_norms
from mars_training.costs import costs
from mars_training.methods import build_model
from mars_training.model.mars import DeployedMars
from tests.helpers.tiny_mars import LABELS, MODALITIES, NAMES, model, recipe, split


def folded() -> DeployedMars:
    deployed = copy.deepcopy(model().deployed)
    fold_batch_norms(deployed)
    return deployed


@pytest.mark.parametrize("subset", subsets.all_subsets(NAMES), ids="+".join)
def test_a_model_with_a_shared_fusion_answers_as_before_with_every_subset(subset: tuple[str, ...]) -> None:
    before, after = folded(), folded()
    assert share_fusion(after)
    samples = split(8, 1)
    present = torch.from_numpy(subsets.mask(subset, NAMES)).expand(8, -1)
    inputs = samples.batch(torch.arange(8))
    with torch.no_grad():
        torch.testing.assert_close(after(inputs, present), before(inputs, present), rtol=1e-4, atol=1e-5)


def test_a_missing_modality_costs_no_part_of_the_fusion_and_all_of_them_cost_what_they_did() -> None:
    before, after = folded(), folded()
    share_fusion(after)
    old, new = costs(before, MODALITIES), costs(after, MODALITIES)
    assert new.macs(NAMES) == old.macs(NAMES)
    fusion = old.pieces["route"].macs - new.pieces["route"].macs
    assert fusion > 0
    for name in NAMES:
        assert new.macs((name,)) == old.macs((name,)) - fusion * 2 // 3


def test_the_offset_is_added_once_whatever_is_missing() -> None:
    fusion = SummedFusion(torch.tensor([1.0, -2.0]))
    shares = [torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), 0.5), torch.zeros(1, 2, 3, 3)]
    z = fusion(shares)
    assert z[:, 0].unique().tolist() == [1.5] and z[:, 1].unique().tolist() == [0.0]


@pytest.mark.parametrize("changes", [{"fusion_kind": "resnet_stage"}, {"fusion_kernel": 1}], ids=str)
def test_a_fusion_of_several_layers_or_of_single_pixels_stays_whole(changes: dict[str, Any]) -> None:
    deep = dataclasses.replace(recipe(), model=dataclasses.replace(recipe().model, **changes))
    deployed = build_model(deep, MODALITIES, len(LABELS)).deployed
    fold_batch_norms(deployed)
    before = [name for name, _ in deployed.named_modules()]
    assert not share_fusion(deployed)
    assert [name for name, _ in deployed.named_modules()] == before
