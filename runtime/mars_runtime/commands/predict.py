"""`mars-edge predict`: one decision from one file per modality, as one JSON line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_edge.options import OneLineParser
from mars_runtime.commands.options import add_engine_options, open_from
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
        specs = _specs(rest, engine.manifest)
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


def _specs(rest: Sequence[str], manifest: Manifest) -> list[SensorSpec]:
    """The `--NAME FILE` pairs; their names come from the model, so argparse cannot know them."""
    flags = ", ".join(f"--{name}" for name in manifest.names)
    if not rest:
        raise UsageError(f"predict: no file given; {manifest.name} takes: {flags}")
    specs = []
    words = iter(word for item in rest for word in (item.split("=", 1) if item.startswith("--") else [item]))
    for flag in words:
        if not flag.startswith("--") or flag[2:] not in manifest.names:
            raise UsageError(f"predict: unknown argument {flag!r}; {manifest.name} takes: {flags}")
        path = next(words, None)
        if path is None or not Path(path).is_file():
            raise UsageError(f"predict: {flag} {path or ''}: no such file".replace(" :", ":"))
        specs.append(SensorSpec(name=flag[2:], source=str(Path(path))))
    return specs
