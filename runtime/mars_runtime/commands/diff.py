"""`mars-edge diff A B`: what changed between two artifacts, and how long each takes here, timed in one run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mars_edge import subsets
from mars_edge.artifact import verify
from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest, OperatingPoint
from mars_edge.options import OneLineParser, positive
from mars_runtime.commands.info import print_sections
from mars_runtime.commands.options import MOST_THREADS
from mars_runtime.comparison import Change, Comparison, CostChange, Side, SubsetChange, compare, shared_subsets
from mars_runtime.description import METRIC_TITLES, Section, shortfall
from mars_runtime.engines import read_manifest
from mars_runtime.models import find_model
from mars_runtime.text import NOT_RECORDED, NOTHING, amount, fact, percent, sentence, shown, table
from mars_runtime.trial import Agreement, Trial, run_trial

# Fewer rounds give no interval worth printing; more than these exhaust memory, not patience.
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 1000
_DIGEST_SHOWN = 12
_COST_COLUMNS = ("MACs A", "MACs B", "B/A", "read A", "read B", "B/A", "memory A", "memory B", "B/A")
_LONGEST_VALUE = 300


def main(argv: Sequence[str]) -> int:
    """Prints what differs between two artifacts; 0 whether or not anything does.

    Raises:
        UsageError: no such file, or too few rounds.
        ModelFileError: a file is damaged or no artifact.
    """
    options = _parser().parse_args(argv)
    if options.rounds < _FEWEST_ROUNDS:
        raise UsageError(f"diff: --rounds is {options.rounds}; an interval needs at least {_FEWEST_ROUNDS}")
    comparison = compare(_side(options.a), _side(options.b))
    trial = _trial(comparison, options)
    if options.json:
        print(json.dumps(_document(comparison, trial), ensure_ascii=False))
    else:
        print_sections(_sections(comparison, trial))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mars-edge diff",
        description="Print what changed from artifact A to artifact B: manifest, measured values and certificates per "
        "subset, size, cost, and the time each takes on this machine, measured in turn in one run.",
        epilog="Example: mars-edge diff face_antispoof.pte face_antispoof.onnx",
    )
    add = parser.add_argument
    add("a", metavar="A", help="a .pte or .onnx, or the name of a bundled model")
    add("b", metavar="B", help="the one to compare it with; the formats may differ")
    add("--no-latency", action="store_true", help="compare what the files say; run neither")
    rounds = positive(int, most=_MOST_ROUNDS)
    add("--rounds", type=rounds, default=30, metavar="N", help="timed rounds A B B A of each subset (default: 30)")
    threads = positive(int, most=MOST_THREADS)
    add("--threads", type=threads, default=1, metavar="N", help="threads of each engine, 1 to 256 (default: 1)")
    add("--json", action="store_true", help="one JSON object")
    add("--quiet", action="store_true", help="no progress on stderr")
    return parser


def _side(name: str) -> Side:
    path = find_model(name)
    sealed = verify(path)
    return Side(name=name, sealed=sealed, manifest=read_manifest(sealed))


def _trial(comparison: Comparison, options: argparse.Namespace) -> Trial | str:
    if options.no_latency:
        return "--no-latency"
    a, b = comparison.a, comparison.b
    count = len(shared_subsets(a.manifest, b.manifest))
    if count and not options.quiet:
        print(f"mars-edge: timing {count} subsets in {options.rounds} rounds", file=sys.stderr, flush=True)
    return run_trial(a, b, rounds=options.rounds, threads=options.threads)


def _document(comparison: Comparison, trial: Trial | str) -> dict[str, Any]:
    a, b = comparison.a, comparison.b
    return {
        **{key: _file(side) for key, side in (("a", a), ("b", b))},
        "same_file": comparison.is_same_file,
        "not_comparable": comparison.obstacle,
        "certificates": {kind: comparison.certificates(kind) for kind in ("lost", "gained", "kept", "none")},
        "changes": [_change(change) for change in comparison.changes],
        "subsets": [asdict(change) for change in comparison.subsets],
        "size_ratio": len(b.sealed.data) / len(a.sealed.data),
        "subset_costs": [asdict(change) for change in comparison.subset_costs],
        "method_costs": [asdict(change) for change in comparison.method_costs],
        "methods": {"added": comparison.methods_added, "removed": comparison.methods_removed},
        "parity": [_change(change) for change in comparison.parity],
        "latency": {"not_measured": trial} if isinstance(trial, str) else asdict(trial),
    }


def _file(side: Side) -> dict[str, Any]:
    sealed = side.sealed
    return {"file": side.name, "format": sealed.format, "size_bytes": len(sealed.data), "sha256": sealed.digest}


def _change(change: Change) -> dict[str, Any]:
    return {"path": change.path, **change.values}


def _sections(comparison: Comparison, trial: Trial | str) -> Iterator[Section]:
    parts: tuple[tuple[str, Any], ...] = (
        (f"{comparison.a.manifest.name} -> {comparison.b.manifest.name}", _files(comparison)),
        ("measured, B - A in points", _measured(comparison)),
        ("cost of one decision, everything new", _subset_costs(comparison)),
        ("methods", _methods(comparison)),
        ("manifest", _changes(comparison.changes)),
        ("parity reports", _changes(comparison.parity)),
        ("time of one decision here, everything new", _latency(trial)),
    )
    for title, lines in parts:
        yield Section(title=title, lines=tuple(lines))


def _files(comparison: Comparison) -> Iterator[str]:
    for label in comparison.certificates("lost"):
        yield from fact("LOST", f"certificate of {label}; {_loss(comparison.b.manifest, label)}")
    gained = comparison.certificates("gained")
    if gained:
        yield from fact("gained", f"certificate of {', '.join(gained)}")
    for letter, side in (("A", comparison.a), ("B", comparison.b)):
        sealed = side.sealed
        size = f"{len(sealed.data):,} bytes"
        yield from fact(
            letter, f"{side.name}: {size}, {side.manifest.precision}, sha256 {sealed.digest[:_DIGEST_SHOWN]}"
        )
    same = "; the same file, byte for byte" if comparison.is_same_file else ""
    yield from fact("size", f"B / A {_ratio(len(comparison.a.sealed.data), len(comparison.b.sealed.data))}{same}")


def _loss(manifest: Manifest, label: str) -> str:
    """Why B has no certificate for a subset that A writes as `label`."""
    absent = [name for name in label.split("+") if name not in manifest.names]
    if absent:
        return f"B has no {', '.join(absent)}"
    reason = shortfall(manifest, subsets.label(label.split("+"), manifest.names))
    return f"B: {reason}" if reason else "B did not measure it"


def _measured(comparison: Comparison) -> list[str]:
    if comparison.obstacle:
        return sentence(f"not comparable: {comparison.obstacle}")
    if not comparison.subsets:
        return sentence(f"{NOT_RECORDED} in either")
    rows = [
        (
            change.label,
            _metric(change),
            _value(change.a),
            _value(change.b),
            NOTHING if change.points is None else f"{_points(change):+.2f}",
            _verdict(change),
            _threshold(change),
            _certificate(change),
        )
        for change in comparison.subsets
    ]
    header = ("present", "metric %", "A", "B", "B - A", "that is", "threshold", "certified")
    return table(header, rows, align="<<>>><><")


def _metric(change: SubsetChange) -> str:
    names = {METRIC_TITLES.get(p.metric, p.metric): None for p in (change.a, change.b) if p is not None}
    return " / ".join(names)


def _value(point: OperatingPoint | None) -> str:
    return NOTHING if point is None else percent(point.value)


def _points(change: SubsetChange) -> float:
    """As they are printed; adding 0.0 turns -0.0 into 0.0."""
    return round(change.points or 0.0, 2) + 0.0


def _verdict(change: SubsetChange) -> str:
    if change.overlap is None:
        return NOTHING
    if change.is_better is None or not _points(change):
        return "equal"
    return f"{'better' if change.is_better else 'worse'}, {'within' if change.overlap else 'beyond'} the intervals"


def _threshold(change: SubsetChange) -> str:
    texts = [NOTHING if p is None or not p.threshold else f"{p.threshold:.3f}" for p in (change.a, change.b)]
    return texts[0] if texts[0] == texts[1] else " -> ".join(texts)


def _certificate(change: SubsetChange) -> str:
    return {"kept": "both", "none": "neither", "lost": "A only", "gained": "B only"}[change.certificate]


def _subset_costs(comparison: Comparison) -> list[str]:
    if not comparison.subset_costs:
        return sentence(f"{NOT_RECORDED} in either")
    rows = [(change.label, *_cost_cells(change)) for change in comparison.subset_costs]
    header = ("present", *_COST_COLUMNS)
    return table(header, rows, align="<>>>>>>>>>")


def _cost_cells(change: CostChange) -> tuple[str, ...]:
    fields: tuple[tuple[Callable[[Any], int | None], str], ...] = (
        (lambda cost: cost.macs, ""),
        (lambda cost: cost.weight_bytes, "B"),
        (lambda cost: cost.activation_bytes, "B"),
    )
    cells: list[str] = []
    for read, unit in fields:
        a, b = (None if cost is None else read(cost) for cost in (change.a, change.b))
        cells += [amount(a, unit), amount(b, unit), _ratio(a, b)]
    return tuple(cells)


def _ratio(a: int | None, b: int | None) -> str:
    return f"{b / a:.3f}" if a and b is not None else NOTHING


def _methods(comparison: Comparison) -> Iterator[str]:
    for key, names in (("added", comparison.methods_added), ("removed", comparison.methods_removed)):
        if names:
            yield from fact(key, ", ".join(names))
    changed = [change for change in comparison.method_costs if change.a != change.b]
    if changed:
        rows = [(change.label, *_cost_cells(change)) for change in changed]
        header = ("method", *_COST_COLUMNS)
        yield from table(header, rows, align="<>>>>>>>>>")
    elif not (comparison.methods_added or comparison.methods_removed):
        costs = "and costs" if comparison.method_costs else f"; their costs are {NOT_RECORDED} in either"
        yield from sentence(f"the same methods {costs}".replace(" ;", ";"))


def _changes(changes: Sequence[Change]) -> Iterator[str]:
    both = [change for change in changes if len(change.values) == 2]
    for change in both:
        yield from sentence(f"{change.path}: {_text(change.values['A'])} -> {_text(change.values['B'])}")
    for side in "AB":
        only = [change for change in changes if list(change.values) == [side]]
        if only:
            yield from sentence(
                f"only in {side}: " + "; ".join(_entry(change.path, change.values[side]) for change in only)
            )
    if not changes:
        yield from sentence("no difference")


def _entry(path: str, value: Any) -> str:
    """A table by its name alone; anything else with its value."""
    return path if isinstance(value, Mapping) else f"{path} = {_text(value)}"


def _text(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}... ({len(text)} characters)"


def _latency(trial: Trial | str) -> Iterator[str]:
    if isinstance(trial, str):
        yield from sentence(f"not measured: {trial}")
        return
    machine = trial.machine
    threads = f"{trial.threads} {'thread' if trial.threads == 1 else 'threads'} each"
    yield from fact("machine", f"{machine}; {trial.engines[0]} and {trial.engines[1]}, {threads}")
    if machine.is_busy:
        yield from fact("busy", f"load {machine.load:.2f}: other work runs; believe the ratios before the times")
    rounds = next(iter(trial.latency.values())).rounds
    yield from fact("inputs", f"{trial.inputs}; medians of {2 * rounds} calls per side, in turn")
    rows = [
        (
            label,
            f"{ratio.a_ms:.3f}",
            f"{ratio.b_ms:.3f}",
            f"{ratio.ratio:.3f}",
            f"{ratio.low:.3f} to {ratio.high:.3f}",
            _answer(trial.agreement.get(label)),
        )
        for label, ratio in trial.latency.items()
    ]
    yield from table(("present", "A ms", "B ms", "B/A", "95 % interval", "answers"), rows, align="<>>>><")


def _answer(agreement: Agreement | None) -> str:
    if agreement is None:
        return NOTHING
    share = agreement.same_label
    label = "same label" if share == 1.0 else "ANOTHER label" if share == 0.0 else f"{percent(share)} % of pixels alike"
    off = agreement.largest_difference
    experts = "" if agreement.same_experts else ", other experts"
    return f"{label}, {f'logits off by {off:.3g}' if off else 'equal logits'}{experts}"
