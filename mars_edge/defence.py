"""What an attacker gains by choosing which sensors are there: the operating points of a manifest, read as a defender.

APCER is the share of the presentations of one attack species that is accepted as bona fide. An attacker covers a
sensor (a thumb over the infrared emitter) and the runtime goes on with the others at their own operating point; a
subset that may not decide (`admission.objection`) accepts nothing, so that covering into it is denial, not entry.
Every number is of the samples and species the artifact was measured on: a species that is not among them is not
bounded by anything here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from mars_edge import subsets
from mars_edge.admission import objection
from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_edge.metrics import Rate, clopper_pearson

WORST = "worst species"
_CONFIDENCE = 0.95
_TABLE_COLUMNS = 100
_SPECIES_COLUMNS = 18
_MOST_WAYS = 16


@dataclass(frozen=True, kw_only=True)
class SpeciesRow:
    """One attack species against every measured subset.

    Attributes:
        apcer: by subset label, in the order of the manifest; a subset without this species is left out.
        worst: the highest of the subsets that may decide, or of all where none may.
        worst_subset: where that is.
    """

    species: str
    apcer: Mapping[str, Rate]
    worst: Rate
    worst_subset: str


@dataclass(frozen=True, kw_only=True)
class Downgrade:
    """What covering sensors does to the accepted share of one attack species.

    Attributes:
        sensor: what is covered: a modality, or several as a subset label.
        before: label of the subset that was there.
        after: label of what is left; None when nothing is.
        species: an attack species, or `WORST` for the highest APCER of any, which may be another one after.
        apcer_before: None when `before` may not decide: then nothing is accepted.
        apcer_after: None likewise.
        gain: APCER after minus before, -1..1, what may not decide counting as 0.
        gain_low: lower end of the 95 % interval of `gain`; both ends are conservative.
        gain_high: upper end.
        abstains: `after` may not decide: the attacker denies service and is not let in.
    """

    sensor: str
    before: str
    after: str | None
    species: str
    apcer_before: Rate | None
    apcer_after: Rate | None
    gain: float
    gain_low: float
    gain_high: float
    abstains: bool


def deciding_subsets(manifest: Manifest) -> tuple[str, ...]:
    """Labels of the subsets the runtime decides on under the manifest's own policy, in its order."""
    return tuple(label for label in manifest.operating_points if _decides(manifest, label))


def species_table(manifest: Manifest) -> tuple[SpeciesRow, ...]:
    """One row per attack species, the one that is accepted most often where the runtime decides first.

    Empty for a task without attacks and for files of earlier versions, which hold no rates per species.
    """
    rows = [_species_row(manifest, species) for species in _species(manifest)]
    return tuple(sorted(rows, key=lambda row: (-row.worst.value, -row.worst.high, row.species)))


def downgrade_risks(manifest: Manifest, *, at_once: int = 1) -> tuple[Downgrade, ...]:
    """Every way to cover `at_once` sensors, for `WORST` and for every species, the largest gain first, denial last.

    Left out are the ways between two subsets that both may not decide, and a species that only one of two deciding
    subsets was measured on. The interval of a gain holds with 95 %: each of its two rates is bounded with 97.5 %
    (exact, Clopper and Pearson 1934; the union bound needs no independence, and both were measured on the same
    people), for `WORST` with its share of that for every species.

    Raises:
        UsageError: at_once is below 1.
    """
    if at_once < 1:
        raise UsageError(f"at_once is {at_once}; at least 1 sensor must be covered")
    found = [
        risk
        for before, point in manifest.operating_points.items()
        if point.apcer
        for covered in combinations(before.split("+"), at_once)
        for risk in _risks(manifest, before, covered)
    ]
    return tuple(sorted(found, key=lambda risk: (risk.abstains, -risk.gain, -risk.gain_high)))


def text_table(manifest: Manifest) -> str:
    """Both tables for people, at most 100 columns: APCER by species and subset, then the worst species' downgrades."""
    rows = species_table(manifest)
    if not rows:
        return "no error rates per attack species in this file: it detects no attacks, or is of an earlier version"
    return "\n".join([*_species_lines(manifest, rows), "", *_risk_lines(downgrade_risks(manifest))])


def _decides(manifest: Manifest, label: str) -> bool:
    return objection(manifest, manifest.policy, label.split("+")) is None


def _species(manifest: Manifest) -> list[str]:
    return list(dict.fromkeys(name for point in manifest.operating_points.values() for name in point.apcer))


def _species_row(manifest: Manifest, species: str) -> SpeciesRow:
    rates = {label: p.apcer[species] for label, p in manifest.operating_points.items() if species in p.apcer}
    counted = [label for label in rates if _decides(manifest, label)] or list(rates)
    worst = max(counted, key=lambda label: (rates[label].value, rates[label].high))
    return SpeciesRow(species=species, apcer=rates, worst=rates[worst], worst_subset=worst)


def _risks(manifest: Manifest, before: str, covered: Sequence[str]) -> Iterator[Downgrade]:
    left = [name for name in before.split("+") if name not in covered]
    after = subsets.label(left, manifest.names) if left else None
    decided = _decides(manifest, before)
    admitted = after is not None and _decides(manifest, after)
    first = manifest.operating_points[before].apcer if decided else {}
    then = manifest.operating_points[after].apcer if after is not None and admitted else {}
    if not (decided or admitted) or (decided and not first) or (admitted and not then):
        return
    measured = [
        name for name in _species(manifest) if (name in first or not decided) and (name in then or not admitted)
    ]
    for species in (WORST, *measured):
        yield _risk(species, "+".join(covered), (before, after), (_of(species, first), _of(species, then)), admitted)


def _of(species: str, rates: Mapping[str, Rate]) -> tuple[Rate, ...]:
    return tuple(rates.values()) if species == WORST else tuple(r for name, r in rates.items() if name == species)


def _risk(
    species: str,
    sensor: str,
    labels: tuple[str, str | None],
    rates: tuple[tuple[Rate, ...], tuple[Rate, ...]],
    admitted: bool,
) -> Downgrade:
    before, after = (max(side, key=lambda rate: (rate.value, rate.high), default=None) for side in rates)
    low_before, high_before = _bounds(rates[0])
    low_after, high_after = _bounds(rates[1])
    return Downgrade(
        sensor=sensor,
        before=labels[0],
        after=labels[1],
        species=species,
        apcer_before=before,
        apcer_after=after,
        gain=(after.value if after else 0.0) - (before.value if before else 0.0),
        gain_low=low_after - high_before,
        gain_high=high_after - low_before,
        abstains=not admitted,
    )


def _bounds(rates: Sequence[Rate]) -> tuple[float, float]:
    """Bounds of the highest of the true rates, each of two such bounds at half of the allowed risk; 0 of none."""
    if not rates:
        return 0.0, 0.0
    each = [clopper_pearson(r.errors, r.n, 1.0 - (1.0 - _CONFIDENCE) / (2 * len(rates))) for r in rates]
    return max(low for low, _ in each), max(high for _, high in each)


def _species_lines(manifest: Manifest, rows: Sequence[SpeciesRow]) -> Iterator[str]:
    yield "APCER in percent / its upper 95 % bound; worst species first; [ ] abstains, so accepts nothing"
    for labels in _blocks(list(manifest.operating_points)):
        heads = [label if _decides(manifest, label) else f"[{label}]" for label in labels]
        widths = [max(len(head), 10) for head in heads]
        yield f"{'species':<{_SPECIES_COLUMNS}}" + "".join(f" {h:>{w}}" for h, w in zip(heads, widths, strict=True))
        for row in rows:
            cells = [_cell(row.apcer.get(label)) for label in labels]
            name = _clipped(row.species, _SPECIES_COLUMNS)
            yield f"{name:<{_SPECIES_COLUMNS}}" + "".join(f" {c:>{w}}" for c, w in zip(cells, widths, strict=True))


def _blocks(labels: Sequence[str]) -> Iterator[list[str]]:
    """The labels in runs whose columns fit beside the species."""
    block: list[str] = []
    used = _SPECIES_COLUMNS
    for label in labels:
        width = max(len(label) + 2, 10) + 1
        if block and used + width > _TABLE_COLUMNS:
            yield block
            block, used = [], _SPECIES_COLUMNS
        block.append(label)
        used += width
    if block:
        yield block


def _cell(rate: Rate | None) -> str:
    return "-" if rate is None else f"{100 * rate.value:.1f}/{100 * rate.high:.1f}"


def _clipped(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 3] + "..."


def _risk_lines(risks: Sequence[Downgrade]) -> Iterator[str]:
    yield "covering a sensor: APCER of the worst species in percent, largest gain of the attacker first"
    yield f"{'covered':<16} {'before -> after':<40} {'APCER':>14}  gain (95 % interval)"
    ways = [risk for risk in risks if risk.species == WORST]
    for risk in ways[:_MOST_WAYS]:
        way = _clipped(f"{risk.before} -> {risk.after or 'nothing'}", 40)
        rates = f"{_value(risk.apcer_before)} -> {_value(risk.apcer_after)}"
        yield f"{_clipped(risk.sensor, 16):<16} {way:<40} {rates:>14}  {_gain(risk)}"
    if len(ways) > _MOST_WAYS:
        yield f"and {len(ways) - _MOST_WAYS} more ways, of no larger gain"


def _value(rate: Rate | None) -> str:
    return "-" if rate is None else f"{100 * rate.value:.1f}"


def _gain(risk: Downgrade) -> str:
    if risk.abstains:
        return "none: abstains"
    return f"{100 * risk.gain:+.1f} ({100 * risk.gain_low:+.1f} to {100 * risk.gain_high:+.1f})"
