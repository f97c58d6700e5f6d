"""`mars-edge record`: keep what sensors give as an MCAP file, with or without a model's decisions."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser, say
from mars_runtime.commands.options import (
    add_engine_options,
    add_loop_options,
    add_map_options,
    add_policy_options,
    add_region_options,
    add_source_options,
    faults_from,
    given,
    given_specs,
    maps_from,
    open_from,
    settings_from,
    specs_from,
)
from mars_runtime.commands.remarks import announce, complain
from mars_runtime.commands.signals import Signals, stopping_on_signals
from mars_runtime.pipeline import nothing_came
from mars_runtime.sinks import Sink
from mars_runtime.stream import Stream

_EXAMPLE = "example: mars-edge record desk.mcap --sensor rgb=sim: --sensor depth=sim: --max-seconds 5"
# What has a meaning only where something is decided.
_OF_A_MODEL = (
    partial(add_engine_options, required=False),
    add_loop_options,
    add_policy_options,
    add_region_options,
    add_map_options,
)


def main(argv: Sequence[str]) -> int:
    """Record until stopped, until --max-seconds, or until the last file has ended; 0."""
    options = _parser().parse_args(argv)
    with stopping_on_signals() as signals:
        return _with_model(options, signals) if options.model is not None else _sensors_alone(options, signals)


def _sensors_alone(options: argparse.Namespace, signals: Signals) -> int:
    from mars_runtime.recording.sensors_alone import SensorLog, assumed_modality

    specs = given_specs(options)
    if not specs:
        raise UsageError("record: no sensor is named; give --sensor NAME=SOURCE, or --model for the sensors of a model")
    unmeant = given(options, *_OF_A_MODEL)
    if unmeant:
        raise UsageError(f"record: {unmeant[0]} has no meaning without --model: nothing is decided")
    modalities = {spec.name: assumed_modality(spec) for spec in specs}
    faults = faults_from(options, specs)
    log = SensorLog(options.file, specs, modalities, faults=faults, seed=options.seed)
    signals.end_by(log.stop)
    kept = log.run(max_seconds=options.max_seconds)
    lost = f", {kept.dropped} lost to a slow disk" if kept.dropped else ""
    say(f"recorded {kept.path} ({kept.written} deliveries of {', '.join(modalities)}{lost})", options)
    return 0


def _with_model(options: argparse.Namespace, signals: Signals) -> int:
    from mars_runtime.recording.witness import Witness

    with contextlib.ExitStack() as stack:
        engine = open_from(options)
        stack.callback(engine.close)
        specs = specs_from(options, engine.manifest)
        settings = settings_from(options, engine.manifest, specs)
        faults = faults_from(options, specs)
        witness = Witness(
            engine.manifest,
            settings,
            lambda: stream.traits,
            record=options.file,
            say=lambda line: say(line, options),
        )
        stack.callback(witness.close)
        stream = Stream(engine, specs, settings, faults=faults, seed=options.seed, witness=witness)
        signals.end_by(stream.stop)
        sinks = maps_from(options, stream)
        for sink in sinks:
            stack.callback(sink.close)
        announce(options, stream)
        stack.enter_context(stream)
        _consume(stream, sinks, options)
        if not signals.came and not any(counts.received for counts in stream.counts().values()):
            raise nothing_came(dict.fromkeys(stream.traits) | stream.errors())
    return 0


def _consume(stream: Stream, sinks: Sequence[Sink], options: argparse.Namespace) -> None:
    said: dict[str, str] = {}
    for decision in stream:
        complain(stream, said, options)
        for sink in sinks:
            sink.write(decision)
        if options.max_seconds is not None and stream.time_s() >= options.max_seconds:
            return


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="mars-edge record", description=__doc__, epilog=_EXAMPLE)
    parser.add_argument("file", type=Path, metavar="FILE.mcap", help="the recording; never replaces a file")
    for add_group in _OF_A_MODEL:
        add_group(parser)
    add_source_options(parser)
    return parser
