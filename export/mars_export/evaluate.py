"""Measure an artifact in its own engine on every subset of modalities; `mars-edge evaluate --model FILE`.

Axes: B samples, K experts that run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mars_edge import metrics, subsets
from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_edge.options import OneLineParser, positive
from mars_export.calibrate import positive_scores
from mars_runtime.engines import open_engine
from mars_runtime.engines.protocol import Engine as Engine  # the rest of this package has it from here
from mars_training.data.load import SPLITS, load_split
from mars_training.data.split import Source, Split
from mars_training.evaluate import SubsetScore, mean_error, score_logits, score_table, spoof_score
from mars_training.recipe import Recipe, recipe_from_dict

_EXAMPLE = "example: mars-edge evaluate --model face_antispoof.pte"
Tick = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What an engine said about B samples: logits (B, classes) float32 and the experts that ran, (B, K)."""

    logits: NDArray[np.float32]
    experts: NDArray[np.int64]


def open_artifact(path: Path, *, self_test: bool) -> Engine:
    """The artifact in the first engine there is for its format; the one import of the runtime for this package."""
    return open_engine(path, self_test=self_test)


def engine_answers(
    engine: Engine, split: Split, wanted: Sequence[subsets.Subset], *, tick: Tick = lambda done, total: None
) -> dict[subsets.Subset, Answers]:
    """The engine's answers under each subset; every sample is encoded once and its features are reused.

    Raises:
        EngineError: an answer is not finite, or execution failed.
    """
    used = [name for name in engine.manifest.names if any(name in subset for subset in wanted)]
    logits: dict[subsets.Subset, list[NDArray[np.float32]]] = {subset: [] for subset in wanted}
    experts: dict[subsets.Subset, list[list[int]]] = {subset: [] for subset in wanted}
    for i in range(len(split)):
        row = split.batch(torch.tensor([i]))
        samples = {name: row[name][0].contiguous().numpy() for name in used}
        first = engine.infer(samples, {})
        for subset in wanted:
            whole = len(subset) == len(used)
            answer = first if whole else engine.infer({}, {name: first.features[name] for name in subset})
            logits[subset].append(answer.logits)
            experts[subset].append([index for index, _ in answer.experts])
        tick(i + 1, len(split))
    return {
        subset: Answers(logits=np.stack(logits[subset]), experts=np.array(experts[subset], np.int64))
        for subset in wanted
    }


def source_of(manifest: Manifest) -> Source:
    """The data description a manifest was exported with."""
    note = str(manifest.provenance.get("note", ""))
    return Source(
        modalities=manifest.modalities, labels=manifest.labels, positive_label=manifest.positive_label, note=note
    )


def recipe_of(manifest: Manifest) -> Recipe:
    """The recipe a manifest was exported with.

    Raises:
        UsageError: it has none, or one this version cannot read.
    """
    recipe = manifest.provenance.get("recipe")
    if not isinstance(recipe, Mapping):
        raise UsageError(f"{manifest.name} was not exported from a run: its provenance has no recipe to find data by")
    return recipe_from_dict(recipe)


def score_at_operating_point(logits: NDArray[np.float32], split: Split, manifest: Manifest, subset: str) -> SubsetScore:
    """The task's metric as the runtime decides: at the subset's threshold; accuracy has none."""
    source = source_of(manifest)
    point = manifest.operating_points.get(subset)
    if source.positive_label is None or point is None:
        return score_logits(logits, split, source, subset)
    positive = source.labels.index(source.positive_label)
    scores = positive_scores(logits, positive, point.temperature)
    live = split.class_labels.numpy() == positive
    errors = metrics.spoof_errors(scores, live, split.group_labels, point.threshold)
    # Where a threshold stands changes no probability: calibration is that of the largest logit.
    sure = score_logits(logits, split, source, subset)
    return spoof_score(errors, subset, len(split), ece=sure.ece, nll=sure.nll)


def evaluate_artifact(
    engine: Engine, split: Split, *, at_operating_points: bool = False, tick: Tick = lambda done, total: None
) -> list[SubsetScore]:
    """One score per non-empty subset, small subsets first, measured in the engine.

    Decided at the largest logit, as `mars-edge evaluate RUN` does, or at the manifest's operating points.
    """
    manifest = engine.manifest
    answers = engine_answers(engine, split, subsets.all_subsets(manifest.names), tick=tick)
    rows = {subsets.label(subset, manifest.names): given.logits for subset, given in answers.items()}
    if at_operating_points:
        return [score_at_operating_point(logits, split, manifest, label) for label, logits in rows.items()]
    return [score_logits(logits, split, source_of(manifest), label) for label, logits in rows.items()]


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mars-edge evaluate --model FILE",
        description="Measure an artifact, in the engine that runs it, on every subset of modalities.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("--model", required=True, metavar="FILE", help="a .pte or .onnx, or a bundled model's name")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the data set (the rig needs none)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    parser.add_argument("--at", choices=("argmax", "operating-point"), default="argmax", help="default: argmax")
    parser.add_argument("--engine", help="which engine, if there are several for the format")
    parser.add_argument("--threads", type=positive(int, most=256), help="of the engine, 1 to 256")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no notes on stderr")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print one line per subset, then the mean."""
    options = _parser().parse_args(argv)
    engine = open_engine(options.model, threads=options.threads, engine=options.engine)
    try:
        recipe = recipe_of(engine.manifest)
        if not options.quiet:
            note = source_of(engine.manifest).note
            print(f"{options.model} in {engine.name}, {options.split} split: {note}", file=sys.stderr, flush=True)
        split = load_split(recipe, options.split, folder=options.data)
        scores = evaluate_artifact(engine, split, at_operating_points=options.at == "operating-point")
    finally:
        engine.close()
    print(_json(scores, engine, options.at) if options.json else score_table(scores))
    return 0


def _json(scores: Sequence[SubsetScore], engine: Engine, at: str) -> str:
    return json.dumps(
        {
            "name": engine.manifest.name,
            "engine": engine.name,
            "precision": engine.manifest.precision,
            "at": at,
            "mean_error": mean_error(scores),
            "subsets": [dataclasses.asdict(score) for score in scores],
        }
    )
