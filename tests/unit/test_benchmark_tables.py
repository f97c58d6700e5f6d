"""What the tables of benchmarks/ compute from their measurements."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest, MethodCost, SubsetCost
from tests.helpers.tiny_artifact import TinyModel

MANIFEST = TinyModel.create().manifest()


@pytest.fixture(scope="module")
def folder(repository: Path) -> Iterator[None]:
    """The benchmarks can be imported, as they import each other."""
    sys.path.insert(0, str(repository / "benchmarks"))
    yield
    sys.path.remove(str(repository / "benchmarks"))


@pytest.fixture(scope="module")
def subset_cost(folder: None) -> ModuleType:
    return importlib.import_module("subset_cost")


@pytest.fixture(scope="module")
def quantization(folder: None) -> ModuleType:
    return importlib.import_module("quantization")


def _costs(manifest: Manifest) -> dict[str, MethodCost]:
    """1, 2, 3, ... MACs by method."""
    return {m: MethodCost(macs=i + 1, weight_bytes=0, activation_bytes=None) for i, m in enumerate(manifest.methods)}


def test_a_share_of_time_that_no_round_contradicts_is_certain(subset_cost: ModuleType) -> None:
    rng = np.random.default_rng(1)
    whole = rng.uniform(1.0, 9.0, 50)
    measured = np.stack([0.25 * whole, 0.5 * whole, whole], axis=1)
    one = subset_cost.share_of(measured, [0], np.mean)
    assert (one.value, one.low, one.high) == pytest.approx((0.25, 0.25, 0.25))
    assert subset_cost.share_of(measured, [0, 1], np.mean).value == pytest.approx(0.375)
    assert subset_cost.share_of(measured, [0, 1], np.max).value == pytest.approx(0.5)


def test_the_interval_of_a_share_widens_with_noise_and_holds_it(subset_cost: ModuleType) -> None:
    rng = np.random.default_rng(2)
    noisy = np.stack([0.5 * rng.lognormal(0.0, 0.4, 60), rng.lognormal(0.0, 0.4, 60)], axis=1)
    share = subset_cost.share_of(noisy, [0], np.mean)
    assert share.low < share.value < share.high and share.high - share.low > 0.05


def test_every_round_makes_every_call_once_in_an_order_that_changes(subset_cost: ModuleType) -> None:
    made: list[int] = []
    calls = [lambda i=i: made.append(i) for i in range(4)]
    measured = subset_cost.times(calls, 6)
    assert measured.shape == (6, 4) and bool((measured > 0.0).all())
    rounds = [tuple(made[at : at + 4]) for at in range(0, len(made), 4)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in rounds)
    assert len(set(rounds)) > 3


def test_macs_are_those_that_the_manifest_states_or_adds_up_or_unknown(subset_cost: ModuleType) -> None:
    name = MANIFEST.names[0]
    assert subset_cost.macs_of(replace(MANIFEST, costs={}, subset_costs={}), (name,)) is None
    summed = replace(MANIFEST, costs=_costs(MANIFEST), subset_costs={})
    costs, experts = summed.costs, [summed.costs[f"expert_{i}"].macs for i in range(summed.experts)]
    expected = costs[f"encode_{name}"].macs + costs["route"].macs + costs["head"].macs
    expected += costs["expert_shared"].macs if summed.shared_expert else 0
    expected += summed.active_experts * max(experts)
    assert subset_cost.macs_of(summed, (name,)) == expected
    stated = replace(summed, subset_costs={name: SubsetCost(macs=7, weight_bytes=0, activation_bytes=None)})
    assert subset_cost.macs_of(stated, (name,)) == 7


def test_subsets_are_those_of_the_recipe(subset_cost: ModuleType) -> None:
    first, *others = MANIFEST.names
    recipe = {"data": {"always_present": [first]}}
    found = subset_cost.wanted_subsets(replace(MANIFEST, provenance={"recipe": recipe}))
    assert all(first in subset for subset in found) and len(found) == 2 ** len(others)
    assert (
        len(subset_cost.wanted_subsets(replace(MANIFEST, provenance={"recipe": "by hand"})))
        == 2 ** len(MANIFEST.names) - 1
    )


def _measured(quantization: ModuleType, float_mean: float, int8_mean: float, **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "run": "run",
        "artifact": "a.pte",
        "metric": "accuracy",
        "float_errors": {"rgb": 0.10, "rgb+ir": 2 * float_mean - 0.10, "mean": float_mean},
        "int8_errors": {"rgb": 0.11, "rgb+ir": 2 * int8_mean - 0.11, "mean": int8_mean},
        "size_bytes": 25,
        "size_share": 0.25,
    }
    return quantization.Measured(**(fields | changes))


def test_a_difference_is_int8_minus_float_in_points_and_paired_by_run(quantization: ModuleType) -> None:
    before, after = [0.20, 0.30, 0.25], [0.203, 0.301, 0.256]
    runs = [_measured(quantization, *pair) for pair in zip(before, after, strict=True)]
    row = quantization.Row(model="m", format=".pte", runs=runs)
    assert row.mean_points == pytest.approx((0.3 + 0.1 + 0.6) / 3)
    interval = stats.ttest_rel(after, before).confidence_interval()
    assert (row.test.low, row.test.high) == pytest.approx((100 * interval.low, 100 * interval.high))
    name, lost = row.worst_subset
    assert name == "rgb" and lost == pytest.approx(1.0)


def test_the_table_says_whether_an_aim_is_met(quantization: ModuleType) -> None:
    def cells(**changes: Any) -> list[str]:
        runs = [_measured(quantization, 0.2, 0.2, **changes), _measured(quantization, 0.2, 0.2)]
        line = quantization.as_markdown([quantization.Row(model="m", format=".pte", runs=runs)]).splitlines()[2]
        return [cell.strip() for cell in line.strip("|").split("|")]

    assert cells()[-2:] == ["yes", "yes"]
    assert cells(size_share=0.31)[-2:] == ["yes", "no"]
    assert cells(size_share=None)[-2:] == ["yes", "-"]
    worse = {"rgb": 0.11, "rgb+ir": 0.313, "mean": 0.2116}
    assert cells(int8_errors=worse)[-2:] == ["no", "yes"]
    assert cells(int8_errors=worse)[6] == "+0.58"


@pytest.mark.parametrize("text", ["a.pte", "nowhere=a.pte"])
def test_a_pair_names_a_run_directory(quantization: ModuleType, text: str) -> None:
    with pytest.raises(UsageError) as error:
        quantization.pair_of(text)
    assert str(error.value) == f"{text!r} is not RUN=FILE,FILE with a run directory RUN"


def test_an_artifact_that_is_not_there_is_named(quantization: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        quantization.pair_of(f"{tmp_path}={tmp_path / 'a.pte'}")
    assert str(error.value) == f"no artifact {tmp_path / 'a.pte'}"


def test_a_data_folder_is_of_a_model_of_the_table(quantization: ModuleType) -> None:
    assert quantization.folders(["b=here"], ["a", "b"]) == {"b": Path("here")}
    with pytest.raises(UsageError) as error:
        quantization.folders(["c=here"], ["a", "b"])
    assert str(error.value) == "--data 'c=here' is not NAME=DIR with a NAME of: a, b"
