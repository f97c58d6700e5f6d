"""Two reports side by side: whether they may be compared at all, and what then differs.

Each report says where the quantile of one more process lies. The ratio of two runs' quantiles is bounded by both: their
widths, as logarithms, add up like independent errors. It says less than two artifacts measured in turn (`--beside`): a
machine is not the same an hour later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mars_edge.errors import UsageError
from mars_runtime.profiling.statistics import verdict

SCHEMA_VERSION = 1

Report = Mapping[str, Any]
_LONGEST_TEXT = 64
# A nanosecond, and more than a day.
_SHORTEST_MS, _LONGEST_MS = 1e-6, 1e8

# What must be equal, in words: where it lies in the report.
_ALIKE: dict[str, Sequence[str]] = {
    "board": ("device", "board"),
    "processor": ("device", "processor"),
    "usable cores": ("device", "cores"),
    "governor": ("device", "governor"),
    "power mode": ("device", "power_mode"),
    "threads": ("settings", "threads"),
    "mode": ("settings", "mode"),
    "processes": ("settings", "processes"),
    "runs": ("settings", "runs"),
    "warm-up": ("settings", "warmup"),
    "seconds": ("settings", "min_seconds"),
    "niceness": ("settings", "niceness"),
    "target rate": ("settings", "rate_hz"),
    "subsets": ("settings", "subsets"),
    "inputs": ("settings", "inputs"),
    "engine": ("settings", "engine"),
    "engine's version": ("settings", "engine_version"),
    "pause between decisions": ("settings", "pause_ms"),
    "OMP_NUM_THREADS": ("settings", "omp_num_threads"),
    "kernel": ("device", "kernel"),
    "Python": ("device", "python"),
    "something beside it": ("settings", "beside"),
}


@dataclass(frozen=True, kw_only=True)
class RowRatio:
    """One quantile of this report's total of one subset over the base's."""

    subset: str
    base_ms: float
    this_ms: float
    ratio: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """ "faster", "slower", "no difference", or "not known" where a report has too few decisions."""
        return verdict(self.low, self.high)


def load(path: Path) -> Report:
    """A report that `profile --json` wrote.

    Raises:
        UsageError: it cannot be read, is none, or is of another version.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refused)
    except OSError as error:
        raise UsageError(f"--compare {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--compare {path}: not JSON: {error}") from error
    if not isinstance(report, dict) or report.get("kind") != "mars-edge profile":
        raise UsageError(f"--compare {path}: is no report of `mars-edge profile --json`")
    version = report.get("schema")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise UsageError(f"--compare {path}: schema {version!r}, this version reads {SCHEMA_VERSION}")
    try:
        _check(report)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f"--compare {path}: damaged: {type(error).__name__} at {error}") from error
    return report


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _check(report: Report) -> None:
    """All that a comparison reads is there, and numbers are times."""
    for what, value in (("t_utc", report["t_utc"]), ("sha256", report["artifact"]["sha256"])):
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
            raise ValueError(f"{what} {str(value)[:_LONGEST_TEXT]!r}")
    labels = [row["subset"] for row in report["rows"]]
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"rows of {labels}")
    for row in report["rows"]:
        total = row["stages"]["total"]
        for name in ("p50", "p90"):
            value, ends = _time(total[f"{name}_ms"]), total[f"{name}_interval_ms"]
            if ends == [None, None]:
                continue
            low, high = (_time(end) for end in ends)
            if not low <= value <= high:
                raise ValueError(f"{name} of {row['subset']}: outside of its interval")


def _time(value: Any) -> float:
    """A time in ms that some device can take."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _SHORTEST_MS <= value <= _LONGEST_MS:
        raise ValueError(f"{str(value)[:_LONGEST_TEXT]}, which is no time in ms")
    return float(value)


def differences(base: Report, this: Report) -> list[str]:
    """Why the two may not be compared, one line each; empty where they may."""
    found = []
    for what, path in _ALIKE.items():
        was, now = _at(base, path), _at(this, path)
        if was != now:
            found.append(f"{what}: {_shown(was)} then, {_shown(now)} now")
    for when, report in (("then", base), ("now", this)):
        if (report.get("conditions") or {}).get("slowed_down"):
            found.append(f"throttled: the device slowed itself down {when}")
    return found


def _at(report: Report, path: Sequence[str]) -> Any:
    value: Any = report
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {part}" for key, part in value.items())
    return "unknown" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def ratios(base: Report, this: Report, quantile: str = "p50") -> list[RowRatio]:
    """By subset in both, in this report's order, of "p50", "p90" or "p99"."""
    before = {row["subset"]: row["stages"]["total"] for row in base["rows"]}
    return [
        _ratio(row["subset"], before[row["subset"]], row["stages"]["total"], quantile)
        for row in this["rows"]
        if row["subset"] in before
    ]


def _ratio(subset: str, base: Mapping[str, Any], this: Mapping[str, Any], quantile: str) -> RowRatio:
    ends, value = f"{quantile}_interval_ms", f"{quantile}_ms"
    ratio = this[value] / base[value]
    width = _width(base[ends], this[ends])
    return RowRatio(
        subset=subset,
        base_ms=base[value],
        this_ms=this[value],
        ratio=ratio,
        low=None if width is None else ratio * math.exp(-width),
        high=None if width is None else ratio * math.exp(width),
    )


def _width(*intervals: Sequence[float | None]) -> float | None:
    """Half of what lies between the logarithms of the ends; of several intervals as of independent errors."""
    squares = []
    for low, high in intervals:
        if low is None or high is None:
            return None
        squares.append((math.log(high / low) / 2.0) ** 2)
    return math.sqrt(sum(squares))


def to_dict(base: Report, this: Report, path: Path, *, forced: bool) -> dict[str, Any]:
    """The JSON object of a comparison; without rows where the two are unlike and nobody `forced` it."""
    unlike = differences(base, this)
    return {
        "base": {"file": path.name, "artifact": base["artifact"]["sha256"], "t_utc": base["t_utc"]},
        "forced": forced,
        "unlike": unlike,
        "rows": [
            {
                "subset": r.subset,
                "base_p50_ms": r.base_ms,
                "p50_ms": r.this_ms,
                "ratio": r.ratio,
                "interval": [r.low, r.high],
                "verdict": r.verdict,
                "base_p90_ms": tail.base_ms,
                "p90_ms": tail.this_ms,
                "p90_ratio": tail.ratio,
                "p90_interval": [tail.low, tail.high],
                "p90_verdict": tail.verdict,
            }
            for r, tail in zip(ratios(base, this), ratios(base, this, "p90"), strict=True)
            if forced or not unlike
        ],
    }
