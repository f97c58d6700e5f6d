"""`mars-edge replay`: decide again on a recording; with --verify, prove that the decisions are the same."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.options import OneLineParser
from mars_runtime import policy
from mars_runtime.commands.options import RATE_HZ, add_engine_options, add_policy_options, given, open_from
from mars_runtime.commands.signals import stopping_on_signals
from mars_runtime.engines import Engine
from mars_runtime.pipeline import Settings
from mars_runtime.recording.playback import Replayed, is_same_model, replay, settings_of
from mars_runtime.recording.reader import RecordedDelivery, Recording, open_recording
from mars_runtime.sinks import JsonLines

_EXAMPLE = "example: mars-edge replay desk.mcap --model face_antispoof.pte --verify"


def main(argv: Sequence[str]) -> int:
    """Print the decisions of the recording made again; 0, or 1 when --verify finds one that differs."""
    options = _parser().parse_args(argv)
    _check(options)
    recording = open_recording(options.file)
    engine = open_from(options)
    try:
        return _verify(options, recording, engine) if options.verify else _print(options, recording, engine)
    finally:
        engine.close()


def _check(options: argparse.Namespace) -> None:
    changed = [*given(options, add_policy_options), *(["--rate-hz"] if options.rate_hz is not None else [])]
    if options.verify and changed:
        raise UsageError(f"replay: {changed[0]} has no meaning with --verify: what was recorded is decided as it was")


def _settings(options: argparse.Namespace, recording: Recording, engine: Engine) -> Settings:
    """Those of the recording, or the model's own, changed as the command line wishes."""
    settings = settings_of(recording, engine)
    if options.rate_hz is not None and recording.session.settings is not None:
        raise UsageError("--rate-hz is for recordings of sensors alone; this one says when its decisions were made")
    wished = policy.stricter(
        settings.policy,
        engine.manifest.names,
        require=options.require,
        on_missing=options.on_missing,
        unsafe=options.unsafe,
    )
    return replace(
        settings,
        rate_hz=options.rate_hz or settings.rate_hz,
        policy=wished,
        allow_uncertified=options.unsafe or settings.allow_uncertified,
        latch_s=options.latch or settings.latch_s,
    )


def _print(options: argparse.Namespace, recording: Recording, engine: Engine) -> int:
    settings = _settings(options, recording, engine)
    stop, count = threading.Event(), 0
    lines = JsonLines(sys.stdout)
    with stopping_on_signals(stop.set):
        made = replay(engine, recording, settings)
        for count, each in enumerate(made if options.fast else _paced(made, stop), start=1):  # noqa: B007
            lines.write(each.decision)
            if stop.is_set():
                break
    if count == 0 and not stop.is_set():
        raise UsageError(_nothing_in(recording))
    if recording.cut and not options.quiet:
        print(f"mars-edge: {recording.path}: ends in the middle, as a killed recording does", file=sys.stderr)
    return 0


def _nothing_in(recording: Recording) -> str:
    """What a recording without a decision holds, for people."""
    samples = dict.fromkeys(recording.session.modalities, 0)
    for entry in recording.entries(only=list(samples)):
        if isinstance(entry, RecordedDelivery) and entry.delivery.sample is not None:
            samples[entry.name] += 1
    held = ", ".join(f"{count} of {name}" for name, count in samples.items())
    alone = recording.session.settings is None
    lacking = "nothing to decide on" if alone else "no decision, so there is nothing to make again"
    cut = "; it ends in the middle, as a killed recording does" if recording.cut else ""
    return f"{recording.path}: holds {lacking} (samples: {held}){cut}"


def _paced(made: Iterator[Replayed], stop: threading.Event) -> Iterator[Replayed]:
    """Each decision as long after the first one as it was then."""
    first = next(made, None)
    if first is None:
        return
    begin_s = time.monotonic()
    for each in itertools.chain([first], made):
        stop.wait(max(0.0, begin_s + each.at_s - first.at_s - time.monotonic()))
        if stop.is_set():
            return
        yield each


def _verify(options: argparse.Namespace, recording: Recording, engine: Engine) -> int:
    if recording.session.settings is None:
        raise UsageError(f"{recording.path}: holds sensors alone, so there is no decision to compare with")
    if not is_same_model(recording, engine):
        raise UsageError(
            f"{recording.path}: was decided by another model ({recording.session.model}) than {options.model}; "
            "without --verify it is decided on anew"
        )
    differing = []
    count = 0
    for each in replay(engine, recording, settings_of(recording, engine)):
        count += 1
        if each.difference is not None:
            differing.append((each.decision.seq, each.difference))
    if count == 0:
        raise UsageError(_nothing_in(recording))
    first = {"seq": differing[0][0], "difference": differing[0][1]} if differing else None
    print(json.dumps({"decisions": count, "equal": count - len(differing), "first": first, "cut": recording.cut}))
    if first is None:
        return 0
    raise MarsEdgeError(
        f"{recording.path}: {len(differing)} of {count} decisions differ; first {first['seq']}: {first['difference']}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="mars-edge replay", description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.mcap", help="what record or run --record wrote; .partial of a killed one too")
    add_engine_options(parser)
    add("--fast", action="store_true", help="as fast as the engine can, not as it was then")
    add("--verify", action="store_true", help="compare every field but latency_ms, to the bit; prints one line of JSON")
    add_policy_options(parser)
    add(
        "--rate-hz",
        type=RATE_HZ,
        metavar="HZ",
        help="sensors alone: decisions per second",
    )
    add("--quiet", action="store_true", help="nothing on stderr but errors")
    return parser
