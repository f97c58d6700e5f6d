"""`mars-edge run`: sensors in, one JSON line per decision out, for as long as anyone wants."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from mars_edge.errors import UsageError
from mars_edge.faults import parse_fault
from mars_edge.manifest import Manifest
from mars_edge.options import OneLineParser, positive
from mars_runtime import policy
from mars_runtime.commands.options import add_engine_options, open_from
from mars_runtime.engines import Engine
from mars_runtime.pipeline import Settings
from mars_runtime.sensors.source import ALLOWED, SensorSpec, load_table, parse_flag
from mars_runtime.sinks import JsonLines, LiveStatus
from mars_runtime.stream import Stream, default_specs

_EXAMPLE = "example: mars-edge run --model face_antispoof.pte --inject depth=off@3s+4s --max-seconds 12"


def main(argv: Sequence[str]) -> int:
    """Run until stopped, until --max-seconds or --max-decisions, or until the last file has ended; 0."""
    options = _parser().parse_args(argv)
    engine = open_from(options)
    try:
        return _run(options, engine)
    finally:
        engine.close()


def _run(options: argparse.Namespace, engine: Engine) -> int:
    manifest = engine.manifest
    specs = _specs(options, manifest)
    settings = Settings(
        rate_hz=options.rate_hz,
        policy=policy.stricter(
            manifest.policy,
            manifest.names,
            require=options.require,
            on_missing=options.on_missing,
            unsafe=options.unsafe,
        ),
        allow_uncertified=options.unsafe,
        health={spec.name: spec.health for spec in specs},
    )
    faults = [parse_fault(text, [spec.name for spec in specs]) for text in options.inject]
    stream = Stream(engine, specs, settings, faults=faults, seed=options.seed)
    _announce(options, stream)
    with stream, _stopping_on_signals(stream):
        _emit(stream, options)
    return 0


def _specs(options: argparse.Namespace, manifest: Manifest) -> list[SensorSpec]:
    given = [parse_flag(text) for text in options.sensor]
    if options.sensors is not None:
        given += load_table(options.sensors)
        if not given:
            raise UsageError(f"--sensors {options.sensors}: no [sensor.NAME] table in it")
    return given or default_specs(manifest)


def _announce(options: argparse.Namespace, stream: Stream) -> None:
    simulated = [name for name, traits in stream.traits.items() if traits.simulated]
    if simulated and not options.quiet:
        print(
            f"mars-edge: {', '.join(simulated)} from the simulated rig (seed {options.seed}), not from real sensors;"
            " name your own with --sensor NAME=SOURCE",
            file=sys.stderr,
        )


def _emit(stream: Stream, options: argparse.Namespace) -> None:
    lines, live = JsonLines(sys.stdout), _live_status(stream, options)
    for decision in itertools.islice(stream.decisions(), options.max_decisions):
        if live is not None and sys.stdout.isatty():
            live.clear()
        lines.write(decision)
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


@contextlib.contextmanager
def _stopping_on_signals(stream: Stream) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the stream in good order, the second one kills as usual."""

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        stream.stop()

    # Signals reach Python's main thread only; a caller elsewhere has its own way to stop.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="mars-edge run", description=__doc__, epilog=_EXAMPLE)
    add_engine_options(parser)
    add = parser.add_argument
    add("--sensor", action="append", default=[], metavar="NAME=SOURCE", help=f"repeatable; SOURCE is {ALLOWED}")
    add("--sensors", type=Path, metavar="FILE.toml", help="the same as a file: one [sensor.NAME] table each")
    add("--inject", action="append", default=[], metavar="NAME=FAULT@START+LENGTH", help="break a sensor; repeatable")
    add("--rate-hz", type=positive(float), metavar="HZ", help="decisions per second; default: the fastest sensor's")
    add("--max-seconds", type=positive(float), metavar="S", help="stop this long after the first decision")
    add("--max-decisions", type=positive(int), metavar="N", help="stop after this many decisions")
    add("--require", action="append", default=[], metavar="NAMES", help="abstain without one of these, e.g. 'depth|ir'")
    add("--on-missing", choices=policy.ON_MISSING, help="what a missing sensor means; only stricter than the model's")
    add("--unsafe", action="store_true", help="let --on-missing loosen, and decide on uncertified subsets")
    add(
        "--seed",
        type=positive(int, zero=True),
        default=0,
        help="of the simulated rig and the injected faults (default 0)",
    )
    add("--quiet", action="store_true", help="nothing on stderr but errors")
    return parser
