"""`mars-edge export RUN -o FILE`: proven artifacts from a run."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser, positive
from mars_export import bundle, cache, explain, parity_report, prune, quantize, sensitivity
from mars_export.hush import hushed
from mars_export.lowering import Payload
from mars_export.parity import Pieces, require_finite_weights
from mars_export.pieces import float_pieces
from mars_export.targets import Precision, Target, default_target, known_targets, load_target
from mars_training.checkpoint import RunInfo, load_metrics, load_model
from mars_training.data.load import load_data, load_split
from mars_training.data.split import Data
from mars_training.model.mars import DeployedMars, TrainingMars
from mars_training.train import EpochReport

_EXAMPLE = "example: mars-edge export runs/face_antispoof-seed0 -o face_antispoof.pte -o face_antispoof.onnx"
_REPORTS = ("html", "md")
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is exported: a run as it was trained, or with fewer experts.

    Attributes:
        price: what fewer experts cost on validation, `prune.pruned`; None as trained.
    """

    model: TrainingMars
    info: RunInfo
    price: Mapping[str, Any] | None = None


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mars-edge export",
        description="Turn a run into artifacts: quantize, lower, prove in the target engine, calibrate. "
        "A file is written only if it answers as the model does.",
        epilog=_EXAMPLE,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run directory of `mars-edge train`")
    add("-o", "--output", type=Path, action="append", default=[], metavar="FILE", help=".pte or .onnx; may repeat")
    targets = ", ".join(known_targets())
    add("--target", action="append", default=[], metavar="T", help=f"{targets}, or a .toml file; one per suffix")
    add(
        "--precision",
        choices=("int8", "fp16", "fp32"),
        help="default: the target's; call an fp32 file NAME.fp32.pte and `mars-edge profile` finds it beside NAME.pte",
    )
    quick = parser.add_mutually_exclusive_group()
    quick.add_argument("--ptq", action="store_true", help="post-training quantization: only observe ranges")
    quick.add_argument("--qat-epochs", type=positive(int, zero=True), metavar="N", help="in place of the recipe's")
    add("--float-layer", action="append", default=[], metavar="LAYER", help="keep METHOD or METHOD/LAYER in float32")
    add("--sensitivity", action="store_true", help="print what int8 costs layer by layer; no output is needed")
    add("--experts", type=positive(int), metavar="N", help="keep N experts, chosen by usage; the price is printed")
    add("--merge", action="store_true", help="with --experts: merge similar experts instead of dropping the least used")
    add("--explain", action="store_true", help="compare layer by layer: the methods that fail, or all if none does")
    add("--report", action="append", default=[], choices=_REPORTS, help="write FILE.html or FILE.md beside each output")
    add("--unverified", action="store_true", help="write for a target that cannot run here, without proof")
    add("--data", type=Path, metavar="DIR", help="the folder of the data set (the rig needs none)")
    add("--parity-samples", type=int, default=500, metavar="N", help="default: 500")
    add("--seed", type=positive(int, zero=True, most=2**62), help="of quantization-aware training (default: the run's)")
    add(
        "--threads",
        type=positive(int, most=256),
        default=len(os.sched_getaffinity(0)),
        help="of training; default: all",
    )
    add("--json", action="store_true", help="print one JSON object")
    add("--quiet", action="store_true", help="no progress on stderr")
    return parser


def main(argv: Sequence[str]) -> int:
    """Write the outputs in turn and print a line for each; one that is not proven ends it, and those before it stay."""
    options = _parser().parse_args(argv)
    with hushed():
        return _export(options)


def _export(options: argparse.Namespace) -> int:
    targets = _targets(options)
    note = _quiet if options.quiet else _progress(time.monotonic())
    torch.set_num_threads(options.threads)
    trained = _trained(options)
    require_finite_weights(trained.model.deployed)
    data = load_data(trained.info.recipe, folder=options.data)
    if options.sensitivity:
        return _sensitivity(options, trained, data)
    trained = _pruned(options, trained, data, note)
    test = load_split(trained.info.recipe, "test", folder=options.data)
    rows, held_out = bundle.held_out_rows(
        test, options.parity_samples, {"train": data.train, "validation": data.validation}
    )
    splits = bundle.Splits(validation=data.validation, test=test, parity=held_out, parity_rows=rows)
    made: dict[str, bundle.Model] = {}
    written = []
    for path, target in targets.items():
        precision = _precision(options, target)
        if precision not in made:
            made[precision] = _ready(options, trained, data, precision, note)
        written.append(_write(options, path, target, made[precision], splits, note))
    print(json.dumps([_as_dict(w) for w in written]) if options.json else "\n".join(map(_line, written)))
    return 0


def _targets(options: argparse.Namespace) -> dict[Path, Target]:
    """The target of every output, all refused now that could be refused later."""
    bundle.expected_files(options.output)
    if options.merge and options.experts is None:
        raise UsageError("--merge needs --experts N")
    if options.sensitivity:
        _refuse_beside_sensitivity(options)
    if options.sensitivity == bool(options.output):
        raise UsageError("give -o FILE, or --sensitivity, not both" if options.output else "no output: give -o FILE")
    named: dict[str, Target] = {}
    for target in map(load_target, options.target):
        if target.suffix in named:
            raise UsageError(
                f"targets {named[target.suffix].name} and {target.name} are both {target.suffix}; give one"
            )
        named[target.suffix] = target
    found = {path: named.get(path.suffix) or default_target(path.suffix) for path in options.output}
    unused = [target.name for target in named.values() if target not in found.values()]
    if unused:
        raise UsageError(f"target {unused[0]} has no output; add -o FILE{_suffix_of(named, unused[0])}")
    for path, target in found.items():
        _check(options, path, target)
    if not any(_precision(options, target) == "int8" for target in found.values()) and not options.sensitivity:
        _refuse_quantization(options)
    return found


def _precision(options: argparse.Namespace, target: Target) -> Precision:
    precision: Precision = options.precision or target.precision
    return precision


def _refuse_beside_sensitivity(options: argparse.Namespace) -> None:
    names = ("experts", "report", "explain", "unverified", "target", "precision", "ptq", "float_layer")
    meant = [name for name in names if getattr(options, name)]
    if meant:
        raise UsageError(f"--{meant[0].replace('_', '-')} is about a file, and --sensitivity writes none")


def _refuse_quantization(options: argparse.Namespace) -> None:
    given = {"--ptq": options.ptq, "--qat-epochs": options.qat_epochs is not None, "--float-layer": options.float_layer}
    meant = [name for name, value in given.items() if value]
    if meant:
        raise UsageError(f"{meant[0]} is about int8, and no output is int8")


def _suffix_of(named: Mapping[str, Target], name: str) -> str:
    return next(suffix for suffix, target in named.items() if target.name == name)


def _check(options: argparse.Namespace, path: Path, target: Target) -> None:
    target.require_precision(_precision(options, target))
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent} to write {path.name} into")
    for file in (path, *(_report_path(path, kind) for kind in options.report)):
        if file.is_dir():
            raise UsageError(f"{file} is a folder; name a file")
    target.require_proof(unverified=options.unverified)
    if options.unverified and (options.report or options.explain):
        raise UsageError("--report and --explain show the proof, which --unverified leaves out")


def _quiet(text: str) -> None:
    del text


def _progress(started: float) -> Note:
    def note(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    return note


def _trained(options: argparse.Namespace) -> Trained:
    model, info = load_model(options.run)
    if not isinstance(model, TrainingMars):
        raise UsageError(f"{options.run} was trained by {info.recipe.method!r}; only 'mars' runs become artifacts")
    export = info.recipe.export
    if options.qat_epochs is not None:
        export = dataclasses.replace(export, qat_epochs=options.qat_epochs)
    if options.float_layer:
        layers = (*export.float_layers, *(n for n in options.float_layer if n not in export.float_layers))
        export = dataclasses.replace(export, float_layers=layers)
    return Trained(model=model, info=dataclasses.replace(info, recipe=dataclasses.replace(info.recipe, export=export)))


def _sensitivity(options: argparse.Namespace, trained: Trained, data: Data) -> int:
    seed = trained.info.seed if options.seed is None else options.seed
    report = sensitivity.measure(trained.model, data, trained.info.recipe, seed=seed)
    names = sensitivity.recommended(report)
    if options.json:
        print(json.dumps({**report.to_dict(), "recommended": list(names)}))
        return 0
    print(report.text())
    print("leave in float32: " + (" ".join(f"--float-layer {name}" for name in names) or "none is worth it"))
    return 0


def _pruned(options: argparse.Namespace, trained: Trained, data: Data, note: Note) -> Trained:
    if options.experts is None:
        return trained
    info = trained.info
    how: prune.How = "merge" if options.merge else "drop"
    model, recipe, report = prune.pruned(
        trained.model, info.recipe, data.validation, info.source, experts=options.experts, how=how
    )
    note(prune.report_text(report))
    return Trained(model=model, info=dataclasses.replace(info, recipe=recipe), price=report)


def _ready(options: argparse.Namespace, trained: Trained, data: Data, precision: Precision, note: Note) -> bundle.Model:
    metrics = load_metrics(options.run)
    provenance: dict[str, Any] = {"checkpoint": cache.checkpoint_digest(options.run)}
    if metrics:
        provenance["selected_epoch"] = metrics["selected"]["epoch"] + 1
    if trained.price is not None:
        provenance["experts"] = dict(trained.price)
    deployed = trained.model.deployed
    if precision == "int8":
        deployed, provenance["quantization"] = _converted(options, trained, data, note)
    else:
        deployed = float_pieces(deployed)
    return bundle.Model(deployed=deployed, precision=precision, info=trained.info, provenance=provenance)


def _converted(
    options: argparse.Namespace, trained: Trained, data: Data, note: Note
) -> tuple[DeployedMars, dict[str, Any]]:
    recipe = trained.info.recipe
    seed = trained.info.seed if options.seed is None else options.seed
    settings = quantize.settings(recipe, ptq=options.ptq)
    price = trained.price
    experts = None if price is None else {"how": price["how"], "kept": price["after"]["experts"]}
    wanted = cache.key(options.run, settings, seed, data=data.train, experts=experts)
    folder = cache.folder_of(options.run, wanted)
    found = cache.load(folder, wanted, trained.model.deployed)
    if found is not None:
        note(f"int8 pieces of {folder}")
        return found
    note(f"quantization, {settings['epochs']} epochs of training at most")

    def report(epoch: EpochReport) -> None:
        error = f"validation error {100 * epoch.validation_error:.2f} %" if epoch.scores else ""
        note(f"epoch {epoch.epoch + 1}/{epoch.epochs}  loss {epoch.terms['loss']:.4f}  {error}")

    # Quantization changes the model it is given, and another output may want the float one.
    model = copy.deepcopy(trained.model)
    made = quantize.quantized(model, data, recipe, seed=seed, report=report, ptq=options.ptq)
    for line in made.notes:
        note(line)
    said = {
        "scheme": "int8, weights per channel symmetric, activations per tensor affine",
        **settings,
        "seed": seed,
        "chosen_epoch": made.epoch,
        "validation_errors": list(made.errors),
        "float_validation_error": made.float_error,
        "notes": list(made.notes),
    }
    shapes = {m.name: m.shape for m in data.source.modalities}
    cache.save(folder, wanted, made.deployed, shapes, said)
    return made.deployed, said


def _write(
    options: argparse.Namespace,
    path: Path,
    target: Target,
    model: bundle.Model,
    splits: bundle.Splits,
    note: Note,
) -> bundle.Written:
    if options.unverified:
        return bundle.write_unverified(path, model, target, note=note)

    def show(payload: Payload, pieces: Pieces, failed: tuple[str, ...]) -> None:
        rows = explain.layers(model, payload, splits.parity, methods=failed or None, pieces=pieces)
        print(explain.text(rows), file=sys.stderr, flush=True)

    written = bundle.write(path, model, splits, target=target, explain=show if options.explain else None, note=note)
    for kind in dict.fromkeys(options.report):
        report = _report_path(path, kind)
        parity_report.write(report, written.manifest)
        note(f"{report}: report")
    return written


def _report_path(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}")


def _line(written: bundle.Written) -> str:
    manifest, report = written.manifest, written.manifest.parity or {}
    begin = f"{written.path}: {manifest.precision} for {manifest.target}, {written.size_bytes:,} bytes; "
    if not report.get("subsets"):
        return f"{begin}NOT VERIFIED: {report.get('not_run')}"
    rows = report["subsets"].values()
    return (
        f"{begin}parity in {report['engine']} on "
        f"{report['samples']} samples x {len(rows)} subsets: same label {min(r['label_agreement'] for r in rows):.2%}, "
        f"at most {max(r['max_steps'] for r in rows):.2f} output steps, "
        f"other experts in {max(r['routing_flips'] for r in rows):.2%} at worst; "
        f"{_decides(written)}"
    )


def _decides(written: bundle.Written) -> str:
    points = written.manifest.operating_points.values()
    certified = sum(point.certified for point in points)
    return f"certified to decide on {certified} of {len(points)} subsets"


def _as_dict(written: bundle.Written) -> dict[str, Any]:
    manifest = written.manifest
    return {
        "path": str(written.path),
        "size_bytes": written.size_bytes,
        "precision": manifest.precision,
        "target": manifest.target,
        "parameters": manifest.parameters,
        "parity": manifest.parity,
        "operating_points": {name: dataclasses.asdict(p) for name, p in manifest.operating_points.items()},
    }
