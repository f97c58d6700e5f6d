"""MCubeS in its true layout and size: the left columns go, ignored pixels stay out, GT counts and not SSGT4MS."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mars_edge.errors import UsageError
from mars_training.data import mcubes
from mars_training.data.load import describe, load_data, load_split
from mars_training.data.split import IGNORED, Split
from mars_training.recipe import AugmentRecipe, DataRecipe, Recipe
from tests.helpers import benchmark_trees

DATA = DataRecipe(reader="mcubes")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: a test that changes files changes them back."""
    return benchmark_trees.mcubes(tmp_path_factory.mktemp("mcubes"))


@pytest.fixture(scope="module")
def train(tree: Path) -> Split:
    return mcubes.read(DATA, "train", tree)


def test_the_left_192_columns_are_dropped_everywhere(train: Split) -> None:
    source = describe(DATA)
    assert source.task == "segmentation" and len(source.labels) == 20
    assert {m.name: m.shape for m in source.modalities} == {
        "rgb": (3, 1024, 1032), "aolp": (2, 1024, 1032), "dolp": (1, 1024, 1032), "nir": (1, 1024, 1032),
    }  # fmt: skip
    labels = train.labels[torch.arange(3)]
    assert labels.shape == (3, 1024, 1032) and labels.dtype == torch.uint8
    batch = train.batch(torch.tensor([0]))
    # The scene changes at column 500 of what is kept.
    for name, channel, left, right in (
        ("rgb", 0, 1.0, 0.0),
        ("dolp", 0, 0.75, 0.25),
        ("nir", 0, 60000 / 65535, 1 / 255),
    ):
        row = batch[name][0, channel, 500]
        assert row[0] == row[499] == pytest.approx(left, abs=1e-3)
        assert row[500] == row[-1] == pytest.approx(right, abs=1e-3)


def test_labels_come_from_gt_and_what_the_infrared_mask_names_is_ignored(train: Split) -> None:
    labels = train.labels[torch.tensor([1])][0]
    assert set(torch.unique(labels).tolist()) == {3, 7, IGNORED}
    assert bool((labels[:24] == IGNORED).all()), "the mask"
    assert bool((labels[1000:] == IGNORED).all()), "ignored in GT itself"
    assert bool((labels[24:1000, :500] == 3).all()) and bool((labels[24:1000, 500:] == 7).all())


def test_polarisation_angles_are_sine_then_cosine_with_zero_at_one_half(train: Split) -> None:
    aolp = train.batch(torch.tensor([0]))["aolp"][0, :, 500]
    assert aolp[:, 0].tolist() == [0.0, 0.5] and aolp[:, -1].tolist() == [1.0, 0.5]


def test_colour_of_8_and_of_16_bits_is_the_same(train: Split, tree: Path) -> None:
    assert cv2.imread(str(tree / "polL_color/2_000001.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    rgb = train.batch(torch.tensor([0, 2]))["rgb"]
    assert torch.equal(rgb[0], rgb[1])


def test_a_list_without_a_last_newline_keeps_its_last_scene(tree: Path) -> None:
    assert not (tree / "list_folder/val.txt").read_bytes().endswith(b"\n")
    assert len(mcubes.read(DataRecipe(reader="mcubes", size=16), "validation", tree)) == 1


def test_a_smaller_size_keeps_the_proportions_and_takes_the_nearest_label(tree: Path) -> None:
    recipe = Recipe(name="x", data=DataRecipe(reader="mcubes", size=128, limit=1))
    split = load_split(recipe, "train", folder=tree)
    assert len(split) == 1 and split.labels[torch.tensor([0])].shape == (1, 128, 129)
    labels = split.labels[torch.tensor([0])][0]
    assert set(torch.unique(labels).tolist()) == {3, 7, IGNORED}, "no class is made up between 3 and 7"
    batch = split.batch(torch.tensor([0]))
    assert batch["rgb"].shape == (1, 3, 128, 129)
    dark = batch["rgb"][0, 0, 64] <= 0.5
    assert bool(((labels[64] == 7) == dark).all()), "labels and images are cut at the same place"


def test_a_training_batch_has_labels_for_every_pixel(train: Split) -> None:
    batch = train.training_batch(torch.tensor([2, 0]))
    assert batch.labels.dtype == torch.int64 and batch.labels.shape == (2, 1024, 1032)
    assert bool(batch.present.all())


def test_a_missing_file_a_wrong_size_and_a_wrong_label_are_named(tree: Path) -> None:
    small = DataRecipe(reader="mcubes", size=16)
    mask = tree / "NIR_warped_mask/4_000001.png"
    mask.rename(mask.with_suffix(".away"))
    with pytest.raises(UsageError) as error:
        mcubes.read(small, "test", tree)
    assert str(error.value) == f"{tree / 'list_folder/test.txt'} needs {mask}, which is not there"
    mask.with_suffix(".away").rename(mask)
    labels = tree / "GT/4_000001.png"
    kept = labels.read_bytes()
    cv2.imwrite(str(labels), np.full((1024, 1224), 20, np.uint8))
    with pytest.raises(UsageError) as error:
        mcubes.read(small, "test", tree)
    assert str(error.value) == f"{labels} holds the label 20; allowed: 0 to 19 and 255"
    cv2.imwrite(str(labels), np.zeros((1024, 1032), np.uint8))
    with pytest.raises(UsageError) as error:
        mcubes.read(small, "test", tree)
    assert str(error.value) == f"{labels} is 1024 x 1032; expected 1024 x 1224"
    labels.write_bytes(kept)


def test_mirroring_polarisation_needs_to_say_which_channel_it_negates(tree: Path) -> None:
    data = DataRecipe(reader="mcubes", size=16)
    with pytest.raises(UsageError) as error:
        load_data(Recipe(name="x", data=data, augment=AugmentRecipe(flip=True)), folder=tree)
    assert str(error.value) == (
        "augment.flip mirrors polarisation angles: name the channel to negate, flip_negates = { aolp = [0] } "
        "if the files hold sin and cos of twice the angle, { aolp = [1] } of the angle itself, or set flip = false"
    )
    said = AugmentRecipe(flip=True, flip_negates={"aolp": (0,)})
    assert len(load_data(Recipe(name="x", data=data, augment=said), folder=tree).train) == 3
