"""`mars-edge run`: sensors in, one JSON line per decision out, for as long as anyone wants."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from mars_edge.options import OneLineParser, positive, say
from mars_runtime.commands.options import (
    add_engine_options,
    add_loop_options,
    add_map_options,
    add_policy_options,
    add_region_options,
    add_source_options,
    faults_from,
    folder,
    maps_from,
    open_from,
    settings_from,
    specs_from,
)
from mars_runtime.commands.remarks import announce, complain
from mars_runtime.commands.signals import Signals, stopping_on_signals
from mars_runtime.engines import Engine
from mars_runtime.pipeline import nothing_came
from mars_runtime.services.options import add_service_options, check, services
from mars_runtime.sinks import JsonLines, LiveStatus, Sink
from mars_runtime.stream import Stream

_EXAMPLE = "example: mars-edge run --model face_antispoof.pte --inject depth=off@3s+4s --max-seconds 12"


def main(argv: Sequence[str]) -> int:
    """Run until stopped, until --max-seconds or --max-decisions, or until the last file has ended; 0."""
    options = _parser().parse_args(argv)
    check(options)
    engine = open_from(options)
    try:
        return _run(options, engine)
    finally:
        engine.close()


def _run(options: argparse.Namespace, engine: Engine) -> int:
    specs = specs_from(options, engine.manifest)
    settings = settings_from(options, engine.manifest, specs)
    faults = faults_from(options, specs)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(stopping_on_signals())
        witness = None
        if options.record is not None or options.flight_recorder is not None:
            from mars_runtime.recording.witness import Witness

            witness = Witness(
                engine.manifest,
                settings,
                lambda: stream.traits,
                record=options.record,
                flight_recorder=options.flight_recorder,
                say=lambda line: say(line, options),
            )
            stack.callback(witness.close)
        stream = Stream(
            engine,
            specs,
            settings,
            faults=faults,
            seed=options.seed,
            witness=witness,
            live_faults=options.serve is not None,
        )
        signals.end_by(stream.stop)
        sinks = [*maps_from(options, stream), *services(options, stream, engine.manifest)]
        announce(options, stream)
        for sink in sinks:
            stack.callback(sink.close)
        stack.enter_context(stream)
        _emit(stream, sinks, options, signals)
    return 0


def _emit(stream: Stream, sinks: Sequence[Sink], options: argparse.Namespace, signals: Signals) -> None:
    _decide(stream, sinks, options)
    if not signals.came and not any(counts.received for counts in stream.counts().values()):
        raise nothing_came(dict.fromkeys(stream.traits) | stream.errors())


def _decide(stream: Stream, sinks: Sequence[Sink], options: argparse.Namespace) -> None:
    lines, live, said = JsonLines(sys.stdout), _live_status(stream, options), dict[str, str]()
    for decision in itertools.islice(stream.decisions(), options.max_decisions):
        if live is not None and sys.stdout.isatty():
            live.clear()
        lines.write(decision)
        if live is None:
            complain(stream, said, options)
        for sink in sinks:
            sink.write(decision)
        if live is not None:
            live.write(decision)
        if options.max_seconds is not None and stream.time_s() >= options.max_seconds:
            return


def _live_status(stream: Stream, options: argparse.Namespace) -> LiveStatus | None:
    if options.quiet or not sys.stderr.isatty():
        return None
    simulated = any(traits.simulated for traits in stream.traits.values())
    return LiveStatus(sys.stderr, note=(lambda: _truth(stream)) if simulated else None)


def _truth(stream: Stream) -> str:
    return f"simulated: {stream.world.species_now()} is on stage (the truth, not seen by the model)"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="mars-edge run", description=__doc__, epilog=_EXAMPLE)
    add_engine_options(parser)
    add_source_options(parser)
    add_loop_options(parser)
    add_policy_options(parser)
    add_region_options(parser)
    add_map_options(parser)
    add_service_options(parser)
    add = parser.add_argument
    add("--max-decisions", type=positive(int), metavar="N", help="stop after this many decisions")
    add("--record", type=Path, metavar="FILE.mcap", help="keep everything, so that `mars-edge replay` decides it again")
    add("--flight-recorder", type=folder, metavar="DIR", help="keep 10 s before and 5 s after each fault, a file each")
    return parser
