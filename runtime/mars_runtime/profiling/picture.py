"""A report as a picture: stages of every subset, how single decisions spread, and how a long run held its pace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mars_edge.errors import UsageError
from mars_edge.files import write_whole
from mars_runtime.profiling import drawing
from mars_runtime.profiling.drawing import SERIES, Box, Drawing, Shape, Text, text_width, to_png, to_svg

WIDTH = 1000
_LEFT, _RIGHT = 170.0, 330.0
_MARGIN = 28.0
_BAR, _STEP = 20.0, 32.0
_PANEL = 170.0
# A tail beyond so many times the slowest median is told in words: the stages would be too small to see.
_FARTHEST = 2.5
# Of a row's stages: what is not part of the time of a decision, or counts a part twice.
_NOT_STACKED = ("capture_wait", "total", "outside_engine", "age")

Report = Mapping[str, Any]


def write(report: Report, path: Path) -> None:
    """The picture as the kind that the path's suffix names; it appears whole.

    Raises:
        UsageError: the suffix is neither .svg nor .png.
    """
    kinds: dict[str, Callable[[Drawing], str | bytes]] = {".svg": to_svg, ".png": to_png}
    if path.suffix not in kinds:
        raise UsageError(f"picture {path}: ends in {path.suffix!r}; allowed: {', '.join(kinds)}")
    write_whole(path, kinds[path.suffix](draw(report)))


def draw(report: Report) -> Drawing:
    """Every panel there is something for, from top to bottom."""
    shapes: list[Shape] = [*_heading(report)]
    y = 84.0
    for panel in (_stages, _histogram, _sustained):
        drawn, height = panel(report, y)
        shapes += drawn
        y += height
    title = f"Latency of {report['artifact']['file']}"
    return Drawing(width=WIDTH, height=round(y + 8.0), title=title, shapes=shapes)


def stages_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Median ms of each stage that adds to a decision, in the order they run."""
    return {name: found["p50_ms"] for name, found in row["stages"].items() if name not in _NOT_STACKED}


def ticks(most: float) -> list[float]:
    """Round numbers from 0 to just beyond `most`, four to eight of them; `most` must be above 0."""
    rough = most / 6.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough - 1e-12)
    return [step * index for index in range(math.ceil(most / step - 1e-9) + 1)]


def _heading(report: Report) -> Iterator[Shape]:
    about, device, settings = report["artifact"], report["device"], report["settings"]
    yield Text(x=_MARGIN, y=34, text=_ascii(f"{about['file']}, {about['precision']}"), size=18, bold=True)
    board = device.get("board") or device.get("processor") or device.get("architecture") or "unknown device"
    parts = [
        str(board),
        f"{device.get('cores')} cores",
        f"governor {device.get('governor') or 'unknown'}",
        str(settings["engine"]),
        f"threads {settings['threads'] or 'default'}",
        str(settings["mode"]),
        str(report["t_utc"])[:10],
    ]
    yield Text(x=_MARGIN, y=55, text=_ascii(", ".join(parts)), size=12, colour="muted")


def _title(y: float, text: str) -> Text:
    return Text(x=_MARGIN, y=y + 14, text=text, size=13, bold=True)


def _stages(report: Report, y: float) -> tuple[list[Shape], float]:
    """A stacked bar per subset, lines at its p90 and p99 where they are near enough to be shown."""
    rows = report["rows"]
    names = list(dict.fromkeys(name for row in reversed(rows) for name in stages_of(row)))
    order = [name for name in rows[-1]["stages"] if name in names]
    colours = {name: SERIES[index % len(SERIES)] for index, name in enumerate(order + sorted(set(names) - set(order)))}
    top = y + 50.0
    totals = [row["stages"]["total"] for row in rows]
    longest = max(total["p50_ms"] for total in totals)
    marks = ticks(min(max(total["p99_ms"] for total in totals), _FARTHEST * longest))
    scale = (WIDTH - _LEFT - _RIGHT) / marks[-1]
    bottom = top + _STEP * len(rows)
    shapes: list[Shape] = [
        _title(y, "Median of each stage by what is present, ms; the lines are p90 and p99 of the whole decision"),
        *_legend(colours, y + 34),
        *_axis(marks, scale, top - 6.0, bottom),
    ]
    for index, row in enumerate(rows):
        shapes += _bar(row, top + _STEP * index, scale, colours)
    return shapes, bottom - y + 46.0


def _legend(colours: Mapping[str, str], y: float) -> Iterator[Shape]:
    x = _MARGIN
    for name, colour in colours.items():
        yield Box(x=x, y=y - 9, width=10, height=10, colour=colour)
        yield Text(x=x + 15, y=y, text=_ascii(_called(name)), size=11, colour="muted")
        x += 15 + text_width(_called(name), 11) + 16


def _called(stage: str) -> str:
    return {"loop": "decision loop", "fuse": "fuse and route"}.get(stage, stage.replace("encode.", "encode "))


def _axis(marks: Sequence[float], scale: float, top: float, bottom: float) -> Iterator[Shape]:
    for mark in marks:
        x = _LEFT + scale * mark
        yield drawing.Path(points=((x, top), (x, bottom)), colour="grid")
        yield Text(x=x, y=bottom + 16, text=f"{mark:g}", size=11, colour="muted", anchor="middle")


def _bar(row: Mapping[str, Any], y: float, scale: float, colours: Mapping[str, str]) -> Iterator[Shape]:
    yield Text(x=_LEFT - 12, y=y + 15, text=_ascii(row["subset"]), anchor="end")
    x, total = _LEFT, row["stages"]["total"]
    for name, ms in stages_of(row).items():
        width = max(0.0, scale * ms)
        title = f"{_called(name)}: {ms:.3f} ms"
        yield Box(x=x, y=y, width=width, height=_BAR, colour=colours[name], title=title)
        x += width
    for mark, width in (("p90", 1.5), ("p99", 1.0)):
        at = _LEFT + scale * total[f"{mark}_ms"]
        if at <= WIDTH - _RIGHT:
            yield drawing.Path(points=((at, y - 3), (at, y + _BAR + 3)), colour="ink", width=width)
    words = _ascii(f"{total['p50_ms']:.3g} ms, p99 {total['p99_ms']:.3g}{_quality(row)}")
    yield Text(x=WIDTH - _RIGHT + 14, y=y + 15, text=words, size=11, colour="ink")


def _quality(row: Mapping[str, Any]) -> str:
    quality = row.get("quality")
    if not quality:
        return ""
    name = {"acer": "ACER", "miou": "mIoU"}.get(quality["metric"], quality["metric"])
    abstains = ", abstains" if row.get("certified") is False else ""
    return f", {name} {100.0 * quality['value']:.3g} %{abstains}"


def _histogram(report: Report, y: float) -> tuple[list[Shape], float]:
    """Of the last row, which has the most sensors: how many decisions took how long."""
    row = report["rows"][-1]
    edges, counts = row["histogram"]["edges_ms"], row["histogram"]["counts"]
    total, top, bottom = row["stages"]["total"], y + 76.0, y + 76.0 + _PANEL
    shapes: list[Shape] = [
        _title(y, f"{total['n']} decisions with {_ascii(row['subset'])}, ms; the last bin holds all longer ones"),
    ]
    low, high = edges[0], edges[-1]
    scale = (WIDTH - _LEFT - _MARGIN) / (high - low)
    step = ticks(high - low)[1]
    for mark in (step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)):
        x = _LEFT + scale * (mark - low)
        shapes.append(drawing.Path(points=((x, top), (x, bottom)), colour="grid"))
        shapes.append(Text(x=x, y=bottom + 16, text=f"{mark:g}", size=11, colour="muted", anchor="middle"))
    most = max(counts) or 1
    for begin, end, count in zip(edges, edges[1:], counts, strict=False):
        height = _PANEL * count / most
        left, width = _LEFT + scale * (begin - low), max(0.5, scale * (end - begin) - 0.75)
        title = f"{begin:.3f} to {end:.3f} ms: {count}"
        shapes.append(Box(x=left, y=bottom - height, width=width, height=height, colour=SERIES[0], title=title))
    shapes += _markers(total, low, high, scale, top, bottom)
    shapes.append(Text(x=_LEFT - 12, y=top + 8, text=f"{most} decisions", size=11, colour="muted", anchor="end"))
    return shapes, bottom - y + 42.0


def _markers(
    total: Mapping[str, Any], low: float, high: float, scale: float, top: float, bottom: float
) -> Iterator[Shape]:
    """p50, p90 and p99 as lines, their names above the bars at heights that do not collide.

    One beyond the last bin has its name at the edge with an arrow, and no line: there is no place for it.
    """
    for place, name in enumerate(("p50", "p90", "p99")):
        ms = total[f"{name}_ms"]
        x = _LEFT + scale * (min(ms, high) - low)
        if ms <= high:
            yield drawing.Path(points=((x, top - 44 + 14 * place), (x, bottom)), colour="ink", width=1.0, dashed=True)
        near_edge = x > WIDTH - 110.0
        words = f"{name} {ms:.3g}" if ms <= high else f"{name} {ms:.3g} ms ->"
        yield Text(
            x=x - 5 if near_edge else x + 5,
            y=top - 35 + 14 * place,
            text=words,
            size=11,
            anchor="end" if near_edge else "start",
        )


def _sustained(report: Report, y: float) -> tuple[list[Shape], float]:
    """p50 and p90 along a sustained run; nothing for other modes."""
    sustained = report.get("sustained")
    if sustained is None or len(sustained["curve"]) < 2:
        return [], 0.0
    curve, bottom = sustained["curve"], y + 44.0 + _PANEL
    marks = ticks(max(point["p90_ms"] for point in curve))
    last_s = curve[-1]["t_s"] + curve[0]["t_s"]
    across, up = (WIDTH - _LEFT - _MARGIN) / last_s, _PANEL / marks[-1]
    shapes: list[Shape] = [
        _title(y, f"Pace along the run, ms; p50 {sustained['first_minute_p50_ms']:.3g} in the first minute, "
                  f"{sustained['last_minute_p50_ms']:.3g} in the last")
    ]  # fmt: skip
    for mark in marks:
        height = bottom - up * mark
        shapes.append(drawing.Path(points=((_LEFT, height), (WIDTH - _MARGIN, height)), colour="grid"))
        shapes.append(Text(x=_LEFT - 12, y=height + 4, text=f"{mark:g}", size=11, colour="muted", anchor="end"))
    for mark in (mark for mark in ticks(last_s) if mark <= last_s):
        words = f"{mark:g} s"
        x = _LEFT + across * mark
        shapes.append(Text(x=x, y=bottom + 16, text=words, size=11, colour="muted", anchor="middle"))
    for name, colour, width in (("p90", SERIES[1], 1.5), ("p50", SERIES[0], 2.0)):
        points = [(_LEFT + across * point["t_s"], bottom - up * point[f"{name}_ms"]) for point in curve]
        shapes.append(drawing.Path(points=points, colour=colour, width=width))
        shapes.append(Text(x=points[-1][0] - 4, y=points[-1][1] - 6, text=name, size=11, anchor="end"))
    return shapes, bottom - y + 42.0


def _ascii(text: str) -> str:
    """What OpenCV's fonts can draw; names of files and sensors may hold anything."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)
