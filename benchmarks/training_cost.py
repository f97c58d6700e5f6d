"""Time of a training step beside the modality-dropout baseline's with the same encoders; no data is needed.

    python benchmarks/training_cost.py

Axes: B batch. Inputs are random tensors of the recipe's shapes. Times are processor time: on one thread it is what a
clock shows on a machine that does nothing else, and the work of others stretches it little. The contestants take
turns, one step each, so that whatever else the machine does meets all of them; a ratio is the median over rounds of
the two times of one round, with a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mars_training.data.load import describe
from mars_training.data.split import Batch, Source
from mars_training.device import autocast
from mars_training.methods import METHODS, build_model
from mars_training.model.build import channels_last
from mars_training.optimiser import build_optimiser
from mars_training.recipe import Recipe, load_recipe
from mars_training.sampling import MaskSampler

RECIPES = Path(__file__).parents[1] / "training" / "recipes"
BASELINE = "modality_dropout"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One recipe's method: a name, and a function that takes one optimiser step."""

    name: str
    step: Callable[[], None]


def random_batch(source: Source, size: int) -> Batch:
    """A batch of uniform noise in which every modality is there."""
    inputs = {m.name: torch.rand(size, *m.shape) for m in source.modalities}
    dense = {n: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for n, x in inputs.items()}
    present = torch.ones(size, len(source.modalities), dtype=torch.bool)
    return Batch(inputs=dense, labels=torch.arange(size) % len(source.labels), present=present)


def contestant(name: str, recipe: Recipe, source: Source) -> Contestant:
    """The recipe's method on one fixed batch, at an epoch in which all of its losses are on."""
    torch.manual_seed(0)
    model = channels_last(build_model(recipe, source.modalities, len(source.labels), source.task)).train()
    optimiser = build_optimiser(model, recipe.schedule)
    sampler = MaskSampler(source.names, start=1, tau=1.0)
    batch = random_batch(source, recipe.schedule.batch_size)
    take_step = METHODS[recipe.method].step

    def step() -> None:
        masks = sampler.masks(sampler.draw(len(batch)))
        with autocast(recipe.schedule.precision, torch.device("cpu")):
            terms = take_step(model, batch, masks, recipe.loss, recipe.schedule.epochs).terms
        optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return Contestant(name=name, step=step)


def contestants(recipe: Recipe, source: Source, methods: Sequence[str]) -> list[Contestant]:
    """The baseline, MARS dense and sparse, and any `methods` beside them, all from one recipe."""

    def variant(method: str, dispatch: str = "dense") -> Recipe:
        model = dataclasses.replace(recipe.model, dispatch=dispatch)
        return dataclasses.replace(recipe, method=method, model=model)

    rows = [
        (BASELINE, variant(BASELINE)),
        ("mars, dense", variant("mars")),
        ("mars, sparse", variant("mars", "sparse")),
    ]
    rows += [(name, variant(name)) for name in methods]
    return [contestant(name, each, source) for name, each in rows]


def measure(entrants: Sequence[Contestant], rounds: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Seconds (rounds, contestants); three rounds before are not counted."""
    for _ in range(3):
        for each in entrants:
            each.step()
    times = np.empty((rounds, len(entrants)))
    for i in range(rounds):
        for j, each in enumerate(entrants):
            begin = time.process_time()
            each.step()
            times[i, j] = time.process_time() - begin
    return times


def median_interval(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float, float]:
    """The median and its 95 % interval over 2,000 bootstrap samples, seed 0."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(np.median(values)), float(low), float(high)


def table(recipe: Recipe, entrants: Sequence[Contestant], rounds: int) -> str:
    """Markdown: one row per contestant."""
    times = measure(entrants, rounds)
    lines = [
        f"### {recipe.name}: batch {recipe.schedule.batch_size}, {recipe.model.experts} experts, "
        f"{recipe.model.active_experts} active, {recipe.schedule.precision}, {rounds} rounds",
        "",
        "| method | step ms of processor time, median | times the baseline | 95 % interval |",
        "|---|---|---|---|",
    ]
    for j, each in enumerate(entrants):
        ratio, low, high = median_interval(times[:, j] / times[:, 0])
        step_ms = 1e3 * statistics.median(times[:, j])
        lines.append(f"| {each.name} | {step_ms:.1f} | {ratio:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines)


def machine() -> str:
    """Processor, threads, torch and the date, for whoever reads the table later."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    today = datetime.datetime.now(datetime.UTC).date()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {today}"


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: python benchmarks/training_cost.py --rounds 30 --method moe",
    )
    default = [RECIPES / "face_antispoof_paper.toml", RECIPES / "spoken_digits.toml"]
    parser.add_argument("recipes", nargs="*", type=Path, default=default, help="recipes whose sizes to take")
    parser.add_argument("--rounds", type=int, default=20, help="steps of every contestant (default 20)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default 1)")
    parser.add_argument("--method", action="append", default=[], choices=sorted(METHODS), help="one more contestant")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(machine())
    for path in options.recipes:
        recipe = load_recipe(path)
        entrants = contestants(recipe, describe(recipe.data), options.method)
        print("\n" + table(recipe, entrants, options.rounds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
