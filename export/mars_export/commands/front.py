"""`mars-edge front RUN ... -o DIR`: which number of experts, and how many of them active."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser, positive
from mars_export import front_report
from mars_export.front import Front, Plan, measure
from mars_export.hush import hushed
from mars_export.prune import How
from mars_training.checkpoint import write_atomically, write_json

_EXAMPLE = "example: mars-edge front runs/digits_front/*/seed* --data DIR -o runs/digits_front/front"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mars-edge front",
        description="Measure runs with different numbers of experts N, each with every number of active experts K, on "
        "validation, against what a decision costs, and mark the candidates that no other one beats. K changes without "
        "training. Runs that differ in seed or fold alone are averaged.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories of one data set")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder for front.json, front.md and front.png"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the data set (the rig needs none)")
    parser.add_argument(
        "--cut",
        nargs="+",
        choices=get_args(How),
        default=[],
        help="also fewer experts than trained, with the trained K",
    )
    parser.add_argument("--format", choices=("pte", "onnx"), default="pte", help="of the fp32 artifact that is timed")
    parser.add_argument(
        "--rounds", type=positive(int, zero=True), default=100, metavar="R", help="of timing; 0 times nothing (100)"
    )
    parser.add_argument("--threads", type=positive(int, most=256), default=1, help="of the engine (default: 1)")
    parser.add_argument("--json", action="store_true", help="print what front.json holds")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def main(argv: Sequence[str]) -> int:
    """Write the three files and print the table."""
    options = _parser().parse_args(argv)
    if options.output.exists() and not options.output.is_dir():
        raise UsageError(f"-o {options.output} is a file; give a folder")
    plan = Plan(
        folder=options.data,
        hows=tuple(dict.fromkeys(options.cut)),
        rounds=options.rounds,
        suffix=f".{options.format}",
        threads=options.threads,
    )
    with hushed():
        front = measure(options.runs, plan, note=_quiet if options.quiet else _progress(time.monotonic()))
    write(options.output, front)
    print(json.dumps(front.to_dict()) if options.json else front_report.page(front), end="\n" if options.json else "")
    return 0


def write(folder: Path, front: Front) -> None:
    """front.json, front.md and front.png in `folder`, each whole."""
    write_json(folder / "front.json", front.to_dict())
    page, drawn = front_report.page(front), front_report.picture(front)
    write_atomically(folder / "front.md", lambda path: path.write_text(page, encoding="utf-8"))
    write_atomically(folder / "front.png", lambda path: path.write_bytes(drawn))


def _quiet(text: str) -> None:
    del text


def _progress(started: float) -> Callable[[str], None]:
    def note(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    return note
