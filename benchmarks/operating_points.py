"""What an artifact's subsets would decide under other rules: thresholds, temperatures, and the defender's tables.

Example:
    python benchmarks/operating_points.py face_antispoof.pte --rule bpcer=0.01 --rule equal_error --rule apcer=0.05

The artifact answers every validation and test sample once, in its own engine; each rule is then picked on validation
and measured on test as an export does it, with the certification of the artifact's recipe. Markdown on stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mars_edge import defence, subsets
from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.manifest import Manifest
from mars_edge.metrics import Rate
from mars_edge.options import OneLineParser
from mars_export import calibrate
from mars_export.evaluate import Engine, engine_answers, recipe_of, source_of, wanted_subsets
from mars_runtime.engines import open_engine
from mars_training.data.load import load_split
from mars_training.recipe import ExportRecipe

_TARGETS = {"bpcer": "bpcer_target", "apcer": "apcer_target", "apcer_bounded": "apcer_target"}
_PLAIN = ("equal_error", "argmax")
Sides = Mapping[subsets.Subset, Mapping[str, Any]]


def rule_of(text: str, recipe: ExportRecipe) -> ExportRecipe:
    """`recipe` with the threshold that a rule such as "bpcer=0.01" or "equal_error" names.

    Raises:
        UsageError: another rule, or a target that is no number between 0 and 1.
    """
    name, _, target = text.partition("=")
    if name in _PLAIN and not target:
        return dataclasses.replace(recipe, threshold=name)  # type: ignore[arg-type]
    if name not in _TARGETS:
        allowed = ", ".join([*_PLAIN, *(f"{key}=TARGET" for key in _TARGETS)])
        raise UsageError(f"--rule {text!r}; allowed: {allowed}")
    try:
        share = float(target)
    except ValueError:
        raise UsageError(f"--rule {text!r}: {target!r} is no number; an example: {name}=0.01") from None
    changes: dict[str, Any] = {"threshold": name.removesuffix("_bounded"), _TARGETS[name]: share}
    return dataclasses.replace(recipe, **changes, apcer_bounded=name.endswith("_bounded"))


def answered(engine: Engine, folder: Path | None) -> Sides:
    """Per subset, "validation" and "test": the logits and the rows that have the subset."""
    recipe, wanted = recipe_of(engine.manifest), wanted_subsets(engine.manifest)
    found: dict[subsets.Subset, dict[str, Any]] = {subset: {} for subset in wanted}
    for side in ("validation", "test"):
        split = load_split(recipe, side, folder=folder)
        for subset, answers in engine_answers(engine, split, wanted).items():
            found[subset][side] = (answers.logits, split.take(torch.from_numpy(answers.indices)))
    return found


def calibrated(manifest: Manifest, sides: Sides, recipe: ExportRecipe) -> dict[str, calibrate.Calibrated]:
    """By subset label, what an export by `recipe` would put into the manifest."""
    source = source_of(manifest)
    return {
        subsets.label(subset, manifest.names): calibrate.calibrated(side["validation"], side["test"], source, recipe)
        for subset, side in sides.items()
        if calibrate.unmeasurable(side["validation"][1], side["test"][1], source) is None
    }


def markdown(found: Mapping[str, calibrate.Calibrated]) -> Iterator[str]:
    """One line per subset, rates in percent with their 95 % interval."""
    yield "| subset | threshold | BPCER | worst species | its APCER | error | certified |"
    yield "|---|---|---|---|---|---|---|"
    for subset, row in found.items():
        point = row.point
        worst = max(point.apcer, key=lambda name, p=point: p.apcer[name].value, default="-")  # type: ignore[misc]
        cells = (
            subset,
            f"{point.threshold:.4f}",
            _rate(point.bpcer),
            worst,
            _rate(point.apcer.get(worst)),
            f"{point.metric} {100 * point.value:.2f} ({100 * point.low:.2f} to {100 * point.high:.2f})",
            "yes" if point.certified else f"no: {'; '.join(row.shortfalls)}",
        )
        yield f"| {' | '.join(cells)} |"


def temperatures(found: Mapping[str, calibrate.Calibrated]) -> Iterator[str]:
    """One line per subset: the temperature, and how well probabilities fit the test split without and with it."""
    yield "| subset | temperature | ECE % before | after | NLL before | after | note |"
    yield "|---|---|---|---|---|---|---|"
    for subset, row in found.items():
        before, after = row.before, row.after
        yield (
            f"| {subset} | {row.temperature.value:.3f} | {100 * before.ece:.2f} | {100 * after.ece:.2f} "
            f"| {before.nll:.4f} | {after.nll:.4f} | {row.temperature.note or ''} |"
        )


def _rate(rate: Rate | None) -> str:
    return "-" if rate is None else f"{100 * rate.value:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def _print_rules(engine: Engine, rules: Sequence[str], folder: Path | None) -> None:
    manifest = engine.manifest
    recipes = {rule: rule_of(rule, recipe_of(manifest).export) for rule in rules}
    sides = answered(engine, folder)
    for place, (rule, recipe) in enumerate(recipes.items()):
        found = calibrated(manifest, sides, recipe)
        if place == 0:
            print("### temperature\n\n" + "\n".join(temperatures(found)))
        points = {label: row.point for label, row in found.items()}
        print(f"\n### {rule}\n\n" + "\n".join(markdown(found)))
        print(f"\n```\n{defence.text_table(dataclasses.replace(manifest, operating_points=points))}\n```")


def main() -> int:
    """Print the tables, and where they were measured."""
    parser = OneLineParser(prog="benchmarks/operating_points.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="FILE", help="a .pte or .onnx, or a bundled model's name")
    parser.add_argument("--rule", action="append", metavar="RULE", help="bpcer=0.01, equal_error, apcer=0.05, ...")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the data set (the rig needs none)")
    try:
        options = parser.parse_args()
        engine = open_engine(options.model)
        _print_rules(engine, options.rule or ["equal_error"], options.data)
    except MarsEdgeError as error:
        print(f"operating_points: {error}", file=sys.stderr)
        return error.exit_code
    print(f"\n{options.model} in {engine.name}, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
