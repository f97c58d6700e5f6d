"""`mars-edge health-bench`: the fault detector graded as a model, on a simulated clock."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mars_edge.faults import FAULTS
from mars_edge.options import OneLineParser, positive, say
from mars_runtime.commands.options import add_engine_options, open_from
from mars_runtime.grading import bounds
from mars_runtime.grading.delays import Grade, Trial, grade, trials
from mars_runtime.grading.gap import Cost, costs
from mars_runtime.grading.quiet import Hours, normal_streams
from mars_runtime.grading.scenery import SENSORS
from mars_runtime.grading.table import Report, as_markdown, as_text

_EXAMPLE = "example: mars-edge health-bench --fast"
_STREAMS = 6
# Samples that are rendered per sensor: of the faults' pool, of what a fingerprint is learned from, of a stretch.
_POOL, _LEARNED, _STRETCH = 300, 300, 450
_FAST_POOL, _FAST_LEARNED, _FAST_STRETCH = 60, 60, 90
_FAST_SEEDS, _FAST_HOURS = 1, 0.3


def main(argv: Sequence[str]) -> int:
    """Print the tables; 0 when nothing is beyond its bound, else 1.

    Raises:
        UsageError: bad bounds, or a model that is none of the simulated rig's.
    """
    options = _parser().parse_args(argv)
    allowed = bounds.load(options.bounds)
    seeds = options.seeds or (_FAST_SEEDS if options.fast else 20)
    hours = options.hours or (_FAST_HOURS if options.fast else 8.0)
    grades = _grades(seeds, fast=options.fast)
    say("health-bench: normal streams", options)
    pool, learned = (_FAST_STRETCH, _FAST_LEARNED) if options.fast else (_STRETCH, _LEARNED)
    lived: list[Hours] = list(normal_streams(hours / _STREAMS, pool=pool, learn_from=learned, seed=5))
    found = _costs(options, seeds)
    report = Report(grades=grades, hours=lived, costs=found, beyond=bounds.beyond(allowed, grades, lived, found))
    _print(report, options)
    return 1 if report.beyond else 0


def _grades(seeds: int, *, fast: bool) -> list[Grade]:
    pool, learned = (_FAST_POOL, _FAST_LEARNED) if fast else (_POOL, _LEARNED)
    cells: defaultdict[tuple[str, str, bool], list[Trial]] = defaultdict(list)
    for trial in trials(FAULTS, SENSORS, seeds, pool=pool, learn_from=learned):
        cells[trial.fault, trial.sensor, trial.learned].append(trial)
    return [grade(cell) for cell in cells.values()]


def _costs(options: argparse.Namespace, seeds: int) -> list[Cost]:
    if options.model is None:
        return []
    say(f"health-bench: decisions of {options.model}", options)
    engine = open_from(options)
    try:
        return list(costs(engine, FAULTS, seeds, seed=100))
    finally:
        engine.close()


def _print(report: Report, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(report.to_dict(), allow_nan=False))
    else:
        print(as_markdown(report) if options.markdown else as_text(report))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mars-edge health-bench",
        description=(
            "Grade the fault detector as a model: every injected fault on every kind of simulated sensor, and hours of "
            "normal streams, on a simulated clock. Exit code 1 when something is worse than its bound."
        ),
        epilog=_EXAMPLE,
    )
    add = parser.add_argument
    add("--fast", action="store_true", help="one seed and 20 minutes of normal streams; seconds instead of minutes")
    add("--seeds", type=positive(int), metavar="N", help="trials of each fault on each sensor (default 20)")
    add("--hours", type=positive(float), metavar="H", help="of normal streams, all six kinds together (default 8)")
    add("--bounds", type=Path, metavar="FILE.toml", help="other bounds than the project's")
    add_engine_options(parser, required=False)
    add("--json", action="store_true", help="one JSON object")
    add("--markdown", action="store_true", help="tables in Markdown")
    add("--quiet", action="store_true", help="nothing on stderr but errors")
    return parser
