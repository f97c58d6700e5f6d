"""The report of a bench: as text for a terminal, as Markdown for the documentation, as plain JSON types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mars_runtime.grading.delays import Grade
from mars_runtime.grading.gap import NO_FAULT, Cost, Phase
from mars_runtime.grading.quiet import Hours

Rows = Sequence[Sequence[str]]

_FAULTS = ("fault", "sensor", "noticed", "masked", "as", "p50", "p95", "limit", "within", "held", "back", "learned p95")
_NORMAL = ("stream", "sensor", "hours", "masks", "false alarms", "degraded", "as", "learned: false alarms")
_COSTS = ("fault", "sensor", "unnoticed", "decisions", "degraded", "decisions", "masked", "decisions", "abstains")
_PHASES: tuple[Phase, ...] = ("gap", "degraded", "masked")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything one bench measured; `beyond` are the lines of what is worse than the bounds."""

    grades: Sequence[Grade]
    hours: Sequence[Hours]
    costs: Sequence[Cost]
    beyond: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "faults": [asdict(each) for each in self.grades],
            "normal": [asdict(each) for each in self.hours],
            "decisions": [_cost_to_dict(each) for each in self.costs],
            "beyond": list(self.beyond),
        }


def as_text(report: Report) -> str:
    """Tables aligned for a terminal."""
    return _joined(report, _aligned)


def as_markdown(report: Report) -> str:
    """The same tables in Markdown."""
    return _joined(report, _piped)


def _joined(report: Report, layout: Callable[[Rows], str]) -> str:
    parts = [layout([_FAULTS, *_fault_rows(report.grades)]), layout([_NORMAL, *_normal_rows(report.hours)])]
    if report.costs:
        parts.append(layout([_COSTS, *map(_cost_row, report.costs)]))
    parts.append("\n".join(f"beyond its bound: {line}" for line in report.beyond) or "nothing is beyond its bound")
    return "\n\n".join(parts)


def _fault_rows(grades: Sequence[Grade]) -> Rows:
    learned = {(each.fault, each.sensor): each for each in grades if each.learned}
    return [_fault_row(each, learned[each.fault, each.sensor]) for each in grades if not each.learned]


def _fault_row(usual: Grade, learned: Grade) -> Sequence[str]:
    changed = (learned.p95_s, learned.found) != (usual.p95_s, usual.found)
    return (
        usual.fault,
        usual.sensor,
        f"{usual.found}/{usual.trials}",
        f"{usual.masked}/{usual.trials}",
        usual.reason or "-",
        _ms(usual.p50_s),
        _ms(usual.p95_s),
        _ms(usual.limit_s),
        "-" if usual.limit_s is None else f"{usual.within}/{usual.trials}",
        f"{usual.held:.0%}" if usual.reason else "-",
        _ms(usual.back_p50_s) if usual.reason else "-",
        f"{_ms(learned.p95_s)} ({learned.found}/{learned.trials})" if changed else "",
    )


def _normal_rows(hours: Sequence[Hours]) -> Rows:
    learned = {(each.stream, each.sensor): each for each in hours if each.learned}
    return [_normal_row(each, learned[each.stream, each.sensor]) for each in hours if not each.learned]


def _normal_row(usual: Hours, learned: Hours) -> Sequence[str]:
    return (
        usual.stream,
        usual.sensor,
        f"{usual.hours:.3g}",
        str(usual.masks),
        str(usual.false_alarms),
        f"{usual.degraded_share:.1%}",
        ", ".join(usual.reasons) or "-",
        str(learned.false_alarms) if learned.false_alarms != usual.false_alarms else "",
    )


def _cost_row(cost: Cost) -> Sequence[str]:
    cells = [cost.fault, cost.sensor or "-"]
    for phase in _PHASES:
        accuracy = cost.accuracy(phase)
        cells += ["-" if accuracy is None else f"{accuracy:.1%}", str(cost.decisions(phase))]
    total = sum(cost.decisions(phase) for phase in _PHASES)
    return (*cells, f"{sum(cost.abstained.values()) / total:.0%}" if total else "-")


def _cost_to_dict(cost: Cost) -> dict[str, Any]:
    table: dict[str, Any] = {"fault": None if cost.fault == NO_FAULT else cost.fault, "sensor": cost.sensor or None}
    for phase in _PHASES:
        table[phase] = {
            "decisions": cost.decisions(phase),
            "accuracy": cost.accuracy(phase),
            "abstained": cost.abstained[phase],
        }
    return table


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000.0 * seconds:.0f} ms"


def _aligned(rows: Rows) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _piped(rows: Rows) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])
