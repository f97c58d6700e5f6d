"""Every encoder, expert and head: shapes, gradients, export, folding; what padding may not change."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_export.quantize import fold_batch_norms
from mars_training.methods.modality_dropout import build_dropout_fusion
from mars_training.model.backbones import KINDS, encoder, feature_channels, feature_stride, kinds_for
from mars_training.model.blocks import SqueezeExcite
from mars_training.model.build import build_deployed, build_expert, build_full_expert, build_head, parameter_count
from mars_training.model.encoders.inception import trunk as inception_trunk
from mars_training.model.encoders.projection import ProjectionEncoder
from mars_training.model.heads import SegmentationHead
from mars_training.recipe import EncoderRecipe, ModelRecipe

IMAGE = Modality(name="rgb", kind="image", channels=3, size=(37, 53), dtype="uint8", range=(0, 255))
LARGE = dataclasses.replace(IMAGE, size=(75, 83))
AUDIO = Modality(name="audio", kind="audio", rate_hz=8000, window_s=0.7, mel_bands=33)
SEQUENCE = Modality(name="imu", kind="sequence", channels=6, length=41)
VECTOR = Modality(name="sensors", kind="vector", length=13)
TEXT = Modality(name="words", kind="text", length=9, vocabulary=50)

STAGES: dict[str, Any] = {"channels": (4, 8), "strides": (1, 2), "depths": (1, 2)}
DEEP: dict[str, Any] = {"channels": (2, 3, 4, 5), "strides": (1, 2, 2, 1), "depths": (1, 1, 1, 2), "aspp": 6, "low": 3}
BLOCKS: dict[str, Any] = {"channels": (4, 6, 6, 8), "strides": (2, 2, 1, 2)}
CASES: dict[str, tuple[Modality, EncoderRecipe, tuple[int, int]]] = {
    "conv": (IMAGE, EncoderRecipe(channels=(4, 6), strides=(2, 2)), (10, 14)),
    "projection": (IMAGE, EncoderRecipe(kind="projection", channels=(4,), strides=(1,)), (1, 1)),
    "resnet": (AUDIO, EncoderRecipe(kind="resnet", **STAGES), (5, 6)),
    "resnet_se": (IMAGE, EncoderRecipe(kind="resnet_se", **STAGES), (5, 7)),
    "inception": (LARGE, EncoderRecipe(kind="inception"), (1, 1)),
    "deeplab": (IMAGE, EncoderRecipe(kind="deeplab", **DEEP), (10, 14)),
    "mobile": (IMAGE, EncoderRecipe(kind="mobile", **BLOCKS), (5, 7)),
    "mobile_seg": (IMAGE, EncoderRecipe(kind="mobile_seg", aspp=6, low=3, **BLOCKS), (10, 14)),
    "sequence": (SEQUENCE, EncoderRecipe(kind="sequence", channels=(4, 6), strides=(2, 2)), (1, 11)),
    "vector": (VECTOR, EncoderRecipe(kind="vector", channels=(4, 6), strides=(1, 1)), (1, 1)),
    "text_lstm": (TEXT, EncoderRecipe(kind="text_lstm", embedding=5, channels=(6,), strides=(1,)), (1, 1)),
    "text_mean": (TEXT, EncoderRecipe(kind="text_mean", embedding=5, channels=(6,), strides=(1,)), (1, 1)),
}
EDGE = ("conv", "mobile", "mobile_seg", "sequence", "vector", "text_mean")


def sample(modality: Modality, batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if modality.kind != "text":
        return torch.rand(batch, *modality.shape, generator=generator)
    assert modality.vocabulary is not None
    ids = torch.randint(1, modality.vocabulary, (batch, *modality.shape), generator=generator).float()
    lengths = 1 + torch.arange(batch) % modality.shape[1]
    return ids * (torch.arange(modality.shape[1]) < lengths[:, None, None])


def built(kind: str, **changes: Any) -> tuple[nn.Module, Modality, EncoderRecipe]:
    modality, recipe, _ = CASES[kind]
    recipe = dataclasses.replace(recipe, **changes)
    torch.manual_seed(0)
    module = encoder(modality, recipe)
    if isinstance(module, ProjectionEncoder):
        module.fit(sample(modality, 8, seed=9))
    return module, modality, recipe


def settled(kind: str) -> tuple[nn.Module, Modality]:
    """An encoder whose batch norms have statistics and scales of their own, in evaluation mode."""
    module, modality, _ = built(kind)
    with torch.no_grad():
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        for _ in range(3):
            module.train()(sample(modality, 4))
    return module.eval(), modality


def test_there_is_a_case_for_every_kind() -> None:
    assert set(CASES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_gives_a_map_of_the_channels_it_announces(kind: str) -> None:
    module, modality, recipe = built(kind)
    feature = module(sample(modality, 2))
    assert tuple(feature.shape) == (2, feature_channels(recipe), *CASES[kind][2])
    assert feature.dtype == torch.float32 and bool(torch.isfinite(feature).all())


@pytest.mark.parametrize("kind", [k for k in KINDS if CASES[k][2] != (1, 1) and CASES[k][0].kind == "image"])
def test_the_announced_stride_is_that_of_the_map(kind: str) -> None:
    recipe, stride = CASES[kind][1], feature_stride(CASES[kind][1])
    modality = dataclasses.replace(IMAGE, size=(4 * stride, 6 * stride))
    assert tuple(encoder(modality, recipe).eval()(sample(modality, 1)).shape[2:]) == (4, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_reaches_every_parameter_of_an_encoder(kind: str) -> None:
    module, modality, _ = built(kind)
    feature = module.train()(sample(modality, 4))
    weights = torch.randn(feature.shape, generator=torch.Generator().manual_seed(1))
    (feature * weights).sum().backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert silent == []


@pytest.mark.parametrize("kind", EDGE)
def test_an_edge_encoder_exports_with_a_dynamic_batch(kind: str) -> None:
    module, modality = settled(kind)
    x = sample(modality, 3)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    for batch in (1, 5):
        again = sample(modality, batch, seed=1)
        torch.testing.assert_close(program.module()(again), module(again), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "text_lstm"])
def test_folding_batch_norms_leaves_no_batch_norm_and_the_same_answer(kind: str) -> None:
    module, modality = settled(kind)
    # In float32 94 layers of rounding would hide a small mistake.
    folded = copy.deepcopy(module.double())
    fold_batch_norms(folded)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = sample(modality, 2, seed=1).double()
    torch.testing.assert_close(folded(x), module(x))


@pytest.mark.parametrize("kind", ["mobile", "resnet", "mobile_seg"])
def test_pool_is_the_mean_over_the_map(kind: str) -> None:
    whole, modality, _ = built(kind)
    pooled, _, _ = built(kind, pool=True)
    x = sample(modality, 2)
    torch.testing.assert_close(pooled.eval()(x), whole.eval()(x).mean((2, 3), keepdim=True))


@pytest.mark.parametrize("kind", ["text_lstm", "text_mean"])
@pytest.mark.parametrize("reading", ["last", "mean"])
def test_padding_cannot_change_a_text_feature(kind: str, reading: str) -> None:
    module, _, _ = built(kind, reading=reading)
    x = sample(TEXT, 7)
    longer = torch.cat([x, torch.zeros(7, 2, 30)], dim=2)
    torch.testing.assert_close(module.eval()(longer), module(x), atol=1e-6, rtol=1e-5)


def test_the_lstm_reads_only_the_real_words() -> None:
    for reading in ("last", "mean"):
        module, _, _ = built("text_lstm", reading=reading)
        for count in (1, 4, 9):
            x = sample(TEXT, 1)[:1].clone()
            x = torch.randint(1, 50, (1, 2, 9)).float() * (torch.arange(9) < count)
            states, _ = module.lstm(module.embedding(x[:, :, :count]))  # type: ignore[operator]
            expected = states[0, -1] if reading == "last" else states[0].mean(0)
            torch.testing.assert_close(module(x)[0, :, 0, 0], expected)


def test_a_text_without_words_is_all_zeros_to_the_lstm() -> None:
    module, _, _ = built("text_lstm")
    assert not module(torch.zeros(2, 2, 9)).any()


def test_word_order_reaches_the_lstm_and_its_pairs() -> None:
    module, _, _ = built("text_lstm")
    x = torch.tensor([[[3.0, 7.0, 0.0], [9.0, 0.0, 0.0]]])
    assert not torch.allclose(module(x), module(x[:, :, [1, 0, 2]]))
    other_pair = x.clone()
    other_pair[0, 1, 0] = 8.0
    assert not torch.allclose(module(x), module(other_pair))


def test_squeeze_and_excitation_scales_whole_channels() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 8, 3, 5) + 0.1
    factors = SqueezeExcite(8, 4)(x) / x
    assert torch.allclose(factors, factors[:, :, :1, :1].expand_as(factors), atol=1e-5)
    assert bool((factors > 0).all()) and bool((factors < 1).all())


def test_the_inception_trunk_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert parameter_count(inception_trunk(3)) + 2048 * 1000 + 1000 == 23_834_568


def test_resnets_have_the_published_number_of_parameters() -> None:
    whole = EncoderRecipe(
        kind="resnet", channels=(64, 128, 256, 512), strides=(1, 2, 2, 2), depths=(2, 2, 2, 2), pool=True
    )
    with torch.device("meta"):
        for depths, published in (((2, 2, 2, 2), 11_689_512), ((3, 4, 6, 3), 21_797_672)):
            module = encoder(IMAGE, dataclasses.replace(whole, depths=depths))
            assert parameter_count(module) + 512 * 1000 + 1000 == published


@pytest.mark.parametrize(
    ("modality", "recipe", "message"),
    [
        (IMAGE, EncoderRecipe(kind="vit"), f"unknown encoder kind 'vit'; allowed: {', '.join(KINDS)}"),
        (
            TEXT,
            EncoderRecipe(),
            "encoder kind 'conv' does not read text, which modality 'words' is; "
            "set model.encoders.words.kind to one of: text_lstm, text_mean",
        ),
        (
            IMAGE,
            EncoderRecipe(kind="resnet"),
            "encoder kind 'resnet' needs depths: blocks per stage, such as [2, 2]",
        ),
        (
            IMAGE,
            EncoderRecipe(kind="inception"),
            "encoder kind 'inception' needs images of at least 75 x 75 pixels, modality 'rgb' has 37 x 53",
        ),
        (
            IMAGE,
            EncoderRecipe(kind="deeplab", channels=(4, 4), strides=(1, 2), depths=(1, 1)),
            "encoder kind 'deeplab' has strides [1, 2]; they must be [1, 2, 2, 1]",
        ),
        (
            IMAGE,
            EncoderRecipe(kind="mobile_seg", channels=(4, 4), strides=(2, 2)),
            "encoder kind 'mobile_seg' has strides [2, 2]; their running product must reach 4 and go beyond it",
        ),
    ],
)
def test_an_encoder_that_cannot_be_is_refused_in_one_line(
    modality: Modality, recipe: EncoderRecipe, message: str
) -> None:
    with pytest.raises(UsageError) as error:
        encoder(modality, recipe)
    assert str(error.value) == message


def test_every_kind_of_modality_has_an_encoder() -> None:
    for modality in (IMAGE, AUDIO, SEQUENCE, VECTOR, TEXT):
        assert kinds_for(modality.kind)


def test_depths_must_be_one_per_stage() -> None:
    with pytest.raises(UsageError) as error:
        EncoderRecipe(kind="resnet", channels=(4, 8), strides=(1, 2), depths=(2,))
    assert str(error.value) == "encoder has 2 channels and 1 depths; give one depth per stage"


MIXED = {
    "rgb": EncoderRecipe(kind="mobile", pool=True, **BLOCKS),
    "audio": EncoderRecipe(kind="resnet", pool=True, **STAGES),
    "imu": EncoderRecipe(kind="sequence", channels=(4,), strides=(2,), pool=True),
    "sensors": CASES["vector"][1],
    "words": CASES["text_mean"][1],
}
EXPERTS: dict[str, ModelRecipe] = {
    "conv": ModelRecipe(width=8, expert_channels=(10, 12)),
    "mlp": ModelRecipe(width=8, expert_kind="mlp", expert_channels=(10, 12)),
    "resnet_stage": ModelRecipe(width=8, expert_kind="resnet_stage", expert_channels=(12, 12)),
    "low_rank": ModelRecipe(width=8, expert_kind="low_rank", expert_channels=(12,), expert_rank=2, shared_expert=True),
}


@pytest.mark.parametrize("kind", EXPERTS)
def test_five_kinds_of_modality_train_together_with_every_kind_of_expert(kind: str) -> None:
    modalities = (IMAGE, AUDIO, SEQUENCE, VECTOR, TEXT)
    recipe = dataclasses.replace(EXPERTS[kind], encoders=MIXED, experts=4, active_experts=2)
    for model in (build_deployed(recipe, modalities, 3), build_dropout_fusion(recipe, modalities, 3)):
        present = torch.rand(6, 5) > 0.3
        logits = model({m.name: sample(m, 6) for m in modalities}, present | (torch.arange(5) == 0))
        assert tuple(logits.shape) == (6, 3) and bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("kind", EXPERTS)
def test_every_kind_of_expert_gives_maps_of_one_shape_shared_or_not(kind: str) -> None:
    z = torch.rand(2, 8, 7, 5)
    routed, full = build_expert(EXPERTS[kind]), build_full_expert(EXPERTS[kind])
    size = (7, 5) if kind == "mlp" else (4, 3)
    assert tuple(routed(z).shape) == tuple(full(z).shape) == (2, 12, *size)


@pytest.mark.parametrize("kind", EXPERTS)
def test_every_kind_of_expert_exports_and_folds(kind: str) -> None:
    expert, z = build_expert(EXPERTS[kind]).eval(), torch.rand(2, 8, 7, 5)
    program = torch.export.export(expert, (z,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    torch.testing.assert_close(program.module()(z), expert(z))
    folded = copy.deepcopy(expert)
    fold_batch_norms(folded)
    torch.testing.assert_close(folded(z), expert(z), atol=1e-5, rtol=1e-4)


def test_low_rank_experts_with_a_shared_one_are_full_experts_with_corrections() -> None:
    recipe = dataclasses.replace(EXPERTS["low_rank"], encoders={"sensors": MIXED["sensors"]}, experts=4)
    deployed = build_deployed(recipe, (VECTOR,), 3).eval()
    assert deployed.expert_shared is not None
    z, gates = torch.rand(5, 8, 3, 3), deployed.gates(torch.randn(5, 4))
    mixed = sum(
        gates[:, j, None, None, None] * (deployed.expert_shared(z) + delta(z))
        for j, delta in enumerate(deployed.experts)
    )
    torch.testing.assert_close(deployed.decide(z, gates), deployed.head(mixed), atol=1e-5, rtol=1e-4)
    assert torch.linalg.matrix_rank(deployed.experts[0][1][0].weight.flatten(1)) == 2  # type: ignore[index]


def test_low_rank_experts_without_a_shared_one_are_refused() -> None:
    with pytest.raises(UsageError) as error:
        ModelRecipe(expert_kind="low_rank")
    assert str(error.value) == 'expert_kind "low_rank" corrects a shared expert; it needs shared_expert = true'


def test_maps_of_different_sizes_are_refused_with_the_way_out() -> None:
    encoders = {"rgb": CASES["mobile"][1], "sensors": MIXED["sensors"]}
    model = build_deployed(ModelRecipe(encoders=encoders, width=8), (IMAGE, VECTOR), 2)
    with pytest.raises(UsageError) as error:
        model({m.name: sample(m, 2) for m in (IMAGE, VECTOR)}, torch.ones(2, 2, dtype=torch.bool))
    assert str(error.value) == (
        "the encoders' maps are 5 x 7, 1 x 1; fusion needs one size: set pool = true in their tables"
    )


@pytest.mark.parametrize("kind", ["deeplab", "mobile_seg", "conv"])
def test_segmentation_logits_have_the_size_of_frames_and_crops_alike(kind: str) -> None:
    recipe = ModelRecipe(
        encoders={"rgb": CASES[kind][1]}, width=8, fusion_stride=1, expert_channels=(8,), expert_stride=1
    )
    model = build_deployed(recipe, (IMAGE,), 5, "segmentation").eval()
    for height, width in ((32, 48), (64, 32)):
        logits = model({"rgb": torch.rand(2, 3, height, width)}, torch.ones(2, 1, dtype=torch.bool))
        assert tuple(logits.shape) == (2, 5, height, width)


def test_the_segmentation_head_upsamples_by_all_strides() -> None:
    strided = ModelRecipe(encoders={"rgb": CASES["mobile_seg"][1]}, fusion_stride=2, expert_stride=2)
    head = build_head(strided, 6, 5, "segmentation")
    assert isinstance(head, SegmentationHead) and head.scale == 16
    flat = torch.ones(1, 6, 2, 3) * 0.7
    logits = head(flat)
    assert tuple(logits.shape) == (1, 5, 32, 48)
    torch.testing.assert_close(logits, head.out(flat)[:, :, :1, :1].expand_as(logits))
