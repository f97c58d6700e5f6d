"""`mars-edge record`: keep what sensors give as an MCAP file, with or without a model's decisions."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser, say
from mars_runtime.commands.options import (
    add_engine_options,
    add_policy_options,
    add_source_options,
    faults_from,
    given_specs,
    open_from,
    settings_from,
    specs_from,
)
from mars_runtime.commands.signals import stopping_on_signals
from mars_runtime.stream import Stream

_EXAMPLE = "example: mars-edge record desk.mcap --sensor rgb=sim: --sensor depth=sim: --max-seconds 5"


def main(argv: Sequence[str]) -> int:
    """Record until stopped, until --max-seconds, or until the last file has ended; 0."""
    options = _parser().parse_args(argv)
    return _with_model(options) if options.model is not None else _sensors_alone(options)


def _sensors_alone(options: argparse.Namespace) -> int:
    from mars_runtime.recording.sensors_alone import SensorLog, assumed_modality

    specs = given_specs(options)
    if not specs:
        raise UsageError("record: no sensor is named; give --sensor NAME=SOURCE, or --model for the sensors of a model")
    modalities = {spec.name: assumed_modality(spec) for spec in specs}
    faults = faults_from(options, specs)
    log = SensorLog(options.file, specs, modalities, faults=faults, seed=options.seed)
    with stopping_on_signals(log.stop):
        kept = log.run(max_seconds=options.max_seconds)
    lost = f", {kept.dropped} lost to a slow disk" if kept.dropped else ""
    say(f"recorded {kept.path} ({kept.written} deliveries of {', '.join(modalities)}{lost})", options)
    return 0


def _with_model(options: argparse.Namespace) -> int:
    from mars_runtime.recording.witness import Witness

    with contextlib.ExitStack() as stack:
        engine = open_from(options)
        stack.callback(engine.close)
        specs = specs_from(options, engine.manifest)
        settings = settings_from(options, engine.manifest, specs)
        witness = Witness(
            engine.manifest,
            settings,
            lambda: stream.traits,
            record=options.file,
            say=lambda line: say(line, options),
        )
        stack.callback(witness.close)
        faults = faults_from(options, specs)
        stream = Stream(engine, specs, settings, faults=faults, seed=options.seed, witness=witness)
        stack.enter_context(stream)
        stack.enter_context(stopping_on_signals(stream.stop))
        for _ in stream:
            if options.max_seconds is not None and stream.time_s() >= options.max_seconds:
                break
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="mars-edge record", description=__doc__, epilog=_EXAMPLE)
    parser.add_argument("file", type=Path, metavar="FILE.mcap", help="the recording; never replaces a file")
    add_engine_options(parser, required=False)
    add_source_options(parser)
    add_policy_options(parser)
    return parser
