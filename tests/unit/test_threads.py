"""The number of threads an engine takes where nobody names one: the rule, without an engine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mars_edge.manifest import Manifest, MethodCost, subset_cost
from mars_runtime.engines.threads import MACS_PER_THREAD, default_threads
from tests.fake_engine import manifest

CORES = (1, 2, 4, 64)


def sized(macs: int, *, precision: str = "fp32", expert: int = 0) -> Manifest:
    """A manifest whose encoders share `macs`, and whose experts cost `expert` each."""
    plain = manifest(precision=precision)
    encoders = [f"encode_{name}" for name in plain.names]
    costs = {method: MethodCost(macs=0, weight_bytes=0) for method in plain.methods}
    costs |= {method: MethodCost(macs=expert, weight_bytes=0) for method in plain.methods if "expert" in method}
    costs |= {method: MethodCost(macs=macs // len(encoders), weight_bytes=0) for method in encoders}
    return replace(plain, costs=costs)


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("precision", MACS_PER_THREAD)
def test_every_thread_has_its_share_of_a_decision_to_do(precision: str, cores: int) -> None:
    each = MACS_PER_THREAD[precision]
    for macs in (0, 1, 10**6, 57_232_296, 10**8, 322 * 10**6, 10**9, 10**12):
        given = sized(macs, precision=precision)
        threads = default_threads(given, cores)
        stated = subset_cost(given, given.names).macs
        assert 1 <= threads <= cores
        assert threads == 1 or threads * each <= stated
        assert threads == cores or (threads + 1) * each > stated


def test_the_faster_precision_asks_for_no_more_threads() -> None:
    for macs in (10**8, 10**9, 10**10):
        assert default_threads(sized(macs, precision="int8"), 64) <= default_threads(sized(macs), 64)


def test_only_the_experts_that_run_count() -> None:
    given = sized(0, expert=MACS_PER_THREAD["fp32"])
    assert given.active_experts == 2 < given.experts
    assert default_threads(given, 64) == 2


@pytest.mark.parametrize("cores", CORES)
def test_a_file_without_costs_gets_a_thread_per_core(cores: int) -> None:
    assert not manifest().costs
    assert default_threads(manifest(), cores) == cores


def test_no_number_is_chosen_that_an_engine_would_refuse() -> None:
    assert default_threads(sized(10**15), 10_000) == 256


def test_the_c_plus_plus_runner_has_the_same_constants(repository: Path) -> None:
    source = (repository / "runtime/native/threads.cpp").read_text(encoding="utf-8")
    found = re.findall(r"constexpr double kMacsPerThread(\w*) = (\d+)e6;", source)
    assert {name: int(millions) * 10**6 for name, millions in found} == {
        "": MACS_PER_THREAD["fp32"],
        "Int8": MACS_PER_THREAD["int8"],
    }
    assert MACS_PER_THREAD["fp16"] == MACS_PER_THREAD["fp32"]
