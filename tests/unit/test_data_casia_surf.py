"""CASIA-SURF in its true layout: both path styles, no last newline, grey stored as three channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mars_edge import metrics
from mars_edge.errors import UsageError
from mars_training.data import casia_surf
from mars_training.data.load import describe, load_split
from mars_training.recipe import DataRecipe, Recipe
from tests.helpers import benchmark_trees

DATA = DataRecipe(reader="casia_surf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return benchmark_trees.casia_surf(tmp_path)


def test_every_line_is_a_row_the_last_one_without_a_newline_too(folder: Path) -> None:
    assert not (folder / "train_list.txt").read_bytes().endswith(b"\n"), "the trap this test is about"
    split = casia_surf.read(DATA, "train", folder)
    assert split.class_labels.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]
    for name in ("validation", "test"):
        assert casia_surf.read(DATA, name, folder).class_labels.tolist() == [0, 1, 0, 1, 0, 0]  # type: ignore[arg-type]


def test_attack_types_come_from_the_recording_where_the_path_has_one(folder: Path) -> None:
    train = casia_surf.read(DATA, "train", folder)
    assert train.group_labels.tolist() == ["live"] * 4 + ["03_en_f"] * 2 + ["04_en_b"] * 3
    assert casia_surf.read(DATA, "test", folder).group_labels.tolist() == [
        "spoof", "live", "spoof", "live", "06_enm_b", "06_enm_b",
    ]  # fmt: skip


def test_the_live_spoof_record_names_the_worst_attack_type(folder: Path) -> None:
    split = casia_surf.read(DATA, "train", folder)
    source = describe(DATA)
    assert source.positive_label is not None
    live = split.class_labels.numpy() == source.labels.index(source.positive_label)
    scores = np.where(live | (split.group_labels == "04_en_b"), 1.0, 0.0)
    errors = metrics.spoof_errors(scores, live, split.group_labels, 0.5)
    assert errors.worst_species == "04_en_b" and errors.bpcer.value == 0.0
    assert errors.apcer_pooled.value == pytest.approx(3 / 5)


def test_images_are_112_pixels_with_3_1_and_1_channels_in_the_order_of_the_list(folder: Path) -> None:
    split = casia_surf.read(DATA, "validation", folder)
    shapes = {name: tuple(x[torch.arange(1)].shape[1:]) for name, x in split.inputs.items()}
    assert shapes == {"rgb": (3, 112, 112), "depth": (1, 112, 112), "ir": (1, 112, 112)}
    batch = split.batch(torch.arange(len(split)))
    assert float(batch["rgb"][0, 0].mean()) == pytest.approx(250 / 255, abs=0.02), "red is the first channel"
    for at, label in enumerate(split.class_labels.tolist()):
        assert float(batch["depth"][at].mean()) == pytest.approx((80 + 100 * label) / 255, abs=0.01)
        assert float(batch["ir"][at].mean()) == pytest.approx((100 + 100 * label) / 255, abs=0.01)


def test_the_raw_samples_are_what_was_preprocessed(folder: Path) -> None:
    split = casia_surf.read(DATA, "train", folder)
    assert split.raw is not None
    for modality in describe(DATA).modalities:
        exact = torch.from_numpy(modality.preprocess(split.raw[modality.name][3]))
        assert torch.allclose(split.batch(torch.tensor([3]))[modality.name][0], exact, atol=1e-3)


def test_another_size_and_a_limit_apply_before_anything_is_decoded(folder: Path) -> None:
    (folder / "Training/real_part/CLKJ_CS0110/real.rssdk/color/92.jpg").unlink()
    recipe = Recipe(name="x", data=DataRecipe(reader="casia_surf", size=40, limit=4))
    split = load_split(recipe, "train", folder=folder)
    assert split.class_labels.tolist() == [1, 1, 0, 0]
    assert tuple(split.batch(torch.arange(4))["ir"].shape) == (4, 1, 40, 40)


def test_a_listed_image_that_is_not_there_is_named(folder: Path) -> None:
    gone = folder / "Val/0001/000003-depth.jpg"
    gone.unlink()
    with pytest.raises(UsageError) as error:
        casia_surf.read(DATA, "validation", folder)
    assert str(error.value) == f"{folder / 'val_private_list.txt'} needs {gone}, which is not there"


def test_a_label_that_is_neither_0_nor_1_is_refused_with_its_line(folder: Path) -> None:
    path = folder / "train_list.txt"
    path.write_text(path.read_text() + "\na b c 2\n")
    with pytest.raises(UsageError) as error:
        casia_surf.read(DATA, "train", folder)
    assert str(error.value) == f"{path}, line 10: label '2'; allowed: 1 (live) and 0 (spoof)"
