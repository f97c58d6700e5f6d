"""`mars-edge export RUN -o FILE`: proven artifacts from a run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser
from mars_export import bundle, cache, quantize
from mars_export.hush import hushed
from mars_export.pieces import float_pieces
from mars_training.checkpoint import RunInfo, load_metrics, load_model
from mars_training.data.load import load_data, load_split
from mars_training.data.split import Data
from mars_training.model.mars import DeployedMars, TrainingMars
from mars_training.train import EpochReport

_EXAMPLE = "example: mars-edge export runs/face_antispoof-seed0 -o face_antispoof.pte -o face_antispoof.onnx"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mars-edge export",
        description="Turn a run into artifacts: quantize, lower, prove in the target engine, calibrate. "
        "A file is written only if it answers as the model does.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory of `mars-edge train`")
    parser.add_argument(
        "-o", "--output", type=Path, action="append", required=True, metavar="FILE", help=".pte or .onnx; may repeat"
    )
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8", help="default: int8")
    parser.add_argument("--qat-epochs", type=int, metavar="N", help="in place of the recipe's; 0 only observes ranges")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the data set (the rig needs none)")
    parser.add_argument("--parity-samples", type=int, default=500, metavar="N", help="default: 500")
    parser.add_argument("--seed", type=int, help="of quantization-aware training (default: the run's)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def main(argv: Sequence[str]) -> int:
    """Write every output, or raise before the first one that is not proven; prints one line per file."""
    options = _parser().parse_args(argv)
    with hushed():
        return _export(options)


def _export(options: argparse.Namespace) -> int:
    bundle.expected_files(options.output)
    if options.threads < 1:
        raise UsageError(f"--threads is {options.threads}; it must be at least 1")
    torch.set_num_threads(options.threads)
    note = _quiet if options.quiet else _progress(time.monotonic())
    model, info = _load(options)
    data = load_data(info.recipe, folder=options.data)
    test = load_split(info.recipe, "test", folder=options.data)
    parity = bundle.held_out(test, options.parity_samples, {"train": data.train, "validation": data.validation})
    ready = _ready(options, model, info, data, note)
    splits = bundle.Splits(validation=data.validation, test=test, parity=parity)
    written = [bundle.write(path, ready, splits, note=note) for path in options.output]
    print(json.dumps([_as_dict(w) for w in written]) if options.json else "\n".join(map(_line, written)))
    return 0


def _quiet(text: str) -> None:
    del text


def _progress(started: float) -> Callable[[str], None]:
    def note(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    return note


def _load(options: argparse.Namespace) -> tuple[TrainingMars, RunInfo]:
    model, info = load_model(options.run)
    if not isinstance(model, TrainingMars):
        raise UsageError(f"{options.run} was trained by {info.recipe.method!r}; only 'mars' runs become artifacts")
    if options.qat_epochs is not None:
        export = dataclasses.replace(info.recipe.export, qat_epochs=options.qat_epochs)
        info = dataclasses.replace(info, recipe=dataclasses.replace(info.recipe, export=export))
    return model, info


def _ready(
    options: argparse.Namespace, model: TrainingMars, info: RunInfo, data: Data, note: Callable[[str], None]
) -> bundle.Model:
    metrics = load_metrics(options.run)
    provenance: dict[str, Any] = {"selected_epoch": metrics["selected"]["epoch"] + 1} if metrics else {}
    if options.precision == "fp32":
        deployed = float_pieces(model.deployed)
        return bundle.Model(deployed=deployed, precision="fp32", info=info, provenance=provenance)
    seed = info.seed if options.seed is None else options.seed
    provenance["quantization"] = {
        "scheme": "int8, weights per channel symmetric, activations per tensor affine",
        "qat_epochs": info.recipe.export.qat_epochs,
        "qat_rate": info.recipe.export.qat_rate,
        "seed": seed,
    }
    deployed = _converted(options.run, model, info, data, seed, note)
    return bundle.Model(deployed=deployed, precision="int8", info=info, provenance=provenance)


def _converted(
    run: Path, model: TrainingMars, info: RunInfo, data: Data, seed: int, note: Callable[[str], None]
) -> DeployedMars:
    wanted = cache.key(run, info.recipe, seed)
    found = cache.load(run / "qat", wanted, model.deployed)
    if found is not None:
        note(f"int8 pieces of {run / 'qat'}")
        return found
    note(f"quantization-aware training, {info.recipe.export.qat_epochs} epochs")

    def report(epoch: EpochReport) -> None:
        error = f"validation error {100 * epoch.validation_error:.2f} %" if epoch.scores else ""
        note(f"epoch {epoch.epoch + 1}/{epoch.epochs}  loss {epoch.terms['loss']:.4f}  {error}")

    converted = quantize.quantize(model, data, info.recipe, seed=seed, report=report)
    cache.save(run / "qat", wanted, converted, {m.name: m.shape for m in data.source.modalities})
    return converted


def _line(written: bundle.Written) -> str:
    report = written.manifest.parity or {}
    rows = report["subsets"].values()
    return (
        f"{written.path}: {written.manifest.precision}, {written.size_bytes:,} bytes; parity in {report['engine']} on "
        f"{report['samples']} samples x {len(rows)} subsets: same label {min(r['label_agreement'] for r in rows):.2%}, "
        f"at most {max(r['max_steps'] for r in rows):.2f} output steps, "
        f"other experts in {max(r['routing_flips'] for r in rows):.2%} at worst"
    )


def _as_dict(written: bundle.Written) -> dict[str, Any]:
    manifest = written.manifest
    return {
        "path": str(written.path),
        "size_bytes": written.size_bytes,
        "precision": manifest.precision,
        "parity": manifest.parity,
        "operating_points": {name: dataclasses.asdict(p) for name, p in manifest.operating_points.items()},
    }
