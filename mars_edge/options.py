"""Command-line parsing that every command shares."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import NoReturn

from mars_edge.errors import UsageError
from mars_edge.terminal import printable


class OneLineParser(argparse.ArgumentParser):
    """argparse, except that a mistake is a `UsageError` of one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        raise UsageError(f"{self.prog.removeprefix('mars-edge ')}: {message}")


def positive(
    kind: type[int] | type[float], *, zero: bool = False, least: float = 0, most: float = sys.maxsize
) -> Callable[[str], float]:
    """An argparse type: a number above 0, or from 0 on with `zero`, from `least` up to `most`."""

    def parse(text: str) -> float:
        value = kind(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is no finite number")
        if value < 0 or (value == 0 and not zero):
            raise argparse.ArgumentTypeError(f"{text} is {'below' if zero else 'not above'} 0")
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} is above {most}")
        return value

    # argparse names the type in its own message for text that is no number.
    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def say(line: str, options: argparse.Namespace) -> None:
    """Tell a person on stderr, unless --quiet was given."""
    if not options.quiet:
        print(f"mars-edge: {printable(line)}", file=sys.stderr, flush=True)
