"""Options the device commands share."""

from __future__ import annotations

import argparse

from mars_edge.options import positive
from mars_runtime.engines import Engine, open_engine

# What the native engine takes; a C int would wrap silently.
MOST_THREADS = 256


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is executed."""
    add = parser.add_argument
    add("--model", required=True, metavar="FILE", help="a .pte or .onnx file, or the name of a bundled model")
    add("--threads", type=positive(int, most=MOST_THREADS), metavar="N", help="threads of the engine, 1 to 256")
    add("--engine", metavar="NAME", help="executorch-native, executorch-python or onnxruntime; default: the best there")
    add("--no-self-test", action="store_true", help="skip the model's golden input at start")


def open_from(options: argparse.Namespace) -> Engine:
    """The engine those options describe; errors as `open_engine`."""
    return open_engine(
        options.model, threads=options.threads, engine=options.engine, self_test=not options.no_self_test
    )
