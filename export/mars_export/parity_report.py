"""What an artifact was shown to do, for a person: one page of HTML that needs no other file, or Markdown.

Design decision: everything is read from the manifest, so that a report can be written of any file at any time and
says nothing that the file does not. What a file of an earlier version does not hold is a dash.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mars_edge import defence
from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_edge.metrics import Rate
from mars_training.checkpoint import write_atomically

SUFFIXES = (".html", ".md")
_NOTHING = "-"
_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #ffffff; --line: #d0d7de; --quiet: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --page: #0d1117; --line: #3d444d; --quiet: #9198a1; }
}
body { color: var(--text); background: var(--page); font: 15px/1.5 system-ui, sans-serif; max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; } p { max-width: 50rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.wide, pre { overflow-x: auto; } pre { border: 1px solid var(--line); padding: .8rem; }
"""
Rows = Sequence[Sequence[str]]
"""Rows of cells; the first row is the head."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, paragraphs, a table and preformatted text, in this order; what is empty is left out."""

    title: str
    paragraphs: Sequence[str] = ()
    rows: Rows = field(default_factory=tuple)
    fixed: str = ""


def write(path: Path, manifest: Manifest) -> None:
    """Puts the report at `path`, in the form its suffix names.

    Raises:
        UsageError: another suffix than .html and .md, no such folder, or the manifest holds no parity report.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"report {path} has the suffix {path.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent} to write {path.name} into")
    text = html_page(manifest) if path.suffix == ".html" else markdown(manifest)
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def sections(manifest: Manifest) -> list[Section]:
    """All of the report, without a form.

    Raises:
        UsageError: the manifest holds no parity report.
    """
    if manifest.parity is None:
        raise UsageError(f"{manifest.name} holds no parity report: it was not written by mars-edge export")
    report = manifest.parity
    return [
        section
        for section in (
            _what(manifest, report),
            _bounds(report),
            _subsets(report),
            _methods(manifest, report),
            _worst(manifest, report),
            _points(manifest),
            _defender(manifest),
            _subset_costs(manifest),
            _method_costs(manifest),
            _unknown(manifest, report),
        )
        if section is not None
    ]


# What is said.


def _what(manifest: Manifest, report: Mapping[str, Any]) -> Section:
    said, machine = manifest.provenance, _table(report, "machine")
    versions = ", ".join(f"{name} {version}" for name, version in _table(said, "versions").items())
    quantized = ", ".join(f"{key} {value}" for key, value in _table(said, "quantization").items())
    facts = {
        "task": f"{manifest.task}, labels {', '.join(manifest.labels)}",
        "modalities": ", ".join(manifest.names),
        "experts": f"{manifest.experts}, {manifest.active_experts} of them run per decision",
        "target": manifest.target,
        "precision": manifest.precision,
        "engine": report.get("engine"),
        "machine": ", ".join([str(machine["processor"]), f"{machine.get('cores')} cores"] if machine else ()),
        "samples": f"{report.get('samples', _NOTHING)}, in none of the splits that training and calibration saw",
        "data": said.get("note"),
        "seed": said.get("seed"),
        "quantization": quantized,
        "versions": versions,
    }
    rows = [(name, str(value)) for name, value in facts.items() if value not in (None, "")]
    text = (
        "The artifact was run in the engine named here, on samples that nothing before had seen, and compared with the "
        "model it was made from. A step is the distance between two neighbouring values of a quantized output, or a "
        "small share of the largest value where the output is a float."
    )
    return Section(title=f"Parity of {manifest.name}", paragraphs=[text], rows=[("what", "value"), *rows])


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """A bound of the gate: `key` of the rows of `part`; at least or at most what `report["bounds"][name]` says."""

    name: str
    text: str
    part: str
    key: str
    shown: Callable[[Any], str]
    least: bool = False


def _bounds(report: Mapping[str, Any]) -> Section | None:
    allowed = _table(report, "bounds")
    if not allowed:
        return None
    rows = [row for bound in _ALL_BOUNDS if (row := _bound_row(bound, report, allowed)) is not None]
    text = (
        "A file is written only if every bound holds. Of few samples one tie that broke the other way is allowed, "
        "even where it is a larger share than the bound."
    )
    return Section(title="Bounds", paragraphs=[text], rows=[("bound", "allowed", "worst", "where", "met"), *rows])


def _bound_row(bound: _Bound, report: Mapping[str, Any], allowed: Mapping[str, Any]) -> tuple[str, ...] | None:
    rows = {name: row for name, row in _table(report, bound.part).items() if _number(row.get(bound.key)) is not None}
    if bound.name not in allowed or not rows:
        return None
    where = (min if bound.least else max)(rows, key=lambda name: float(rows[name][bound.key]))
    limit, value = float(allowed[bound.name]), float(rows[where][bound.key])
    count = rows[where].get("places" if bound.least else "samples") if bound.name in _SHARES else None
    one = 1.0 / count if count else 0.0
    met = value >= min(limit, 1.0 - one) if bound.least else value <= max(limit, one) + 0.01 * (bound.shown is _steps)
    side = "at least" if bound.least else "at most"
    return bound.text, f"{side} {bound.shown(limit)}", bound.shown(value), where, "yes" if met else "no"


def _subsets(report: Mapping[str, Any]) -> Section:
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "samples": ("samples", _count),
        "label_agreement": ("same label", _percent),
        "max_steps": ("largest, steps", _steps),
        "p99_steps": ("99 of 100 within", _steps),
        "over_one_step": ("over one step", _percent),
        "routing_flips": ("other experts", _percent),
        "max_steps_flipped": ("largest there", _steps),
        "max_flip_margin_steps": ("their lead, steps", _steps),
    }
    head = ("subset", *(title for title, _ in columns.values()))
    rows = [
        (label, *(shown(row.get(key)) for key, (_, shown) in columns.items()))
        for label, row in _table(report, "subsets").items()
    ]
    text = (
        "Logits of the artifact beside those of the model, for every subset of sensors that may be there. Where "
        "other experts ran, the model itself was nearly undecided: their lead is by how much it preferred its own."
    )
    return Section(title="Subsets", paragraphs=[text], rows=[head, *rows])


def _methods(manifest: Manifest, report: Mapping[str, Any]) -> Section:
    steps, more = _table(report, "methods"), _table(report, "method_parity")
    coverage, chosen = _table(report, "coverage"), report.get("experts_chosen") or ()
    rows = []
    for method in manifest.methods:
        found, part = _table(more, method), _table(coverage, method)
        index = method.removeprefix("expert_")
        ran = chosen[int(index)] if index.isdigit() and method != index and int(index) < len(chosen) else None
        off = _of(_percent(found.get("off")), _percent(found.get("off_allowed")))
        left = ", ".join(map(str, part.get("left") or ())) or _NOTHING
        rows.append(
            (
                method,
                _of(_steps(steps.get(method)), _steps(found.get("steps_allowed"))),
                _steps(found.get("mean_steps")),
                off,
                _count(ran),
                _percent(part.get("share")),
                left,
            )
        )
    head = (
        "method",
        "largest, of allowed steps",
        "mean",
        "off, of allowed",
        "times chosen",
        "on the delegate",
        "outside it",
    )
    text = (
        "Every method on its own, for inputs equal to those of the model, chosen or not. Off is the share of values "
        "that differ by more than half a step: roundings that fell the other way."
    )
    return Section(title="Methods", paragraphs=[text], rows=[head, *rows])


def _of(value: str, allowed: str) -> str:
    return value if allowed == _NOTHING else f"{value} of {allowed}"


def _worst(manifest: Manifest, report: Mapping[str, Any]) -> Section | None:
    worst = _table(report, "worst")
    if not worst:
        return None
    pixel = f", pixel {tuple(worst['pixel'])} (y, x)" if worst.get("pixel") else ""
    flipped = "; other experts ran there" if worst.get("flipped") else ""
    text = (
        f"{_steps(worst.get('steps'))} steps, in subset {worst.get('subset')}, row {worst.get('row')} of the test "
        f"split{pixel}{flipped}. The sample is {worst.get('sample')} (BLAKE2b of its preprocessed inputs)."
    )
    both = zip(manifest.labels, worst.get("artifact") or (), worst.get("model") or (), strict=False)
    rows = [(label, f"{a:.6g}", f"{b:.6g}") for label, a, b in both]
    return Section(title="Worst case", paragraphs=[text], rows=[("label", "artifact", "model"), *rows])


def _points(manifest: Manifest) -> Section | None:
    if not manifest.operating_points:
        return None
    rows = [
        (
            label,
            point.metric,
            _percent(point.value),
            f"{_percent(point.low)} to {_percent(point.high)}",
            _count(point.n),
            _percent(point.target),
            "yes" if point.certified else "no: abstains",
            f"{point.threshold:.4f}",
            f"{point.temperature:.3f}",
            _rate(point.bpcer),
        )
        for label, point in manifest.operating_points.items()
    ]
    head = (
        "subset", "metric", "value", "95 % interval", "samples", "target", "certified", "threshold", "temperature",
        "BPCER",
    )  # fmt: skip
    text = "Thresholds were set on validation samples and measured on test samples, in the engine named above."
    return Section(title="Operating points", paragraphs=[text], rows=[head, *rows])


def _defender(manifest: Manifest) -> Section | None:
    if not any(point.apcer for point in manifest.operating_points.values()):
        return None
    text = "Attacks that were accepted, and what covering a sensor gains an attacker."
    return Section(title="Attack species", paragraphs=[text], fixed=defence.text_table(manifest))


def _subset_costs(manifest: Manifest) -> Section | None:
    if not manifest.subset_costs:
        return None
    rows = [
        (label, _count(cost.macs), _count(cost.weight_bytes), _count(cost.activation_bytes))
        for label, cost in manifest.subset_costs.items()
    ]
    text = "One decision with every sample new: multiply-accumulates, bytes of the weights it reads, planned memory."
    head = ("subset", "MACs", "weights, bytes", "activations, bytes")
    return Section(title="Costs of a decision", paragraphs=[text], rows=[head, *rows])


def _method_costs(manifest: Manifest) -> Section | None:
    if not manifest.costs:
        return None
    rows = [
        (method, _count(cost.macs), _count(cost.weight_bytes), _count(cost.activation_bytes))
        for method, cost in manifest.costs.items()
    ]
    return Section(title="Costs of a call", rows=[("method", "MACs", "weights, bytes", "activations, bytes"), *rows])


def _unknown(manifest: Manifest, report: Mapping[str, Any]) -> Section:
    return Section(title="Not measured", paragraphs=list(_gaps(manifest, report)))


def _gaps(manifest: Manifest, report: Mapping[str, Any]) -> Iterator[str]:
    processor = _table(report, "machine").get("processor", "the exporting machine")
    yield f"Nothing was run on another processor than {processor}, nor in another engine than {report.get('engine')}."
    yield "No time was measured."
    for label in report.get("unmeasured") or ():
        yield f"No sample has the subset {label}: nothing is known of it."
    idle = [i for i, times in enumerate(report.get("experts_chosen") or ()) if times == 0]
    if idle:
        yield f"No sample chose expert {', '.join(map(str, idle))}: compared on its own only."
    if not _table(report, "method_parity"):
        yield "Methods were not compared on their own, or by the largest difference alone."
    if not _table(report, "coverage"):
        yield "There is no delegate whose share of the operations could be counted."
    without = [label for label in _table(report, "subsets") if label not in manifest.operating_points]
    if without:
        yield f"No operating point was set for {', '.join(without)}: the runtime abstains there."


# How it is shown.


def html_page(manifest: Manifest) -> str:
    """The whole report as one page; every text of the manifest is escaped."""
    first, *rest = sections(manifest)
    body = [_html_section(first, level=1), *(_html_section(section, level=2) for section in rest)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(first.title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _html_section(section: Section, *, level: int) -> str:
    parts = [f"<h{level}>{html.escape(section.title)}</h{level}>"]
    parts += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
    if section.rows:
        parts.append(_html_table(section.rows))
    if section.fixed:
        parts.append(f"<pre>{html.escape(section.fixed)}</pre>")
    return "\n".join(parts)


def _html_table(rows: Rows) -> str:
    head, *body = ("".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in row) for tag, row in _tagged(rows))
    lines = "\n".join(f"<tr>{cells}</tr>" for cells in body)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'


def _tagged(rows: Rows) -> Iterator[tuple[str, Sequence[str]]]:
    return (("td" if i else "th", row) for i, row in enumerate(rows))


def markdown(manifest: Manifest) -> str:
    """The whole report as Markdown with tables; every text of the manifest is escaped."""
    first, *rest = sections(manifest)
    return "\n\n".join([_markdown_section(first, "#"), *(_markdown_section(s, "##") for s in rest)]) + "\n"


def _markdown_section(section: Section, mark: str) -> str:
    parts = [f"{mark} {_plain(section.title)}", *map(_plain, section.paragraphs)]
    if section.rows:
        head, *body = [f"| {' | '.join(map(_plain, row))} |" for row in section.rows]
        rule = f"| :-- |{' --: |' * (len(section.rows[0]) - 1)}"
        parts.append("\n".join([head, rule, *body]))
    if section.fixed:
        # Indented, not fenced: nothing in the text can end it.
        parts.append("\n".join(f"    {line}" for line in section.fixed.splitlines()))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """`text` with every character that Markdown or a table reads as markup escaped."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#~" else c for c in text.replace("\n", " "))


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The entry where it is a table, else an empty one: parity and provenance are free JSON."""
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _steps(value: Any) -> str:
    return _NOTHING if _number(value) is None else f"{value:.2f}"


def _percent(value: Any) -> str:
    return _NOTHING if _number(value) is None else f"{100 * value:.2f} %"


def _count(value: Any) -> str:
    return _NOTHING if _number(value) is None else f"{value:,}"


def _rate(rate: Rate | None) -> str:
    return _NOTHING if rate is None else f"{_percent(rate.value)} ({_percent(rate.low)} to {_percent(rate.high)})"


_SHARES = ("label_agreement", "routing_flips")
_ALL_BOUNDS = (
    _Bound(
        name="label_agreement", text="equal labels", part="subsets", key="label_agreement", shown=_percent, least=True
    ),
    _Bound(name="max_steps", text="largest logit difference", part="subsets", key="max_steps", shown=_steps),
    _Bound(name="p99_steps", text="99 of 100 logits", part="subsets", key="p99_steps", shown=_steps),
    _Bound(name="routing_flips", text="other experts ran", part="subsets", key="routing_flips", shown=_percent),
    _Bound(
        name="max_flip_margin_steps",
        text="lead of a replaced expert",
        part="subsets",
        key="max_flip_margin_steps",
        shown=_steps,
    ),
)
