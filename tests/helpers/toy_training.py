"""A training of a second or two that tests start as processes of their own, to kill them or to split them."""

from __future__ import annotations

import torch

from mars_edge.modality import Modality
from mars_training.data.split import Data, Source, Split
from mars_training.recipe import (
    AugmentRecipe,
    DataRecipe,
    EncoderRecipe,
    ModelRecipe,
    Recipe,
    SamplingRecipe,
    ScheduleRecipe,
)

MODALITIES = tuple(Modality(name=n, kind="image", size=(8, 8), dtype="uint8", range=(0, 255)) for n in ("rgb", "depth"))
SOURCE = Source(modalities=MODALITIES, labels=("spoof", "live"), positive_label="live", note="toy")
SMALL = EncoderRecipe(channels=(4,), strides=(2,))
RECIPE = Recipe(
    name="toy",
    data=DataRecipe(reader="rig"),
    model=ModelRecipe(
        encoders={"rgb": SMALL, "depth": SMALL},
        experts=4,
        active_experts=2,
        width=8,
        expert_channels=(8,),
        student_rate=0.3,
        expert_dropout=0.2,
        residual_scope="combination",
    ),
    sampling=SamplingRecipe(start=1, tau=0.5),
    schedule=ScheduleRecipe(epochs=2, batch_size=32, rate=1e-2),
    augment=AugmentRecipe(flip=True, shift_px=1, brightness=0.1, photometric=("rgb",)),
)


def toy_split(n: int, seed: int) -> Split:
    """Live samples are brighter at the top of rgb and at the bottom of depth; both cues are noisy."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    rgb, depth = torch.rand(2, n, 1, 8, 8, generator=generator)
    rgb[:, :, :4] += 0.3 * labels[:, None, None, None]
    depth[:, :, 4:] += 0.3 * labels[:, None, None, None]
    return Split(
        inputs={"rgb": rgb.half(), "depth": depth.half()},
        labels=labels,
        groups=1 - labels,
        group_names=("bona_fide", "print"),
    )


def toy_data() -> Data:
    """128 samples to train on, 32 to validate."""
    return Data(source=SOURCE, train=toy_split(128, 1), validation=toy_split(32, 2))
