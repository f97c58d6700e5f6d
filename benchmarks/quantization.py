"""What int8 costs: the mean error over all subsets of float runs and of their artifacts, paired run by run.

    python benchmarks/quantization.py --model face runs/face0=face0.pte,face0-fp32.pte runs/face1=face1.pte \
        --model digits runs/digits0=digits0.pte --data digits=DIR

A run directory is measured at its selected epoch in PyTorch, an int8 artifact in its own engine, both by `mars-edge
evaluate`, at the largest logit, on every subset of the recipe. A difference is int8 minus float in points of the error
(ACER, 1 - accuracy or 1 - mIoU) averaged over subsets; its 95 % interval is that of a paired t-test over runs. An fp32
artifact is there for its size: each int8 file is compared with the fp32 file of its run and format.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compare import scores_of

from mars_edge.artifact import verify
from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.manifest import Manifest
from mars_edge.options import OneLineParser
from mars_runtime.engines.opening import read_manifest
from mars_training.commands.compare import errors_of
from mars_training.statistics import Paired, paired_test

MOST_POINTS = 0.5
MOST_SIZE = 0.30


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A run and its artifacts, by format: the int8 ones, and the fp32 ones that they are compared with in size."""

    run: Path
    int8: Mapping[str, Path]
    fp32: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One int8 artifact beside its run: errors in 0..1 by subset label, and "mean".

    Attributes:
        size_share: its bytes over those of the fp32 artifact; None where none was given.
    """

    run: str
    artifact: str
    metric: str
    float_errors: Mapping[str, float]
    int8_errors: Mapping[str, float]
    size_bytes: int
    size_share: float | None

    @property
    def points(self) -> dict[str, float]:
        """int8 minus float, in points, by subset and "mean"; above 0 is worse."""
        return {name: 100.0 * (error - self.float_errors[name]) for name, error in self.int8_errors.items()}


@dataclass(frozen=True, kw_only=True)
class Row:
    """All runs of one model in one format."""

    model: str
    format: str
    runs: Sequence[Measured]

    @property
    def test(self) -> Paired | None:
        """The paired test of the means over subsets, in points; None for a single run."""
        first = {(i, 0): 100.0 * m.int8_errors["mean"] for i, m in enumerate(self.runs)}
        other = {(i, 0): 100.0 * m.float_errors["mean"] for i, m in enumerate(self.runs)}
        return paired_test(first, other)

    @property
    def mean_points(self) -> float:
        """int8 minus float on the mean over subsets, averaged over runs."""
        return statistics.fmean(m.points["mean"] for m in self.runs)

    @property
    def largest_share(self) -> float | None:
        """The largest int8 file over its fp32 file; None where a run has no fp32 file."""
        shares = [m.size_share for m in self.runs]
        return None if None in shares else max(s for s in shares if s is not None)

    @property
    def worst_subset(self) -> tuple[str, float]:
        """The subset that loses most, and how many points, averaged over runs."""
        names = [name for name in self.runs[0].points if name != "mean"]
        mean = {name: statistics.fmean(m.points[name] for m in self.runs) for name in names}
        worst = max(mean, key=lambda name: mean[name])
        return worst, mean[worst]


def manifest_of(path: Path) -> Manifest:
    """What the artifact says about itself, after its digest was checked."""
    if not path.is_file():
        raise UsageError(f"no artifact {path}")
    return read_manifest(verify(path))


def pair_of(text: str) -> Pair:
    """A pair from "RUN=FILE,FILE"; what each file is its manifest says.

    Raises:
        UsageError: no "=", no int8 file, or two files of one precision and format.
        ModelFileError: a file is damaged.
    """
    run, has_files, files = text.partition("=")
    if not has_files or not Path(run).is_dir():
        raise UsageError(f"{text!r} is not RUN=FILE,FILE with a run directory RUN")
    found: dict[str, dict[str, Path]] = {"int8": {}, "fp32": {}}
    for path in map(Path, files.split(",")):
        precision, kind = manifest_of(path).precision, path.suffix
        if precision not in found or kind in found[precision]:
            raise UsageError(f"{path} is {precision} {kind}; allowed: one int8 and one fp32 file of each format")
        found[precision][kind] = path
    if not found["int8"]:
        raise UsageError(f"{text!r} names no int8 artifact")
    return Pair(run=Path(run), int8=found["int8"], fp32=found["fp32"])


def measure(pair: Pair, data: Path | None) -> dict[str, Measured]:
    """By format, the int8 artifact of a pair beside its run, both on the test split."""
    float_scores = scores_of(pair.run, data, "test")
    return {kind: _measured(pair, kind, float_scores, data) for kind in pair.int8}


def _measured(pair: Pair, kind: str, float_scores: Mapping[str, Any], data: Path | None) -> Measured:
    path = pair.int8[kind]
    errors, reference = errors_of(scores_of(path, data, "test")), errors_of(dict(float_scores))
    if errors.keys() != reference.keys():
        raise UsageError(f"{path} was measured on other subsets than {pair.run}")
    size = path.stat().st_size
    return Measured(
        run=str(pair.run),
        artifact=str(path),
        metric=float_scores["subsets"][0]["metric"],
        float_errors=reference,
        int8_errors=errors,
        size_bytes=size,
        size_share=size / pair.fp32[kind].stat().st_size if kind in pair.fp32 else None,
    )


def rows_of(model: str, pairs: Sequence[str], data: Path | None) -> list[Row]:
    """A row per format that every pair has.

    Raises:
        UsageError: no pair, pairs of different formats, or what `pair_of` and `scores_of` refuse.
    """
    if not pairs:
        raise UsageError(f"--model {model!r} names no run; give at least one RUN=FILE")
    read = [pair_of(text) for text in pairs]
    kinds = {tuple(sorted(pair.int8)) for pair in read}
    if len(kinds) != 1:
        raise UsageError(f"--model {model!r} has int8 artifacts of different formats; give every run the same")
    measured = [measure(pair, data) for pair in read]
    return [Row(model=model, format=kind, runs=[m[kind] for m in measured]) for kind in kinds.pop()]


_COLUMNS = (
    "model", "format", "runs", "metric", "float error %, mean over subsets", "int8 error %", "int8 - float, points",
    "95 % interval", "each run", "subset that loses most", "int8 MB", "of fp32", f"<= {MOST_POINTS} points",
    f"<= {MOST_SIZE:.2f} of fp32",
)  # fmt: skip


def as_markdown(rows: Sequence[Row]) -> str:
    """The table, one line per model and format."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    return "\n".join([*lines, *map(_line, rows)])


def _line(row: Row) -> str:
    test, share, (subset, lost) = row.test, row.largest_share, row.worst_subset
    cells = [
        row.model,
        row.format,
        str(len(row.runs)),
        row.runs[0].metric,
        f"{100 * statistics.fmean(m.float_errors['mean'] for m in row.runs):.2f}",
        f"{100 * statistics.fmean(m.int8_errors['mean'] for m in row.runs):.2f}",
        f"{row.mean_points:+.2f}",
        f"{test.low:+.2f} to {test.high:+.2f}" if test else "-",
        ", ".join(f"{m.points['mean']:+.2f}" for m in row.runs),
        f"{subset} {lost:+.2f}",
        f"{max(m.size_bytes for m in row.runs) / 1e6:.3f}",
        "-" if share is None else f"{share:.3f}",
        "yes" if row.mean_points <= MOST_POINTS else "no",
        "-" if share is None else "yes" if share <= MOST_SIZE else "no",
    ]
    return "| " + " | ".join(cells) + " |"


def as_json(rows: Sequence[Row]) -> str:
    """Everything measured, and what the table says of it."""
    return json.dumps(
        [
            {
                **asdict(row),
                "mean_points": row.mean_points,
                "largest_share": row.largest_share,
                "test": asdict(row.test) if row.test else None,
            }
            for row in rows
        ]
    )


def folders(given: Sequence[str], models: Sequence[str]) -> dict[str, Path]:
    """The data folder by model name, from "NAME=DIR" each.

    Raises:
        UsageError: not of this form, or the name is of no --model.
    """
    found = {}
    for text in given:
        name, has_folder, folder = text.partition("=")
        if not has_folder or name not in models:
            raise UsageError(f"--data {text!r} is not NAME=DIR with a NAME of: {', '.join(models)}")
        found[name] = Path(folder)
    return found


def main() -> int:
    """Print the table, and where it was measured."""
    parser = OneLineParser(
        prog="benchmarks/quantization.py",
        description=__doc__,
        epilog="example: python benchmarks/quantization.py --model face runs/face=face.pte,face-fp32.pte",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", nargs="+", action="append", required=True, metavar=("NAME", "RUN=FILE,FILE"))
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR", help="data of a model; repeatable")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead")
    try:
        options = parser.parse_args()
        where = folders(options.data, [name for name, *_ in options.model])
        rows = [row for name, *pairs in options.model for row in rows_of(name, pairs, where.get(name))]
    except MarsEdgeError as error:
        print(f"quantization: {error}", file=sys.stderr)
        return error.exit_code
    print(as_json(rows) if options.json else as_markdown(rows))
    if not options.json:
        print(f"\ntest split, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
