"""The front of N and K for people: a table in Markdown, and one picture."""

from __future__ import annotations

import io
import platform
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mars_export.front import Candidate, Front

_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "axes.axisbelow": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_DPI = 110
_INCHES_EACH = 5.4
Colour = tuple[float, float, float, float]
_LEGEND = "bars, of what was trained:\nstandard deviation over seeds,\n95 % interval of the median"
_NAMES = {"latency": "milliseconds", "macs": "million multiply-accumulates"}


def table(front: Front) -> str:
    """A Markdown line per candidate, the columns of a front marked with *."""
    marks = {cost: front.on_front(cost) for cost in _costs(front)}
    head = ["candidate", "trained with", "runs", "error %", "worst subset %", "parameters", "MMAC", "MMAC, fewest"]
    head += ["ms", "ms, fewest"] if front.timed else []
    lines = [_row([*head, "on the front of"]), _row(["---"] * (len(head) + 1))]
    for i, c in enumerate(front.candidates):
        on = ", ".join(cost for cost in marks if marks[cost][i])
        lines.append(_row([*_cells(c, front), on]))
    return "\n".join(lines)


def _cells(c: Candidate, front: Front) -> list[str]:
    worst = max(c.subsets, key=lambda subset: c.subsets[subset])
    spread = "" if c.deviation is None else f" ± {100 * c.deviation:.2f}"
    cells = [
        c.label,
        "this" if c.as_trained else f"N={c.trained[0]} K={c.trained[1]}",
        str(len(c.errors)),
        f"{100 * c.mean_error:.2f}{spread}",
        f"{100 * c.subsets[worst]:.2f} ({worst})",
        f"{c.parameters:,}",
        *(f"{c.macs[subset] / 1e6:.3f}" for subset in (front.full, front.fewest)),
    ]
    latencies = [c.latency[subset] for subset in (front.full, front.fewest)] if front.timed else []
    return cells + [f"{t.median_ms:.3f} ({t.low_ms:.3f} - {t.high_ms:.3f})" for t in latencies]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(front: Front) -> str:
    """The table, how it is to be read, and the choice."""
    chosen = front.choice()
    lines = [
        f"# Number of experts N and of active experts K: {front.name}",
        "",
        table(front),
        "",
        f"Chosen: **{chosen.label}**, the cheapest in multiply-accumulates whose error is within one standard error of "
        "the lowest.",
        "",
        "- Validation split only; error: mean over all evaluated subsets and runs, ± sample standard deviation over "
        "seeds. The data is: " + front.note,
        '- K changes without training: only lines that say "this" were trained with their N and K.',
        f'- MMAC and ms: of one decision with {front.full} present; "fewest" with {front.fewest} alone.',
    ]
    if front.timed:
        rounds = next(iter(front.candidates[0].latency.values())).rounds
        lines.append(
            f"- ms: median of {rounds} decisions in {front.engine} on {platform.machine()}, fp32, all candidates in "
            "turns in one run, with the 95 % interval of the median. It is of noise alone: files that do the same work "
            "may differ by more."
        )
    lines.append("- On a front: no other candidate has a lower error at no higher cost; by means, whatever the spread.")
    return "\n".join(lines) + "\n"


def picture(front: Front) -> bytes:
    """PNG: error against each cost, a line per N through its K, filled where K is that of the training."""
    costs = _costs(front)
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(_INCHES_EACH * len(costs), 4.6), layout="constrained")
        panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
        for axes, cost in zip(panels, costs, strict=True):
            _draw(axes, front, cost)
        panels[0].set_ylabel("validation error in %, mean over subsets")
        figure.suptitle(_plain(f"{front.name}: N experts, K of them active"), fontsize=11)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", title=_LEGEND, alignment="left")
        FigureCanvasAgg(figure)
        written = io.BytesIO()
        figure.savefig(written, format="png", dpi=_DPI, metadata={"Software": None})
    return written.getvalue()


def _costs(front: Front) -> tuple[str, ...]:
    return ("latency", "macs") if front.timed else ("macs",)


def _draw(axes: Axes, front: Front, cost: str) -> None:
    groups: dict[tuple[str, tuple[int, int], str], list[Candidate]] = {}
    for c in front.candidates:
        groups.setdefault((c.tag, c.trained, c.how or ""), []).append(c)
    colours = matplotlib.colormaps["tab10"]
    families = list(dict.fromkeys((tag, trained) for tag, trained, _ in groups))
    for (tag, trained, how), members in groups.items():
        colour = colours(families.index((tag, trained)) % colours.N)
        label = f"N = {trained[0]} {tag}".rstrip() + (f", {how}" if how else "")
        _draw_group(axes, front, cost, members, colour, label)
    _draw_front(axes, front, cost)
    axes.set_xlabel(f"{_NAMES[cost]}, {_plain(front.full)} present")


def _draw_group(axes: Axes, front: Front, cost: str, members: Sequence[Candidate], colour: Colour, label: str) -> None:
    x = np.array([_at(front, c, cost) for c in members])
    y = np.array([100 * c.mean_error for c in members])
    axes.plot(x, y, "-" if members[0].how is None else ":", color=colour, linewidth=0.8, alpha=0.6)
    _draw_bars(axes, front, cost, [c for c in members if c.as_trained], colour)
    marker = {"drop": "v", "merge": "^"}.get(members[0].how or "", "o")
    for c, at, error in zip(members, x, y, strict=True):
        face = colour if c.as_trained else "white"
        axes.plot(at, error, marker, color=colour, markerfacecolor=face, markersize=7 if c.as_trained else 4)
    axes.plot([], [], marker, color=colour, label=label)


def _draw_bars(axes: Axes, front: Front, cost: str, members: Sequence[Candidate], colour: Colour) -> None:
    """Of what was trained alone: bars of every candidate would hide the points."""
    x, y = [_at(front, c, cost) for c in members], [100 * c.mean_error for c in members]
    spreads = [100 * (c.deviation or 0.0) for c in members]
    axes.errorbar(x, y, yerr=spreads, xerr=_widths(front, members, cost), fmt="none", ecolor=colour, alpha=0.4)


def _at(front: Front, candidate: Candidate, cost: str) -> float:
    return front.cost(candidate, cost) / (1e6 if cost == "macs" else 1.0)


def _widths(front: Front, members: Sequence[Candidate], cost: str) -> list[list[float]] | None:
    """How far the interval of each latency reaches to the left and to the right."""
    if cost == "macs":
        return None
    taken = [c.latency[front.full] for c in members]
    return [[t.median_ms - t.low_ms for t in taken], [t.high_ms - t.median_ms for t in taken]]


def _draw_front(axes: Axes, front: Front, cost: str) -> None:
    on = [c for c, marked in zip(front.candidates, front.on_front(cost), strict=True) if marked]
    on.sort(key=lambda c: front.cost(c, cost))
    x, y = [_at(front, c, cost) for c in on], [100 * c.mean_error for c in on]
    axes.step(x, y, where="post", color="black", linewidth=1.2, label="front")
    for i, (c, at, error) in enumerate(zip(reversed(on), reversed(x), reversed(y), strict=True)):
        # Right of the front and below it there is no candidate, whatever the data.
        axes.annotate(
            c.label,
            (at, error),
            xycoords="data",
            xytext=(0.5, 0.04 + 0.06 * i),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "black", "shrinkB": 4},
        )
    axes.plot([], [], "o", color="grey", label="N and K as trained")
    axes.plot([], [], "o", color="grey", markerfacecolor="white", markersize=4, label="another K or N")


def _plain(text: str) -> str:
    """Text as it is: between dollar signs matplotlib would read mathematics."""
    return text.replace("$", r"\$")
