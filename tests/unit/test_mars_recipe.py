"""Recipes: what is read, what is refused, and that the shipped ones describe what they claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mars_edge.errors import UsageError
from mars_training.data import digits
from mars_training.methods import build_model
from mars_training.model.build import parameter_count
from mars_training.recipe import load_recipe, recipe_from_dict

MINIMAL: dict[str, Any] = {"name": "mine", "data": {"reader": "rig"}}


def test_a_resolved_recipe_survives_json() -> None:
    table = MINIMAL | {"model": {"encoders": {"rgb": {"channels": [8, 16], "strides": [2, 2]}}, "width": 32}}
    recipe = recipe_from_dict(table)
    assert recipe_from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.model.encoders["rgb"].channels == (8, 16)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"data": {"reader": "rig"}}, "recipe lacks the key 'name'"),
        (
            MINIMAL | {"sampling": {"temp": 1.0}},
            "unknown key 'temp' in recipe.sampling; known keys: guided, start, tau, floor, masks_per_row",
        ),
        (
            MINIMAL | {"method": "magic"},
            "recipe.method is 'magic'; allowed: mars, moe, modality_dropout, hemis, shaspec, dmrnet, simmlm, flex_moe",
        ),
        (MINIMAL | {"schedule": {"epochs": 2.5}}, "recipe.schedule.epochs is 2.5; it must be of type int"),
        (MINIMAL | {"sampling": {"guided": 1}}, "recipe.sampling.guided is 1; it must be of type bool"),
        (
            MINIMAL | {"method": "hemis", "sampling": {"masks_per_row": 2}},
            "sampling.masks_per_row is 2; method 'hemis' takes 1, only mars, moe, modality_dropout take more",
        ),
        (MINIMAL | {"sampling": {"masks_per_row": 0}}, "sampling.masks_per_row is 0; it must be at least 1"),
        (MINIMAL | {"loss": 3}, "recipe.loss is 3; it must be a table"),
        (
            MINIMAL | {"model": {"experts": 4, "active_experts": 4}},
            "active_experts is 4; with 4 experts, allowed: 1 to 3",
        ),
        (
            MINIMAL | {"model": {"encoders": {"rgb": {"channels": [8], "strides": [2, 2]}}}},
            "encoder has 1 channels and 2 strides; give one stride per block",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_with_what_is_allowed(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        recipe_from_dict(table)
    assert str(error.value) == message


def test_a_whole_number_is_a_valid_rate() -> None:
    assert recipe_from_dict(MINIMAL | {"schedule": {"rate": 1}}).schedule.rate == 1.0


def test_a_missing_recipe_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load_recipe(tmp_path / "none.toml")
    assert str(error.value) == f"no recipe at {tmp_path / 'none.toml'}"


def test_every_shipped_recipe_is_valid_and_named_after_its_file(repository: Path) -> None:
    paths = sorted((repository / "training" / "recipes").glob("*.toml"))
    assert len(paths) >= 4
    for path in paths:
        assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("name", ["face_antispoof", "spoken_digits"])
def test_the_baseline_recipe_differs_in_the_method_only(repository: Path, name: str) -> None:
    folder = repository / "training" / "recipes"
    mars, dropout = load_recipe(folder / f"{name}.toml"), load_recipe(folder / f"{name}_dropout.toml")
    assert (mars.method, dropout.method) == ("mars", "modality_dropout")
    assert mars.data == dropout.data and mars.augment == dropout.augment
    assert mars.schedule == dropout.schedule and mars.model.encoders == dropout.model.encoders


def test_the_digits_recipe_has_between_one_and_two_hundred_thousand_parameters(repository: Path) -> None:
    recipe = load_recipe(repository / "training" / "recipes" / "spoken_digits.toml")
    model = build_model(recipe, digits.describe(recipe.data).modalities, 10)
    assert 0.1e6 < parameter_count(model) < 0.2e6
