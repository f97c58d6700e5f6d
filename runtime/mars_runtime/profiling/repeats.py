"""The measurement, shared out to several processes one after the other, because each of them has times of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce

from mars_runtime.engines import open_engine
from mars_runtime.profiling import device
from mars_runtime.profiling.child import Progress, in_child, part
from mars_runtime.profiling.inputs import Input
from mars_runtime.profiling.rows import Series
from mars_runtime.profiling.schedule import Schedule
from mars_runtime.profiling.session import Conditions, Measured, hotter, measure


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a child opens one artifact; see `open_engine`."""

    model: str
    threads: int | None
    engine: str | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every process measures; see `session.measure`.

    Attributes:
        schedule: of one process.
    """

    openings: Sequence[Opening]
    inputs: Mapping[str, Input]
    subsets: Sequence[Sequence[str]]
    schedule: Schedule
    pause_s: float


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """What all processes measured: by artifact and subset label the series of each process.

    Attributes:
        elapsed_s: of measuring; neither starts nor warm-ups.
        start, peak, end: of the device.
        preempted: how often a process lost its core to another one.
    """

    series: Sequence[Mapping[str, Sequence[Series]]]
    elapsed_s: float
    start: Conditions
    peak: Conditions
    end: Conditions
    preempted: int


def repeat(plan: Plan, processes: int, *, progress: Progress) -> Repeated:
    """Measure in `processes` fresh processes, one after the other.

    Raises:
        EngineError: an engine or a process failed.
    """
    # A board's own tools are asked before and after: a process started between two rounds would disturb the next.
    start = device.conditions()
    found = [_one(plan, index, processes, progress) for index in range(processes)]
    end = device.conditions()
    return Repeated(
        series=[_by_subset([one.series[side] for one in found]) for side in range(len(plan.openings))],
        elapsed_s=sum(one.elapsed_s for one in found),
        start=start,
        peak=reduce(hotter, [start, *(one.peak for one in found), end]),
        end=end,
        preempted=sum(one.preempted for one in found),
    )


def _one(plan: Plan, index: int, processes: int, progress: Progress) -> Measured:
    measured: Measured = in_child(partial(_measured, plan), progress=part(progress, index, processes))
    return measured


def _by_subset(processes: Sequence[Mapping[str, Series]]) -> dict[str, list[Series]]:
    return {label: [series[label] for series in processes] for label in processes[0]}


def _measured(plan: Plan, progress: Progress) -> Measured:
    """The child's part."""
    engines = [
        open_engine(opening.model, threads=opening.threads, engine=opening.engine, self_test=False)
        for opening in plan.openings
    ]
    return measure(
        engines,
        plan.inputs,
        plan.subsets,
        plan.schedule,
        read_conditions=partial(device.conditions, tools=False),
        progress=progress,
        pause_s=plan.pause_s,
    )
