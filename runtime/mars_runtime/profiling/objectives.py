"""Objectives of service: `p90<=15ms,rss<=200MB`, and which of them a report misses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mars_edge.errors import UsageError

_TERM = re.compile(r"\s*([a-z0-9_.]+)(?:@([a-z0-9_+]+))?\s*<=\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z%]*)\s*")
_TIME_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
_MEMORY_MB = {"kB": 0.001, "MB": 1.0, "GB": 1000.0}
_SHARE = {"%": 0.01}
_QUANTILES = ("mean", "p50", "p90", "p95", "p99", "max")
_EXAMPLE = "e.g. 'p90<=15ms,p99@rgb+ir<=20ms,age_p99<=100ms,misses<=0.1%,rss<=200MB,load<=2s'"


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One term.

    Attributes:
        subset: None means the subset with every sensor.
        most: in ms, MB or as a share, by the metric.
        text: as the user wrote it.
    """

    metric: str
    subset: str | None
    most: float
    text: str

    @property
    def needs_processes(self) -> bool:
        """Whether it is about the stream, start-up or memory."""
        return not _METRICS[self.metric][2]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a report says to one objective; `value` is None where it does not know."""

    objective: Objective
    value: float | None
    unit: str
    subset: str | None

    @property
    def is_met(self) -> bool:
        """An objective nothing is known about is not met."""
        return self.value is not None and self.value <= self.objective.most

    @property
    def found(self) -> str:
        """The value in words, and of which subset it is."""
        where = f" with {self.subset}" if self.subset is not None else ""
        return "not known here" if self.value is None else f"{self.value:.4g} {self.unit}{where}"


def parse(text: str, subsets: Mapping[str, Any] | tuple[str, ...]) -> list[Objective]:
    """The objectives of a comma-separated list; `subsets` are the labels that are measured.

    Raises:
        UsageError: a term that is none, an unknown metric or subset, or a unit of another kind.
    """
    return [_term(part, tuple(subsets)) for part in text.split(",")]


def _term(part: str, subsets: tuple[str, ...]) -> Objective:
    match = _TERM.fullmatch(part)
    if match is None:
        raise UsageError(f"--slo {part.strip()!r} is not METRIC<=NUMBERUNIT; {_EXAMPLE}")
    metric, subset, number, unit = match.groups()
    if metric not in _METRICS:
        raise UsageError(f"--slo {part.strip()!r}: unknown metric {metric!r}; known: {', '.join(_METRICS)}")
    units, _, per_subset = _METRICS[metric]
    if unit not in units:
        raise UsageError(f"--slo {part.strip()!r}: unit {unit!r}; {metric} takes: {', '.join(units)}")
    wanted = None if subset is None else next((one for one in subsets if _same(one, subset)), None)
    if subset is not None and (not per_subset or wanted is None):
        allowed = ", ".join(subsets) if per_subset else "none, it is of the whole process"
        raise UsageError(f"--slo {part.strip()!r}: subset {subset!r}; allowed: {allowed}")
    return Objective(metric=metric, subset=wanted, most=float(number) * units[unit], text=part.strip())


def _same(label: str, written: str) -> bool:
    """Whether both name the same modalities, in whatever order."""
    return sorted(label.split("+")) == sorted(written.split("+"))


def findings(objectives: list[Objective], report: Mapping[str, Any]) -> list[Finding]:
    """What a report says to each."""
    found = []
    for objective in objectives:
        _, read, per_subset = _METRICS[objective.metric]
        row = _row(report, objective.subset)
        subset = row["subset"] if per_subset else None
        value = read(report, row, objective.metric)
        found.append(Finding(objective=objective, value=value, unit=_unit(objective.metric), subset=subset))
    return found


def _row(report: Mapping[str, Any], subset: str | None) -> Mapping[str, Any]:
    rows: list[Mapping[str, Any]] = report["rows"]
    # The last row is the one with every sensor that was measured.
    return rows[-1] if subset is None else next(row for row in rows if row["subset"] == subset)


def _quantile(_: Mapping[str, Any], row: Mapping[str, Any], metric: str) -> float | None:
    value: float = row["stages"]["total"][f"{metric}_ms"]
    return value


def _age(report: Mapping[str, Any], _: Mapping[str, Any], metric: str) -> float | None:
    """Of the stream that decides at a fixed rate, as `run` does."""
    loops = (report["live"] or {}).get("loops") or {}
    value: float | None = loops["fixed_rate"]["age"][f"{metric.removeprefix('age_')}_ms"] if loops else None
    return value


def _misses(_: Mapping[str, Any], row: Mapping[str, Any], __: str) -> float | None:
    return float(row["misses"]) / float(row["stages"]["total"]["n"])


def _memory(report: Mapping[str, Any], _: Mapping[str, Any], metric: str) -> float | None:
    value = report["memory"]["peak"][f"{metric}_mb"] if report["memory"] else None
    return None if value is None else float(value)


def _load(report: Mapping[str, Any], _: Mapping[str, Any], metric: str) -> float | None:
    key = {"load": "process_to_ready_ms", "load_cold": "model_cold_ms", "load_warm": "model_warm_ms"}[metric]
    value = report["load"][key] if report["load"] else None
    return None if value is None else float(value)


_Read = Callable[[Mapping[str, Any], Mapping[str, Any], str], float | None]
_METRICS: dict[str, tuple[dict[str, float], _Read, bool]] = {
    **dict.fromkeys(_QUANTILES, (_TIME_MS, _quantile, True)),
    **{f"age_{name}": (_TIME_MS, _age, False) for name in ("p50", "p90", "p99")},
    "misses": (_SHARE, _misses, True),
    "rss": (_MEMORY_MB, _memory, False),
    "pss": (_MEMORY_MB, _memory, False),
    "load": (_TIME_MS, _load, False),
    "load_cold": (_TIME_MS, _load, False),
    "load_warm": (_TIME_MS, _load, False),
}


def _unit(metric: str) -> str:
    units = _METRICS[metric][0]
    return "ms" if units is _TIME_MS else "MB" if units is _MEMORY_MB else "of the decisions"
