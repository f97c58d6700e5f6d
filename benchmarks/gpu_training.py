"""Samples per second and peak memory of training on one GPU, in fp32, bf16 and bf16 compiled; one Markdown table.

    python benchmarks/gpu_training.py
    python benchmarks/gpu_training.py --recipe training/recipes/casia_surf_edge.toml --batch-size 256

What is timed is the loop of `mars-edge train` itself on the recipe's model, with its augmentation, reading and moving
of batches; samples are random numbers of the recipe's shapes (CASIA-SURF: 112 x 112). A sample is one row of all
modalities. A machine without a GPU is told so; --cpu-dry-run takes two tiny steps there, to prove that the script runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser, positive
from mars_training.data.load import describe
from mars_training.data.split import Data, Source, Split
from mars_training.epoch import StepReport
from mars_training.recipe import Precision, Recipe, load_recipe
from mars_training.train import Hooks, fit, prepare, update_for

RECIPE = Path(__file__).parents[1] / "training" / "recipes" / "casia_surf.toml"
VALIDATION_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One line of the table."""

    name: str
    precision: Precision
    compiled: bool = False


VARIANTS = (
    Variant(name="fp32", precision="fp32"),
    Variant(name="bf16", precision="bf16"),
    Variant(name="bf16, compiled", precision="bf16", compiled=True),
)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one variant took: seconds per step after the warm-up (median), and bytes of GPU memory at the peak."""

    step_s: float
    peak_bytes: int


def random_split(source: Source, samples: int) -> Split:
    """Uniform noise in half precision, every class equally often."""
    count = torch.arange(samples)
    return Split(
        inputs={m.name: torch.rand(samples, *m.shape).half() for m in source.modalities},
        labels=count % len(source.labels),
        groups=torch.zeros_like(count),
        group_names=("noise",),
    )


def tiny(recipe: Recipe) -> Recipe:
    """The recipe with as few channels and samples as its structure allows."""
    model, schedule = recipe.model, recipe.schedule
    encoders = {n: dataclasses.replace(e, channels=(16,) * len(e.channels)) for n, e in model.encoders.items()}
    channels = (8,) * len(model.expert_channels)
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(model, encoders=encoders, width=8, expert_channels=channels),
        schedule=dataclasses.replace(schedule, batch_size=4),
    )


def measure(
    recipe: Recipe, source: Source, variant: Variant, where: torch.device, warmup: int, steps: int
) -> Measurement:
    """Trains the recipe's model for `warmup` steps and then `steps` that are timed."""
    schedule = dataclasses.replace(recipe.schedule, precision=variant.precision, epochs=1, warmup_epochs=0.0)
    recipe = dataclasses.replace(recipe, schedule=schedule)
    train = random_split(source, schedule.batch_size * (warmup + steps))
    data = Data(source=source, train=train, validation=random_split(source, VALIDATION_SAMPLES))
    model = prepare(recipe, data, seed=0).to(where)
    ends: list[float] = []
    peak_bytes = 0

    def after_step(report: StepReport) -> None:
        nonlocal peak_bytes
        # The loop has read the losses of the step by now: the GPU has nothing left to do.
        ends.append(time.perf_counter())
        if where.type == "cuda":
            peak_bytes = torch.cuda.max_memory_allocated(where)

    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    update = update_for(model, recipe, compiled=variant.compiled)
    fit(model, data, recipe, seed=0, hooks=Hooks(after_step=after_step), update=update)
    timed = ends[warmup - 1 :]
    step_s = statistics.median(b - a for a, b in itertools.pairwise(timed))
    return Measurement(step_s=step_s, peak_bytes=peak_bytes)


def table(recipe: Recipe, measured: Sequence[tuple[Variant, Measurement]]) -> str:
    """A Markdown table, one line per variant."""
    lines = ["| training in | samples/s | ms per step | peak GPU memory, GiB |", "|---|---:|---:|---:|"]
    for variant, found in measured:
        memory = f"{found.peak_bytes / 2**30:.1f}" if found.peak_bytes else "-"
        rate = recipe.schedule.batch_size / found.step_s
        lines.append(f"| {variant.name} | {rate:.1f} | {1000 * found.step_s:.1f} | {memory} |")
    return "\n".join(lines)


def where_measured(recipe: Recipe, where: torch.device) -> str:
    """One line: what was trained, on what, when."""
    chip = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{platform.machine()} processor, dry run"
    return (
        f"{recipe.name}, batches of {recipe.schedule.batch_size}; {chip}; torch {torch.__version__}; "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(prog="benchmarks/gpu_training.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="default: the paper's CASIA-SURF")
    parser.add_argument("--batch-size", type=positive(int), metavar="N", help="in place of the recipe's")
    parser.add_argument("--warmup", type=positive(int), default=10, metavar="STEPS", help="not timed (default: 10)")
    parser.add_argument("--steps", type=positive(int), default=30, metavar="STEPS", help="timed steps (default: 30)")
    parser.add_argument("--cpu-dry-run", action="store_true", help="a few tiny steps on the processor")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Print the table, or one line that says why there is none."""
    try:
        options = parse(arguments)
        recipe = load_recipe(options.recipe)
        source = describe(recipe.data)
    except UsageError as error:
        print(f"gpu_training: {error}", file=sys.stderr)
        return error.exit_code
    if options.batch_size:
        schedule = dataclasses.replace(recipe.schedule, batch_size=int(options.batch_size))
        recipe = dataclasses.replace(recipe, schedule=schedule)
    warmup, steps, where = int(options.warmup), int(options.steps), torch.device("cuda")
    if options.cpu_dry_run:
        recipe, warmup, steps, where = tiny(recipe), 1, 2, torch.device("cpu")
    elif not torch.cuda.is_available():
        print("gpu_training: this machine has no GPU; --cpu-dry-run only proves that the script runs", file=sys.stderr)
        return 1
    measured = [(variant, measure(recipe, source, variant, where, warmup=warmup, steps=steps)) for variant in VARIANTS]
    print(table(recipe, measured))
    print(f"\n{where_measured(recipe, where)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
