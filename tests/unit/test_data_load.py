"""The table of readers: every reader is there, what needs a folder says so, and sizes and limits reach the reader."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from mars_edge.errors import UsageError
from mars_training.data import rig
from mars_training.data.load import describe, load_split
from mars_training.recipe import DataRecipe, Reader, Recipe
from tests.helpers import benchmark_trees

FIXED = ("rig", "digits", "casia_surf", "crema_d", "food101", "mcubes")
BENCHMARKS = FIXED[2:]


def test_every_reader_a_recipe_can_name_has_a_module() -> None:
    for name in get_args(Reader):
        assert find_spec(f"mars_training.data.{name}") is not None


@pytest.mark.parametrize("reader", FIXED)
def test_a_fixed_data_set_is_described_without_its_files(reader: Reader) -> None:
    source = describe(DataRecipe(reader=reader))
    assert len(source.names) >= 2 and len(set(source.labels)) == len(source.labels) >= 2


@pytest.mark.parametrize("reader", [*BENCHMARKS, "digits", "table"])
def test_a_reader_of_files_without_a_folder_says_which_option_is_missing(reader: Reader, tmp_path: Path) -> None:
    recipe = Recipe(name="d", data=DataRecipe(reader=reader))
    with pytest.raises(UsageError) as error:
        load_split(recipe, "train")
    assert str(error.value) == "recipe 'd' reads files: give their folder with --data DIR"
    with pytest.raises(UsageError) as error:
        load_split(recipe, "train", folder=tmp_path / "none")
    assert str(error.value) == f"--data {tmp_path / 'none'} is not a folder"


def test_a_table_is_not_described_without_its_folder() -> None:
    with pytest.raises(UsageError) as error:
        describe(DataRecipe(reader="table"))
    assert str(error.value) == "reader 'table' reads files: give their folder with --data DIR"


@pytest.mark.parametrize("reader", BENCHMARKS)
def test_an_empty_folder_is_refused_with_the_first_file_it_lacks(reader: Reader, tmp_path: Path) -> None:
    lists = {
        "casia_surf": "train_list.txt",
        "crema_d": "train.csv",
        "food101": "texts/train_titles.csv",
        "mcubes": "list_folder/train.txt",
    }
    with pytest.raises(UsageError) as error:
        load_split(Recipe(name="d", data=DataRecipe(reader=reader)), "train", folder=tmp_path)
    assert str(error.value) == f"no file {tmp_path / lists[reader]}; give the folder of the data set with --data DIR"


@pytest.mark.parametrize("reader", BENCHMARKS)
def test_two_loads_are_equal_and_shaped_as_described(reader: Reader, tmp_path: Path) -> None:
    getattr(benchmark_trees, reader)(tmp_path)
    recipe = Recipe(name="d", data=DataRecipe(reader=reader, size=16))
    source = describe(recipe.data)
    for name in ("train", "validation", "test"):
        one, again = (load_split(recipe, name, folder=tmp_path) for _ in range(2))  # type: ignore[arg-type]
        at = torch.arange(len(one))
        assert torch.equal(one.labels[at], again.labels[at]) and torch.equal(one.groups, again.groups)
        assert one.raw is not None and list(one.raw) == list(one.inputs) == list(source.names)
        batch, same = one.batch(at), again.batch(at)
        for modality in source.modalities:
            assert torch.equal(batch[modality.name], same[modality.name])
            assert batch[modality.name].shape[1:] == modality.shape
            exact = torch.from_numpy(modality.preprocess(one.raw[modality.name][0]))
            assert torch.allclose(batch[modality.name][0], exact, atol=1e-3)


def test_the_rig_is_rendered_once_for_all_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARS_EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(rig.os, "sched_getaffinity", lambda pid: {0})
    data = DataRecipe(reader="rig", validation=4, size=48, limit=3)
    split = load_split(Recipe(name="r", data=data), "validation")
    assert {tuple(x.shape[2:]) for x in split.batch(torch.arange(3)).values()} == {(48, 48)}
    assert {m.size for m in describe(data).modalities} == {(48, 48)}
    assert split.class_labels.tolist() == [1, 0, 0]
    monkeypatch.setattr(rig, "_render", lambda *_: pytest.fail("rendered twice"))
    whole = load_split(Recipe(name="r", data=DataRecipe(reader="rig", validation=4)), "validation")
    assert len(whole) == 4 and next(iter(whole.batch(torch.arange(1)).values())).shape[2:] == (112, 112)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"reader": "rig", "protocol": "speaker_disjoint"},
            "data.protocol is 'speaker_disjoint'; reader 'rig' has the official split only",
        ),
        ({"reader": "digits", "size": 16}, "data.size is 16; reader 'digits' has sizes of its own"),
        ({"reader": "table", "size": 16}, "data.size is 16; reader 'table' has sizes of its own"),
        ({"reader": "mcubes", "fold": 1}, "data.fold is 1; reader 'mcubes' has no folds"),
        ({"reader": "rig", "limit": -1}, "data.size is 0 and data.limit -1; they must be 0 or more"),
    ],
)
def test_a_key_that_means_nothing_to_the_reader_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        DataRecipe(**fields)
    assert str(error.value) == message


def test_a_modality_that_is_always_present_must_be_one() -> None:
    assert describe(DataRecipe(reader="mcubes", always_present=("rgb",))).names[0] == "rgb"
    with pytest.raises(UsageError) as error:
        describe(DataRecipe(reader="mcubes", always_present=("depth",)))
    assert str(error.value) == "data.always_present names 'depth'; the modalities are: rgb, aolp, dolp, nir"
