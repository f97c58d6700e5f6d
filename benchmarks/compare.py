"""One Markdown table of test errors: a row per method, mean and standard deviation over its runs or artifacts.

Example:
    python benchmarks/compare.py --row "MARS, int8 .pte" s0.pte s1.pte s2.pte \
        --row "modality dropout" runs/dropout-0 runs/dropout-1 runs/dropout-2

A run directory is measured at its selected epoch in PyTorch, a .pte or .onnx in its own engine, both with
`mars-edge evaluate --json`. The first row is compared with every other, run by run in the order given (pair
them by seed): mean difference and the 95 % interval of a paired t-test, which is wide for three seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser

# Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method's results: per run, the error of each subset in 0..1 under "mean" and the subset's label."""

    name: str
    runs: tuple[dict[str, float], ...]

    def column(self, subset: str) -> list[float]:
        """One subset's error in percent, a value per run."""
        return [100.0 * run[subset] for run in self.runs]


def errors_of(target: Path, data: Path | None, split: str) -> dict[str, float]:
    """Error per subset, and their mean, of a run directory or an artifact.

    Raises:
        UsageError: `mars-edge evaluate` refused the target; its own line is passed on.
    """
    given = [str(target), "--which", "selected"] if target.is_dir() else ["--model", str(target)]
    options = ["--json", "--quiet", "--split", split, *(["--data", str(data)] if data else [])]
    command = [sys.executable, "-m", "mars_edge", "evaluate", *given, *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UsageError(result.stderr.strip().splitlines()[-1])
    table = json.loads(result.stdout)
    table = table.get("selected", table)
    sign = {"accuracy": lambda value: 1.0 - value}
    errors = {s["subset"]: sign.get(s["metric"], float)(s["value"]) for s in table["subsets"]}
    return {**errors, "mean": table["mean_error"]}


def table_of(rows: Sequence[Row]) -> str:
    """The rows as Markdown, error in percent, lower is better."""
    columns = [*(name for name in rows[0].runs[0] if name != "mean"), "mean"]
    head = f"| error % | runs | {' | '.join(columns)} |"
    lines = [head, "|---" * (len(columns) + 2) + "|"]
    for row in rows:
        cells = [spread(row.column(column)) for column in columns]
        lines.append(f"| {row.name} | {len(row.runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation; the mean alone for a single value."""
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def paired(first: Row, other: Row) -> str:
    """The mean difference first - other in percentage points, with the paired 95 % interval."""
    differences = [a - b for a, b in zip(first.column("mean"), other.column("mean"), strict=True)]
    mean = statistics.fmean(differences)
    half = _T_95[len(differences) - 2] * statistics.stdev(differences) / math.sqrt(len(differences))
    verdict = "a difference" if abs(mean) > half else "no difference shown"
    interval = f"95 % interval {mean - half:+.2f} to {mean + half:+.2f}"
    return f"- {first.name} - {other.name}: {mean:+.2f} points, {interval}: {verdict}"


def main() -> int:
    """Print the table, the paired differences, and where they were measured."""
    parser = OneLineParser(prog="benchmarks/compare.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--row", nargs="+", action="append", required=True, metavar=("NAME", "RUN"))
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    try:
        options = parser.parse_args()
        rows = [
            Row(name=name, runs=tuple(errors_of(Path(t), options.data, options.split) for t in targets))
            for name, *targets in options.row
        ]
    except UsageError as error:
        print(f"compare: {error}", file=sys.stderr)
        return error.exit_code
    print(table_of(rows))
    print()
    for other in rows[1:]:
        if len(other.runs) == len(rows[0].runs) > 1:
            print(paired(rows[0], other))
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    print(f"\n{options.split} split, {datetime.now(UTC):%Y-%m-%d}, {machine}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
