"""Augmentation of whole batches: label maps move with their images, and what is not there stays exact zeros."""

from __future__ import annotations

import pytest
import torch

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.augment import augment
from mars_training.data.split import Batch
from mars_training.recipe import AugmentRecipe

RGB = Modality(name="rgb", kind="image", channels=3, size=(12, 16))
AOLP = Modality(name="aolp", kind="image", channels=2, size=(12, 16), range=(-1.0, 1.0))
VOICE = Modality(name="voice", kind="audio", rate_hz=8000, window_s=0.2, mel_bands=8)
OTHERS = [
    Modality(name="text", kind="text", length=5, vocabulary=100),
    Modality(name="motion", kind="sequence", channels=2, length=7),
    Modality(name="climate", kind="vector", length=3),
]
SIZE = 64


def scenes(*modalities: Modality, labels: torch.Tensor | None = None, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    return Batch(
        inputs={m.name: torch.rand(SIZE, *m.shape) for m in modalities},
        labels=torch.zeros(SIZE, dtype=torch.long) if labels is None else labels,
        present=torch.ones(SIZE, len(modalities), dtype=torch.bool),
    )


def numbered() -> Batch:
    """Every pixel has its own label, which also stands in the first channel of both images."""
    places = torch.arange(12 * 16).reshape(1, 12, 16).repeat(SIZE, 1, 1)
    shown = (places.float() / 192)[:, None]
    return Batch(
        inputs={"rgb": shown.repeat(1, 3, 1, 1), "aolp": shown.repeat(1, 2, 1, 1)},
        labels=places,
        present=torch.ones(SIZE, 2, dtype=torch.bool),
    )


@pytest.mark.parametrize(
    "recipe",
    [
        AugmentRecipe(flip=True),
        AugmentRecipe(shift_px=3),
        AugmentRecipe(crop_px=5),
        AugmentRecipe(flip=True, shift_px=2, crop_px=7),
    ],
)
def test_a_label_stays_with_its_pixel_through_mirror_shift_and_crop(recipe: AugmentRecipe) -> None:
    batch = numbered()
    found = augment(batch, [RGB, AOLP], recipe)
    side = (recipe.crop_px, recipe.crop_px) if recipe.crop_px else (12, 16)
    assert found.labels.shape == (SIZE, *side) and found.labels.dtype == torch.int64
    for name in ("rgb", "aolp"):
        assert torch.equal((found.inputs[name] * 192).round().long()[:, 0], found.labels)
    assert not torch.equal(found.labels[:, :5, :5], batch.labels[:, :5, :5])


def test_a_crop_is_a_window_of_the_image_and_every_place_occurs() -> None:
    found = augment(numbered(), [RGB, AOLP], AugmentRecipe(crop_px=11)).labels
    corners = found[:, 0, 0]
    whole = torch.arange(12 * 16).reshape(12, 16)
    for window, corner in zip(found, corners.tolist(), strict=True):
        top, left = divmod(corner, 16)
        assert torch.equal(window, whole[top : top + 11, left : left + 11])
    assert set(corners.tolist()) == {16 * top + left for top in (0, 1) for left in range(6)}


def test_a_crop_of_the_whole_height_keeps_every_row() -> None:
    found = augment(numbered(), [RGB, AOLP], AugmentRecipe(crop_px=12)).labels
    assert set(found[:, 0, 0].tolist()) == set(range(5))


def test_class_labels_are_not_touched_by_geometry() -> None:
    batch = scenes(RGB, labels=torch.arange(SIZE))
    assert torch.equal(augment(batch, [RGB], AugmentRecipe(flip=True, crop_px=4)).labels, batch.labels)


def test_a_mirror_negates_the_named_channel_of_the_mirrored_samples_only() -> None:
    batch = scenes(RGB, AOLP)
    found = augment(batch, [RGB, AOLP], AugmentRecipe(flip=True, flip_negates={"aolp": (0,)}))
    mirrored = 0
    for b in range(SIZE):
        flipped = not torch.equal(found.inputs["rgb"][b], batch.inputs["rgb"][b])
        mirrored += flipped
        if not flipped:
            assert torch.equal(found.inputs["aolp"][b], batch.inputs["aolp"][b])
            continue
        was, now = batch.inputs["aolp"][b].flip(-1), found.inputs["aolp"][b]
        assert torch.equal(found.inputs["rgb"][b], batch.inputs["rgb"][b].flip(-1))
        # In raw values, -1 to 1, the sine changes its sign.
        assert torch.allclose(now[0] * 2 - 1, -(was[0] * 2 - 1), atol=1e-6)
        assert torch.equal(now[1], was[1])
    assert 0 < mirrored < SIZE


def test_an_angle_mirrored_twice_is_the_angle_it_was() -> None:
    batch = scenes(AOLP)
    recipe = AugmentRecipe(flip=True, flip_negates={"aolp": (0,)})
    twice = batch
    for _ in range(2):
        torch.manual_seed(7)
        twice = augment(twice, [AOLP], recipe)
    assert torch.allclose(twice.inputs["aolp"], batch.inputs["aolp"], atol=1e-6)


EVERYTHING = AugmentRecipe(
    flip=True, flip_negates={"aolp": (0, 1)}, shift_px=2, crop_px=8, brightness=0.3, contrast=0.3, audio_gain=0.3,
    audio_colour=0.3, audio_noise=0.5, audio_band_mask=2, photometric=("rgb", "aolp"),
)  # fmt: skip


def test_what_a_row_lacks_stays_exact_zeros_and_the_rest_does_not() -> None:
    modalities = [RGB, AOLP, VOICE]
    batch = scenes(*modalities)
    present = torch.rand(SIZE, 3) < 0.5
    inputs = {
        m.name: torch.where(present[:, at].view(-1, 1, 1, 1), batch.inputs[m.name], 0.0)
        for at, m in enumerate(modalities)
    }
    found = augment(Batch(inputs=inputs, labels=batch.labels, present=present), modalities, EVERYTHING)
    for at, m in enumerate(modalities):
        silent = (found.inputs[m.name] == 0).flatten(1).all(dim=1)
        assert torch.equal(silent, ~present[:, at])
    assert torch.equal(found.present, present)


def test_text_sequences_and_vectors_are_untouched() -> None:
    modalities = [RGB, AOLP, *OTHERS]
    batch = scenes(*modalities)
    found = augment(batch, modalities, EVERYTHING)
    assert all(found.inputs[m.name] is batch.inputs[m.name] for m in OTHERS)
    assert not torch.equal(found.inputs["rgb"], batch.inputs["rgb"][:, :, :8, :8])


def test_light_in_one_image_leaves_the_other_and_the_labels() -> None:
    batch = numbered()
    found = augment(batch, [RGB, AOLP], AugmentRecipe(brightness=0.2, photometric=("rgb",)))
    assert torch.equal(found.inputs["aolp"], batch.inputs["aolp"]) and torch.equal(found.labels, batch.labels)
    assert not torch.equal(found.inputs["rgb"], batch.inputs["rgb"])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (AugmentRecipe(flip_negates={"nir": (0,)}), "augment.flip_negates names 'nir'; the image modalities are: rgb"),
        (AugmentRecipe(flip_negates={"rgb": (3,)}), "augment.flip_negates.rgb names channel 3; allowed: 0 to 2"),
        (AugmentRecipe(crop_px=13), "augment.crop_px is 13; the images are 12 x 16"),
    ],
)
def test_what_cannot_be_done_is_refused(recipe: AugmentRecipe, message: str) -> None:
    with pytest.raises(UsageError) as error:
        augment(scenes(RGB, VOICE), [RGB, VOICE], recipe)
    assert str(error.value) == message


def test_a_crop_of_images_of_two_sizes_is_refused_with_the_sizes() -> None:
    small = Modality(name="ir", kind="image", size=(6, 8))
    with pytest.raises(UsageError) as error:
        augment(scenes(RGB, small), [RGB, small], AugmentRecipe(crop_px=4))
    assert str(error.value) == "augment.crop_px needs images of one size; they are: rgb 12 x 16, ir 6 x 8"
    with pytest.raises(UsageError) as error:
        augment(scenes(VOICE), [VOICE], AugmentRecipe(crop_px=4))
    assert str(error.value) == "augment.crop_px needs images of one size; they are: none"


@pytest.mark.parametrize(("crop_px", "shift_px"), [(-1, 0), (0, -2)])
def test_a_negative_number_of_pixels_is_refused(crop_px: int, shift_px: int) -> None:
    with pytest.raises(UsageError) as error:
        AugmentRecipe(crop_px=crop_px, shift_px=shift_px)
    assert str(error.value) == f"augment.crop_px is {crop_px} and shift_px {shift_px}; they must be 0 or more"
