"""`mars-edge train RECIPE`: one run directory from one recipe and one seed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser
from mars_training import distributed
from mars_training.checkpoint import RunInfo, is_finished, load_progress, refuse_another_run
from mars_training.commands.check import check, headline, text, to_dict
from mars_training.data.load import describe, load_data
from mars_training.data.split import Source
from mars_training.evaluate import score_table
from mars_training.interrupts import ended_by_sigterm, exit_code
from mars_training.lock import refuse_if_used
from mars_training.progress import progress, say
from mars_training.recipe import Recipe, load_recipe
from mars_training.tensorboard import epoch_events
from mars_training.train import EpochReport, FitResult, Hooks, busy_message, train

_EXAMPLE = "example: mars-edge train training/recipes/face_antispoof.toml --seed 0 -o runs/face_antispoof"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="mars-edge train", description="Train a recipe into a run directory.", epilog=_EXAMPLE)
    parser.add_argument("recipe", type=Path, help="a .toml file, see training/recipes")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the data set (the rig needs none)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and masks (default: 0)")
    parser.add_argument("--fold", type=int, choices=range(5), help="speaker fold, in place of the recipe's")
    parser.add_argument("-o", "--output", type=Path, metavar="RUN", help="run directory (default: runs/NAME-seedN)")
    parser.add_argument("--threads", type=int, default=_usable_cores(), help="processor threads (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), default="auto", help="default: auto")
    parser.add_argument(
        "--compile", action="store_true", help="let torch.compile make the step faster, after a slow start"
    )
    parser.add_argument("--check", action="store_true", help="print parameters, MACs and memory, then stop")
    parser.add_argument("--tensorboard", action="store_true", help="also write event files to RUN/tensorboard")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def _usable_cores() -> int:
    """Of the machine, for each of the processes that torchrun started on it."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def main(argv: Sequence[str]) -> int:
    """Train, or go on with an interrupted run; prints the validation table of the selected epoch."""
    options = _parser().parse_args(argv)
    if options.threads < 1:
        raise UsageError(f"--threads is {options.threads}; it must be at least 1")
    torch.set_num_threads(options.threads)
    recipe = _with_fold(load_recipe(options.recipe), options.fold)
    source = describe(recipe.data, options.data)
    if options.check:
        found = check(recipe, source)
        print(json.dumps(to_dict(found)) if options.json else text(found))
        return 0
    run = options.output or Path("runs") / f"{recipe.name}-seed{options.seed}"
    # Asked again when training starts; here before seconds of reading data.
    refuse_if_used(run, busy_message(run))
    refuse_another_run(run, RunInfo(recipe=recipe, seed=options.seed, source=source))
    with ended_by_sigterm():
        try:
            return _train(options, recipe, source, run)
        except (KeyboardInterrupt, SystemExit) as stop:
            if distributed.is_main():
                say(sys.stderr, f"stopped; {_continuation(run)}")
            return exit_code(stop)


def _train(options: argparse.Namespace, recipe: Recipe, source: Source, run: Path) -> int:
    with distributed.joined(options.device) as device:
        if distributed.is_main() and not options.quiet:
            say(sys.stderr, f"{headline(check(recipe, source))}\nrun directory: {run}")
        data = load_data(recipe, folder=options.data)
        with _hooks(run, options) as hooks:
            result = train(recipe, data, run, seed=options.seed, hooks=hooks, where=device, compiled=options.compile)
        if distributed.is_main():
            print(_json(run, result) if options.json else _summary(run, result, options.data))
    return 0


def _continuation(run: Path) -> str:
    """What the same command would do with what is in `run` now."""
    point = load_progress(run)
    if point is None:
        return f"{run} holds the finished run" if is_finished(run) else "the same command starts from the beginning"
    epochs, step = point
    after = f"step {step} of epoch {epochs + 1}" if step else f"epoch {epochs}"
    return f"the same command goes on after {after}"


@contextmanager
def _hooks(run: Path, options: argparse.Namespace) -> Iterator[Hooks]:
    if not distributed.is_main():
        yield Hooks()
        return
    told = Hooks() if options.quiet else progress(sys.stderr)
    with epoch_events(run) if options.tensorboard else nullcontext(lambda report: None) as write:

        def after_epoch(report: EpochReport) -> None:
            told.after_epoch(report)
            write(report)

        yield Hooks(after_step=told.after_step, after_epoch=after_epoch)


def _with_fold(recipe: Recipe, fold: int | None) -> Recipe:
    if fold is None:
        return recipe
    if recipe.data.reader not in ("digits", "crema_d"):
        raise UsageError(f"--fold {fold}: recipe {recipe.name!r} reads {recipe.data.reader!r}, which has no folds")
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, fold=fold))


def _summary(run: Path, result: FitResult, folder: Path | None) -> str:
    data = "" if folder is None else f" --data {shlex.quote(str(folder))}"
    where = f"{shlex.quote(str(run))}{data}"
    return (
        f"validation, selected epoch {result.selected.epoch + 1}:\n{score_table(result.selected.scores)}\n"
        f"mean error: selected {100 * result.selected.validation_error:.2f} %, "
        f"last {100 * result.last.validation_error:.2f} %\n"
        f"next: mars-edge evaluate {where}\n"
        f"      mars-edge report {where}"
    )


def _json(run: Path, result: FitResult) -> str:
    return json.dumps(
        {
            "run": str(run),
            "selected": dataclasses.asdict(result.selected),
            "last": dataclasses.asdict(result.last),
        }
    )
