"""A drawing as a list of shapes, written as SVG or as PNG from the same list.

SVG is text that we write ourselves; PNG is drawn by OpenCV, which every device has, much larger and then made small.
A plotting library would weigh more than the rest of the runtime. An SVG follows the viewer's dark or light mode; a PNG
is a light card, readable on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import MarsEdgeError
from mars_edge.terminal import printable

# By role: in light mode, in dark mode. Series after Okabe and Ito (2008), told apart with any colour vision.
COLOURS = {
    "card": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#636c76", "#9198a1"),
    "grid": ("#d8dee4", "#30363d"),
    "alarm": ("#c4320a", "#ff8a65"),
}
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8fd6", "#b3a000", "#7a8794")
_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
# Mean width of a character over the size of its font; only places what is beside a text.
_CHARACTER = 0.56
_OVERSAMPLED = 3
# Hershey capitals are 21 units of their font's scale high, those of a usual font 0.72 of its size.
_HERSHEY = 0.72 / 21.0

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, kw_only=True)
class Box:
    """A filled rectangle; `colour` is a role or "#rrggbb"."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    opacity: float = 1.0
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Path:
    """A line through points."""

    points: Sequence[tuple[float, float]]
    colour: str
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Text:
    """One line of ASCII; `y` is its base line."""

    x: float
    y: float
    text: str
    colour: str = "ink"
    size: float = 12.0
    anchor: Anchor = "start"
    bold: bool = False


Shape = Box | Path | Text


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Shapes in the order they are drawn, on a card of `width` x `height` pixels."""

    width: int
    height: int
    title: str
    shapes: Sequence[Shape]


def text_width(text: str, size: float) -> float:
    """About how wide a text will be."""
    return _CHARACTER * size * len(text)


def to_svg(drawing: Drawing) -> str:
    """An SVG document that needs nothing from outside."""
    # Light colours are attributes: converters of pictures know no custom properties and draw black on black.
    dark = "".join(f".f-{role}{{fill:{pair[1]}}}.s-{role}{{stroke:{pair[1]}}}" for role, pair in COLOURS.items())
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{drawing.width}" height="{drawing.height}" '
        f'viewBox="0 0 {drawing.width} {drawing.height}" role="img" font-family="{_FONT}">',
        f"<title>{_svg_text(drawing.title)}</title>",
        f"<style>@media (prefers-color-scheme: dark){{{dark}}}</style>",
        f'<rect width="{drawing.width}" height="{drawing.height}" rx="8" {_paint("fill", "card")}/>',
        *map(_svg_shape, drawing.shapes),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def to_png(drawing: Drawing) -> bytes:
    """A PNG in light colours, twice as large as the drawing.

    Raises:
        MarsEdgeError: OpenCV cannot encode it.
    """
    import cv2

    scale = 2 * _OVERSAMPLED
    canvas = np.zeros((drawing.height * scale, drawing.width * scale, 3), np.uint8)
    canvas[:] = _bgr("card")
    for shape in drawing.shapes:
        _raster(canvas, shape, scale)
    small = cv2.resize(canvas, (drawing.width * 2, drawing.height * 2), interpolation=cv2.INTER_AREA)
    done, encoded = cv2.imencode(".png", small)
    if not done:
        raise MarsEdgeError("the picture cannot be encoded as PNG")
    return bytes(encoded)


def _svg_text(text: str) -> str:
    """Markup and control characters as text; XML allows the latter in no form, and names of files hold them."""
    return escape(printable(text))


def _paint(attribute: str, colour: str) -> str:
    """`fill` or `stroke` of a colour; one with a role changes where dark is preferred."""
    if colour not in COLOURS:
        return f'{attribute}="{colour}"'
    return f'{attribute}="{COLOURS[colour][0]}" class="{attribute[0]}-{colour}"'


def _svg_shape(shape: Shape) -> str:
    if isinstance(shape, Box):
        title = f"<title>{_svg_text(shape.title)}</title>" if shape.title else ""
        faint = f' fill-opacity="{shape.opacity:g}"' if shape.opacity < 1.0 else ""
        size = f'width="{shape.width:.2f}" height="{shape.height:.2f}"'
        return f'<rect x="{shape.x:.2f}" y="{shape.y:.2f}" {size} {_paint("fill", shape.colour)}{faint}>{title}</rect>'
    if isinstance(shape, Path):
        points = " ".join(f"{x:.2f},{y:.2f}" for x, y in shape.points)
        dashes = ' stroke-dasharray="4 3"' if shape.dashed else ""
        stroke = f'{_paint("stroke", shape.colour)} stroke-width="{shape.width:g}"{dashes}'
        return f'<polyline points="{points}" fill="none" {stroke}/>'
    weight = ' font-weight="600"' if shape.bold else ""
    place = f'x="{shape.x:.2f}" y="{shape.y:.2f}" font-size="{shape.size:g}" text-anchor="{shape.anchor}"'
    return f"<text {place} {_paint('fill', shape.colour)}{weight}>{_svg_text(shape.text)}</text>"


def _bgr(colour: str) -> tuple[int, int, int]:
    text = COLOURS[colour][0] if colour in COLOURS else colour
    red, green, blue = (int(text[place : place + 2], 16) for place in (1, 3, 5))
    return blue, green, red


def _raster(canvas: NDArray[np.uint8], shape: Shape, scale: int) -> None:
    if isinstance(shape, Box):
        _raster_box(canvas, shape, scale)
    elif isinstance(shape, Path):
        _raster_path(canvas, shape, scale)
    else:
        _raster_text(canvas, shape, scale)


def _raster_box(canvas: NDArray[np.uint8], box: Box, scale: int) -> None:
    left, top, right, bottom = (
        max(0, round(scale * edge)) for edge in (box.x, box.y, box.x + box.width, box.y + box.height)
    )
    area = canvas[top:bottom, left:right]
    mixed = box.opacity * np.array(_bgr(box.colour), np.float32) + (1.0 - box.opacity) * area
    area[:] = np.rint(mixed).astype(np.uint8)


def _raster_path(canvas: NDArray[np.uint8], path: Path, scale: int) -> None:
    import cv2

    width = max(1, round(scale * path.width))
    for (x0, y0), (x1, y1) in _dashes(path):
        ends = [(round(scale * x), round(scale * y)) for x, y in ((x0, y0), (x1, y1))]
        cv2.line(canvas, ends[0], ends[1], _bgr(path.colour), width, cv2.LINE_AA)


def _dashes(path: Path) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The pieces of a line that are drawn: all of it, or 4 of every 7 pixels."""
    pieces = []
    for (x0, y0), (x1, y1) in zip(path.points, path.points[1:], strict=False):
        length = float(np.hypot(x1 - x0, y1 - y0))
        if not path.dashed or length == 0.0:
            pieces.append(((x0, y0), (x1, y1)))
            continue
        for begin in np.arange(0.0, length, 7.0):
            a, b = begin / length, min(begin + 4.0, length) / length
            pieces.append(((x0 + a * (x1 - x0), y0 + a * (y1 - y0)), (x0 + b * (x1 - x0), y0 + b * (y1 - y0))))
    return pieces


def _raster_text(canvas: NDArray[np.uint8], text: Text, scale: int) -> None:
    import cv2

    factor = _HERSHEY * text.size * scale
    thickness = max(1, round(scale * text.size * (0.115 if text.bold else 0.085)))
    (width, _), _ = cv2.getTextSize(text.text, cv2.FONT_HERSHEY_SIMPLEX, factor, thickness)
    shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[text.anchor] * width
    place = (round(scale * text.x - shift), round(scale * text.y))
    cv2.putText(canvas, text.text, place, cv2.FONT_HERSHEY_SIMPLEX, factor, _bgr(text.colour), thickness, cv2.LINE_AA)
