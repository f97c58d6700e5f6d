"""What every part of the suite shares: measurements to ratios with intervals, tables, losses, the machine.

Axes: R rounds, S contestants.
A table compares contestants that do one job; lower is better. All of a table are measured in turns. A loss is a row of
ours above an alternative of the same precision; tables find their losses themselves, so that none is left out by hand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from subset_cost import Share, share_of

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser, positive
from mars_runtime.machine import this_machine

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Who:
    """One contestant.

    Attributes:
        precision: "fp32", "int8", ... or "" where it does not matter.
    """

    name: str
    ours: bool = False
    precision: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A contestant's median, or why it has none.

    Attributes:
        value: None when it was not measured; `reason` says why.
        ratio: over the table's base.
        more: further cells, by column.
    """

    who: Who
    value: float | None = None
    ratio: Share | None = None
    reason: str = ""
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Duel:
    """How many times an alternative's value ours has."""

    ours: str
    against: str
    ratio: Share

    @property
    def is_loss(self) -> bool:
        """Whether ours is the larger."""
        return self.ratio.value > 1.0


@dataclass(frozen=True, kw_only=True)
class Table:
    """One job.

    Attributes:
        group: tables of one group, which have the same contestants, stand side by side in a document.
        base: the contestant that `Row.ratio` is over.
        losses: of every row of ours that has any, the one against the best alternative of its precision.
        best: our best row against the best alternative, whatever their precision; None where a side is missing.
        overall: the same over this table and those of the same job with other numbers of threads, each side with the
            number that suits it best; None where there is no such table, or another one says it.
    """

    title: str
    unit: str
    base: str
    rows: Sequence[Row]
    losses: Sequence[Duel]
    best: Duel | None
    group: str = ""
    overall: Duel | None = None

    @property
    def full_title(self) -> str:
        """With the group's."""
        return f"{self.group}, {self.title}" if self.group else self.title


def table_of(
    title: str,
    unit: str,
    contestants: Sequence[Who],
    measured: NDArray[np.float64],
    *,
    base: str,
    skipped: Sequence[Row] = (),
    more: Mapping[str, Mapping[str, str]] | None = None,
    group: str = "",
) -> Table:
    """The table of `measured` (R, S).

    Args:
        skipped: rows of contestants that were not measured.
        more: further cells by contestant's name and column.
    """
    names = [who.name for who in contestants]
    at = names.index(base) if base in names else 0
    rows = [
        Row(
            who=who,
            value=float(np.median(measured[:, i])),
            ratio=ratio_of(measured, i, at),
            more=(more or {}).get(who.name, {}),
        )
        for i, who in enumerate(contestants)
    ]
    return Table(
        title=title,
        unit=unit,
        base=names[at],
        rows=[*rows, *skipped],
        losses=_losses(contestants, measured),
        best=best_of(contestants, measured),
        group=group,
    )


def ratio_of(measured: NDArray[np.float64], column: int, base: int) -> Share:
    """Median of a column of (R, S) over that of another, with a 95 % bootstrap interval over rounds."""
    return share_of(measured[:, [column, base]], [0], np.mean)


def best_of(contestants: Sequence[Who], measured: NDArray[np.float64]) -> Duel | None:
    """The least median of ours in `measured` (R, S) against that of all others; None where a side is missing."""
    return _duel(contestants, measured, _numbers(contestants, True), _numbers(contestants, False))


def _numbers(contestants: Sequence[Who], ours: bool) -> list[int]:
    return [i for i, who in enumerate(contestants) if who.ours == ours]


def _duel(
    contestants: Sequence[Who], measured: NDArray[np.float64], own: Sequence[int], others: Sequence[int]
) -> Duel | None:
    if not own or not others:
        return None
    medians = np.median(measured, axis=0)
    mine = min(own, key=lambda i: medians[i])
    best = min(others, key=lambda i: medians[i])
    return Duel(
        ours=contestants[mine].name, against=contestants[best].name, ratio=ratio_of(measured, mine, best)
    )  # fmt: skip


def _losses(contestants: Sequence[Who], measured: NDArray[np.float64]) -> list[Duel]:
    found = []
    for mine in _numbers(contestants, True):
        like = contestants[mine].precision
        others = [i for i in _numbers(contestants, False) if not like or contestants[i].precision in ("", like)]
        duel = _duel(contestants, measured, [mine], others)
        if duel is not None and duel.is_loss:
            found.append(duel)
    return found


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one part of the suite found, with where and how."""

    name: str
    title: str
    command: str
    machine: str
    date: str
    quick: bool
    notes: Sequence[str]
    tables: Sequence[Table]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def part_from(found: Mapping[str, Any]) -> Part:
    """The part that `Part.to_dict` gave."""
    return Part(**{**found, "tables": [_table_from(table) for table in found["tables"]]})


def row_from(found: Mapping[str, Any]) -> Row:
    """The row that `asdict` gave."""
    ratio = None if found["ratio"] is None else Share(**found["ratio"])
    return Row(**{**found, "who": Who(**found["who"]), "ratio": ratio})


def _table_from(found: Mapping[str, Any]) -> Table:
    rows = [row_from(row) for row in found["rows"]]
    duels = {name: _duel_from(found[name]) if found.get(name) else None for name in ("best", "overall")}
    return Table(**{**found, "rows": rows, "losses": [_duel_from(d) for d in found["losses"]], **duels})


def _duel_from(found: Mapping[str, Any]) -> Duel:
    return Duel(**{**found, "ratio": Share(**found["ratio"])})


def machine_line(*, threads: int | None = None) -> str:
    """Processor, cores, load and, where it is one, the number of threads."""
    machine = this_machine()
    load = "unknown load" if machine.load is None else f"load {machine.load:.1f} before"
    counted = "" if threads is None else f", {threads} {'thread' if threads == 1 else 'threads'}"
    return f"{machine}, {load}{counted}"


def today() -> str:
    """The date in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def as_markdown(part: Part) -> str:
    """The part's section: heading, where it was measured, notes and tables."""
    quick = ["**A quick run: to see that it works. Not a result.**", ""] if part.quick else []
    lines = [f"### {part.title} ({part.date})", "", *quick, f"`{part.command}`", "", f"{part.machine}.", ""]
    lines += [*part.notes, ""] if part.notes else []
    for group, found in itertools.groupby(part.tables, key=lambda table: table.group):
        tables = list(found)
        each = [line for table in tables for line in (*_table_lines(table), "")]
        lines += _matrix_lines(group, tables) if group else each
    return "\n".join(lines)


def _table_lines(table: Table) -> list[str]:
    columns = list(dict.fromkeys(column for row in table.rows for column in row.more))
    head = [table.title, table.unit, f"of {table.base} (95 % interval)", *columns]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in table.rows:
        if row.value is None:
            cells = [row.who.name, "-", f"not measured: {row.reason}"]
        else:
            cells = [f"**{row.who.name}**" if row.who.ours else row.who.name, number(row.value), shown(row.ratio)]
        lines.append("| " + " | ".join([*cells, *(row.more.get(column, "") for column in columns)]) + " |")
    if table.best is not None:
        lines += ["", f"Result: {_best_line(table.best)}".strip()]
    if table.overall is not None:
        lines += ["", f"Result, {_overall_line(table.overall)}".strip()]
    return lines


def _matrix_lines(group: str, tables: Sequence[Table]) -> list[str]:
    """Contestants by tables; a cell is the median, then the ratio with its interval."""
    first = tables[0]
    head = [f"{group}: {first.unit}; of {first.base} (95 % interval)", *(table.title for table in tables)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    cells = [{row.who.name: row for row in table.rows} for table in tables]
    for who in {row.who.name: row.who for table in tables for row in table.rows}.values():
        own = [_cell(found.get(who.name)) for found in cells]
        lines.append("| " + " | ".join([f"**{who.name}**" if who.ours else who.name, *own]) + " |")
    results = [f"{table.title}: {_best_line(table.best)}" for table in tables if table.best]
    results += [f"{table.title}, {_overall_line(table.overall)}" for table in tables if table.overall]
    return [*lines, "", *results, ""]


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"not measured: {row.reason}" if row.value is None else f"{number(row.value)}; {shown(row.ratio)}"


def _best_line(duel: Duel) -> str:
    return f"best of ours against the best other: {duel.ours}, {shown(duel.ratio)} times {duel.against}.  "


def _overall_line(duel: Duel) -> str:
    return f"each with the number of threads that suits it best: {_best_line(duel)}"


def shown(ratio: Share | None) -> str:
    """With its interval, if it has any width."""
    if ratio is None:
        return ""
    return f"{ratio.value:.2f}" if math.isclose(ratio.low, ratio.high) else str(ratio)


def number(value: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def losses_markdown(parts: Sequence[Part]) -> str:
    """The section on what alternatives do better: a line for every row of ours that an alternative beats."""
    tables = [(part, table) for part in parts for table in part.tables]
    lines = [_loss_line(part, table, duel) for part, table in tables for duel in table.losses]
    across = [
        _loss_line(part, table, duel)
        for part, table in tables
        for duel in (table.best, table.overall)
        if duel is not None and duel.is_loss and duel not in table.losses
    ]
    rows = sum(row.who.ours and row.value is not None for _, table in tables for row in table.rows)
    head = (
        f"{len(lines)} of {rows} rows of ours are above an alternative of the same precision; each beside the best one."
    )
    if across:
        lines += ["", "Our best row above an alternative of another precision or number of threads:", "", *across]
    return "\n".join(["### Where we lose", "", head, "", *lines, ""])


def _loss_line(part: Part, table: Table, duel: Duel) -> str:
    unsure = " (no difference shown)" if duel.ratio.low <= 1.0 <= duel.ratio.high else ""
    return (
        f"- {part.title}, {table.full_title}: {duel.ours} has {shown(duel.ratio)} times that of {duel.against}{unsure}"
    )


def note(text: str) -> None:
    """Tell a person on stderr how far it is."""
    print(text, file=sys.stderr, flush=True)


def environment(threads: int) -> dict[str, str]:
    """Of a process whose pools have that many threads."""
    # Set from outside: an OpenMP pool reads it when it is loaded, and ExecuTorch's cannot be resized later.
    # OpenMP's threads wait for each other without sleeping, for 7 ms by default: on a core that other work takes in
    # between, a call of PyTorch's then lasts a hundred times as long. This is about half a millisecond.
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "20000"}


def run_json(script: str, arguments: Sequence[str], *, threads: int = 1) -> Any:
    """What a script of benchmarks/ prints with --json in a process of its own, whose pools have `threads` threads.

    Raises:
        UsageError: it ended with an error; its own words were on stderr.
    """
    command = [sys.executable, str(FOLDER / script), *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment(threads), check=False, text=True)
    if done.returncode != 0:
        raise UsageError(f"{script} {' '.join(arguments)} ended with exit code {done.returncode}")
    return json.loads(done.stdout)


def part_parser(script: str, description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Options that the scripts of the parts share."""
    parser = OneLineParser(
        prog=f"benchmarks/{script}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example: python benchmarks/{script} --rounds 50",
    )
    parser.add_argument("--rounds", type=positive(int, most=100_000), default=rounds, help=f"default: {rounds}")
    parser.add_argument("--json", action="store_true", help="print tables as JSON")
    return parser


def print_tables(tables: Sequence[Table], *, as_json: bool) -> None:
    """To stdout, for a person or for the suite."""
    if as_json:
        print(json.dumps([asdict(table) for table in tables]))
    else:
        print("\n\n".join("\n".join(_table_lines(replace(table, title=table.full_title))) for table in tables))
        print(f"\n{machine_line()}, {today()}")


def tables_from(found: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables that `print_tables` wrote as JSON."""
    return [_table_from(table) for table in found]
