"""The report of a run: RUN/report.html, which needs no other file, RUN/report.png and RUN/diagnostics.json."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import mars_edge
from mars_training import figures
from mars_training.checkpoint import load_info, write_atomically
from mars_training.data.split import Split
from mars_training.diagnostics import Diagnostics, diagnose, score_error, write_diagnostics
from mars_training.figures import inline_svg, one_page, panels
from mars_training.tensorboard import write_report_events

_PNG_DPI = 110
_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #ffffff; --line: #d0d7de; --quiet: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --page: #0d1117; --line: #3d444d; --quiet: #9198a1; }
}
body { color: var(--text); background: var(--page); font: 15px/1.5 system-ui, sans-serif; max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.quiet, td.quiet { color: var(--quiet); } p { max-width: 50rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .8rem; }
"""
_INCHES = {
    "scores": (7.5, 3.6),
    "curves": (9.0, 3.6),
    "losses": (9.0, 3.6),
    "sampling": (9.0, 3.2),
    "agreement": (9.0, 3.0),
    "usage": (9.0, 3.0),
    "routing": (9.5, 3.4),
}
_SHARES_TEXT = (
    "Every expert's share of all gates and of all selections, every subset of modalities counting the same; "
    "the dotted line is where all experts would be used alike."
)
Table = Sequence[Sequence[str]]
"""Rows of cells; the first row is the head."""


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where a report was written; `tensorboard` is the folder of event files, None where none were asked for."""

    page: Path
    picture: Path
    numbers: Path
    tensorboard: Path | None = None


def write_report(
    run: Path, model: nn.Module, validation: Split, *, to: Path | None = None, tensorboard: bool = False
) -> ReportFiles:
    """Write the report of a run directory; `model` holds the selected weights, as `load_model(run)` gives it.

    The page goes to `to` (default RUN/report.html), the picture beside it under the same name with .png, the numbers
    to RUN/diagnostics.json. Every file appears whole. With `tensorboard` its pictures and numbers also go to
    RUN/tensorboard.

    Raises:
        UsageError: not a run directory, or one that has not finished an epoch.
    """
    found = diagnose(run, model, validation)
    page = to or run / "report.html"
    picture = page.with_suffix(".png")
    text = report_html(found, load_info(run).recipe.to_dict())
    figure = one_page(found, f"{found.name} ({found.method}, seed {found.seed})")
    write_diagnostics(run, found)
    write_atomically(picture, lambda path: figure.savefig(path, format="png", dpi=_PNG_DPI))
    write_atomically(page, lambda path: path.write_text(text, encoding="utf-8"))
    events = _write_events(run, found) if tensorboard else None
    return ReportFiles(page=page, picture=picture, numbers=run / "diagnostics.json", tensorboard=events)


def _write_events(run: Path, found: Diagnostics) -> Path:
    pictures = {name: figures.picture(panel, found, size=_INCHES[name]) for name, panel in panels(found).items()}
    return write_report_events(run, found, pictures)


def report_html(found: Diagnostics, recipe: Mapping[str, Any]) -> str:
    """The page: pictures inline, tables, the resolved recipe; it loads nothing and shows every string as text."""
    drawn = panels(found)
    pictures = {name: inline_svg(name, panel, found, size=_INCHES[name]) for name, panel in drawn.items()}
    parts = [
        *_head(found),
        *_section("Subsets of modalities", _score_text(found), pictures["scores"], _score_table(found)),
        *_section("Validation", _selection_text(found), pictures["curves"], None),
        *_section("Losses", _loss_text(found), pictures["losses"], _loss_table(found)),
        *_routing_sections(found, pictures),
        f"<h2>Recipe</h2>\n<details><summary>every key, resolved</summary>\n"
        f"<pre>{_safe(json.dumps(recipe, indent=1))}</pre></details>",
    ]
    title = _safe(f"{found.name}, seed {found.seed}")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _safe(text: str) -> str:
    return html.escape(text, quote=True)


def _head(found: Diagnostics) -> list[str]:
    return [
        f"<h1>{_safe(found.name)}</h1>",
        f'<p class="quiet">{_safe(found.method)}, seed {found.seed}, {found.epochs} epochs; {_safe(found.note)}; '
        f"mars-edge {_safe(mars_edge.__version__)}</p>",
        "<p>All numbers are of the validation split, measured through the path that a device runs. "
        "The test split is for <code>mars-edge evaluate</code>.</p>",
    ]


def _section(title: str, text: str, picture: str | None, table: Table | None) -> list[str]:
    parts = [f"<h2>{_safe(title)}</h2>", f"<p>{_safe(text)}</p>"]
    parts += [f'<div class="wide" role="img" aria-label="{_safe(title)}">{picture}</div>'] if picture else []
    return [*parts, *([_table(table)] if table else [])]


def _table(rows: Table) -> str:
    head = "".join(f"<th>{_safe(cell)}</th>" for cell in rows[0])
    body = "\n".join("<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _percent(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _score_text(found: Diagnostics) -> str:
    scores = found.selected["scores"]
    worst = max(scores, key=score_error)
    return (
        f"Selected epoch {found.selected['epoch'] + 1} of {found.epochs}: mean error over subsets "
        f"{_percent(_mean(map(score_error, scores)))} %, worst subset {worst['subset']} with "
        f"{_percent(score_error(worst))} %. ECE is the calibration error, NLL the mean negative log-likelihood in nats."
    )


def _score_table(found: Diagnostics) -> Table:
    scores, last = found.selected["scores"], {s["subset"]: s for s in found.last["scores"]}
    spoof = scores[0]["metric"] == "acer"
    head = ["subset", f"{scores[0]['metric']} %", "95 % interval", "n", "ECE %", "NLL", "last epoch %"]
    head += ["BPCER %", "worst APCER %"] if spoof else []
    rows = [[*_score_cells(s, last.get(s["subset"])), *(_spoof_cells(s) if spoof else [])] for s in scores]
    means = ["mean", _percent(_mean(s["value"] for s in scores)), "", "", "", "", ""]
    if found.last["scores"]:
        means[6] = _percent(_mean(s["value"] for s in found.last["scores"]))
    return [head, *rows, [*means, *(["", ""] if spoof else [])]]


def _score_cells(s: Mapping[str, Any], last: Mapping[str, Any] | None) -> list[str]:
    nll = s.get("nll")
    return [
        s["subset"],
        _percent(s["value"]),
        f"{_percent(s['low'])} - {_percent(s['high'])}",
        str(s["n"]),
        _percent(s.get("ece")),
        "-" if nll is None else f"{nll:.3f}",
        "-" if last is None else _percent(last["value"]),
    ]


def _spoof_cells(s: Mapping[str, Any]) -> list[str]:
    detail = s["detail"]
    return [
        _percent(detail["bpcer"]["value"]),
        f"{_percent(detail['apcer_worst']['value'])} ({detail['worst_species']})",
    ]


def _selection_text(found: Diagnostics) -> str:
    chosen, last = found.selected, found.last
    last_mean = f"{_percent(_mean(map(score_error, last['scores'])))} %" if last["scores"] else "not validated"
    return (
        f"The epoch of least mean error is selected: {chosen['epoch'] + 1}, with "
        f"{_percent(_mean(map(score_error, chosen['scores'])))} %; the last one, {last['epoch'] + 1}, has {last_mean}."
    )


def _loss_text(found: Diagnostics) -> str:
    noise = found.plateaus.get("noise")
    if noise is None:
        return "Every term as the mean over an epoch."
    return (
        f"Every term as the mean over an epoch. The noise loss ended at {noise['last']:.3f}; ln 2 = "
        f"{noise['no_order']:.3f} means that noise learned no order. The paper's own CASIA-SURF run rests at noise "
        "0.72, balance 0.039, imitate 0.043: for orientation, other data differ."
    )


def _loss_table(found: Diagnostics) -> Table:
    head = ["term", "first epoch", "selected epoch", "last epoch"]
    at = found.selected["epoch"]
    return [
        head,
        *([n, f"{v[0]:.4f}", f"{v[min(at, len(v) - 1)]:.4f}", f"{v[-1]:.4f}"] for n, v in found.terms.items()),
    ]


def _routing_sections(found: Diagnostics, pictures: Mapping[str, str]) -> list[str]:
    parts: list[str] = []
    if found.routing is not None and found.usage is not None:
        parts += _section("Routing", _usage_text(found), pictures["routing"], _usage_table(found))
        parts += _section("Use of the experts", _SHARES_TEXT, pictures["usage"], None)
    if found.agreement is not None:
        text = (
            "Share of the experts that the residual router, which sees what is missing, and the deployed router both "
            f"choose; two unrelated routers would share {_percent(found.agreement.chance, 1)} %."
        )
        rows = [[name, _percent(value, 1)] for name, value in found.agreement.by_combination.items()]
        parts += _section(
            "Agreement of the two routers", text, pictures["agreement"], [["combination", "agreement %"], *rows]
        )
    if found.sampling is not None:
        text = "How often each incomplete combination is drawn: more often where the routers disagree."
        parts += _section("Sampling", text, pictures["sampling"], _sampling_table(found))
    return parts


def _usage_text(found: Diagnostics) -> str:
    assert found.usage is not None and found.routing is not None
    experts, idle = len(found.usage.gate), found.usage.idle
    unused = f"never chosen: {', '.join(map(str, idle))}" if idle else "none is never chosen"
    return (
        f"{found.routing.active} of {experts} experts answer each sample. By gates the use of all experts amounts to "
        f"{found.usage.effective_by_gate:.1f} equally used ones, by selections to {found.usage.effective_by_load:.1f}; "
        f"{unused}. Rows of the picture sum to 100; the table has how often an expert is chosen."
    )


def _usage_table(found: Diagnostics) -> Table:
    assert found.usage is not None and found.routing is not None
    head = ["chosen, % of samples", *(str(i) for i in range(len(found.usage.gate)))]
    rows = [
        [name, *(_percent(v, 0) for v in row)]
        for name, row in zip(found.routing.subsets, found.routing.selected, strict=True)
    ]
    return [head, *rows, ["share of all gates, %", *(_percent(v, 1) for v in found.usage.gate)]]


def _sampling_table(found: Diagnostics) -> Table:
    assert found.sampling is not None
    head = ["combination", "first probability %", "last probability %", "first discrepancy", "last discrepancy"]
    p, d = found.sampling.probability, found.sampling.discrepancy
    rows = [
        [name, _percent(p[0][i], 1), _percent(p[-1][i], 1), f"{d[0][i]:.3f}", f"{d[-1][i]:.3f}"]
        for i, name in enumerate(found.sampling.combinations)
    ]
    return [head, *rows]
