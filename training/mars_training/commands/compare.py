"""`mars-edge compare GRID`: a grid of methods, seeds and folds, trained in parallel, into one table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import mars_edge
from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser, positive
from mars_training.checkpoint import write_atomically
from mars_training.compare import (
    Place,
    discard_changed,
    failure_of,
    read_evaluation,
    refuse_changed,
    run_cells,
    state_of,
)
from mars_training.comparison import MEAN, TableRow, as_dict, as_markdown
from mars_training.evaluate import SubsetScore
from mars_training.grid import Cell, Grid, Row, load_grid
from mars_training.interrupts import ended_by_sigterm
from mars_training.lock import sole_user
from mars_training.workers import Event

_EXAMPLE = "example: mars-edge compare training/grids/digits.toml --data DIR -o runs/digits --jobs 2"
_STATUS_EVERY_S = 30.0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mars-edge compare",
        description="Train and evaluate every cell (row x seed x fold) of a grid and print one table. A call that was "
        "stopped goes on where it was when it is given again; finished cells are not run again.",
        epilog=_EXAMPLE,
    )
    whole = positive(int)
    parser.add_argument("grid", type=Path, metavar="GRID", help="a .toml file, see training/grids")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of all runs (default: runs/NAME)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the data set (the rig needs none)")
    parser.add_argument("--jobs", type=whole, metavar="J", help="cells at once (default: usable cores / threads)")
    parser.add_argument("--threads", type=whole, default=1, metavar="T", help="threads per cell (default: 1)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="run these rows only; the table shows all")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="S", help="in place of the grid's")
    parser.add_argument("--split", choices=("validation", "test"), help="what the table shows, in place of the grid's")
    parser.add_argument("--redo", action="store_true", help="replace runs whose recipe has changed")
    parser.add_argument("--dry-run", action="store_true", help="list the cells and what is left to do, then stop")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument("--json", action="store_true", help="print one JSON object with every cell")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run what is missing of a grid and print its table; 1 when a selected cell failed."""
    options = _parser().parse_args(argv)
    grid = load_grid(options.grid)
    cells = grid.cells(_seeds(options.seeds))
    chosen = _chosen(cells, grid, options.only)
    place = Place(
        output=options.output or Path("runs") / grid.name, split=options.split or grid.split, folder=options.data
    )
    if options.dry_run:
        print(_plan(chosen, place, as_json=options.json))
        return 0
    busy = f"another compare is running in {place.output}; wait for it, or give another folder"
    with sole_user(place.output, busy):
        if options.redo:
            discard_changed(chosen, place)
        refuse_changed(chosen, place)
        failed = _run(chosen, place, options)
        rows = [table_row(row, [c for c in cells if c.row == row], place) for row in grid.rows]
    environment = _environment(argv, grid, place)
    text = as_markdown(rows, grid.pairs) + "\n\n" + "\n".join(environment.values())
    if options.markdown:
        write_atomically(options.markdown, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    print(json.dumps(_as_json(rows, grid, cells, place, environment)) if options.json else text)
    return 1 if failed else 0


def _seeds(given: list[int] | None) -> list[int] | None:
    if given and (len(set(given)) != len(given) or min(given) < 0):
        raise UsageError(f"--seeds is {given}; each must be there once and at least 0")
    return given


def _chosen(cells: list[Cell], grid: Grid, only: list[str] | None) -> list[Cell]:
    names = [row.name for row in grid.rows]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise UsageError(f"--only names {unknown[0]!r}; rows: {', '.join(map(repr, names))}")
    return [cell for cell in cells if only is None or cell.row.name in only]


def _plan(cells: Sequence[Cell], place: Place, *, as_json: bool) -> str:
    states = [(cell, state_of(cell, place)) for cell in cells]
    if as_json:
        return json.dumps([{"cell": c.label, "folder": str(place.run(c)), "state": state} for c, state in states])
    width = max(len(state) for _, state in states)
    left = sum(state != "finished" for _, state in states)
    return "\n".join([*(f"{state:<{width}}  {c.label}" for c, state in states), f"{left} of {len(cells)} cells to do"])


def _run(cells: Sequence[Cell], place: Place, options: argparse.Namespace) -> bool:
    """Whether any cell failed."""
    todo = [cell for cell in cells if state_of(cell, place) != "finished"]
    threads = int(options.threads)
    jobs = int(options.jobs or max(1, len(os.sched_getaffinity(0)) // threads))
    progress = _Progress(cells=todo, finished=len(cells) - len(todo), jobs=jobs, quiet=options.quiet)
    progress.say(f"{len(cells)} cells, {progress.finished} finished, {jobs} at once, into {place.output}")
    with ended_by_sigterm():
        events = run_cells(todo, place, jobs=jobs, threads=threads)
        try:
            for event in events:
                progress.take(event)
        except (KeyboardInterrupt, SystemExit):
            progress.say("stopped; the same command goes on from here")
            raise
        finally:
            events.close()
    return any(failure_of(cell, place) for cell in cells)


@dataclass(kw_only=True)
class _Progress:
    """Lines on stderr: every cell that ends, and a status line now and then."""

    cells: Sequence[Cell]
    finished: int
    jobs: int
    quiet: bool
    started: float = field(default_factory=time.monotonic)
    spoken: float = field(default_factory=time.monotonic)
    running: dict[int, float] = field(default_factory=dict)
    ended: int = 0

    def say(self, line: str) -> None:
        """One line, unless quiet."""
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)
        self.spoken = time.monotonic()

    def take(self, event: Event) -> None:
        """Account for an event."""
        if event.kind in ("started", "progress"):
            self.running[event.task] = 0.0 if event.kind == "started" else event.value[0] / event.value[1]
            if time.monotonic() - self.spoken > _STATUS_EVERY_S:
                self.say(self._status())
            return
        self.running.pop(event.task, None)
        self.ended += 1
        label = self.cells[event.task].label
        self.say(f"{'FAILED  ' if event.kind == 'failed' else ''}{label}{_because(event)}  {self._status()}")

    def _status(self) -> str:
        total = self.finished + len(self.cells)
        names = ", ".join(f"{self.cells[i].label} ({100 * share:.0f} %)" for i, share in self.running.items())
        counts = f"{self.finished + self.ended}/{total} cells, ETA {self._eta()}"
        return f"[{counts}, running: {names}]" if names else f"[{counts}]"

    def _eta(self) -> str:
        done = self.ended + sum(self.running.values())
        if not done:
            return "unknown"
        left_s = (time.monotonic() - self.started) / done * (len(self.cells) - done)
        return f"{left_s / 60:.1f} min"


def _because(event: Event) -> str:
    return f": {event.value}" if event.kind == "failed" else ""


def table_row(row: Row, cells: Sequence[Cell], place: Place) -> TableRow:
    """A row's line of the table, from the files of its cells."""
    found = {cell.key: read_evaluation(cell, place) for cell in cells}
    done = {key: table for key, table in found.items() if table is not None}
    some = next(iter(done.values()), None)
    failures = {cell.key: failure_of(cell, place) for cell in cells}
    return TableRow(
        name=row.name,
        errors={key: errors_of(table["selected"]) for key, table in done.items()},
        last={key: table["last"]["mean_error"] for key, table in done.items()},
        wanted=len(cells),
        failed={key: why for key, why in failures.items() if why},
        metric=some["selected"]["subsets"][0]["metric"] if some else "",
        parameters=some["parameters"] if some else None,
        macs=some.get("macs") if some else None,
        privileged=bool(row.oracle_of),
    )


def errors_of(scores: dict[str, Any]) -> dict[str, float]:
    """The error of each subset and their mean, from one checkpoint's entry of `mars-edge evaluate --json`."""
    return {**{s["subset"]: SubsetScore(**s).error for s in scores["subsets"]}, MEAN: scores["mean_error"]}


def _environment(argv: Sequence[str], grid: Grid, place: Place) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0))
    return {
        "command": f"`mars-edge compare {shlex.join(argv)}`",
        "made": f"{place.split} split, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()} with {cores} cores, "
        f"Python {platform.python_version()}, torch {torch.__version__}, mars-edge {mars_edge.__version__}, "
        f"grid {grid.digest}",
    }


def _as_json(
    rows: Sequence[TableRow], grid: Grid, cells: Sequence[Cell], place: Place, environment: dict[str, str]
) -> dict[str, Any]:
    return {
        "grid": grid.name,
        "digest": grid.digest,
        "split": place.split,
        **as_dict(rows, grid.pairs),
        "cells": [
            {
                "row": cell.row.name,
                "seed": cell.key[0],
                "fold": cell.key[1],
                "folder": str(cell.folder),
                "state": state_of(cell, place),
                "failure": failure_of(cell, place),
                "evaluation": read_evaluation(cell, place),
            }
            for cell in cells
        ],
        **environment,
    }
