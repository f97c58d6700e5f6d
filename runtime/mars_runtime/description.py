"""What an artifact says about itself, as sections of text and as one document.

An entry that the exporting version did not write reads "not recorded"; nothing is estimated in its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mars_edge import subsets
from mars_edge.admission import objection
from mars_edge.artifact import Sealed
from mars_edge.defence import downgrade_risks, species_table, text_table
from mars_edge.manifest import Manifest, MethodCost, OperatingPoint, SubsetCost, subset_cost
from mars_edge.terminal import printable
from mars_runtime.text import NOT_RECORDED, NOTHING, amount, fact, flattened, percent, sentence, shown, table

METRIC_TITLES = {"acer": "ACER", "accuracy": "accuracy", "miou": "mIoU"}
# Of these a lower value is the better one.
ERROR_METRICS = ("acer",)
# Page after page of numbers for the report and --json, not for a screen.
_TOO_LONG = ("method_parity", "worst", "bounds", "scale", "machine")
_SEEN_IN_PARITY = ("engine", "samples", "subsets", "methods", "coverage", "experts_chosen", *_TOO_LONG)
_SEEN_IN_PROVENANCE = ("note", "recipe", "seed", "checkpoint", "versions", "quantization", "calibration")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A title and the lines below it."""

    title: str
    lines: tuple[str, ...]


def sections(name: str, sealed: Sealed, manifest: Manifest) -> tuple[Section, ...]:
    """The whole description in reading order; a section without content is left out.

    Args:
        name: of the file, as the user gave it.
        sealed: the verified file.
        manifest: its manifest.
    """
    parts: tuple[tuple[str, Iterable[str]], ...] = (
        (title(manifest), _file(name, sealed, manifest)),
        ("inputs", _modalities(manifest)),
        ("decisions, by what is present", _decisions(manifest)),
        ("calibration on test", _calibration(manifest)),
        ("attacks", _attacks(manifest)),
        ("cost of one decision, everything new", _costs(manifest)),
        ("methods", _methods(manifest)),
        ("parity with the model it came from", _parity(manifest)),
        ("policy", _policy(manifest)),
        ("provenance", _provenance(manifest)),
    )
    made = (Section(title=heading, lines=tuple(lines)) for heading, lines in parts)
    return tuple(section for section in made if section.lines)


def document(sealed: Sealed, manifest: Manifest) -> dict[str, Any]:
    """Plain JSON types: the file, its whole manifest, and what is computed from it."""
    refusals = {label: hesitation(manifest, label) for label in manifest.operating_points}
    return {
        "file": {"format": sealed.format, "size_bytes": len(sealed.data), "sha256": sealed.digest},
        "manifest": json.loads(manifest.to_json()),
        "computed": {
            "subset_costs": {label: asdict(cost) for label, cost in subset_costs(manifest).items()},
            "does_not_decide": {label: ": ".join(refusal) for label, refusal in refusals.items() if refusal},
            "species": [asdict(row) for row in species_table(manifest)],
            "downgrades": [asdict(risk) for risk in downgrade_risks(manifest)],
        },
    }


def title(manifest: Manifest) -> str:
    """Name, task and number of labels in one line."""
    return f"{manifest.name}: {manifest.task} into {len(manifest.labels)} labels"


def hesitation(manifest: Manifest, label: str) -> tuple[str, str] | None:
    """What the runtime does on this subset instead of deciding, and why; None where it decides."""
    objected = objection(manifest, manifest.policy, label.split("+"))
    if objected is None:
        return None
    closes = manifest.policy.on_missing == "fail_closed" and manifest.positive_label is not None
    return "rejects" if closes else "abstains", shortfall(manifest, label) or objected


def shortfall(manifest: Manifest, label: str) -> str | None:
    """By what a measured subset misses its certificate: as the exporter recorded it, else by the bound on its metric.

    None where it has one, or was not measured.
    """
    point = manifest.operating_points.get(label)
    if point is None or point.certified:
        return None
    recorded = _part(_part(manifest.provenance, "calibration"), label).get("shortfalls")
    if isinstance(recorded, list) and recorded:
        return "; ".join(map(str, recorded))
    if point.target is not None and point.metric in ERROR_METRICS and point.high > point.target:
        return f"{_metric(point)} may be {percent(point.high)} %, at most {percent(point.target)} % is allowed"
    if point.target is not None and point.metric not in ERROR_METRICS and point.low < point.target:
        return f"{_metric(point)} may be {percent(point.low)} %, at least {percent(point.target)} % is needed"
    return "not certified, for a reason that is not recorded"


def subset_costs(manifest: Manifest) -> dict[str, SubsetCost]:
    """The cost of every measured subset: as recorded, else from the costs of the methods; empty without either."""
    if not manifest.costs:
        return dict(manifest.subset_costs)
    computed = {label: subset_cost(manifest, subsets.parse(label, manifest.names)) for label in measured(manifest)}
    return computed | dict(manifest.subset_costs)


def measured(manifest: Manifest) -> tuple[str, ...]:
    """Labels of the subsets with an operating point, or of all of them where none has one."""
    every = (subsets.label(subset, manifest.names) for subset in subsets.all_subsets(manifest.names))
    return tuple(manifest.operating_points) or tuple(every)


def _file(name: str, sealed: Sealed, manifest: Manifest) -> Iterator[str]:
    accepted = f"; {manifest.positive_label} is accepted" if manifest.positive_label is not None else ""
    yield from fact("labels", f"{', '.join(manifest.labels)}{accepted}")
    yield from fact("file", f"{name}: {sealed.format}, {len(sealed.data):,} bytes")
    yield from fact("sha256", sealed.digest)
    yield from fact("target", manifest.target or NOT_RECORDED)
    yield from fact("precision", manifest.precision)
    yield from fact("parameters", NOT_RECORDED if manifest.parameters is None else f"{manifest.parameters:,}")
    yield from fact("experts", _experts(manifest))
    yield from fact("self-test", "golden input inside" if manifest.golden else "no golden input")


def _experts(manifest: Manifest) -> str:
    shared = ", and the shared one" if manifest.shared_expert else ""
    return f"{manifest.active_experts} of {manifest.experts} run per decision{shared}"


def _modalities(manifest: Manifest) -> list[str]:
    rows = [
        (
            m.name,
            m.kind,
            " x ".join(map(str, m.shape)),
            f"{m.rate_hz:g}",
            m.dtype if m.kind in ("image", "sequence", "vector") else NOTHING,
            f"{m.range[0]:g} to {m.range[1]:g}" if m.kind in ("image", "sequence", "vector") else NOTHING,
            " x ".join(map(str, manifest.feature_shapes[m.name])),
        )
        for m in manifest.modalities
    ]
    return table(("modality", "kind", "tensor", "Hz", "sample", "values", "feature"), rows, align="<<<><<<")


def _decisions(manifest: Manifest) -> Iterator[str]:
    points = manifest.operating_points
    if not points:
        yield from sentence(NOT_RECORDED)
        return
    why_not = {label: hesitation(manifest, label) for label in points}
    rows = [
        (
            label,
            percent(point.value),
            f"{percent(point.low)} to {percent(point.high)}",
            str(point.n),
            f"{point.threshold:.4f}" if point.threshold else NOTHING,
            f"{point.temperature:.3f}",
            (why_not[label] or ("decides",))[0],
        )
        for label, point in points.items()
    ]
    metric = " or ".join(sorted({_metric(point) for point in points.values()}))
    header = ("present", f"{metric} %", "95 % interval", "n", "threshold", "temperature", "and then it")
    yield from table(header, rows, align="<>>>>><")
    for label, refusal in why_not.items():
        if refusal is not None:
            yield from sentence(f"{label} {refusal[0]}: {refusal[1]}")


def _metric(point: OperatingPoint) -> str:
    return METRIC_TITLES.get(point.metric, point.metric)


def _calibration(manifest: Manifest) -> list[str]:
    """How sure the answers are and ought to be, before and after the temperature; nothing where it is not recorded."""
    rows = []
    for label, entry in _part(manifest.provenance, "calibration").items():
        before, after = (_numbers(_part(_table(entry), when)).get("ece") for when in ("before", "after"))
        note = _part(_table(entry), "temperature").get("note")
        if before is not None and after is not None:
            rows.append((label, percent(before), percent(after), NOTHING if note is None else shown(note)))
    header = ("present", "calibration error before %", "after the temperature %", "note")
    return table(header, rows, align="<>><") if rows else []


def _attacks(manifest: Manifest) -> list[str]:
    """Both tables of a defender; nothing for a task without attacks and for files without their rates."""
    return [printable(line) for line in text_table(manifest).splitlines()] if species_table(manifest) else []


def _costs(manifest: Manifest) -> list[str]:
    costs = subset_costs(manifest)
    if not costs:
        return sentence(NOT_RECORDED)
    most = max(cost.macs for cost in costs.values())
    rows = [
        (
            label,
            amount(cost.macs),
            f"{cost.macs / most:.2f}" if most else NOTHING,
            amount(cost.weight_bytes, "B"),
            amount(cost.activation_bytes, "B"),
        )
        for label, cost in costs.items()
    ]
    return table(("present", "MACs", "of the most", "weights read", "peak memory"), rows, align="<>>>>")


def _methods(manifest: Manifest) -> list[str]:
    """One row per method; experts of equal cost share one, with the worst parity and coverage among them."""
    parity = _numbers(_part(manifest.parity, "methods"))
    coverage = _part(manifest.parity, "coverage")
    if not (manifest.costs or parity or coverage):
        return []
    rows = [
        (
            _group_name(group),
            *_cost_cells(manifest.costs.get(group[0])),
            _coverage(coverage, group),
            f"{max(parity[m] for m in group):.2f}" if set(group) <= set(parity) else NOTHING,
        )
        for group in _groups(manifest)
    ]
    header = ("method", "MACs", "weights", "peak memory", "on the delegate", "off by, steps")
    return table(header, rows, align="<>>>>>")


def _groups(manifest: Manifest) -> list[list[str]]:
    groups: list[list[str]] = []
    for method in manifest.methods:
        last = groups[-1][-1] if groups else ""
        routed = all(name.startswith("expert_") and name != "expert_shared" for name in (method, last))
        if routed and manifest.costs.get(method) == manifest.costs.get(last):
            groups[-1].append(method)
        else:
            groups.append([method])
    return groups


def _group_name(group: list[str]) -> str:
    return group[0] if len(group) == 1 else f"{group[0]} .. {group[-1].removeprefix('expert_')}, each"


def _cost_cells(cost: MethodCost | None) -> tuple[str, str, str]:
    if cost is None:
        return NOTHING, NOTHING, NOTHING
    return amount(cost.macs), amount(cost.weight_bytes, "B"), amount(cost.activation_bytes, "B")


def _coverage(coverage: Mapping[str, Any], group: list[str]) -> str:
    shares = _numbers({method: _part(coverage, method).get("share") for method in group})
    return f"{100.0 * min(shares.values()):.1f} %" if len(shares) == len(group) else NOTHING


def parity_summary(manifest: Manifest) -> dict[str, Any]:
    """The engine, the samples and the worst of every measure of the parity report; empty without a report.

    A measure is a pair of its worst value and the subset or method that has it; one that no row has is left out.
    """
    report = manifest.parity
    if report is None:
        return {}
    rows = _part(report, "subsets")
    found = {
        "least label agreement": _extreme(rows, "label_agreement", min),
        "most steps off": _extreme(rows, "max_steps", max),
        "most other experts": _extreme(rows, "routing_flips", max),
        "most steps off with other experts": _extreme(rows, "max_steps_flipped", max),
        "least on the delegate": _extreme(_part(report, "coverage"), "share", min),
    }
    facts = {key: report[key] for key in ("engine", "samples") if key in report}
    return facts | {key: pair for key, pair in found.items() if pair is not None}


def _extreme(rows: Mapping[str, Any], key: str, pick: Callable[..., str]) -> tuple[float, str] | None:
    """The extreme value of `key` over the rows, to 4 decimals, and the first row that has it; None without the key."""
    values = _numbers({label: _table(row).get(key) for label, row in rows.items()})
    if not values:
        return None
    where = pick(values, key=lambda label: values[label])
    return round(values[where], 4), where


def _parity(manifest: Manifest) -> Iterator[str]:
    summary = parity_summary(manifest)
    if not summary:
        yield from sentence(NOT_RECORDED)
        return
    yield from fact("engine", f"{shown(summary.get('engine'))}, {shown(summary.get('samples'))} samples")
    for key, measure, text, scale in (
        ("agreement", "least label agreement", "equal labels in at least {:.2f} % of them ({})", 100.0),
        ("worst", "most steps off", "a logit is off by {:.2f} output steps ({})", 1.0),
        ("routing", "most other experts", "other experts ran in at most {:.2f} % of them ({})", 100.0),
        ("flipped", "most steps off with other experts", "off by {:.2f} output steps where they did ({})", 1.0),
        ("delegate", "least on the delegate", "at least {:.1f} % of a method's operators ({})", 100.0),
    ):
        if measure in summary:
            value, where = summary[measure]
            yield from fact(key, text.format(scale * value, where))
    yield from _rest_of_parity(manifest.parity or {})


def _rest_of_parity(report: Mapping[str, Any]) -> Iterator[str]:
    left = sorted({str(op) for part in _part(report, "coverage").values() for op in _left(part)})
    if left:
        yield from fact("portable", f"left to the portable kernels: {', '.join(left)}")
    for key, value in flattened({key: value for key, value in report.items() if key not in _SEEN_IN_PARITY}):
        yield from fact("other", f"{key}: {shown(value)}")


def _left(part: Any) -> Iterable[Any]:
    left = _table(part).get("left")
    return left if isinstance(left, list | tuple) else ()


def _policy(manifest: Manifest) -> Iterator[str]:
    policy = manifest.policy
    yield from fact("on missing", policy.on_missing)
    yield from fact("requires", ", ".join(policy.require) or "nothing")
    yield from fact("masks", ", ".join(policy.masking_faults) or "no content fault")


def _provenance(manifest: Manifest) -> Iterator[str]:
    said = manifest.provenance
    recipe = _part(said, "recipe")
    yield from fact("data", shown(said.get("note") or NOT_RECORDED))
    name = recipe.get("name", said.get("recipe"))
    yield from fact("recipe", shown(name) if isinstance(name, str) else NOT_RECORDED)
    yield from fact("seed", shown(said["seed"]) if "seed" in said else NOT_RECORDED)
    yield from fact("checkpoint", shown(said.get("checkpoint", NOT_RECORDED)))
    versions = ", ".join(f"{package} {shown(version)}" for package, version in _part(said, "versions").items())
    yield from fact("versions", versions or NOT_RECORDED)
    for key, value in flattened(_part(said, "quantization")):
        yield from fact("quantized", f"{key}: {shown(value)}")
    for key, value in flattened({key: value for key, value in said.items() if key not in _SEEN_IN_PROVENANCE}):
        yield from fact("other", f"{key}: {shown(value)}")


def _part(document: Mapping[str, Any] | None, key: str) -> Mapping[str, Any]:
    return _table((document or {}).get(key))


def _table(value: Any) -> Mapping[str, Any]:
    """`value` where it is a table, else an empty one: parity and provenance are free JSON."""
    return value if isinstance(value, Mapping) else {}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(v) for key, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
