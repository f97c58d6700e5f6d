"""Sensitivity: a layer whose weights suit int8 badly comes first, and leaving what is recommended helps."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from mars_export import quantize, sensitivity
from mars_export.hush import hushed
from mars_export.sensitivity import LayerEffect, Sensitivity, recommended
from mars_training.data.split import Data
from mars_training.model.mars import TrainingMars
from tests.helpers.tiny_mars import NAMES, SHAPES, SOURCE, model, recipe, split

DATA = Data(source=SOURCE, train=split(48, 1), validation=split(40, 2))
BAD = "encode_depth/0.stack.1.0"


def spoilt() -> TrainingMars:
    """One layer whose every channel has an outlier weight that reads a channel which is always zero."""
    given = model()
    with torch.no_grad():
        first, second = given.deployed.encoders["depth"].stack  # type: ignore[union-attr, misc]
        first[1].weight[0], first[1].bias[0] = 0.0, -1.0
        second[0].weight[:, 0] = 40.0
    return given


@pytest.fixture(scope="module")
def report() -> Sensitivity:
    with hushed():
        return sensitivity.measure(spoilt(), DATA, recipe(), seed=0, samples=40)


def test_the_layer_with_outlier_weights_comes_first_and_is_recommended(report: Sensitivity) -> None:
    assert report.layers[0].name == BAD
    assert report.layers[0].kl > 5 * report.layers[1].kl
    assert BAD in recommended(report, most_weights=0.5)


def test_every_layer_is_there_once_worst_first(report: Sensitivity) -> None:
    names = [layer.name for layer in report.layers]
    expected = {f"encode_{m}/{path}" for m in NAMES for path in ("0.stack.0.0", "0.stack.1.0", "1")}
    expected |= {f"expert_{i}/0.0" for i in range(4)} | {"head/out"}
    assert set(names) == expected and len(names) == len(expected)
    assert [layer.kl for layer in report.layers] == sorted((layer.kl for layer in report.layers), reverse=True)
    assert all(layer.kl >= 0.0 for layer in report.layers) and report.int8_kl > 0.0
    assert report.rows == 40


def test_leaving_the_recommended_layers_float_brings_int8_nearer_to_float(report: Sensitivity) -> None:
    kept = recipe(float_layers=recommended(report, most_weights=0.5))
    with hushed():
        mixed = sensitivity.measure(spoilt(), DATA, kept, seed=0, samples=40)
    assert mixed.int8_kl < 0.7 * report.int8_kl
    assert BAD not in {layer.name for layer in mixed.layers}


def test_measuring_changes_no_model() -> None:
    given = model()
    before = {name: t.clone() for name, t in given.state_dict().items()}
    with hushed():
        sensitivity.measure(given, DATA, recipe(), seed=0, samples=4)
    assert all(torch.equal(t, before[name]) for name, t in given.state_dict().items())


def test_all_quantizers_together_answer_as_the_prepared_model(report: Sensitivity) -> None:
    given = spoilt()
    with hushed():
        quantize.prepare(given.deployed, SHAPES)
        torch.manual_seed(0)
        quantize.observe(given.deployed, DATA.train, recipe())
        quantize.freeze_observers(given.deployed)
        reference = quantize.convert(given.deployed)
        rows, subsets = DATA.validation.batch(torch.arange(40)), torch.eye(3, dtype=torch.bool)
        with torch.no_grad():
            total = 0.0
            masks = [*subsets, ~subsets[0], ~subsets[1], ~subsets[2], torch.ones(3, dtype=torch.bool)]
            for mask in masks:
                expected = spoilt().deployed(rows, mask.expand(40, -1)).log_softmax(1)
                answer = reference(rows, mask.expand(40, -1)).log_softmax(1)
                total += float((expected.exp() * (expected - answer)).sum(1).mean()) / len(masks)
    assert report.int8_kl == pytest.approx(total, rel=0.02, abs=1e-6)


def effects(*kls: float, weights: int = 100) -> Sensitivity:
    layers = tuple(LayerEffect(name=f"head/{i}", kl=kl, error=0.1, weights=weights) for i, kl in enumerate(kls))
    return Sensitivity(layers=layers, between_kl=0.0, int8_kl=1.0, int8_error=0.2, float_error=0.1, rows=9)


@pytest.mark.parametrize(
    ("given", "budget", "names"),
    [
        (effects(6.0, 3.0, 1.0), 1.0, ("head/0",)),
        (effects(4.0, 3.0, 1.0, 1.0), 1.0, ("head/0", "head/1")),
        (effects(4.0, 3.0, 1.0, 1.0), 0.25, ("head/0",)),
        (effects(4.0, 3.0, 1.0, 1.0), 0.2, ()),
        (dataclasses.replace(effects(1.0, 1.0), between_kl=100.0), 1.0, ()),
        (effects(0.0, 0.0), 1.0, ()),
    ],
)
def test_the_rule_takes_half_of_the_effect_within_the_budget_of_weights(
    given: Sensitivity, budget: float, names: tuple[str, ...]
) -> None:
    assert recommended(given, most_weights=budget) == names


def test_the_report_is_a_table_and_json(report: Sensitivity) -> None:
    assert json.loads(json.dumps(report.to_dict()))["layers"][0]["name"] == BAD
    assert effects(2e-6, 1e-6).text().splitlines() == [
        "quantized alone      KL, 1e-6 nats  error %     weights",
        "head/0                         2.0    10.00         100",
        "head/1                         1.0    10.00         100",
        "between int8 layers            0.0        -",
        "all (int8)               1000000.0    20.00",
        "none (float)                   0.0    10.00",
    ]


def test_a_layer_between_int8_layers_does_not_answer_for_the_values_that_those_round() -> None:
    given = model()
    with torch.no_grad():
        # Nothing of these weights is lost in 8 bits; the constant that the layer then answers is rounded by its reader.
        given.deployed.encoders["ir"].stack[1][0].weight.zero_()  # type: ignore[union-attr, index]
    with hushed():
        found = sensitivity.measure(given, DATA, recipe(), seed=0, samples=20)
    effect = {layer.name: layer.kl for layer in found.layers}
    assert effect["encode_ir/0.stack.1.0"] == 0.0
    assert effect["encode_ir/1"] > 0.0 and found.between_kl > 0.0
