"""Recipes: what is read, what is refused, and that the shipped ones describe what they claim."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from mars_edge.errors import UsageError
from mars_training.data import digits, load
from mars_training.grid import load_grid
from mars_training.methods import build_model
from mars_training.model.build import parameter_count
from mars_training.ranges import Range, numbers
from mars_training.recipe import (
    AugmentRecipe,
    DataRecipe,
    EncoderRecipe,
    ExportRecipe,
    LossRecipe,
    ModelRecipe,
    SamplingRecipe,
    ScheduleRecipe,
    load_recipe,
    recipe_from_dict,
)

MINIMAL: dict[str, Any] = {"name": "mine", "data": {"reader": "rig"}}
TABLES: list[tuple[Any, dict[str, Any]]] = [
    (DataRecipe, {"reader": "crema_d"}),
    (EncoderRecipe, {}),
    (ModelRecipe, {}),
    (LossRecipe, {}),
    (SamplingRecipe, {}),
    (ScheduleRecipe, {}),
    (AugmentRecipe, {}),
    (ExportRecipe, {}),
]
LENGTHS = {"channels": 4, "strides": 4, "depths": 4}


def numeric_keys() -> list[Any]:
    """Every (dataclass, its required keys, key, hint, a value of the key's shape around a number)."""
    found = []
    for kind, required in TABLES:
        for key, hint in get_type_hints(kind, include_extras=True).items():
            shape = _shape(hint, LENGTHS.get(key, 1))
            if list(numbers(hint, shape(1), key)):
                found.append(pytest.param(kind, required, key, hint, shape, id=f"{kind.__name__}.{key}"))
    return found


def _shape(hint: Any, length: int) -> Any:
    text = str(hint)
    if text.startswith("dict"):
        return lambda number: {"rgb": (number,) if "tuple" in text else number}
    return (lambda number: (number,) * length) if text.startswith("tuple") else lambda number: number


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


OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("data.train", 0, "data.train is 0; allowed: 1 and more"),
    ("data.validation", 0, "data.validation is 0; allowed: 1 and more"),
    ("data.test", -1, "data.test is -1; allowed: 1 and more"),
    ("data.seed", -1, "data.seed is -1; allowed: 0 and more"),
    ("data.pairings", 0, "data.pairings is 0; allowed: 1 and more"),
    ("model.width", -3, "model.width is -3; allowed: 1 and more"),
    ("model.fusion_kernel", 0, "model.fusion_kernel is 0; allowed: 1 and more"),
    ("model.fusion_stride", 0, "model.fusion_stride is 0; allowed: 1 and more"),
    ("model.expert_channels", [96, 0], "model.expert_channels[1] is 0; allowed: 1 and more"),
    ("model.expert_kernel", 0, "model.expert_kernel is 0; allowed: 1 and more"),
    ("model.expert_stride", 0, "model.expert_stride is 0; allowed: 1 and more"),
    ("model.expert_rank", 0, "model.expert_rank is 0; allowed: 1 and more"),
    ("model.student_rate", 7, "model.student_rate is 7.0; allowed: 0 to 1"),
    ("model.expert_dropout", 1, "model.expert_dropout is 1.0; allowed: 0 to below 1"),
    ("model.router_warmup", -1, "model.router_warmup is -1; allowed: 0 and more"),
    ("model.encoders", {"rgb": {"kernel": 0}}, "encoder.kernel is 0; allowed: 1 and more"),
    ("model.encoders", {"rgb": {"depths": [1, 1, 0, 1]}}, "encoder.depths[2] is 0; allowed: 1 and more"),
    ("loss.task", -1, "loss.task is -1.0; allowed: 0 and more"),
    ("loss.balance", math.nan, "loss.balance is nan; allowed: 0 and more"),
    ("loss.label_smoothing", 2, "loss.label_smoothing is 2.0; allowed: 0 to below 1"),
    ("loss.imitate_temperature", math.nan, "loss.imitate_temperature is nan; allowed: above 0"),
    ("sampling.tau", 0, "sampling.tau is 0.0; allowed: above 0"),
    ("sampling.tau", -1, "sampling.tau is -1.0; allowed: above 0"),
    ("sampling.floor", 0.9, "sampling.floor is 0.9; allowed: 0 to 0.5"),
    ("sampling.start", -1, "sampling.start is -1; allowed: 0 and more"),
    ("schedule.epochs", 0, "schedule.epochs is 0; allowed: 1 and more"),
    ("schedule.batch_size", -4, "schedule.batch_size is -4; allowed: 1 and more"),
    ("schedule.rate", math.inf, "schedule.rate is inf; allowed: above 0"),
    ("schedule.rate", -math.inf, "schedule.rate is -inf; allowed: above 0"),
    ("schedule.encoder_rate", {"rgb": -1}, "schedule.encoder_rate.rgb is -1.0; allowed: 0 and more"),
    ("schedule.weight_decay", -1, "schedule.weight_decay is -1.0; allowed: 0 and more"),
    ("schedule.momentum", 1, "schedule.momentum is 1.0; allowed: 0 to below 1"),
    ("schedule.warmup_epochs", -1, "schedule.warmup_epochs is -1.0; allowed: 0 and more"),
    ("schedule.milestones", [0.5, 1.5], "schedule.milestones[1] is 1.5; allowed: 0 to 1"),
    ("schedule.clip_norm", 0, "schedule.clip_norm is 0.0; allowed: above 0"),
    ("schedule.validate_every", 0, "schedule.validate_every is 0; allowed: 1 and more"),
    ("schedule.select_from", 2, "schedule.select_from is 2.0; allowed: 0 to 1"),
    ("augment.brightness", -0.1, "augment.brightness is -0.1; allowed: 0 to 1"),
    ("augment.audio_stretch", 1, "augment.audio_stretch is 1.0; allowed: 0 to below 1"),
    ("augment.audio_frame_mask", -1, "augment.audio_frame_mask is -1; allowed: 0 and more"),
    ("augment.flip_negates", {"rgb": [-1]}, "augment.flip_negates.rgb[0] is -1; allowed: 0 and more"),
    ("export.qat_epochs", -1, "export.qat_epochs is -1; allowed: 0 and more"),
    ("export.qat_rate", 0, "export.qat_rate is 0.0; allowed: above 0 to 1"),
    ("export.bpcer_target", 1, "export.bpcer_target is 1.0; allowed: above 0 to below 1"),
    ("export.certify_max_error", 1.1, "export.certify_max_error is 1.1; allowed: 0 to 1"),
    ("export.certify_min_samples", 0, "export.certify_min_samples is 0; allowed: 1 and more"),
]


@pytest.mark.parametrize(("key", "value", "message"), OUT_OF_RANGE)
def test_a_number_out_of_range_is_refused_with_what_is_allowed(key: str, value: Any, message: str) -> None:
    table, name = key.split(".")
    head = MINIMAL.get(table, {})
    with pytest.raises(UsageError) as error:
        recipe_from_dict(MINIMAL | {table: head | {name: value}})
    assert str(error.value) == message


@pytest.mark.parametrize(("kind", "required", "key", "hint", "shape"), numeric_keys())
def test_every_number_of_a_recipe_declares_a_range(
    kind: Any, required: dict[str, Any], key: str, hint: Any, shape: Any
) -> None:
    assert all(isinstance(allowed, Range) for _, _, allowed in numbers(hint, shape(1), key))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("kind", "required", "key", "hint", "shape"), numeric_keys())
def test_no_recipe_table_made_in_python_holds_a_number_that_is_not_finite(
    kind: Any, required: dict[str, Any], key: str, hint: Any, shape: Any, bad: float
) -> None:
    with pytest.raises(UsageError, match=rf"{key}.* {bad}\b"):
        kind(**required | {key: shape(bad)})


def test_every_table_of_a_recipe_is_searched_for_numbers() -> None:
    tables = {type(value) for value in vars(recipe_from_dict(MINIMAL)).values() if dataclasses.is_dataclass(value)}
    assert {kind for kind, _ in TABLES} == tables | {EncoderRecipe}
    assert len(numeric_keys()) > 80


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "text"),
    [
        (Range(low=1), [1, 10**400], [0, -1, math.nan, math.inf], "1 and more"),
        (Range(low=0, low_open=True), [1e-9, 1e9], [0.0, math.nan, math.inf], "above 0"),
        (Range(low=0, high=1), [0, 1], [-1e-9, 1.1, math.nan, math.inf], "0 to 1"),
        (Range(low=0, high=1, high_open=True), [0, 0.99], [1, math.nan], "0 to below 1"),
        (Range(low=0, high=1, low_open=True, high_open=True), [0.5], [0, 1, math.nan], "above 0 to below 1"),
    ],
)
def test_a_range_holds_what_its_text_says(allowed: Range, inside: list[float], outside: list[float], text: str) -> None:
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)
    assert str(allowed) == text


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "../../x", "a/b", "a b", "a\n", "ä"])
def test_a_name_that_is_no_plain_folder_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as error:
        recipe_from_dict(MINIMAL | {"name": name})
    assert str(error.value) == f"name is {name!r}; allowed: letters, digits, _, - and ., the first of them no ."


def test_a_fault_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        recipe_from_dict(MINIMAL | {"export": {"masking_faults": ["blurred"]}})
    allowed = "dark, saturated, depth-invalid, covered, noise, frozen?"
    assert str(error.value) == f"export.masking_faults names 'blurred'; allowed: {allowed}"


@pytest.mark.parametrize(
    ("reader", "table", "message"),
    [
        ("rig", {"augment": {"photometric": ["nose"]}}, "augment.photometric names 'nose'; the image modalities are: "),
        ("rig", {"augment": {"flip_negates": {"nose": [0]}}}, "augment.flip_negates names 'nose'; the image modaliti"),
        ("digits", {"augment": {"photometric": ["audio"]}}, "augment.photometric names 'audio'; the image modalities"),
        ("rig", {"schedule": {"encoder_rate": {"nose": 1}}}, "schedule.encoder_rate names 'nose'; the modalities are"),
        ("rig", {"export": {"require": ["rgb|nose"]}}, "export.require names 'nose'; the modalities are: "),
        ("rig", {"export": {"require": [""]}}, "export.require names ''; the modalities are: "),
        ("rig", {"data": {"always_present": ["nose"]}}, "data.always_present names 'nose'; the modalities are: "),
    ],
)
def test_a_recipe_that_names_a_modality_the_data_lacks_builds_no_model(
    reader: Any, table: dict[str, Any], message: str
) -> None:
    recipe = recipe_from_dict({"name": "mine", **table, "data": {"reader": reader} | table.get("data", {})})
    source = load.describe(DataRecipe(reader=reader))
    kinds = {m.name for m in source.modalities if m.kind == "image" or "image modal" not in message}
    with pytest.raises(UsageError) as error:
        build_model(recipe, source.modalities, 2)
    assert str(error.value).startswith(message)
    assert set(str(error.value).rsplit(": ", 1)[1].split(", ")) == kinds


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


def test_every_row_of_every_shipped_grid_is_valid(repository: Path) -> None:
    paths = sorted((repository / "training" / "grids").glob("*.toml"))
    assert len(paths) >= 2
    for path in paths:
        assert load_grid(path).name == path.stem


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
