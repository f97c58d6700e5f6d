"""`mars-edge doctor`: open each sensor, measure it for some seconds, and name what is wrong with it."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mars_edge.errors import NoSensorError, UsageError
from mars_edge.modality import Modality
from mars_edge.options import OneLineParser, positive
from mars_runtime import fingerprint
from mars_runtime.commands.options import given_specs
from mars_runtime.diagnosis import Finding, Verdict, diagnose
from mars_runtime.examination import Listener, Measured, examine
from mars_runtime.inventory import look
from mars_runtime.sensors.driver import Driver, Interruptible
from mars_runtime.sensors.simulated import World
from mars_runtime.sensors.source import ALLOWED, SensorSpec, check_names, make_drivers
from mars_runtime.text import fact, heading

_LEAST_S = 0.5
_EXAMPLE = "example: mars-edge doctor --sensor depth=sim: --sensor ir=sim: --seconds 2"
_RIG_HZ = 15.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found at one sensor."""

    name: str
    source: str
    verdict: Verdict
    findings: list[Finding]
    measured: Measured


def main(argv: Sequence[str]) -> int:
    """Prints a report per sensor; 0 also where one is broken.

    Raises:
        UsageError: an unknown sensor or source, or --learn without exactly one sensor.
        NoSensorError: none gave a sample.
    """
    options = _parser().parse_args(argv)
    specs = given_specs(options)
    if options.learn is not None and len(specs) != 1:
        raise UsageError(f"doctor: --learn takes exactly one --sensor, given are {len(specs)}")
    if options.learn is not None and not options.learn.parent.is_dir():
        raise UsageError(f"doctor: --learn {options.learn}: there is no folder {options.learn.parent}")
    if options.seconds < _LEAST_S:
        raise UsageError(
            f"doctor: --seconds is {options.seconds:g}; a sensor shows nothing in less than {_LEAST_S:g} s"
        )
    specs = specs or _everything(options)
    modalities = _modalities(options.model, specs)
    reports, listeners = _examined(specs, modalities, seconds=options.seconds, keep=options.learn is not None)
    _print(reports, as_json=options.json)
    if not any(report.measured.samples for report in reports):
        raise NoSensorError("no sensor gave a sample")
    if options.learn is not None:
        _learn(reports[0], listeners[0], options)
    return 0


def _everything(options: argparse.Namespace) -> list[SensorSpec]:
    """All that `mars-edge devices` lists, named by its kind and number."""
    found = look(probe=False)
    if not options.quiet:
        for note in found.notes:
            print(f"mars-edge: {note}", file=sys.stderr)
    if not found.devices:
        raise NoSensorError("no camera and no microphone found; name a source: --sensor NAME=SOURCE")
    return [SensorSpec(name=f"{device.kind}{at}", source=device.source) for at, device in enumerate(found.devices)]


def _modalities(model: str | None, specs: Sequence[SensorSpec]) -> dict[str, Modality | None]:
    """What a model wants of each sensor; without a model that is told by the samples."""
    if model is None:
        return dict.fromkeys(spec.name for spec in specs)
    from mars_edge.artifact import verify
    from mars_runtime.engines import read_manifest
    from mars_runtime.models import find_model

    manifest = read_manifest(verify(find_model(model)))
    check_names(specs, manifest.names)
    return {spec.name: manifest.modality(spec.name) for spec in specs}


def _examined(
    specs: Sequence[SensorSpec], modalities: Mapping[str, Modality | None], *, seconds: float, keep: bool
) -> tuple[list[Report], list[Listener]]:
    """All sensors at once, as they run: what they take from each other shows."""
    from mars_runtime.recording.sensors_alone import assumed_modality

    world, stop = World(0, _RIG_HZ), threading.Event()
    drivers = make_drivers(specs, {spec.name: modalities[spec.name] or assumed_modality(spec) for spec in specs}, world)
    with ThreadPoolExecutor(max_workers=len(specs)) as workers:
        listen = partial(examine, seconds=seconds, keep=keep, stop=stop)
        try:
            jobs = [workers.submit(listen, drivers[s.name], s.source, modalities[s.name]) for s in specs]
            results = [job.result() for job in jobs]
        except BaseException:
            # Ctrl-C: the executor waits for its threads, so they must end.
            _abandon(drivers.values(), stop)
            raise
    measured = {spec.name: result[0] for spec, result in zip(specs, results, strict=True)}
    return [_report(spec, measured) for spec in specs], [listener for _, listener in results]


def _abandon(drivers: Iterable[Driver], stop: threading.Event) -> None:
    stop.set()
    for driver in drivers:
        if isinstance(driver, Interruptible):
            driver.interrupt()


def _report(spec: SensorSpec, measured: Mapping[str, Measured]) -> Report:
    own = measured[spec.name]
    verdict, findings = diagnose(own, {name: other for name, other in measured.items() if name != spec.name})
    return Report(name=spec.name, source=spec.source, verdict=verdict, findings=findings, measured=own)


def _learn(report: Report, listener: Listener, options: argparse.Namespace) -> None:
    if report.verdict == "broken":
        causes = ", ".join(finding.cause for finding in report.findings)
        raise UsageError(f"doctor: nothing is learned from a sensor that is broken ({causes})")
    assert listener.modality is not None
    found = fingerprint.learn(listener.kept, listener.modality, listener.traits)
    fingerprint.save(found, options.learn)
    if not options.quiet:
        line = f'fingerprint = "{options.learn}" under [sensor.{report.name}] of a sensors file uses it'
        print(f"mars-edge: learned from {found.samples} samples; {line}", file=sys.stderr)


def _print(reports: Sequence[Report], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"sensors": [_document(report) for report in reports]}, ensure_ascii=False, allow_nan=False))
        return
    for index, report in enumerate(reports):
        if index:
            print()
        print(heading(f"{report.name}: {report.verdict}", sys.stdout))
        print("\n".join(_lines(report)))


def _document(report: Report) -> dict[str, Any]:
    return {**asdict(report), "rate_hz": report.measured.rate_hz}


def _lines(report: Report) -> list[str]:
    lines = fact("source", report.measured.description)
    if report.measured.samples:
        lines += fact("measured", _numbers(report.measured))
    for finding in report.findings:
        lines += fact("cause", f"{finding.cause}: {finding.evidence}")
        lines += fact("do", finding.advice)
    return lines


def _numbers(measured: Measured) -> str:
    parts = [f"{measured.samples} samples in {measured.seconds:.1f} s"]
    if measured.open_s is not None:
        parts.insert(0, f"open after {measured.open_s:.2f} s")
    if measured.rate_hz is not None:
        parts.append(f"{measured.rate_hz:.1f} of {measured.nominal_hz:.1f} Hz")
        parts.append(f"longest gap {1000 * measured.longest_gap_s:.0f} ms")
    if measured.noise is not None:
        parts.append(f"noise {100 * measured.noise:.2f} % of the {'depth' if measured.kind == 'depth' else 'range'}")
    if measured.loudness_dbfs is not None:
        parts.append(f"{measured.loudness_dbfs:.0f} dBFS")
    return ", ".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="mars-edge doctor", description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add("--sensor", action="append", default=[], metavar="NAME=SOURCE", help=f"repeatable; SOURCE is {ALLOWED}")
    add("--sensors", type=Path, metavar="FILE.toml", help="the same as a file: one [sensor.NAME] table each")
    add("--model", metavar="FILE", help="judge by what this model wants of each sensor")
    add("--seconds", type=positive(float, most=600), default=5.0, metavar="S", help="how long to listen (default 5)")
    add("--learn", type=Path, metavar="FILE.json", help="write the fingerprint of the one sensor named, if it is well")
    add("--json", action="store_true", help="one JSON object instead of text")
    add("--quiet", action="store_true", help="nothing on stderr but errors")
    return parser
