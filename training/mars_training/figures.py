"""The pictures of a run: one function per panel, drawn on axes that are passed in.

Every panel takes `Diagnostics` and returns nothing; colours of subsets are the same in all of them.
Axes: H height and W width of a picture in pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mars_training.diagnostics import NO_ORDER, Diagnostics

# A colour nothing else uses: text and axes have it, and an inline SVG takes the page's own in its place.
_INK = "#010203"
_INK_STYLE = {
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "grid.color": _INK,
    "axes.axisbelow": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "svg.fonttype": "path",
}
_METRIC_NAMES = {"acer": "ACER", "accuracy": "accuracy", "miou": "mIoU"}
Panel = Callable[[Axes, Diagnostics], None]


def draw_scores(axes: Axes, found: Diagnostics) -> None:
    """Bars: the metric of every subset at the selected epoch, with its 95 % interval; a dot for the last epoch."""
    scores, last = found.selected["scores"], {s["subset"]: s for s in found.last["scores"]}
    at = np.arange(len(scores))
    values = np.array([100 * s["value"] for s in scores])
    spread = [np.clip(values - [100 * s["low"] for s in scores], 0, None)]
    spread.append(np.clip([100 * s["high"] for s in scores] - values, 0, None))
    colours = [_subset_colour(s["subset"], found) for s in scores]
    axes.barh(at, values, color=colours, alpha=0.75, xerr=spread, error_kw={"ecolor": _INK, "capsize": 3})
    dots = [100 * last[s["subset"]]["value"] if s["subset"] in last else np.nan for s in scores]
    axes.plot(dots, at + 0.25, "d", color=_INK, fillstyle="none", markersize=6, label="last epoch")
    axes.grid(visible=False, axis="y")
    axes.set_yticks(at, [s["subset"] for s in scores])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    metric = scores[0]["metric"] if scores else ""
    better = "lower" if metric == "acer" else "higher"
    axes.set_xlabel(f"{_METRIC_NAMES.get(metric, metric)} in %, {better} is better")
    axes.set_title("Validation, selected epoch, 95 % intervals")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_curves(axes: Axes, found: Diagnostics) -> None:
    """Lines: validation error per subset over epochs, their mean in bold; a mark at the selected epoch."""
    curves = found.curves
    for subset, errors in curves.subsets.items():
        values = [np.nan if e is None else 100 * e for e in errors]
        axes.plot(curves.epochs, values, color=_subset_colour(subset, found), linewidth=1, label=subset)
    axes.plot(curves.epochs, [100 * e for e in curves.mean], color=_INK, linewidth=2.2, label="mean")
    chosen = found.selected["epoch"] + 1
    axes.axvline(chosen, color=_INK, linestyle=":", linewidth=1)
    # Beside the line, on the side where there is room.
    right = 2 * chosen > found.epochs
    axes.annotate(
        f"selected: {chosen}",
        (chosen, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if right else 3, -2),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        fontsize=8,
    )
    axes.set_ylim(bottom=0)
    _number_epochs(axes)
    axes.set_ylabel("error in %")
    axes.set_title("Validation error")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_losses(axes: Axes, found: Diagnostics) -> None:
    """Lines: every loss term over epochs, logarithmic where all are positive; dotted where noise has no order."""
    terms = {name: values for name, values in found.terms.items() if any(values)}
    for i, (name, values) in enumerate(terms.items()):
        # The sum often lies on its largest term: dashed, both are seen.
        style = "--" if name == "loss" else "-"
        axes.plot(range(1, len(values) + 1), values, style, color=_colour(i, len(terms)), label=name)
    if "noise" in found.plateaus:
        axes.axhline(NO_ORDER, color=_INK, linestyle=":", linewidth=1, label="noise without\norder: ln 2")
    if terms and min(min(values) for values in terms.values()) > 0:
        axes.set_yscale("log")
    _number_epochs(axes)
    axes.set_title("Losses, mean over an epoch")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_sampling(axes: Axes, found: Diagnostics) -> None:
    """Lines: the probability of drawing each incomplete combination in the next epoch."""
    assert found.sampling is not None
    table = 100 * np.array(found.sampling.probability)
    for i, name in enumerate(found.sampling.combinations):
        axes.plot(range(1, len(table) + 1), table[:, i], color=_subset_colour(name, found), label=name)
    axes.set_ylim(bottom=0)
    _number_epochs(axes)
    axes.set_ylabel("probability in %")
    axes.set_title("Sampling of incomplete combinations")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_routing(axes: Axes, found: Diagnostics) -> None:
    """A heat map, subsets by experts: the mean gate in percent."""
    assert found.routing is not None
    table = 100 * np.array(found.routing.mean_gate)
    axes.pcolormesh(table, cmap="viridis", vmin=0, edgecolors="none")
    for (row, column), value in np.ndenumerate(table):
        # Light text on the dark half of the colour map.
        colour = "white" if value < 0.6 * table.max() else "black"
        axes.text(column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(np.arange(table.shape[1]) + 0.5, [str(i) for i in range(table.shape[1])])
    axes.set_yticks(np.arange(len(table)) + 0.5, found.routing.subsets)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.set_xlabel("expert")
    axes.set_title("Routing on validation: mean gate in %")


def draw_agreement(axes: Axes, found: Diagnostics) -> None:
    """Bars: how far both routers agree, by incomplete combination; dotted what unrelated ones would reach."""
    assert found.agreement is not None
    table = found.agreement.by_combination
    colours = [_subset_colour(name, found) for name in table]
    axes.barh(list(table), [100 * value for value in table.values()], color=colours, alpha=0.75)
    axes.axvline(100 * found.agreement.chance, color=_INK, linestyle=":", linewidth=1, label="by chance")
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the experts that both choose, in %")
    axes.set_title("Agreement of the two routers")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_usage(axes: Axes, found: Diagnostics) -> None:
    """Bars: every expert's share of all gates and of all selections; dotted where all would be alike."""
    assert found.usage is not None
    at = np.arange(len(found.usage.gate))
    for left, label, shares in ((-0.2, "gates", found.usage.gate), (0.2, "selections", found.usage.load)):
        axes.bar(at + left, [100 * share for share in shares], width=0.4, alpha=0.75, label=label)
    axes.axhline(100 / len(at), color=_INK, linestyle=":", linewidth=1, label="all alike")
    axes.grid(visible=False, axis="x")
    axes.set_xticks(at, [str(i) for i in at])
    axes.set_xlabel("expert")
    axes.set_ylabel("share in %")
    axes.set_title("Use of the experts on validation")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def panels(found: Diagnostics) -> dict[str, Panel]:
    """The panels that this run has something for, by name."""
    wanted: dict[str, Panel] = {"scores": draw_scores, "curves": draw_curves, "losses": draw_losses}
    if found.sampling is not None:
        wanted["sampling"] = draw_sampling
    if found.agreement is not None:
        wanted["agreement"] = draw_agreement
    if found.usage is not None:
        wanted["usage"] = draw_usage
    if found.routing is not None:
        wanted["routing"] = draw_routing
    return wanted


def picture(panel: Panel, found: Diagnostics, *, size: tuple[float, float]) -> NDArray[np.uint8]:
    """One panel of `size` inches on white, as RGB (H, W, 3)."""
    with _style():
        figure = Figure(figsize=size, layout="constrained")
        panel(figure.subplots(), found)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def inline_svg(name: str, panel: Panel, found: Diagnostics, *, size: tuple[float, float]) -> str:
    """One panel as an `<svg>` element for an HTML page: transparent, in the page's text colour, its ids its own."""
    with _style(svg_hashsalt=name):
        figure = Figure(figsize=size, layout="constrained")
        panel(figure.subplots(), found)
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _for_html(text.getvalue(), name)


def _for_html(svg: str, name: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", body)
    # Two figures on a page must not share ids: a clip path or glyph would be looked up in the first.
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    return body.replace(_INK, "currentColor")


def one_page(found: Diagnostics, title: str) -> Figure:
    """All panels of a run on one white page."""
    chosen = panels(found)
    wide = [name for name in chosen if name == "routing"]
    narrow = [name for name in chosen if name not in wide]
    pairs = [narrow[i : i + 2] for i in range(0, len(narrow), 2)]
    layout: list[Any] = [pair if len(pair) == 2 else pair * 2 for pair in pairs] + [[name, name] for name in wide]
    with _style():
        figure = Figure(figsize=(13, 3.6 * len(layout)), layout="constrained")
        for name, axes in figure.subplot_mosaic(layout).items():
            chosen[name](axes, found)
        figure.suptitle(_plain(title), fontsize=12, fontweight="bold")
    return figure


def _style(**more: Any) -> AbstractContextManager[None]:
    # The type of rc_context's argument names every key of one release; keys here are in all that we allow.
    settings: Any = {**_INK_STYLE, **{name.replace("_", "."): value for name, value in more.items()}}
    return matplotlib.rc_context(settings)


def _number_epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _subset_colour(subset: str, found: Diagnostics) -> tuple[float, ...]:
    known = list(found.curves.subsets)
    return _colour(known.index(subset) if subset in known else len(known), len(known))


def _colour(index: int, count: int) -> tuple[float, ...]:
    colours = matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
    return colours(index % colours.N)


def _plain(text: str) -> str:
    """Text as it is: between dollar signs matplotlib would read mathematics."""
    return text.replace("$", r"\$")
