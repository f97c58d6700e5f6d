"""Measure an artifact in its own engine on every subset of modalities; `mars-edge evaluate --model FILE`.

Axes: B samples, K experts that run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mars_runtime.engines.protocol import Inference
from mars_training.data.load import SPLITS, load_split
from mars_training.data.split import Source, Split
from mars_training.evaluate import (
    Evaluation,
    RowScore,
    SubsetLogits,
    SubsetScore,
    mean_error,
    measure,
    score_logits,
    score_table,
    spoof_score,
)
from mars_training.recipe import Recipe, recipe_from_dict

_EXAMPLE = "example: mars-edge evaluate --model face_antispoof.pte"
Tick = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What an engine said about B rows of a split: `indices` (B,), logits (B, classes) and experts (B, K) that ran."""

    indices: NDArray[np.int64]
    logits: NDArray[np.float32]
    experts: NDArray[np.int64]


def open_artifact(path: Path, *, self_test: bool, threads: int | None = None) -> Engine:
    """The artifact in the first engine there is for its format; the one import of the runtime for this package."""
    return open_engine(path, self_test=self_test, threads=threads)


def engine_stream(
    engine: Engine, split: Split, wanted: Sequence[subsets.Subset], *, tick: Tick = lambda done, total: None
) -> Iterator[tuple[subsets.Subset, int, Inference]]:
    """Subset, row and the engine's answer, row by row, for the subsets whose modalities the row has.

    Every sample is encoded once; its features serve every subset. `tick` is told rows done and rows in all.

    Raises:
        EngineError: an answer is not finite, or execution failed.
    """
    columns, presence = list(split.inputs), split.presence.tolist()
    for i, there in enumerate(presence):
        has = {name for name, present in zip(columns, there, strict=True) if present}
        possible = [subset for subset in wanted if has.issuperset(subset)]
        if possible:
            for subset, answer in _row_answers(engine, split, i, possible):
                yield subset, i, answer
        tick(i + 1, len(presence))


def _row_answers(
    engine: Engine, split: Split, row: int, wanted: Sequence[subsets.Subset]
) -> Iterator[tuple[subsets.Subset, Inference]]:
    used = [name for name in engine.manifest.names if any(name in subset for subset in wanted)]
    batch = split.batch(torch.tensor([row]))
    first = engine.infer({name: batch[name][0].contiguous().numpy() for name in used}, {})
    for subset in wanted:
        whole = len(subset) == len(used)
        yield subset, first if whole else engine.infer({}, {name: first.features[name] for name in subset})


def engine_answers(
    engine: Engine, split: Split, wanted: Sequence[subsets.Subset], *, tick: Tick = lambda done, total: None
) -> dict[subsets.Subset, Answers]:
    """All of `engine_stream` by subset, for logits small enough to keep; a subset without rows has arrays of length 0.

    Raises:
        EngineError: as `engine_stream`.
    """
    found: dict[subsets.Subset, list[tuple[int, Inference]]] = {subset: [] for subset in wanted}
    for subset, row, answer in engine_stream(engine, split, wanted, tick=tick):
        found[subset].append((row, answer))
    classes, k = engine.manifest.logits_shape, engine.manifest.active_experts
    return {
        subset: Answers(
            indices=np.array([row for row, _ in rows], np.int64),
            logits=np.array([answer.logits for _, answer in rows], np.float32).reshape(len(rows), *classes),
            experts=np.array([[i for i, _ in answer.experts] for _, answer in rows], np.int64).reshape(len(rows), k),
        )
        for subset, rows in found.items()
    }


def wanted_subsets(manifest: Manifest) -> tuple[subsets.Subset, ...]:
    """The subsets that the artifact's recipe evaluates; all of them when it was not exported from a recipe."""
    recipe = manifest.provenance.get("recipe")
    always = recipe_of(manifest).data.always_present if isinstance(recipe, Mapping) else ()
    return subsets.evaluated_subsets(manifest.names, always)


def source_of(manifest: Manifest) -> Source:
    """The data description a manifest was exported with."""
    note = str(manifest.provenance.get("note", ""))
    return Source(
        modalities=manifest.modalities,
        labels=manifest.labels,
        positive_label=manifest.positive_label,
        note=note,
        task=manifest.task,
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


def operating_point_score(manifest: Manifest) -> RowScore:
    """The task's metric as the runtime decides: at the subset's threshold; accuracy has none."""

    def score(logits: NDArray[np.floating], split: Split, source: Source, subset: str) -> SubsetScore:
        # Where a threshold stands changes no probability: calibration is that of the largest logit.
        point = manifest.operating_points.get(subset)
        sure = score_logits(logits / (point.temperature if point else 1.0), split, source, subset)
        if source.positive_label is None or point is None:
            return sure
        positive = source.labels.index(source.positive_label)
        scores = positive_scores(logits, positive, point.temperature)
        live = split.class_labels.numpy() == positive
        errors = metrics.spoof_errors(scores, live, split.group_labels, point.threshold)
        return spoof_score(errors, subset, len(split), ece=sure.ece, nll=sure.nll)

    return score


def evaluate_artifact(
    engine: Engine, split: Split, *, at_operating_points: bool = False, tick: Tick = lambda done, total: None
) -> Evaluation:
    """One score per subset of the recipe that has rows, small subsets first, measured in the engine.

    Decided at the largest logit, as `mars-edge evaluate RUN` does, or at the manifest's operating points.
    """
    manifest = engine.manifest
    score = operating_point_score(manifest) if at_operating_points else score_logits
    return scored(engine, split, source_of(manifest), wanted_subsets(manifest), score=score, tick=tick)


def scored(
    engine: Engine,
    split: Split,
    source: Source,
    wanted: Sequence[subsets.Subset],
    *,
    score: RowScore = score_logits,
    tick: Tick = lambda done, total: None,
) -> Evaluation:
    """`mars_training.evaluate.measure` of the engine's answers; label maps are reduced row by row."""
    answers = (
        SubsetLogits(subset, torch.tensor([row]), torch.from_numpy(answer.logits)[None])
        for subset, row, answer in engine_stream(engine, split, wanted, tick=tick)
    )
    return measure(answers, split, source, wanted, score=score)


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
        evaluation = evaluate_artifact(engine, split, at_operating_points=options.at == "operating-point")
    finally:
        engine.close()
    mean_error(evaluation.scores)  # refuses a split on which nothing could be measured
    if options.json:
        print(_json(evaluation, engine, options.at))
    else:
        print(score_table(evaluation.scores, evaluation.unmeasured))
    return 0


def _json(evaluation: Evaluation, engine: Engine, at: str) -> str:
    return json.dumps(
        {
            "name": engine.manifest.name,
            "engine": engine.name,
            "precision": engine.manifest.precision,
            "at": at,
            "mean_error": mean_error(evaluation.scores),
            "subsets": [dataclasses.asdict(score) for score in evaluation.scores],
            "unmeasured": [{"subset": subset, "n": 0, "why": why} for subset, why in evaluation.unmeasured.items()],
        }
    )
