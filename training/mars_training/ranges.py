"""Ranges: which numbers a recipe's keys may have, declared in their types and checked wherever a recipe is made.

A key of type `Annotated[int, Range(low=1)]`, or a list or table of such, takes the finite numbers of that range.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from mars_edge.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Range:
    """The finite numbers from `low` to `high`, but for an end that is open; NaN and infinity are in no range."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        if value == math.inf:
            return False
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.low_open else f"{self.low:g}"
        if self.high == math.inf:
            return low if self.low_open else f"{low} and more"
        return f"{low} to {'below ' if self.high_open else ''}{self.high:g}"


Count = Annotated[int, Range(low=1)]
Whole = Annotated[int, Range(low=0)]
Positive = Annotated[float, Range(low=0, low_open=True)]
NotNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(low=0, high=1)]
PositiveShare = Annotated[float, Range(low=0, high=1, low_open=True)]
ShareBelowOne = Annotated[float, Range(low=0, high=1, high_open=True)]
InnerShare = Annotated[float, Range(low=0, high=1, low_open=True, high_open=True)]


def check_ranges(table: object, where: str) -> None:
    """Nothing, if every number in the dataclass `table` is in the range that its field declares.

    Raises:
        UsageError: a number that is not; the message calls the table `where`.
    """
    kind: Any = type(table)
    for name, hint in _hints(kind).items():
        for place, value, allowed in numbers(hint, getattr(table, name), f"{where}.{name}"):
            if allowed is not None and value not in allowed:
                raise UsageError(f"{place} is {value!r}; allowed: {allowed}")


@functools.cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind, include_extras=True)


def numbers(hint: Any, value: Any, where: str) -> Iterator[tuple[str, float, Range | None]]:
    """Place, value and range of every number in a field's `value`; the range is None where `hint` declares none."""
    origin = get_origin(hint)
    if origin is Annotated:
        yield where, value, next((m for m in hint.__metadata__ if isinstance(m, Range)), None)
    elif origin is tuple:
        for i, item in enumerate(value):
            yield from numbers(get_args(hint)[0], item, f"{where}[{i}]")
    elif origin is dict:
        for key, item in value.items():
            yield from numbers(get_args(hint)[1], item, f"{where}.{key}")
    elif hint in (int, float):
        yield where, value, None
