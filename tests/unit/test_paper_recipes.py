"""The paper's four settings and their edge variants: what they describe, without any data."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from mars_training.commands import train
from mars_training.commands.check import Check, check, text, to_dict
from mars_training.data.load import describe
from mars_training.recipe import ModelRecipe, Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
PAPER = ("casia_surf", "crema_d", "food101", "mcubes")
EDGE = tuple(f"{name}_edge" for name in PAPER)
BEYOND = (
    "shared_expert",
    "detach_residual",
    "residual_scope",
    "student_rate",
    "expert_dropout",
    "residual_routing",
    "router_noise",
    "router_warmup",
    "combination_router",
)


def recipe(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.toml")


@cache
def checked(name: str) -> Check:
    return check(recipe(name), describe(recipe(name).data))


def test_the_command_reports_the_papers_parameters_and_macs_for_casia_surf(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([str(RECIPES / "casia_surf.toml"), "--check", "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == pytest.approx(139.2e6, rel=0.01)
    everything = found["macs"]["rgb+depth+ir"]
    assert everything["dense"] == pytest.approx(2.95e9, rel=0.03)
    assert everything["sparse"] == pytest.approx(1.48e9, rel=0.03)


def test_mcubes_has_the_papers_parameters_and_always_its_colours() -> None:
    found = to_dict(checked("mcubes"))
    assert found["parameters"] == pytest.approx(244e6, rel=0.01)
    assert len(found["macs"]) == 8 and all("rgb" in subset for subset in found["macs"])
    assert found["task"] == "segmentation" and len(found["classes"]) == 20


# A table's modalities and classes stand in its own folder.
@pytest.mark.parametrize(
    "name", [path.stem for path in sorted(RECIPES.glob("*.toml")) if load_recipe(path).data.reader != "table"]
)
def test_every_committed_recipe_is_checked_without_data(name: str) -> None:
    found = recipe(name)
    report = text(checked(name))
    assert report.startswith(f"{found.name}: {found.method}, ")
    assert f"memory of a training step, batch {found.schedule.batch_size}: at least " in report


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_has_no_option_beyond_the_paper(name: str) -> None:
    model, plain = recipe(name).model, ModelRecipe()
    assert {key: getattr(model, key) for key in BEYOND} == {key: getattr(plain, key) for key in BEYOND}
    assert model.expert_kind != "low_rank"
    loss = recipe(name).loss
    assert (loss.imitate_temperature, loss.imitate_start, loss.label_smoothing, loss.distill) == (1.0, 0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "experts", "active", "width", "losses", "start", "tau"),
    [
        ("casia_surf", 16, 5, 256, (20.0, 1.0, 20.0, 0.2), 20, 0.06),
        ("crema_d", 16, 5, 512, (1.0, 1.0, 1.0, 1.0), 20, 1.0),
        ("food101", 8, 3, 1024, (1.0, 0.05, 0.5, 0.01), 3, 0.05),
        ("mcubes", 16, 5, 256, (0.1, 0.001, 0.005, 0.01), 30, 0.06),
    ],
)
def test_a_paper_recipe_has_the_papers_settings(
    name: str, experts: int, active: int, width: int, losses: tuple[float, ...], start: int, tau: float
) -> None:
    found = recipe(name)
    assert (found.method, found.model.experts, found.model.active_experts) == ("mars", experts, active)
    assert found.model.width == width
    assert (found.loss.task, found.loss.balance, found.loss.imitate, found.loss.noise) == losses
    assert found.sampling.guided and (found.sampling.start, found.sampling.tau) == (start, tau)


@pytest.mark.parametrize("name", EDGE)
def test_an_edge_variant_is_a_small_model_of_the_same_classes(name: str) -> None:
    edge, paper = checked(name), checked(name.removesuffix("_edge"))
    assert edge.source.names == paper.source.names and edge.source.labels == paper.source.labels
    assert edge.costs.parameters < 4e6 and 10 * edge.costs.parameters < paper.costs.parameters
    assert 20 * edge.costs.macs(edge.source.names) < paper.costs.macs(paper.source.names)


def test_the_dry_run_says_what_an_absent_modality_saves() -> None:
    report = text(checked("crema_d_edge"))
    lines = {line.split()[0]: line.split() for line in report.splitlines() if line}
    assert int(lines["audio"][2].replace(",", "")) < int(lines["audio+visual"][2].replace(",", ""))
    assert lines["expert"][1:5] == ["x", "8,", "each", "9,408"]
