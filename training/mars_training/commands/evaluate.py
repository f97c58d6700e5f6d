"""`mars-edge evaluate RUN` or `--model FILE`: the metric for every subset of modalities, with intervals."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser
from mars_training.checkpoint import RunInfo, Which, load_deployed, load_metrics
from mars_training.data.load import SPLITS, load_split
from mars_training.evaluate import SubsetScore, mean_error, score_subsets, score_table

_EXAMPLE = "example: mars-edge evaluate runs/face_antispoof"
# The artifact is run by the export package, which this package must not import: named, not imported.
_ARTIFACT_COMMAND = "mars_export.evaluate"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mars-edge evaluate",
        description="Measure a run, or an exported artifact in its engine, on every subset of modalities.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="a run directory of `mars-edge train`")
    parser.add_argument("--model", type=Path, metavar="FILE", help="an artifact (.pte, .onnx) instead of a run")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the data set (the rig needs none)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    parser.add_argument("--which", choices=("selected", "last", "both"), default="both", help="epoch (default: both)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no notes on stderr")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print one line per subset; the last and the selected epoch unless one is chosen."""
    arguments = list(argv)
    if any(a == "--model" or a.startswith("--model=") for a in arguments):
        return _evaluate_artifact(arguments)
    options = _parser().parse_args(arguments)
    if options.run is None:
        raise UsageError("nothing to evaluate: give a run directory, or an artifact with --model FILE")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    chosen: list[Which] = ["selected", "last"] if options.which == "both" else [options.which]
    results = _score(options, chosen)
    print(json.dumps(results_as_dict(results)) if options.json else results_as_text(results))
    return 0


def _evaluate_artifact(arguments: list[str]) -> int:
    try:
        module = importlib.import_module(_ARTIFACT_COMMAND)
    except ModuleNotFoundError as error:
        if error.name in ("mars_export", _ARTIFACT_COMMAND):
            raise UsageError("evaluate --model needs the export package: pip install 'mars-edge[export]'") from error
        raise
    code: int = module.main(arguments)
    return code


def _score(options: argparse.Namespace, chosen: Sequence[Which]) -> dict[str, list[SubsetScore]]:
    loaded = {which: load_deployed(options.run, which) for which in chosen}
    info = loaded[chosen[0]][1]
    if not options.quiet:
        print(_note(options.run, info, options.split), file=sys.stderr, flush=True)
    split = load_split(info.recipe, options.split, folder=options.data)
    return {which: score_subsets(model, split, info.source) for which, (model, _) in loaded.items()}


def _note(run: Path, info: RunInfo, split: str) -> str:
    metrics = load_metrics(run)
    epochs = f"selected epoch {metrics['selected']['epoch'] + 1} of {len(metrics['history'])}" if metrics else ""
    return f"{info.recipe.name} ({info.recipe.method}, seed {info.seed}, {epochs}), {split} split: {info.source.note}"


def results_as_dict(results: dict[str, list[SubsetScore]]) -> dict[str, object]:
    """Per checkpoint: mean error and one entry per subset, plain JSON types."""
    return {
        which: {"mean_error": mean_error(scores), "subsets": [dataclasses.asdict(s) for s in scores]}
        for which, scores in results.items()
    }


def results_as_text(results: dict[str, list[SubsetScore]]) -> str:
    """One table per checkpoint."""
    return "\n\n".join(f"{which} epoch\n{score_table(scores)}" for which, scores in results.items())
