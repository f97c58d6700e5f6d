"""The number of threads an engine takes where nobody names one: the rule, without an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mars_edge.manifest import Manifest, MethodCost, subset_cost
from mars_runtime.engines.threads import MACS_PER_THREAD, default_threads
from tests.fake_engine import manifest

CORES = (1, 2, 4, 64)


def sized(macs: int, *, expert: int = 0) -> Manifest:
    """A manifest whose encoders share `macs`, and whose experts cost `expert` each."""
    plain = manifest()
    encoders = [f"encode_{name}" for name in plain.names]
    costs = {method: MethodCost(macs=0, weight_bytes=0) for method in plain.methods}
    costs |= {method: MethodCost(macs=expert, weight_bytes=0) for method in plain.methods if "expert" in method}
    costs |= {method: MethodCost(macs=macs // len(encoders), weight_bytes=0) for method in encoders}
    return replace(plain, costs=costs)


@pytest.mark.parametrize("cores", CORES)
def test_every_thread_has_its_share_of_a_decision_to_do(cores: int) -> None:
    for macs in (0, 1, 10**6, 57_232_296, 10**8, 322 * 10**6, 10**9, 10**12):
        given = sized(macs)
        threads = default_threads(given, cores)
        stated = subset_cost(given, given.names).macs
        assert 1 <= threads <= cores
        assert threads == 1 or threads * MACS_PER_THREAD <= stated
        assert threads == cores or (threads + 1) * MACS_PER_THREAD > stated


def test_only_the_experts_that_run_count() -> None:
    given = sized(0, expert=MACS_PER_THREAD)
    assert given.active_experts == 2 < given.experts
    assert default_threads(given, 64) == 2


@pytest.mark.parametrize("cores", CORES)
def test_a_file_without_costs_gets_a_thread_per_core(cores: int) -> None:
    assert not manifest().costs
    assert default_threads(manifest(), cores) == cores


def test_no_number_is_chosen_that_an_engine_would_refuse() -> None:
    assert default_threads(sized(10**15), 10_000) == 256


def test_the_c_plus_plus_runner_has_the_same_constant(repository: Path) -> None:
    source = (repository / "runtime/native/threads.cpp").read_text(encoding="utf-8")
    assert f"constexpr double kMacsPerThread = {MACS_PER_THREAD // 10**6}e6;\n" in source
    assert MACS_PER_THREAD % 10**6 == 0
