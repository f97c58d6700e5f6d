"""Every committed recipe, and every form a piece can take, quantizes: int8 answers like the float model.

Axes: B rows. Models are untrained and narrow, with the recipe's own kinds of encoder, fusion, expert and head.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mars_edge.modality import Modality
from mars_export import quantize
from mars_export.hush import hushed
from mars_export.pieces import output_steps, pieces_of
from mars_training.data.load import describe
from mars_training.data.split import IGNORED, Data, Source, Split
from mars_training.epoch import EpochReport
from mars_training.methods import build_model
from mars_training.model.backbones import KINDS
from mars_training.model.mars import TrainingMars
from mars_training.recipe import EncoderRecipe, Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
MARS = [path.stem for path in sorted(RECIPES.glob("*.toml")) if load_recipe(path).method == "mars"]
FAST = ("own_data", "spoken_digits", "food101_edge")
ROWS = 24
# Of untrained models, whose answers hardly differ from row to row; a layer that loses its input has 1 and more.
CLOSE = 0.25
OWN = (
    Modality(name="depth", kind="image", size=(32, 32), channels=4, dtype="uint16", range=(0, 4500)),
    Modality(name="inertial", kind="sequence", channels=6, length=60, rate_hz=50),
    Modality(name="voice", kind="audio", rate_hz=16000, window_s=0.5),
)


def source_of(recipe: Recipe) -> Source:
    if recipe.data.reader == "table":
        return Source(modalities=OWN, labels=("idle", "walk", "fall"), positive_label=None, note="random numbers")
    found = describe(recipe.data)
    side = 80 if any(e.kind == "inception" for e in recipe.model.encoders.values()) else 64
    small = [dataclasses.replace(m, size=(side, side)) if m.kind == "image" else m for m in found.modalities]
    small = [dataclasses.replace(m, vocabulary=50) if m.kind == "text" else m for m in small]
    return dataclasses.replace(found, modalities=tuple(small))


def narrow(recipe: Recipe) -> Recipe:
    """The recipe with an eighth of its channels and one block a stage, and four experts."""
    model = recipe.model
    encoders = {name: narrow_encoder(e) for name, e in model.encoders.items()}
    model = dataclasses.replace(
        model,
        encoders=encoders,
        experts=4,
        active_experts=2,
        width=max(model.width // 8, 8),
        expert_channels=tuple(max(c // 8, 8) for c in model.expert_channels),
    )
    return dataclasses.replace(
        recipe, model=model, schedule=dataclasses.replace(recipe.schedule, batch_size=8), data=recipe.data
    )


def narrow_encoder(encoder: EncoderRecipe) -> EncoderRecipe:
    few = tuple(max(c // 8, 4) for c in encoder.channels)
    return dataclasses.replace(
        encoder,
        channels=few,
        depths=tuple(1 for _ in encoder.depths),
        span=min(encoder.span, 8),
        embedding=8,
        aspp=8,
        low=4,
        reduction=4,
    )


def random_split(source: Source, *, missing: bool = False, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    inputs = {m.name: random_input(m, generator) for m in source.modalities}
    present = None
    if missing:
        present = torch.rand(ROWS, len(inputs), generator=generator) < 0.7
        present[~present.any(dim=1), 0] = True
    labels = torch.randint(0, len(source.labels), (ROWS,), generator=generator)
    return Split(inputs=inputs, labels=labels, groups=torch.zeros_like(labels), group_names=("all",), present=present)


def random_input(modality: Modality, generator: torch.Generator) -> Tensor:
    if modality.kind == "text":
        words = torch.randint(0, modality.vocabulary or 1, (ROWS, *modality.shape), generator=generator)
        return words.float()
    return torch.rand(ROWS, *modality.shape, generator=generator)


def lively(recipe: Recipe, source: Source) -> TrainingMars:
    """An untrained model whose batch norms have seen data and are no identities."""
    torch.manual_seed(1)
    model = build_model(recipe, source.modalities, len(source.labels), source.task)
    assert isinstance(model, TrainingMars)
    rows = random_split(source, seed=5).batch(torch.arange(ROWS))
    model.train()
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.3, 0.3)
            norm.momentum = 0.5
        for _ in range(4):
            model(rows, torch.rand(ROWS, len(source.modalities)) > 0.5)
    return model.eval()


def relative_error(given: Tensor, expected: Tensor) -> float:
    """RMS difference over the deviation of what is expected."""
    return float((given - expected).square().mean().sqrt() / expected.std().clamp_min(1e-9))


@torch.no_grad()
def int8_error(model: TrainingMars, recipe: Recipe, source: Source, **options: object) -> float:
    """Of the class logits, all present, converted against float, both with the float model's experts."""
    split = random_split(source, missing=bool(options.pop("missing", False)))
    # The rows that were observed: others of so few may leave the ranges, which is no rounding.
    rows = random_split(source).batch(torch.arange(ROWS))
    everything = torch.ones(ROWS, len(source.modalities), dtype=torch.bool)
    deployed = copy.deepcopy(model).deployed
    deployed.always_dense = True
    with hushed():
        quantize.prepare(deployed, {m.name: m.shape for m in source.modalities}, **options)  # type: ignore[arg-type]
        torch.manual_seed(0)
        quantize.observe(deployed, split, recipe)
        quantize.freeze_observers(deployed)
        converted = quantize.convert(deployed)
        float_z, router = model.deployed.route(model.deployed.encode_all(rows), everything)
        gates = model.deployed.gates(router)
        z, _ = converted.route(converted.encode_all(rows), everything)
        given, expected = converted.decide(z, gates), model.deployed.decide(float_z, gates)
    assert torch.isfinite(given).all() and given.shape == expected.shape
    assert len(pieces_of(converted)) == len(pieces_of(model.deployed))
    return relative_error(given, expected)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in MARS])
def test_every_recipe_quantizes_to_what_the_float_model_says(name: str) -> None:
    recipe = narrow(load_recipe(RECIPES / f"{name}.toml"))
    source = source_of(recipe)
    assert int8_error(lively(recipe, source), recipe, source) < CLOSE


IMAGES = (
    Modality(name="a", kind="image", size=(80, 80), channels=3),
    Modality(name="b", kind="image", size=(80, 80), channels=1),
)


def two_encoders(kind: str, **model: object) -> tuple[Recipe, Source]:
    """A recipe whose modality "a" is read by `kind`, and "b", an image, by convolutions; both pooled."""
    shape: dict[str, Any] = {"channels": (64, 64, 64, 64), "strides": (1, 2, 2, 1), "depths": (1, 1, 1, 1)}
    if kind == "mobile_seg":
        shape |= {"strides": (2, 2, 2, 1)}
    if kind.startswith("text"):
        shape = {"channels": (128,), "strides": (1,)}
    encoder = narrow_encoder(EncoderRecipe(kind=kind, pool=True, **shape))
    modality = {
        "sequence": Modality(name="a", kind="sequence", channels=3, length=40, rate_hz=50),
        "vector": Modality(name="a", kind="vector", length=12),
        "text_lstm": Modality(name="a", kind="text", length=10, vocabulary=40),
        "text_mean": Modality(name="a", kind="text", length=10, vocabulary=40),
    }.get(kind, IMAGES[0])
    base = load_recipe(RECIPES / "own_data.toml")
    changed = dataclasses.replace(
        narrow(base).model,
        encoders={"a": encoder, "b": EncoderRecipe(channels=(8, 8), strides=(2, 2), pool=True)},
        expert_channels=(16,),
        **model,
    )
    source = Source(modalities=(modality, IMAGES[1]), labels=("x", "y"), positive_label=None, note="random")
    return dataclasses.replace(narrow(base), model=changed), source


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_encoder_kind_quantizes(kind: str) -> None:
    recipe, source = two_encoders(kind)
    assert int8_error(lively(recipe, source), recipe, source) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"expert_kind": "mlp", "shared_expert": False},
        {"expert_kind": "resnet_stage", "shared_expert": False},
        {"expert_kind": "low_rank", "shared_expert": True},
        {"combination_router": True, "router_noise": False},
        {"residual_routing": False, "dispatch": "sparse"},
        {"fusion_kind": "resnet_stage"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_kind_of_expert_router_and_fusion_quantizes(options: dict[str, object]) -> None:
    recipe, source = two_encoders("conv", **options)
    assert int8_error(lively(recipe, source), recipe, source, missing=True) < CLOSE


@pytest.mark.slow
def test_a_segmentation_recipe_with_crops_and_missing_cells_is_trained_and_distilled() -> None:
    recipe = narrow(load_recipe(RECIPES / "mcubes_edge.toml"))
    source = source_of(recipe)
    recipe = dataclasses.replace(
        recipe,
        augment=dataclasses.replace(recipe.augment, crop_px=48),
        export=dataclasses.replace(recipe.export, qat_epochs=2, qat_distill=0.5),
    )
    model = lively(recipe, source)
    train, validation = (labelled(source, missing=True, seed=seed) for seed in (1, 2))
    with hushed():
        found = quantize.quantized(
            model, Data(source=source, train=train, validation=validation), recipe, seed=0, report=finite
        )
    assert len(found.errors) == 3 and all(0.0 <= error <= 1.0 for error in found.errors)


def labelled(source: Source, *, missing: bool, seed: int) -> Split:
    """Rows whose label maps are in part `IGNORED`; the first modality, which is never missing, is there."""
    split = random_split(source, missing=missing, seed=seed)
    assert split.present is not None
    split.present[:, 0] = True
    maps = torch.randint(0, len(source.labels), (ROWS, 64, 64), generator=torch.Generator().manual_seed(seed))
    maps[:, :8] = IGNORED
    return dataclasses.replace(split, labels=maps)


def finite(epoch: EpochReport) -> None:
    assert all(math.isfinite(value) for value in epoch.terms.values()) and epoch.terms["float"] > 0.0


def test_recurrent_layers_stay_float_and_say_so() -> None:
    recipe, source = two_encoders("text_lstm")
    deployed = lively(recipe, source).deployed
    with hushed():
        notes = quantize.prepare(deployed, {m.name: m.shape for m in source.modalities})
    assert notes == ("encode_a/0.lstm stays float32: recurrent layers have no int8 kernel",)


def test_router_logits_are_never_rounded() -> None:
    recipe, source = two_encoders("vector", combination_router=True)
    model = lively(recipe, source)
    nn.init.normal_(model.deployed.route_stage.combination.bias.weight)  # type: ignore[union-attr, arg-type]
    with hushed():
        quantize.prepare(model.deployed, {m.name: m.shape for m in source.modalities})
        quantize.observe(model.deployed, random_split(source), recipe)
        converted = quantize.convert(model.deployed)
    assert output_steps(converted.route_stage)[1] is None
