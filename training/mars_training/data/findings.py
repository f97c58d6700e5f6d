"""What a check of a data set finds: each a line, with the rows it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something to know before training.

    Attributes:
        level: a "problem" makes the data unusable, a "warning" makes its results mean less.
        text: one line.
        examples: the rows or names it is about, a line each; all of them.
    """

    level: Literal["problem", "warning"]
    text: str
    examples: tuple[str, ...] = ()


def problem(text: str, examples: Sequence[str] = ()) -> Finding:
    """A finding that makes the data unusable."""
    return Finding(level="problem", text=text, examples=tuple(examples))


def warning(text: str, examples: Sequence[str] = ()) -> Finding:
    """A finding that makes results mean less."""
    return Finding(level="warning", text=text, examples=tuple(examples))


def count(things: Sequence[object], noun: str) -> str:
    """ "1 file is", "2 files are"."""
    return f"{len(things):,} {noun} is" if len(things) == 1 else f"{len(things):,} {noun}s are"
