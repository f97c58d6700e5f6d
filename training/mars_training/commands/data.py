"""`mars-edge data check DIR`: what a data set holds, what is wrong with it and what its split leaks, in one screen."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_edge.options import OneLineParser, positive
from mars_training.data.check import DECODED, READERS, Report, Seen, SplitSummary, check, recognise
from mars_training.data.findings import Finding

_WIDTH = 100
_LINES = 40
_MOST_CLASSES = 6
_EXAMPLES = ((5, 5), (5, 2), (5, 1), (5, 0), (2, 0), (0, 0))
"""How many of a problem and of a warning are shown, the best that fits."""
_EXIT_UNUSABLE = UsageError.exit_code


def _parser() -> argparse.ArgumentParser:
    example = "example: mars-edge data check my_sensors"
    parser = OneLineParser(prog="mars-edge data", description="Look at a data set before training.", epilog=example)
    commands = parser.add_subparsers(dest="command", metavar="check", required=True)
    checks = commands.add_parser(
        "check",
        help="what a data set holds, lacks and leaks",
        description="Tell what a data set holds, what is missing or broken, and what its split leaks. "
        f"Every file is decoded, of splits of more than {DECODED:,} rows those of so many. "
        "Exit code 0: it can be used, perhaps with warnings; 2: something is missing or broken.",
        epilog=example,
    )
    checks.add_argument("folder", type=Path, metavar="DIR", help="the folder, as `train --data DIR` takes it")
    checks.add_argument("--reader", choices=READERS, help="whose layout it has (default: recognised)")
    checks.add_argument(
        "--decode", type=positive(int, zero=True), default=DECODED, metavar="N",
        help=f"decode the files of at most this many rows of each split, spread evenly (default: {DECODED:,})",
    )  # fmt: skip
    checks.add_argument("--json", action="store_true", help="print one JSON object, with every row that is named")
    checks.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print the report; 0 when the data can be used, else 2."""
    options = _parser().parse_args(argv)
    reader = options.reader or recognise(options.folder)
    report = check(options.folder, reader, decode=options.decode, say=_silent if options.quiet else _say)
    print(json.dumps(report.to_dict(), ensure_ascii=False) if options.json else as_text(report))
    return 0 if report.usable else _EXIT_UNUSABLE


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    pass


def as_text(report: Report) -> str:
    """The report in at most 40 lines of at most 100 columns; where it is cut it says so."""
    head = [*_title(report), "", *_modalities(report), "", *_splits(report), *_classes(report), ""]
    room = _LINES - len(head) - 1
    lines = [*head, *_findings(report, room), _verdict(report)]
    return "\n".join(_cut(line) for line in lines)


def _cut(line: str) -> str:
    return line.rstrip() if len(line.rstrip()) <= _WIDTH else line[: _WIDTH - 4] + " ..."


def _title(report: Report) -> Iterator[str]:
    source = report.source
    kinds = "live or spoof" if source.positive_label else source.task
    yield f"{report.reader}: {kinds}, {len(source.labels)} classes; {source.note}"
    yield f"in {report.folder}"


def _modalities(report: Report) -> list[str]:
    rows = [("modality", "kind", "network sees", "decoded samples hold")]
    rows += [
        (m.name, m.kind, "x".join(map(str, m.shape)), _held(m, report.seen[m.name])) for m in report.source.modalities
    ]
    return _table(rows, left=4)


def _held(m: Modality, seen: Seen) -> str:
    if not seen.total:
        return "none decoded"
    if m.kind == "audio":
        return f"{seen.low:.2f} to {seen.high:.2f} s at {m.rate_hz:g} Hz; window {m.window_s:g} s"
    if m.kind == "text":
        return f"{seen.low:g} to {seen.high:g} words; the first {m.length} are kept"
    values = f"{seen.low:.4g} to {seen.high:.4g}; range {m.range[0]:g} to {m.range[1]:g}"
    return f"{_shapes(seen)} {' and '.join(sorted(seen.dtypes))}, {values}"


def _shapes(seen: Seen) -> str:
    """The shape of all samples; an axis that varies as its least and largest length."""
    if len({len(shape) for shape in seen.shapes}) > 1:
        return " or ".join(map(str, sorted(seen.shapes, key=len)[:2]))
    axes = [sorted(set(axis)) for axis in zip(*seen.shapes, strict=True)]
    return " x ".join(str(axis[0]) if len(axis) == 1 else f"{axis[0]}-{axis[-1]}" for axis in axes)


def _splits(report: Report) -> list[str]:
    names = report.source.names
    rows = [("split", "rows", "groups", "decoded", *(f"no {name}" for name in names))]
    for name, split in report.splits.items():
        lacking = (str(split.lacking[m] or "-") for m in names)
        rows.append((name, f"{split.rows:,}", str(split.groups or "-"), str(split.decoded), *lacking))
    return _table(rows, left=1)


def _classes(report: Report) -> list[str]:
    if not report.splits:
        return []
    if report.source.task == "segmentation":
        return ["", *(_shares(name, split) for name, split in report.splits.items())]
    if len(report.source.labels) > _MOST_CLASSES:
        return ["", *(_spread(name, split) for name, split in report.splits.items() if split.rows)]
    rows = [("class", *report.splits)]
    rows += [(label, *(f"{s.classes[label]:,.0f}" for s in report.splits.values())) for label in report.source.labels]
    return ["", *_table(rows, left=1)]


def _spread(name: str, split: SplitSummary) -> str:
    counts = sorted((int(rows), label) for label, rows in split.classes.items())
    rarest = ", ".join(f"{label} {rows:,}" for rows, label in counts[:3])
    middle = statistics.median(rows for rows, _ in counts)
    return f"{name}: {_span(counts[0][0], counts[-1][0])} rows per class, median {middle:,.0f}; rarest: {rarest}"


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _shares(name: str, split: SplitSummary) -> str:
    ranked = sorted(split.classes.items(), key=lambda item: -item[1])
    most = ranked if len(ranked) <= _MOST_CLASSES else ranked[:2]
    least = [] if len(ranked) <= _MOST_CLASSES else ranked[-2:]
    parts = [", ".join(f"{label} {100 * share:.2g} %" for label, share in part) for part in (most, least) if part]
    maps = f"{split.maps} label map{'s' * (split.maps != 1)}"
    return f"{name}: {maps}, {100 * (split.ignored or 0.0):.2g} % ignored; {' ... '.join(parts)}"


def _table(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Aligned columns, the first `left` to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _findings(report: Report, room: int) -> list[str]:
    """The findings with as many examples as there is room for; warnings give theirs up first."""
    lines: list[str] = []
    for of_problem, of_warning in _EXAMPLES:
        most = {"problem": of_problem, "warning": of_warning}
        lines = [line for found in report.findings for line in _finding(found, most[found.level], report.folder)]
        if len(lines) <= room:
            return lines
    kept = max(room - 1, 0)
    return [*lines[:kept], f"... and {len(lines) - kept} more lines; --json has everything"]


def _finding(finding: Finding, examples: int, folder: Path) -> Iterator[str]:
    shown = finding.examples[:examples]
    if not shown or sum(map(len, shown)) > _WIDTH // 2:
        yield from _wrapped(f"{finding.level}: {finding.text}", folder)
    else:
        more = ", ..." if len(finding.examples) > len(shown) else ""
        yield from _wrapped(f"{finding.level}: {finding.text}: {', '.join(shown)}{more}", folder)
        return
    for line in shown:
        yield from _wrapped(f"    {line}", folder)
    if shown and len(finding.examples) > len(shown):
        yield f"    ... and {len(finding.examples) - len(shown):,} more"


def _wrapped(line: str, folder: Path) -> list[str]:
    """The line in as many as it takes, paths as they are inside the folder."""
    return textwrap.wrap(line.replace(f"{folder}/", ""), _WIDTH, subsequent_indent="      ", break_on_hyphens=False)


def _verdict(report: Report) -> str:
    problems = sum(f.level == "problem" for f in report.findings)
    warnings = len(report.findings) - problems
    counts = f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    rows, decoded = (sum(getattr(s, name) for s in report.splits.values()) for name in ("rows", "decoded"))
    if not report.usable:
        return f"NOT USABLE: {counts}"
    if decoded == rows:
        return f"usable: {counts}"
    return f"usable as far as looked: {counts}; {decoded:,} of {rows:,} rows were decoded, --decode N decodes more"
