"""`mars-edge inject`: break sensors on purpose and keep the result as a recording."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mars_edge.errors import UsageError
from mars_edge.faults import parse_fault
from mars_edge.options import OneLineParser
from mars_runtime.commands.options import add_source_options, faults_from, given_specs
from mars_runtime.commands.signals import stopping_on_signals
from mars_runtime.recording.recorder import Kept

_EXAMPLE = "example: mars-edge inject broken.mcap --recording desk.mcap --inject depth=off@1s+2s"


def main(argv: Sequence[str]) -> int:
    """Write the recording of the broken sensors; 0."""
    options = _parser().parse_args(argv)
    if not options.inject:
        raise UsageError("inject: no fault is given, e.g. --inject depth=off@1s+2s")
    named = bool(options.sensor) or options.sensors is not None
    if named == (options.recording is not None):
        raise UsageError("inject: give either --recording FILE or --sensor NAME=SOURCE")
    kept = _from_sensors(options) if named else _from_recording(options)
    if not options.quiet:
        print(f"mars-edge: recorded {kept.path} ({kept.written} deliveries)", file=sys.stderr)
    return 0


def _from_recording(options: argparse.Namespace) -> Kept:
    from mars_runtime.recording.injection import inject
    from mars_runtime.recording.reader import open_recording

    if options.max_seconds is not None:
        raise UsageError("inject: --max-seconds has no meaning with --recording, which is taken whole")
    recording = open_recording(options.recording)
    faults = [parse_fault(text, list(recording.session.modalities)) for text in options.inject]
    return inject(recording, options.file, faults, seed=options.seed)


def _from_sensors(options: argparse.Namespace) -> Kept:
    from mars_runtime.recording.sensors_alone import SensorLog, assumed_modality

    specs = given_specs(options)
    modalities = {spec.name: assumed_modality(spec) for spec in specs}
    log = SensorLog(options.file, specs, modalities, faults=faults_from(options, specs), seed=options.seed)
    with stopping_on_signals(log.stop):
        return log.run(max_seconds=options.max_seconds)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="mars-edge inject", description=__doc__, epilog=_EXAMPLE)
    parser.add_argument("file", type=Path, metavar="FILE.mcap", help="what is written; never replaces a file")
    parser.add_argument("--recording", type=Path, metavar="FILE.mcap", help="break the sensors of a recording")
    add_source_options(parser)
    return parser
