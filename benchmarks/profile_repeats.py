"""Whether a profile's intervals hold: the same file profiled again and again, each run against every other one.

    python benchmarks/profile_repeats.py --model face_antispoof.pte --times 20

A pair is two runs; it holds where the quantile of the second one lies in the interval that the first one states. The
interval is about one more process, at 95 %. Options after `--` go to `mars-edge profile`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from common import machine_line, note, today

from mars_edge.options import OneLineParser, positive
from mars_runtime.text import percent, table

_QUANTILES = ("p50", "p90", "p99")
_STANDARD = (
    "--mode",
    "quick",
    "--runs",
    "3000",
    "--processes",
    "10",
    "--threads",
    "1",
    "--picture-size",
    "112x112",
    "--no-beside",
)

Report = Mapping[str, Any]


def main(argv: Sequence[str]) -> int:
    """Profile, compare, print."""
    parser = OneLineParser(prog="profile_repeats.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--times", type=positive(int, most=1000), default=20)
    parser.add_argument(
        "given", nargs="*", metavar="-- OPTION", help="of `mars-edge profile` instead of the usual ones"
    )
    options = parser.parse_args(argv)
    given = options.given or _STANDARD
    reports = []
    for index in range(options.times):
        note(f"  profile {index + 1} of {options.times}")
        reports.append(_profile(options.model, given))
    print(f"mars-edge profile --model {options.model} {' '.join(given)}, {options.times} times in a row")
    print(f"{machine_line()}, {today()}")
    lines = [_line(reports, row["subset"], name) for row in reports[0]["rows"] for name in _QUANTILES]
    head = ("present", "of", "lowest", "highest", "interval, median", "pairs that hold")
    print("\n".join(table(head, lines, align="<<>>>>")))
    return 0


def _profile(model: str, given: Sequence[str]) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", "mars_edge", "profile", "--model", model, *given, "--no-processes", "--quiet"]
        subprocess.run([*command, "--json", str(path)], check=True, stdout=subprocess.DEVNULL)
        report: Report = json.loads(path.read_text(encoding="utf-8"))
        return report


def _line(reports: Sequence[Report], subset: str, name: str) -> tuple[str, ...]:
    totals = [next(row for row in r["rows"] if row["subset"] == subset)["stages"]["total"] for r in reports]
    values = [total[f"{name}_ms"] for total in totals]
    ends = [total[f"{name}_interval_ms"] for total in totals]
    pairs = list(permutations(range(len(reports)), 2))
    held = sum(holds(ends[first], values[second]) for first, second in pairs)
    widths = sorted((high - low) / value for (low, high), value in zip(ends, values, strict=True) if low is not None)
    middle = f"{percent(widths[len(widths) // 2])} %" if widths else "-"
    return (
        subset, name, f"{min(values):.3f} ms", f"{max(values):.3f} ms", middle,
        f"{held} of {len(pairs)} ({percent(held / len(pairs))} %)",
    )  # fmt: skip


def holds(ends: Sequence[float | None], value: float) -> bool:
    """Whether the value lies between both ends; an open interval says nothing, so it does not hold."""
    low, high = ends
    return low is not None and high is not None and low <= value <= high


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
