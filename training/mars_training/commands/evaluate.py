"""`mars-edge evaluate RUN` or `--model FILE`: the metric for every subset of modalities, with intervals; faults."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser, positive
from mars_training.checkpoint import RunInfo, Which, load_deployed, load_metrics
from mars_training.data.load import SPLITS, load_split
from mars_training.data.split import Split
from mars_training.evaluate import Evaluation, evaluate, mean_error, score_table, worst_score
from mars_training.model.deployable import Deployable
from mars_training.robustness import FAULT_SAMPLES, Robustness, fault_table, measure_faults

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
    parser.add_argument("--faults", action="store_true", help="also measure undetected faults of every modality")
    parser.add_argument(
        "--fault-samples",
        type=positive(int),
        default=FAULT_SAMPLES,
        metavar="N",
        help=f"samples for --faults, evenly spread over the split (default: {FAULT_SAMPLES})",
    )
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
    results = _measure(options, chosen)
    print(json.dumps(results_as_dict(results)) if options.json else results_as_text(results))
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What one checkpoint scored; `robustness` only where faults were asked for."""

    evaluation: Evaluation
    robustness: Robustness | None = None


def _evaluate_artifact(arguments: list[str]) -> int:
    try:
        module = importlib.import_module(_ARTIFACT_COMMAND)
    except ModuleNotFoundError as error:
        if error.name in ("mars_export", _ARTIFACT_COMMAND):
            raise UsageError("evaluate --model needs the export package: pip install 'mars-edge[export]'") from error
        raise
    code: int = module.main(arguments)
    return code


def _measure(options: argparse.Namespace, chosen: Sequence[Which]) -> dict[str, Result]:
    loaded = {which: load_deployed(options.run, which) for which in chosen}
    info = loaded[chosen[0]][1]
    _say(options, _note(options.run, info, options.split))
    split = load_split(info.recipe, options.split, folder=options.data)
    always = info.recipe.data.always_present
    results: dict[str, Result] = {}
    for which, (model, _) in loaded.items():
        evaluation = evaluate(model, split, info.source, always_present=always)
        mean_error(evaluation.scores)  # refuses a split on which nothing could be measured
        # Faults take many passes: of two checkpoints, only for the one that would be deployed.
        faults = options.faults and which == chosen[0]
        results[which] = Result(
            evaluation=evaluation, robustness=_faults(options, model, split, info) if faults else None
        )
    return results


def _faults(options: argparse.Namespace, model: Deployable, split: Split, info: RunInfo) -> Robustness:
    return measure_faults(
        model,
        split,
        info.source,
        samples=options.fault_samples,
        always_present=info.recipe.data.always_present,
        progress=lambda line: _say(options, f"faults: {line}"),
    )


def _say(options: argparse.Namespace, line: str) -> None:
    if not options.quiet:
        print(line, file=sys.stderr, flush=True)


def _note(run: Path, info: RunInfo, split: str) -> str:
    metrics = load_metrics(run)
    epochs = f"selected epoch {metrics['selected']['epoch'] + 1} of {len(metrics['history'])}" if metrics else ""
    return f"{info.recipe.name} ({info.recipe.method}, seed {info.seed}, {epochs}), {split} split: {info.source.note}"


def results_as_dict(results: Mapping[str, Result]) -> dict[str, object]:
    """Per checkpoint: mean error, the worst subset, one entry per subset, and faults if measured; plain JSON types."""
    return {which: _as_dict(result) for which, result in results.items()}


def _as_dict(result: Result) -> dict[str, object]:
    scores = result.evaluation.scores
    worst = worst_score(scores)
    faults = {} if result.robustness is None else {"faults": result.robustness.to_dict()}
    return {
        "mean_error": mean_error(scores),
        "worst": {"subset": worst.subset, "error": worst.error},
        "subsets": [dataclasses.asdict(s) for s in scores],
        "unmeasured": [{"subset": subset, "n": 0, "why": why} for subset, why in result.evaluation.unmeasured.items()],
        **faults,
    }


def results_as_text(results: Mapping[str, Result]) -> str:
    """One table per checkpoint, and one of faults if measured."""
    parts = []
    for which, result in results.items():
        parts.append(f"{which} epoch\n{score_table(result.evaluation.scores, result.evaluation.unmeasured)}")
        if result.robustness is not None:
            parts.append(f"{which} epoch, {fault_table(result.robustness)}")
    return "\n\n".join(parts)
