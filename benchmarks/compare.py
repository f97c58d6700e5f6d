"""One Markdown table of test errors from runs or artifacts that exist: a row per method, as `mars-edge compare` has it.

Example:
    python benchmarks/compare.py --row "MARS, int8 .pte" s0.pte s1.pte s2.pte \
        --row "modality dropout" runs/dropout-0 runs/dropout-1 runs/dropout-2

A run directory is measured at its selected epoch in PyTorch, a .pte or .onnx in its own engine, both with
`mars-edge evaluate --json`. Every row is compared with the first, run by run in the order given (pair them by seed):
mean difference, 95 % interval and p of a paired t-test, p adjusted for the number of rows. To train a grid as well,
use `mars-edge compare`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser
from mars_training.commands.compare import errors_of
from mars_training.comparison import TableRow, as_markdown


def scores_of(target: Path, data: Path | None, split: str) -> dict[str, Any]:
    """What `mars-edge evaluate --json` says of a run directory's selected epoch, or of an artifact.

    Raises:
        UsageError: `mars-edge evaluate` refused the target; its own line is passed on.
    """
    given = [str(target), "--which", "selected"] if target.is_dir() else ["--model", str(target)]
    options = ["--json", "--quiet", "--split", split, *(["--data", str(data)] if data else [])]
    command = [sys.executable, "-m", "mars_edge", "evaluate", *given, *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        said = result.stderr.strip().splitlines() or [f"evaluating {target} ended with status {result.returncode}"]
        raise UsageError(said[-1])
    table: dict[str, Any] = json.loads(result.stdout)
    return dict(table.get("selected", table))


def row_of(name: str, targets: Sequence[str], data: Path | None, split: str) -> TableRow:
    """The row of one method; its runs are known by their place in the list.

    Raises:
        UsageError: no target, or one that cannot be evaluated.
    """
    if not targets:
        raise UsageError(f"--row {name!r} names no run; give at least one run directory or artifact")
    scores = [scores_of(Path(target), data, split) for target in targets]
    return TableRow(
        name=name,
        errors={(i, 0): errors_of(table) for i, table in enumerate(scores)},
        wanted=len(scores),
        metric=scores[0]["subsets"][0]["metric"],
    )


def main() -> int:
    """Print the table, the paired differences, and where they were measured."""
    parser = OneLineParser(prog="benchmarks/compare.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--row", nargs="+", action="append", required=True, metavar=("NAME", "RUN"))
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    try:
        options = parser.parse_args()
        rows = [row_of(name, targets, options.data, options.split) for name, *targets in options.row]
        table = as_markdown(rows, [(row.name, rows[0].name) for row in rows[1:]])
    except UsageError as error:
        print(f"compare: {error}", file=sys.stderr)
        return error.exit_code
    print(table)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    print(f"\n{options.split} split, {datetime.now(UTC):%Y-%m-%d}, {machine}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
