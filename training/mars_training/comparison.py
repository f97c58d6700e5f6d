"""The table of a comparison: spreads per row and subset, and every row's paired test against one of them.

Numbers are error rates in 0..1 inside and percent in text; lower is better for every metric.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mars_edge.errors import UsageError
from mars_training.statistics import Key, Paired, holm, paired_test, spread

MEAN = "mean"
LAST = "last epoch"
Pair = tuple[str, str]
"""Names of two rows."""
_ERROR_OF = {"acer": "ACER", "accuracy": "100 - accuracy", "miou": "100 - mIoU"}


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One method's results.

    Attributes:
        errors: per run, the error of every subset under the subset's label and of their mean under "mean".
        last: per run, the mean error over subsets of the last epoch instead of the selected one.
        wanted: runs there should be.
        failed: per run that failed, why.
        metric: what the error is of, as `SubsetScore.metric`.
        parameters: of the deployed model; None when unknown.
        macs: multiply-accumulates of one decision with all modalities, as `Costs.macs`; None when unknown.
        privileged: it reads what a device cannot; never the best value.
    """

    name: str
    errors: Mapping[Key, Mapping[str, float]]
    wanted: int
    last: Mapping[Key, float] = field(default_factory=dict)
    failed: Mapping[Key, str] = field(default_factory=dict)
    metric: str = ""
    parameters: int | None = None
    macs: int | None = None
    privileged: bool = False

    def column(self, name: str) -> dict[Key, float]:
        """One column's error in percent, per run."""
        if name == LAST:
            return {key: 100.0 * error for key, error in self.last.items()}
        return {key: 100.0 * errors[name] for key, errors in self.errors.items()}


def columns_of(rows: Sequence[TableRow]) -> list[str]:
    """The subsets in the order they were evaluated, their mean, and the last epoch's mean where it is known.

    Raises:
        UsageError: rows were measured on different subsets.
    """
    done = [(row, list(errors)) for row in rows for errors in row.errors.values()]
    subsets = [name for name in (done[0][1] if done else []) if name != MEAN]
    for row, names in done:
        if set(names) != {*subsets, MEAN}:
            here, there = ", ".join(n for n in names if n != MEAN), ", ".join(subsets)
            raise UsageError(
                f"row {row.name!r} was measured on {here}, row {done[0][0].name!r} on {there}; they cannot be compared"
            )
    return [*subsets, MEAN, *([LAST] if any(row.last for row in rows) else [])]


def comparisons(rows: Sequence[TableRow], pairs: Sequence[Pair]) -> dict[Pair, Paired]:
    """By pair of row names, first - second of the mean over subsets in points; p adjusted for all of them (Holm).

    A pair without two runs in common is left out.
    """
    means = {row.name: row.column(MEAN) for row in rows}
    tests = {pair: paired_test(means[pair[0]], means[pair[1]]) for pair in pairs}
    done = {pair: test for pair, test in tests.items() if test is not None}
    adjusted = holm([test.p for test in done.values()])
    return {pair: dataclasses.replace(test, p_holm=p) for (pair, test), p in zip(done.items(), adjusted, strict=True)}


def as_markdown(rows: Sequence[TableRow], pairs: Sequence[Pair]) -> str:
    """Both tables and their notes, as Markdown."""
    tests = comparisons(rows, pairs)
    return "\n\n".join([_errors_table(rows), *_paired_table(rows, tests), _notes(rows, tests)])


def as_dict(rows: Sequence[TableRow], pairs: Sequence[Pair]) -> dict[str, Any]:
    """All numbers of both tables, as plain JSON types; errors in percent."""
    tests = comparisons(rows, pairs)
    return {
        "rows": [_row_dict(row, columns_of(rows)) for row in rows],
        "comparisons": [
            {"row": row, "reference": reference, **dataclasses.asdict(test), "verdict": test.verdict}
            for (row, reference), test in tests.items()
        ],
    }


def _row_dict(row: TableRow, columns: Sequence[str]) -> dict[str, Any]:
    filled = {name: row.column(name) for name in columns}
    return {
        "name": row.name,
        "parameters": row.parameters,
        "macs": row.macs,
        "privileged": row.privileged,
        "runs": len(row.errors),
        "wanted": row.wanted,
        "failed": len(row.failed),
        "metric": row.metric,
        "error": {name: dataclasses.asdict(spread(values)) for name, values in filled.items() if values},
    }


def _errors_table(rows: Sequence[TableRow]) -> str:
    columns = columns_of(rows)
    metric = next((row.metric for row in rows if row.metric), "")
    sized = any(row.parameters is not None for row in rows)
    head = [f"{_ERROR_OF.get(metric, 'error')} %", *(["parameters", "MMAC"] if sized else []), "runs", *columns]
    best = {name: _best(rows, name) for name in columns}
    lines = [_line(head), "|---" * len(head) + "|"]
    for row in rows:
        cells = [_spread_cell(row, name, best[name]) for name in columns]
        lines.append(_line([_title(row), *(_size(row) if sized else []), _runs(row), *cells]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _title(row: TableRow) -> str:
    return f"{row.name} †" if row.privileged else row.name


def _size(row: TableRow) -> list[str]:
    return [
        "-" if row.parameters is None else f"{row.parameters:,}",
        "-" if row.macs is None else f"{row.macs / 1e6:.1f}",
    ]


def _runs(row: TableRow) -> str:
    return str(row.wanted) if len(row.errors) == row.wanted else f"{len(row.errors)} of {row.wanted}"


def _best(rows: Sequence[TableRow], column: str) -> str:
    """The least mean as it is printed; nothing is best among fewer than two rows."""
    means = [spread(row.column(column)).mean for row in rows if not row.privileged and row.column(column)]
    return f"{min(means):.2f}" if len(means) > 1 else ""


def _spread_cell(row: TableRow, column: str, best: str) -> str:
    values = row.column(column)
    if not values:
        return "failed" if row.failed else "not run"
    found = spread(values)
    text = f"{found.mean:.2f}" + (f" ± {found.deviation:.2f}" if found.deviation is not None else "")
    return f"**{text}**" if f"{found.mean:.2f}" == best and not row.privileged else text


def _paired_table(rows: Sequence[TableRow], tests: Mapping[Pair, Paired]) -> list[str]:
    if not tests:
        return []
    signed_rank = any(test.wilcoxon is not None for test in tests.values())
    head = ["difference of mean errors", "pairs", "points", "95 % interval", "p", "p (Holm)"]
    head += [*(["p (Wilcoxon)"] if signed_rank else []), "so"]
    lines = [_line(head), "|---" * len(head) + "|"]
    titles = {row.name: _title(row) for row in rows}
    for (name, reference), test in tests.items():
        interval = f"{test.low:+.2f} to {test.high:+.2f}"
        ps = [_p(test.p), _p(test.p_holm), *([_p(test.wilcoxon)] if signed_rank else [])]
        what = f"{titles[name]} - {titles[reference]}"
        lines.append(_line([what, str(test.n), f"{test.mean:+.2f}", interval, *ps, test.verdict]))
    return ["\n".join(lines)]


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _notes(rows: Sequence[TableRow], tests: Mapping[Pair, Paired]) -> str:
    keys = {key for row in rows for key in row.errors}
    folds = {fold for _, fold in keys}
    lines = [
        "Error in percent, lower is better, of the epoch that validation selected: mean over runs ± sample standard "
        f"deviation over seeds{' of their means over folds' if len(folds) > 1 else ''}. Best value in bold."
    ]
    if any(row.macs is not None for row in rows):
        lines.append(
            "MMAC: million multiply-accumulates of one decision with all modalities; of the experts of mars and moe "
            "only the active ones, of every other method all that it computes."
        )
    if len(tests) > 1:
        lines.append(
            f"Each interval and p is of one paired t-test alone; p (Holm) is adjusted for all {len(tests)} of them."
        )
    if tests and len(folds) > 1:
        lines.append(
            "Pairs are (seed, fold): those of one fold share their test samples, so an interval speaks of these folds."
        )
    if any(row.privileged for row in rows):
        lines.append("† Privileged: routed by what is missing, which no device can know. Not a competitor.")
    lines += [line for row in rows for line in _failures(row)]
    return "\n".join(f"- {line}" for line in lines)


def _failures(row: TableRow) -> list[str]:
    """One line per reason."""
    keys: dict[str, list[Key]] = {}
    for key, why in row.failed.items():
        keys.setdefault(why, []).append(key)
    return [f"Failed: {row.name}, (seed, fold) {', '.join(map(str, failed))}: {why}" for why, failed in keys.items()]
