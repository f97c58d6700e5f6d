"""Text for a terminal of any width and none at all: tables, wrapped facts, numbers with units.

Nothing here moves a cursor. What came out of a file is made printable first, because a terminal obeys what it reads.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from mars_edge.terminal import printable

WIDTH = 100
NOT_RECORDED = "not recorded"
NOTHING = "-"
_INDENT = "  "
_KEY_WIDTH = 12
_GAP = 2
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str) -> list[str]:
    """Indented lines of equal columns, at most `WIDTH` wide as long as the columns after the first fit.

    Args:
        header: one title per column.
        rows: as many cells as there are titles.
        align: "<" or ">" per column.

    A first cell that is too long for that gets a line of its own; a column with nothing but "-" is left out.
    """
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] != NOTHING for row in rows)]
    header, *rows = [[printable(row[i]) for i in kept] for row in (header, *rows)]
    align = "".join(align[i] for i in kept)
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    others = sum(widths[1:]) + _GAP * (len(widths) - 1) + len(_INDENT)
    widths[0] = min(widths[0], max(WIDTH - others, len(header[0])))
    lines: list[str] = []
    for row in (header, *rows):
        first = row[0]
        if len(first) > widths[0]:
            lines.append(_INDENT + first)
            first = ""
        cells = [f"{cell:{side}{width}}" for cell, side, width in zip((first, *row[1:]), align, widths, strict=True)]
        lines.append((_INDENT + (" " * _GAP).join(cells)).rstrip())
    return lines


def fact(key: str, text: str) -> list[str]:
    """`key` in a column of its own and `text` beside it, wrapped to `WIDTH`."""
    head = f"{_INDENT}{key:<{_KEY_WIDTH - 1}} "
    return textwrap.wrap(printable(text), WIDTH, initial_indent=head, subsequent_indent=_INDENT + " " * _KEY_WIDTH)


def sentence(text: str) -> list[str]:
    """`text` wrapped to `WIDTH`, its further lines indented deeper."""
    return textwrap.wrap(printable(text), WIDTH, initial_indent=_INDENT, subsequent_indent=2 * _INDENT)


def heading(text: str, stream: TextIO) -> str:
    """`text`, bold on a terminal that wants colour: not with NO_COLOR (https://no-color.org) or a dumb one."""
    wanted = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"{_BOLD}{text}{_PLAIN}" if wanted else text


def amount(value: float | None, unit: str = "") -> str:
    """Three digits and a decimal prefix: 1207865 bytes are "1.21 MB", 49800000 are "49.8 M"; "-" for None."""
    if value is None:
        return NOTHING
    scaled = float(value)
    for prefix in ("", "k", "M", "G"):
        if abs(scaled) < 999.5 or prefix == "G":
            break
        scaled /= 1000.0
    digits = 0 if prefix == "" or abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{digits}f} {prefix}{unit}".rstrip()


def percent(share: float) -> str:
    """A share of 0..1 in percent, with two decimals and without the sign."""
    return f"{100.0 * share:.2f}"


def shown(value: Any) -> str:
    """A JSON value as a person would write it; text as it is, lists with commas."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list | tuple) and value and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(shown(item) for item in value)
    return printable(json.dumps(value, ensure_ascii=False))


def flattened(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested tables that is no table itself, with its dotted path; an empty table is a value."""
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
