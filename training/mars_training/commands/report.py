"""`mars-edge report RUN`: one page, one picture and the numbers behind them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser
from mars_training.checkpoint import load_model
from mars_training.data.load import load_split
from mars_training.report import write_report

_EXAMPLE = "example: mars-edge report runs/face_antispoof"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mars-edge report",
        description="Write what a run learned and how: an HTML page, a picture, and the numbers as JSON.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory of `mars-edge train`")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the data set (the rig needs none)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the page (default: RUN/report.html); the picture goes beside it",
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="also write its pictures and numbers to RUN/tensorboard"
    )
    parser.add_argument("--json", action="store_true", help="print where the files are as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no notes on stderr")
    return parser


def main(argv: Sequence[str]) -> int:
    """Write the report of the selected epoch and print the paths of its files, one a line."""
    options = _parser().parse_args(argv)
    if options.output is not None and options.output.suffix != ".html":
        raise UsageError(f"-o {options.output}: the page must have the suffix .html; the picture is named like it")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model, info = load_model(options.run)
    if not options.quiet:
        print(f"measuring {options.run} on its validation split: {info.source.note}", file=sys.stderr, flush=True)
    validation = load_split(info.recipe, "validation", folder=options.data)
    files = write_report(options.run, model, validation, to=options.output, tensorboard=options.tensorboard)
    named = {name: str(path) for name, path in dataclasses.asdict(files).items() if path is not None}
    print(json.dumps(named) if options.json else "\n".join(named.values()))
    return 0
