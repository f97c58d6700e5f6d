"""Millions of decisions on a made-up clock: memory stays where it was."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.helpers.recorded_run import WildRun


def test_20_000_decisions_take_no_more_memory_than_the_first_thousands() -> None:
    assert grown_kib(20_000) < 1024


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_million_decisions_take_no_more_memory_than_the_first_thousands() -> None:
    assert grown_kib(2_000_000) < 1024


class Forgetful(list[object]):
    """The test engine's diary, not kept."""

    def append(self, entry: object) -> None:
        pass


def run_for(run: WildRun, count: int) -> None:
    for _ in range(count):
        run.decide()


def resident_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def grown_kib(count: int) -> int:
    """How much more memory the process holds after `count` decisions than after the first 3000."""
    run = WildRun(22, latch_s=0.5)
    run.engine.calls = Forgetful()  # type: ignore[assignment]
    run_for(run, 3000)
    gc.collect()
    before = resident_kib()
    run_for(run, count)
    gc.collect()
    return resident_kib() - before
