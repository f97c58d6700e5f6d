"""A tiny three-modality MARS model, untrained but with lively outputs, and samples to ask it about.

Axes: B samples, C channels, H = W = 16 pixels, N = 4 experts, K = 2.
"""

from __future__ import annotations

import torch
from torch import nn

from mars_edge.modality import Modality
from mars_training.checkpoint import RunInfo
from mars_training.data.split import Source, Split
from mars_training.methods import build_model
from mars_training.model.mars import TrainingMars
from mars_training.recipe import DataRecipe, EncoderRecipe, ExportRecipe, ModelRecipe, Recipe

SIZE = 16
NAMES = ("rgb", "depth", "ir")
LABELS = ("spoof", "live")
SPECIES = ("bona_fide", "print", "mask")
MODALITIES = (
    Modality(name="rgb", kind="image", channels=3, size=(SIZE, SIZE), dtype="uint8", range=(0, 255)),
    Modality(name="depth", kind="image", size=(SIZE, SIZE), dtype="uint16", range=(0, 2000)),
    Modality(name="ir", kind="image", size=(SIZE, SIZE), dtype="uint8", range=(0, 255)),
)
SHAPES = {m.name: m.shape for m in MODALITIES}
SOURCE = Source(modalities=MODALITIES, labels=LABELS, positive_label="live", note="random numbers")


def recipe(**export: object) -> Recipe:
    encoder = EncoderRecipe(channels=(4, 8), strides=(2, 2))
    return Recipe(
        name="tiny",
        data=DataRecipe(reader="rig"),
        model=ModelRecipe(
            encoders=dict.fromkeys(NAMES, encoder), experts=4, active_experts=2, width=8, expert_channels=(8,)
        ),
        export=ExportRecipe(**export),  # type: ignore[arg-type]
    )


def info(**export: object) -> RunInfo:
    return RunInfo(recipe=recipe(**export), seed=0, source=SOURCE)


def split(count: int, seed: int) -> Split:
    """Noise whose mean tells the class, so that both classes and all species are there."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    inputs = {
        name: (torch.rand(count, *shape, generator=generator) * (0.4 + 0.6 * labels.view(-1, 1, 1, 1))).half()
        for name, shape in SHAPES.items()
    }
    groups = torch.where(labels == 1, 0, 1 + (torch.arange(count) // 2) % 2)
    return Split(inputs=inputs, labels=labels, groups=groups, group_names=SPECIES)


def model(seed: int = 0) -> TrainingMars:
    """Weights large enough that logits, and the routing, differ from sample to sample."""
    torch.manual_seed(seed)
    training = build_model(recipe(), MODALITIES, len(LABELS))
    assert isinstance(training, TrainingMars)
    samples = split(64, seed + 100)
    training.train()
    with torch.no_grad():
        for _ in range(30):
            training(samples.batch(torch.arange(64)), torch.rand(64, len(NAMES)) > 0.5)
        for norm in (m for m in training.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        training.deployed.head.out.weight.mul_(4.0)  # type: ignore[union-attr, operator]
    training.eval()
    return training
