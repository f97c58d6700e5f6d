"""UPMC Food-101 in its true layout: lists without a header, titles with commas, quotes, line breaks and no word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mars_edge.errors import UsageError
from mars_training.data import food101
from mars_training.data.load import describe
from mars_training.recipe import DataRecipe, SplitName
from tests.helpers import benchmark_trees

DATA = DataRecipe(reader="food101", size=32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return benchmark_trees.food101(tmp_path)


def test_titles_keep_their_commas_quotes_and_line_breaks(folder: Path) -> None:
    rows = food101.read_rows(folder / "texts" / "train_titles.csv")
    assert len(rows) == 30
    assert (rows[0].file, rows[0].title) == ("apple_pie_0.jpg", 'The "best" apple pie, ever')
    assert rows[1].title == "apple pie,\n easy"
    assert rows[3].title == "Crème apple pie – Rezept"
    assert {food101.LABELS[row.label] for row in rows} == set(benchmark_trees.FOOD_CLASSES)


def test_there_are_101_classes_in_order() -> None:
    assert len(set(food101.LABELS)) == 101
    assert list(food101.LABELS) == sorted(food101.LABELS)
    assert describe(DATA).labels == food101.LABELS


def test_validation_is_a_tenth_of_every_class_of_the_training_list(folder: Path) -> None:
    titles: dict[SplitName, list[str]] = {}
    counts: dict[SplitName, list[int]] = {}
    for name in ("train", "validation", "test"):
        split = food101.read(DATA, name, folder)
        assert split.raw is not None
        titles[name] = [split.raw["text"][i] for i in range(len(split))]
        counts[name] = torch.unique(split.class_labels, return_counts=True)[1].tolist()
    assert counts == {"train": [9] * 3, "validation": [1] * 3, "test": [2] * 3}
    listed = [row.title for row in food101.read_rows(folder / "texts" / "train_titles.csv")]
    assert sorted(titles["train"] + titles["validation"]) == sorted(listed)


def test_photograph_and_title_are_of_the_same_row_and_the_label_is_the_folder(folder: Path) -> None:
    split = food101.read(DATA, "train", folder)
    batch = split.batch(torch.arange(len(split)))
    assert batch["image"].shape[1:] == (3, 32, 32) and batch["text"].shape[1:] == food101.TEXT.shape
    brightness = {0: 40, 1: 100, 100: 160}
    for at, label in enumerate(split.class_labels.tolist()):
        assert float(batch["image"][at].mean()) * 255 == pytest.approx(brightness[label], abs=2)
        assert split.raw is not None
        title = split.raw["text"][at]
        assert torch.equal(batch["text"][at], torch.from_numpy(food101.TEXT.preprocess(title)))
        assert title == "?!" or food101.LABELS[label].replace("_", " ") in title


def test_word_numbers_beyond_half_precision_are_exact(folder: Path) -> None:
    text = food101.read(DATA, "train", folder).inputs["text"]
    assert isinstance(text, torch.Tensor) and text.dtype == torch.float32
    assert float(text.max()) > 2049


def test_a_missing_photograph_an_unknown_class_and_an_unquoted_comma_are_refused(folder: Path) -> None:
    gone = folder / "images/test/waffles/waffles_1.jpg"
    gone.unlink()
    listed = folder / "texts" / "test_titles.csv"
    with pytest.raises(UsageError) as error:
        food101.read(DATA, "test", folder)
    assert str(error.value) == f"{listed} needs {gone}, which is not there"
    listed.write_text("a.jpg,title,mud_pie")
    with pytest.raises(UsageError) as error:
        food101.read(DATA, "test", folder)
    assert str(error.value) == f"{listed}, line 1: 'mud_pie' is none of the 101 classes"
    listed.write_text("a.jpg,one, two,waffles")
    with pytest.raises(UsageError) as error:
        food101.read(DATA, "test", folder)
    assert str(error.value) == f"{listed}, line 1: 4 cells, expected 3"
