"""The rules and tables of benchmarks/operating_points.py."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mars_edge.errors import UsageError
from mars_export import calibrate
from mars_training.recipe import ExportRecipe
from tests.fake_engine import manifest
from tests.helpers.tiny_mars import LABELS, MODALITIES, split


@pytest.fixture(scope="module")
def benchmark() -> Any:
    folder = str(Path(__file__).resolve().parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    module = importlib.import_module("operating_points")
    sys.path.remove(folder)
    return module


def test_a_rule_changes_the_threshold_and_nothing_else(benchmark: Any) -> None:
    recipe = ExportRecipe(certify_max_error=0.1, certify_min_samples=30)
    wanted = {
        "argmax": {"threshold": "argmax"},
        "bpcer=0.02": {"threshold": "bpcer", "bpcer_target": 0.02},
        "apcer=0.2": {"threshold": "apcer", "apcer_target": 0.2},
        "apcer_bounded=0.2": {"threshold": "apcer", "apcer_target": 0.2, "apcer_bounded": True},
    }
    for rule, changes in wanted.items():
        assert benchmark.rule_of(rule, recipe) == ExportRecipe(
            certify_max_error=0.1,
            certify_min_samples=30,
            **changes,  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "eer",
            "--rule 'eer'; allowed: equal_error, argmax, bpcer=TARGET, apcer=TARGET, apcer_bounded=TARGET",
        ),
        (
            "argmax=0.5",
            "--rule 'argmax=0.5'; allowed: equal_error, argmax, bpcer=TARGET, apcer=TARGET, apcer_bounded=TARGET",
        ),
        ("bpcer", "--rule 'bpcer': '' is no number; an example: bpcer=0.01"),
        ("apcer=1.5", "export.apcer_target is 1.5; allowed: above 0 to below 1"),
    ],
)
def test_a_rule_that_is_none_is_refused(benchmark: Any, rule: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        benchmark.rule_of(rule, ExportRecipe())
    assert str(caught.value) == message


def test_the_tables_show_the_points_an_export_would_make(benchmark: Any) -> None:
    sides = {}
    for seed, subset in enumerate([("rgb",), ("rgb", "ir")]):
        generator, rows = np.random.default_rng(seed), split(200, seed)
        sign = rows.class_labels.numpy() * 2.0 - 1.0
        margin = sign + generator.normal(size=200)
        logits = np.stack([-margin, margin], axis=1).astype(np.float32)
        sides[subset] = {"validation": (logits, rows), "test": (logits, rows)}
    model = manifest(modalities=MODALITIES, labels=LABELS, positive_label="live", operating_points={})
    recipe = ExportRecipe(certify_max_error=0.01)
    found = benchmark.calibrated(model, sides, recipe)
    assert list(found) == ["rgb", "rgb+ir"]
    lines = list(benchmark.markdown(found))[2:]
    hints = list(benchmark.temperatures(found))[2:]
    for line, hint, (label, row) in zip(lines, hints, found.items(), strict=True):
        point = row.point
        assert isinstance(row, calibrate.Calibrated) and point.bpcer is not None
        assert line.startswith(f"| {label} | {point.threshold:.4f} | {100 * point.bpcer.value:.1f} (")
        assert f"| no: {row.shortfalls[0]} |" in line
        assert hint.startswith(f"| {label} | {row.temperature.value:.3f} | {100 * row.before.ece:.2f} |")
