"""`mars-edge predict`: one decision from one file per modality, as one JSON line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser
from mars_runtime.commands.options import add_engine_options, files_from, flags_of, open_from
from mars_runtime.pipeline import Settings
from mars_runtime.sensors.source import SensorSpec
from mars_runtime.sinks import JsonLines
from mars_runtime.stream import Stream

_EXAMPLE = "example: mars-edge predict --model spoken_digits.pte --audio seven.wav --image seven.png"


def main(argv: Sequence[str]) -> int:
    """Decide once on the files given; modalities without a file are missing; 0."""
    options, rest = _parser().parse_known_args(argv)
    engine = open_from(options)
    try:
        files = files_from(rest, engine.manifest, "predict")
        if not files:
            raise UsageError(f"predict: no file given; {engine.manifest.name} takes: {flags_of(engine.manifest)}")
        specs = [SensorSpec(name=name, source=str(path)) for name, path in files.items()]
        settings = Settings(policy=engine.manifest.policy, allow_uncertified=options.unsafe, gather_s=5.0)
        with Stream(engine, specs, settings) as stream:
            JsonLines(sys.stdout).write(next(stream.decisions()))
    finally:
        engine.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mars-edge predict",
        description=__doc__,
        epilog=_EXAMPLE,
        usage="mars-edge predict --model FILE --NAME FILE [--NAME FILE ...]",
        allow_abbrev=False,
    )
    add_engine_options(parser)
    parser.add_argument("--unsafe", action="store_true", help="decide on uncertified subsets too")
    return parser
