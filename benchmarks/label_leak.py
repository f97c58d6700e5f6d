"""How much of the label the gates carry: a probe that sees nothing but a sample's gates.

    python benchmarks/label_leak.py runs/rig/mars/seed0 [RUN ...] [--data DIR]

For every incomplete combination of a run's validation split, a logistic regression predicts the class from the
gates alone, five-fold cross-validated: once from the residual router's, which exist in training only, and once
from the feature router's, which a device has. Balanced accuracy in percent; chance is 100 / classes. Where the first is
far above the second, the experts learn from gates that know the label, and no device can repeat it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from mars_edge import subsets
from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser
from mars_training.checkpoint import load_model
from mars_training.data.load import load_split
from mars_training.data.split import Split
from mars_training.model.mars import TrainingMars

_BATCH = 128


@torch.no_grad()
def gates_of(model: TrainingMars, split: Split, present: NDArray[np.bool_]) -> tuple[NDArray[np.float32], ...]:
    """The gates (n, N) of the residual router and of the feature router when exactly `present` is there."""
    model.eval()
    rows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for indices in torch.split(torch.arange(len(split)), _BATCH):
        partial = torch.from_numpy(present).expand(len(indices), -1)
        passes = model(split.batch(indices), partial)
        rows[0].append(passes.residual.gates)
        rows[1].append(model.deployed.gates(passes.student))
    return tuple(torch.cat(part).numpy() for part in rows)


def probe(gates: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Balanced accuracy of a logistic regression from `gates` (n, N), mean of five folds, in 0..1."""
    classifier = LogisticRegression(C=100.0, max_iter=2000, class_weight="balanced")
    return float(cross_val_score(classifier, gates, labels, cv=5, scoring="balanced_accuracy").mean())


def report(run: Path, data: Path | None) -> list[str]:
    """Table rows of one run, one per incomplete combination and their mean."""
    model, info = load_model(run, "last")
    if not isinstance(model, TrainingMars) or model.residual_router is None:
        raise UsageError(
            f"{run} was trained by {info.recipe.method!r}; only a run with a residual router has its gates"
        )
    split = load_split(info.recipe, "validation", folder=data)
    names = info.source.names
    lines, sums = [], np.zeros(2)
    combinations = subsets.all_subsets(names)[:-1]
    for subset in combinations:
        gates = gates_of(model, split, subsets.mask(subset, names))
        found = np.array([100.0 * probe(g, split.class_labels.numpy()) for g in gates])
        sums += found / len(combinations)
        lines.append(f"| {run} | {subsets.label(subset, names)} | {found[0]:.1f} | {found[1]:.1f} |")
    return [*lines, f"| {run} | mean | {sums[0]:.1f} | {sums[1]:.1f} |"]


def main() -> int:
    """Print one Markdown table for all runs."""
    parser = OneLineParser(prog="benchmarks/label_leak.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, metavar="DIR")
    try:
        options = parser.parse_args()
        lines = [line for run in options.run for line in report(run, options.data)]
    except UsageError as error:
        print(f"label_leak: {error}", file=sys.stderr)
        return error.exit_code
    print("| run | present | residual router's gates, % | feature router's gates, % |\n|---|---|---|---|")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
