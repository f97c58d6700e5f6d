"""Runs of different size on the same data in one table: error, parameters, MACs and time per decision.

    python benchmarks/sizes.py runs/small runs/paper_size

Error is the mean over all subsets on the test split at the selected epoch. Time is of one decision (batch of 1, one
thread, PyTorch eager, the active experts alone) with everything present, and with the first modality alone. The runs
take turns, so that whatever else the machine does meets all of them; a ratio to the first run is the median over
rounds of the two times of one round.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mars_edge import subsets
from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser
from mars_training.checkpoint import RunInfo, load_deployed
from mars_training.costs import costs
from mars_training.data.load import load_split
from mars_training.evaluate import mean_error, score_subsets
from mars_training.model.deployable import Deployable


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One run, loaded for inference, with a random input and a feature of zeros per modality."""

    run: Path
    info: RunInfo
    model: Deployable
    inputs: dict[str, Tensor]
    zeros: dict[str, Tensor]

    @torch.no_grad()
    def decide(self, present: subsets.Subset) -> float:
        """Milliseconds of one decision: encoders of what is there, zeros for the others, route, experts, head."""
        names = self.info.source.names
        mask = torch.from_numpy(subsets.mask(present, names))[None]
        began = time.perf_counter()
        features = [self.model.encoders[n](self.inputs[n]) if n in present else self.zeros[n] for n in names]
        self.model.classify(features, mask)
        return 1000.0 * (time.perf_counter() - began)


def load(run: Path) -> Contestant:
    """The contestant in a run directory."""
    model, info = load_deployed(run, "selected")
    model.eval()
    inputs = {m.name: torch.rand(1, *m.shape) for m in info.source.modalities}
    with torch.no_grad():
        features = model.encode_all(inputs)
    zeros = {name: torch.zeros_like(f) for name, f in zip(info.source.names, features, strict=True)}
    return Contestant(run=run, info=info, model=model, inputs=inputs, zeros=zeros)


def times(contestants: list[Contestant], rounds: int) -> list[dict[str, list[float]]]:
    """Per contestant, milliseconds of each round, everything present under "all", one modality under "one"."""
    found: list[dict[str, list[float]]] = [{"all": [], "one": []} for _ in contestants]
    for at in range(rounds + 3):
        for contestant, row in zip(contestants, found, strict=True):
            names = contestant.info.source.names
            measured = {"all": contestant.decide(names), "one": contestant.decide(names[:1])}
            if at >= 3:  # the first rounds load and allocate
                for key, value in measured.items():
                    row[key].append(value)
    return found


def row(contestant: Contestant, mine: dict[str, list[float]], first: dict[str, list[float]], data: Path | None) -> str:
    """One line of the table."""
    source = contestant.info.source
    found = costs(contestant.model, source.modalities, source.task)
    split = load_split(contestant.info.recipe, "test", folder=data)
    error = 100.0 * mean_error(score_subsets(contestant.model, split, source))
    cells = [str(contestant.run), f"{error:.2f}", f"{found.parameters / 1e6:.2f}"]
    for key, present in (("all", source.names), ("one", source.names[:1])):
        ratio = statistics.median(a / b for a, b in zip(mine[key], first[key], strict=True))
        cells += [f"{found.macs(present) / 1e6:.1f}", f"{statistics.median(mine[key]):.2f} ({ratio:.1f} x)"]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Print the table, and where it was measured."""
    parser = OneLineParser(prog="benchmarks/sizes.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=200)
    torch.set_num_threads(1)
    try:
        options = parser.parse_args()
        contestants = [load(run) for run in options.run]
        measured = times(contestants, options.rounds)
        rows = [row(c, m, measured[0], options.data) for c, m in zip(contestants, measured, strict=True)]
    except UsageError as error:
        print(f"sizes: {error}", file=sys.stderr)
        return error.exit_code
    columns = ["run", "test error %", "M parameters", "MMAC, all", "ms, all", "MMAC, one", "ms, one"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    print("\n".join(rows))
    where = f"{platform.machine()}, 1 thread, torch {torch.__version__}"
    print(f"\n{options.rounds} rounds, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {where}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
