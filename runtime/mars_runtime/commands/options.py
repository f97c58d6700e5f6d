"""Options the device commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from mars_edge.errors import UsageError
from mars_runtime.engines import Engine, open_engine


class OneLineParser(argparse.ArgumentParser):
    """argparse, except that a mistake is a `UsageError` of one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        raise UsageError(f"{self.prog.removeprefix('mars-edge ')}: {message}")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is executed."""
    add = parser.add_argument
    add("--model", required=True, metavar="FILE", help="a .pte or .onnx file, or the name of a bundled model")
    add("--threads", type=positive(int), metavar="N", help="threads of the engine")
    add("--engine", metavar="NAME", help="executorch-native, executorch-python or onnxruntime; default: the best there")
    add("--no-self-test", action="store_true", help="skip the model's golden input at start")


def open_from(options: argparse.Namespace) -> Engine:
    """The engine those options describe; errors as `open_engine`."""
    return open_engine(
        options.model, threads=options.threads, engine=options.engine, self_test=not options.no_self_test
    )


def positive(kind: type[int] | type[float], *, zero: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number above 0, or from 0 on with `zero`."""

    def parse(text: str) -> float:
        value = kind(text)
        if not 0 <= value < math.inf or (value == 0 and not zero):
            raise argparse.ArgumentTypeError(f"{text} is {'below' if zero else 'not above'} 0")
        return value

    # argparse names the type in its own message for text that is no number.
    parse.__name__ = "whole number" if kind is int else "number"
    return parse
