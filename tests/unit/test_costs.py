"""Parameters, multiply-accumulates and memory, against networks small enough to count by hand."""

from __future__ import annotations

import dataclasses
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_edge.subsets import all_subsets
from mars_training.costs import costs, training_memory
from mars_training.methods import METHODS, build_model, deployed_of
from mars_training.model.build import build_deployed, build_training_mars, parameter_count
from mars_training.model.mars import DeployedMars
from mars_training.recipe import DataRecipe, EncoderRecipe, Method, ModelRecipe, Recipe, ScheduleRecipe

RGB = Modality(name="rgb", kind="image", channels=3, size=(8, 8), dtype="uint8", range=(0, 255))
IR = Modality(name="ir", kind="image", channels=1, size=(8, 8), dtype="uint8", range=(0, 255))
WORDS = Modality(name="words", kind="text", length=7, vocabulary=20)
ENCODER = EncoderRecipe(channels=(4, 6), strides=(2, 1))
RECIPE = ModelRecipe(
    encoders={"rgb": ENCODER, "ir": ENCODER}, experts=4, active_experts=2, width=8, expert_channels=(10,)
)

# Kernel positions x inputs x outputs x pixels, layer by layer.
ENCODE_RGB = 9 * 3 * 4 * 16 + 9 * 4 * 6 * 16
ENCODE_IR = 9 * 1 * 4 * 16 + 9 * 4 * 6 * 16
ROUTE = 9 * 12 * 8 * 4 + 8 * 8 + 8 * 4
EXPERT = 9 * 8 * 10 * 1
HEAD = 10 * 3


def small(recipe: ModelRecipe = RECIPE) -> DeployedMars:
    torch.manual_seed(0)
    return build_deployed(recipe, (RGB, IR), 3)


def test_macs_of_a_small_network_are_those_counted_by_hand() -> None:
    found = costs(small(), (RGB, IR))
    assert {name: cost.macs for name, cost in found.pieces.items()} == {
        "encode_rgb": ENCODE_RGB,
        "encode_ir": ENCODE_IR,
        "route": ROUTE,
        **{f"expert_{i}": EXPERT for i in range(4)},
        "head": HEAD,
    }


def test_an_absent_encoder_and_an_expert_not_chosen_cost_nothing() -> None:
    found = costs(small(), (RGB, IR))
    assert found.macs(["ir"]) == ENCODE_IR + ROUTE + 2 * EXPERT + HEAD
    assert found.macs(["rgb", "ir"]) == ENCODE_RGB + ENCODE_IR + ROUTE + 2 * EXPERT + HEAD
    assert found.macs(["rgb", "ir"], sparse=False) == ENCODE_RGB + ENCODE_IR + ROUTE + 4 * EXPERT + HEAD


def test_a_shared_expert_is_counted_once_whatever_is_chosen() -> None:
    plain = costs(small(), (RGB, IR))
    shared = costs(small(dataclasses.replace(RECIPE, shared_expert=True)), (RGB, IR))
    for sparse in (True, False):
        assert shared.macs(["rgb"], sparse=sparse) == plain.macs(["rgb"], sparse=sparse) + EXPERT
    assert len(shared.experts) == 4


def test_the_pieces_have_all_the_parameters() -> None:
    for shared in (True, False):
        model = small(dataclasses.replace(RECIPE, shared_expert=shared))
        assert costs(model, (RGB, IR)).parameters == parameter_count(model)


def test_depthwise_convolutions_cost_one_input_per_output() -> None:
    encoder = EncoderRecipe(kind="mobile", channels=(4, 6), strides=(2, 2), expansion=3)
    found = costs(build_deployed(ModelRecipe(encoders={"ir": encoder}, width=8), (IR,), 3), (IR,))
    assert found.pieces["encode_ir"].macs == 9 * 4 * 16 + 4 * 12 * 16 + 9 * 12 * 4 + 12 * 6 * 4


def test_an_lstm_costs_its_four_gates_at_every_word() -> None:
    encoder = EncoderRecipe(kind="text_lstm", embedding=5, channels=(6, 6), strides=(1, 1))
    found = costs(build_deployed(ModelRecipe(encoders={"words": encoder}, width=8), (WORDS,), 3), (WORDS,))
    assert found.pieces["encode_words"].macs == 7 * 4 * 6 * (5 + 6) + 7 * 4 * 6 * (6 + 6)
    assert found.pieces["encode_words"].parameters == 2 * 20 * 5 + 24 * (5 + 6 + 2) + 24 * (6 + 6 + 2)


def test_measuring_changes_nothing() -> None:
    model = build_training_mars(RECIPE, (RGB, IR), 3).train()
    model.deployed.head.eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = {name: m.training for name, m in model.named_modules()}
    costs(model.deployed, (RGB, IR))
    training_memory(model, (RGB, IR), ScheduleRecipe())
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert all(torch.equal(t, before[name]) and not t.is_meta for name, t in model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_costs_and_a_memory_without_a_single_weight(method: str) -> None:
    recipe = Recipe(name="tiny", data=DataRecipe(reader="rig"), method=cast(Method, method), model=RECIPE)
    with torch.device("meta"):
        model = build_model(recipe, (RGB, IR), 3)
    found = costs(deployed_of(model), (RGB, IR))
    assert found.parameters == parameter_count(deployed_of(model))
    smaller, larger = found.macs(["ir"]), found.macs(["rgb", "ir"])
    assert larger - smaller == ENCODE_RGB and smaller > ENCODE_IR
    assert training_memory(model, (RGB, IR), recipe.schedule).activations > 0


def test_a_model_without_experts_costs_the_same_sparse_and_dense() -> None:
    recipe = Recipe(name="tiny", data=DataRecipe(reader="rig"), method="modality_dropout", model=RECIPE)
    found = costs(deployed_of(build_model(recipe, (RGB, IR), 3)), (RGB, IR))
    assert found.experts == () and list(found.pieces) == ["encode_rgb", "encode_ir", "classify"]
    for subset in all_subsets(("rgb", "ir")):
        assert found.macs(subset) == found.macs(subset, sparse=False)


def test_the_activations_are_what_autograd_keeps_in_a_real_step() -> None:
    model = build_training_mars(RECIPE, (RGB, IR), 3)
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        passes = model.train()({"rgb": torch.rand(16, 3, 8, 8), "ir": torch.rand(16, 1, 8, 8)}, torch.rand(16, 2) > 0.5)
        loss = nn.functional.cross_entropy(torch.cat([passes.full, passes.partial]), torch.zeros(32).long())
    real = sum(s.nbytes() for s in kept.values())
    found = training_memory(model, (RGB, IR), ScheduleRecipe(batch_size=16)).activations
    assert bool(torch.isfinite(loss)) and found == pytest.approx(real, rel=0.05)


def test_the_optimiser_state_is_two_numbers_per_parameter_for_adamw_and_one_for_momentum() -> None:
    model = build_training_mars(RECIPE, (RGB, IR), 3)
    size = 4 * parameter_count(model)
    schedules = (ScheduleRecipe(), ScheduleRecipe(optimiser="sgd"), ScheduleRecipe(optimiser="sgd", momentum=0.0))
    states = [training_memory(model, (RGB, IR), schedule) for schedule in schedules]
    assert [m.optimiser for m in states] == [2 * size, size, 0]
    assert all(m.gradients == size and m.weights > size for m in states)
    assert states[0].total == sum(dataclasses.asdict(states[0]).values())


def test_activations_grow_with_the_batch_and_shrink_with_the_crop() -> None:
    model = build_training_mars(RECIPE, (RGB, IR), 3)
    one, two = (training_memory(model, (RGB, IR), ScheduleRecipe(batch_size=b)).activations for b in (8, 16))
    assert one < two < 2.1 * one
    assert training_memory(model, (RGB, IR), ScheduleRecipe(batch_size=8), crop_px=4).activations < one


def test_a_segmentation_that_cannot_meet_the_images_is_refused() -> None:
    recipe = dataclasses.replace(RECIPE, encoders={"ir": EncoderRecipe(channels=(4, 6), strides=(2, 2))})
    odd = dataclasses.replace(IR, size=(16, 20))
    with pytest.raises(UsageError) as error:
        costs(build_deployed(recipe, (odd,), 3, "segmentation"), (odd,), "segmentation")
    assert str(error.value) == (
        "the logits are 16 x 32 and the images 16 x 20 pixels; "
        "segmentation needs images whose sides the total stride divides"
    )
