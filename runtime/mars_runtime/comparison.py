"""What differs between two artifacts, from what they say about themselves; nothing is run here.

Side A is the one before, side B the one after. Subsets are equal when their members are, whatever their order.
Differences of measured values are B - A in points (1 point = 0.01).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from mars_edge.artifact import Sealed
from mars_edge.manifest import Manifest, MethodCost, OperatingPoint, SubsetCost
from mars_edge.subsets import parse
from mars_runtime.description import ERROR_METRICS, measured, parity_summary, subset_costs

# Compared on their own, entry by entry, or too long to be compared as text.
_ELSEWHERE = ("operating_points", "costs", "subset_costs", "parity", "golden", "methods", "modalities", "provenance")

_LONGEST = 80

Certificate = Literal["lost", "gained", "kept", "none"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two artifacts; `name` is the file as the user gave it."""

    name: str
    sealed: Sealed
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class Change:
    """One entry of the manifest that differs.

    Attributes:
        path: dotted, a modality by its name.
        values: by "A" and "B"; a side that lacks the entry is left out.
    """

    path: str
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SubsetChange:
    """One subset's measured values side by side.

    Attributes:
        label: as A writes it, or B where only B has it.
        a, b: None on a side that did not measure it.
        points: B - A; None where the two cannot be compared.
        overlap: whether the 95 % intervals share a value; None where they cannot be compared.
        certificate: what became of A's.
    """

    label: str
    a: OperatingPoint | None
    b: OperatingPoint | None
    points: float | None
    overlap: bool | None
    certificate: Certificate

    @property
    def is_better(self) -> bool | None:
        """Whether B's value is the better one; None where they are equal or cannot be compared."""
        if not self.points or self.a is None:
            return None
        return (self.points < 0.0) == (self.a.metric in ERROR_METRICS)


@dataclass(frozen=True, kw_only=True)
class CostChange:
    """What one subset or one method costs on both sides; None where it is not recorded or not there."""

    label: str
    a: SubsetCost | MethodCost | None
    b: SubsetCost | MethodCost | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that two artifacts say differently.

    Attributes:
        obstacle: why their decisions cannot be compared; None when they can.
        changes: entries of the manifest but for those below.
        subsets: those that lost their certificate first, then in the order of A, then of B.
        subset_costs, method_costs: of every subset and method that a side has a cost of.
        methods_added, methods_removed: methods that only B or only A has.
        parity: what differs between the summaries of both parity reports.
    """

    a: Side
    b: Side
    obstacle: str | None
    changes: tuple[Change, ...]
    subsets: tuple[SubsetChange, ...]
    subset_costs: tuple[CostChange, ...]
    method_costs: tuple[CostChange, ...]
    methods_added: tuple[str, ...]
    methods_removed: tuple[str, ...]
    parity: tuple[Change, ...]

    @property
    def is_same_file(self) -> bool:
        """Whether both are byte for byte the same."""
        return self.a.sealed.digest == self.b.sealed.digest

    def certificates(self, kind: Certificate) -> tuple[str, ...]:
        """Labels of the subsets whose certificate was lost, gained, kept or never there."""
        return tuple(change.label for change in self.subsets if change.certificate == kind)


def compare(a: Side, b: Side) -> Comparison:
    """B beside A."""
    obstacle = obstacle_between(a.manifest, b.manifest)
    methods_a, methods_b = a.manifest.methods, b.manifest.methods
    return Comparison(
        a=a,
        b=b,
        obstacle=obstacle,
        changes=manifest_changes(a.manifest, b.manifest),
        subsets=() if obstacle else subset_changes(a.manifest, b.manifest),
        subset_costs=_paired_costs(
            _by_members(subset_costs(a.manifest), a.manifest), _by_members(subset_costs(b.manifest), b.manifest)
        ),
        method_costs=_paired_costs(
            {name: (name, cost) for name, cost in a.manifest.costs.items()},
            {name: (name, cost) for name, cost in b.manifest.costs.items()},
        ),
        methods_added=tuple(name for name in methods_b if name not in methods_a),
        methods_removed=tuple(name for name in methods_a if name not in methods_b),
        parity=table_changes(parity_summary(a.manifest), parity_summary(b.manifest)),
    )


def obstacle_between(a: Manifest, b: Manifest) -> str | None:
    """Why a measured value of A says nothing beside one of B; None when their task and labels agree."""
    for what, mine, yours in (
        ("task", a.task, b.task),
        ("labels", ", ".join(a.labels), ", ".join(b.labels)),
        ("accepted label", a.positive_label, b.positive_label),
    ):
        if mine != yours:
            return f"they differ in {what}: {_clipped(mine)} in A, {_clipped(yours)} in B"
    if not set(a.names) & set(b.names):
        return f"they share no modality: {', '.join(a.names)} in A, {', '.join(b.names)} in B"
    return None


def manifest_changes(a: Manifest, b: Manifest) -> tuple[Change, ...]:
    """Every entry that differs, but for measured values, costs, methods and parity; provenance is taken apart."""
    return table_changes(_facts(a), _facts(b))


def table_changes(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> tuple[Change, ...]:
    """The entries of nested tables that differ, in the order of A, then of B.

    A table that only one side has is one change, whatever it holds.
    """
    changes: list[Change] = []
    for key in dict.fromkeys((*a, *b)):
        values = {side: table[key] for side, table in (("A", a), ("B", b)) if key in table}
        if len(values) == 2 and all(isinstance(value, Mapping) for value in values.values()):
            changes += table_changes(values["A"], values["B"], f"{prefix}{key}.")
        elif len(values) == 1 or values["A"] != values["B"]:
            changes.append(Change(path=f"{prefix}{key}", values=values))
    return tuple(changes)


def subset_changes(a: Manifest, b: Manifest) -> tuple[SubsetChange, ...]:
    """The operating points side by side, lost certificates first."""
    paired = _paired(_by_members(a.operating_points, a), _by_members(b.operating_points, b))
    changes = [_subset_change(label, mine, yours) for label, mine, yours in paired]
    return tuple(sorted(changes, key=lambda change: change.certificate != "lost"))


def shared_subsets(a: Manifest, b: Manifest) -> dict[str, tuple[str, ...]]:
    """The members of every subset that both were measured for, by A's label."""
    theirs = {frozenset(parse(label, b.names)) for label in measured(b)}
    mine = {label: parse(label, a.names) for label in measured(a)}
    return {label: members for label, members in mine.items() if frozenset(members) in theirs}


def _clipped(text: object) -> str:
    return str(text) if len(str(text)) <= _LONGEST else f"{str(text)[:_LONGEST]}..."


def _subset_change(label: str, a: OperatingPoint | None, b: OperatingPoint | None) -> SubsetChange:
    certified = (a is not None and a.certified, b is not None and b.certified)
    names: dict[tuple[bool, bool], Certificate] = {
        (True, False): "lost",
        (False, True): "gained",
        (True, True): "kept",
        (False, False): "none",
    }
    points, overlap = None, None
    if a is not None and b is not None and a.metric == b.metric:
        points, overlap = 100.0 * (b.value - a.value), a.low <= b.high and b.low <= a.high
    return SubsetChange(label=label, a=a, b=b, points=points, overlap=overlap, certificate=names[certified])


def _facts(manifest: Manifest) -> dict[str, Any]:
    document = json.loads(manifest.to_json())
    facts = {key: value for key, value in document.items() if key not in _ELSEWHERE}
    modalities = {m["name"]: {key: value for key, value in m.items() if key != "name"} for m in document["modalities"]}
    # The order of fusion is a fact of its own: features are concatenated in it.
    return {
        **facts,
        "modality_order": list(manifest.names),
        "modality": modalities,
        "provenance": document["provenance"],
        "golden_input_digest": None if manifest.golden is None else _digest(document["golden"]["inputs"]),
    }


def _digest(value: Any) -> str:
    """Short and equal for equal values: a whole input is nothing to read."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _by_members(table: Mapping[str, T], manifest: Manifest) -> dict[Any, tuple[str, T]]:
    return {frozenset(parse(label, manifest.names)): (label, value) for label, value in table.items()}


def _paired(a: Mapping[Any, tuple[str, T]], b: Mapping[Any, tuple[str, T]]) -> Iterator[tuple[str, T | None, T | None]]:
    for key in dict.fromkeys((*a, *b)):
        mine, yours = a.get(key), b.get(key)
        label = (mine or yours or ("", None))[0]
        yield label, mine[1] if mine else None, yours[1] if yours else None


def _paired_costs(a: Mapping[Any, tuple[str, Any]], b: Mapping[Any, tuple[str, Any]]) -> tuple[CostChange, ...]:
    return tuple(CostChange(label=label, a=mine, b=yours) for label, mine, yours in _paired(a, b))
