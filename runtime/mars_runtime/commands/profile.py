"""`mars-edge profile`: what one artifact takes on this device, for every subset of its sensors, with intervals."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mars_edge import subsets
from mars_edge.errors import UsageError
from mars_edge.files import write_whole
from mars_edge.manifest import Manifest
from mars_edge.options import say
from mars_edge.terminal import discard_stdout
from mars_runtime.commands.options import files_from
from mars_runtime.commands.profile_options import profile_parser, require_places
from mars_runtime.engines import open_engine
from mars_runtime.engines.opening import engine_status
from mars_runtime.models import find_model
from mars_runtime.profiling import comparison, device, live, objectives, operators, picture, probe, report
from mars_runtime.profiling.inputs import Input, from_files, generated, single
from mars_runtime.profiling.repeats import Opening, Plan, Repeated, repeat
from mars_runtime.profiling.rows import Series, row_of, sustained, together
from mars_runtime.profiling.schedule import Schedule, schedule_of
from mars_runtime.profiling.statistics import paired_ratio, quantile
from mars_runtime.profiling.timer import check_timer
from mars_runtime.twins import twin_of

# Of each loop of a stream.
_STREAM_S = {"quick": 2.5, "standard": 10.0, "sustained": 10.0}


def main(argv: Sequence[str]) -> int:
    """Measure, print, write what was asked for; 0, or 5 when an objective of --slo is missed.

    Raises:
        UsageError: the request is wrong, or --compare names an unlike run.
    """
    options, rest = profile_parser().parse_known_args(argv)
    schedule = schedule_of(
        options.mode,
        warmup=options.warmup,
        runs=options.runs,
        min_seconds=options.min_seconds,
        processes=options.processes,
    )
    require_places(options)
    timer = check_timer()
    candidates = _candidates(options)
    manifest = candidates[0].manifest
    wanted = _subsets(options.subsets, manifest)
    labels = tuple(subsets.label(subset, manifest.names) for subset in wanted)
    wished = _wished(options, labels)
    inputs = _inputs(options, rest, manifest)
    made = _begin(options, schedule, candidates, inputs, labels)
    made["timer"] = asdict(timer)
    base = _base(options, made)
    try:
        measured = _measure(options, schedule, candidates, inputs, wanted)
        _add_rows(made, measured, [one.manifest for one in candidates], labels)
        _add_processes(made, options, candidates[0].opening, inputs)
        made["operators"] = _operators(options, candidates[0].opening) if options.ops else None
    except (KeyboardInterrupt, SystemExit):
        # Half a run says nothing about the other half.
        say("profile: interrupted; nothing is written", options)
        raise
    _finish(made, options, base, wished)
    _write(made, options)
    if base is not None:
        _need_like(base, made, options)
    return 0 if all(one["met"] for one in made["objectives"]) else 5


def _wished(options: argparse.Namespace, labels: tuple[str, ...]) -> list[objectives.Objective]:
    wished = objectives.parse(options.slo, labels) if options.slo is not None else []
    for one in wished:
        if options.no_processes and one.needs_processes:
            raise UsageError(f"--slo {one.text!r}: {one.metric} is not measured with --no-processes")
    return wished


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """One artifact that is measured.

    Attributes:
        engine: name of the engine that runs it here.
    """

    opening: Opening
    manifest: Manifest
    engine: str

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.opening.model)


def _candidates(options: argparse.Namespace) -> list[_Candidate]:
    """The artifact of --model; then that of --beside, or its own float32 twin where there is one."""
    first = _candidate(find_model(options.model), options.threads, options.engine)
    beside = find_model(options.beside) if options.beside is not None else None
    if beside is None and not options.no_beside:
        beside = twin_of(first.path, first.manifest)
    if beside is None:
        return [first]
    engine = options.engine if beside.suffix == first.path.suffix else None
    # The pool of ExecuTorch belongs to the process that both share.
    found = [first, _candidate(beside, first.opening.threads, engine)]
    _need_alike([one.manifest for one in found])
    return found


def _candidate(path: Path, threads: int | None, engine: str | None) -> _Candidate:
    """Opened once, with its self-test, and closed again: every measurement opens it in a process of its own."""
    opened = open_engine(path, threads=threads, engine=engine)
    opening = Opening(model=str(path), threads=opened.threads, engine=engine)
    opened.close()
    return _Candidate(opening=opening, manifest=opened.manifest, engine=opened.name)


def _need_alike(manifests: Sequence[Manifest]) -> None:
    first, *others = manifests
    for other in others:
        if other.modalities != first.modalities:
            raise UsageError(
                f"--beside {other.name}: takes other inputs ({', '.join(other.names)}) than {first.name} "
                f"({', '.join(first.names)}), or of another form"
            )


def _subsets(text: str, manifest: Manifest) -> list[tuple[str, ...]]:
    """Small ones first; the last one is what objectives mean by default."""
    if text == "all":
        return list(subsets.all_subsets(manifest.names))
    wanted = {subsets.parse(part, manifest.names) for part in text.split(",")}
    return [subset for subset in subsets.all_subsets(manifest.names) if subset in wanted]


def _inputs(options: argparse.Namespace, rest: Sequence[str], manifest: Manifest) -> dict[str, Input]:
    """Files where `--NAME FILE` names them, generated samples else."""
    given = files_from(rest, manifest, "profile")
    return {**generated(manifest, picture=options.picture_size, seed=options.seed), **from_files(manifest, given)}


def _begin(
    options: argparse.Namespace,
    schedule: Schedule,
    candidates: Sequence[_Candidate],
    inputs: Mapping[str, Input],
    labels: Sequence[str],
) -> dict[str, Any]:
    """All of the report that is known before anything is measured, so that an unlike comparison costs no time."""
    versions = {status.name: status.detail for status in engine_status()}
    first, *others = candidates
    beside: dict[str, Any] | None = None
    if others:
        beside = {"engine": others[0].engine, "artifact": _artifact(others[0])}
    return {
        **report.head(),
        "artifact": _artifact(first),
        "device": asdict(device.describe()),
        "settings": {
            "mode": schedule.mode,
            "warmup": schedule.warmup,
            "runs": schedule.runs,
            "min_seconds": schedule.min_seconds,
            "processes": schedule.processes,
            "niceness": os.nice(0),
            "rate_hz": options.rate_hz or max(given.traits.rate_hz for given in inputs.values()),
            "threads": first.opening.threads,
            "threads_chosen": options.threads is None,
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
            "pause_ms": options.pause_ms,
            "engine": first.engine,
            "engine_version": versions.get(first.engine),
            "subsets": list(labels),
            "inputs": {name: f"{given.description}, {given.digest}" for name, given in inputs.items()},
            "beside": beside["artifact"]["sha256"] if beside else None,
        },
        "beside": beside,
    }


def _artifact(candidate: _Candidate) -> dict[str, Any]:
    return report.artifact(candidate.path.name, candidate.path.read_bytes(), candidate.manifest)


def _base(options: argparse.Namespace, made: Mapping[str, Any]) -> comparison.Report | None:
    """The report of --compare, refused before the measurement where it is unlike."""
    if options.compare is None:
        return None
    base = comparison.load(options.compare)
    _need_like(base, made, options)
    return base


def _need_like(base: comparison.Report, made: Mapping[str, Any], options: argparse.Namespace) -> None:
    unlike = comparison.differences(base, made)
    if unlike and not options.force:
        raise UsageError(f"--compare {options.compare}: unlike runs ({'; '.join(unlike)}); --force compares anyway")


def _measure(
    options: argparse.Namespace,
    schedule: Schedule,
    candidates: Sequence[_Candidate],
    inputs: Mapping[str, Input],
    wanted: Sequence[Sequence[str]],
) -> Repeated:
    plan = Plan(
        openings=[one.opening for one in candidates],
        inputs=inputs,
        subsets=wanted,
        schedule=schedule.of_each(),
        pause_s=options.pause_ms / 1000.0,
    )
    with _Bar(options) as bar:
        return repeat(plan, schedule.processes, progress=bar)


class _Bar:
    """A progress bar on stderr where that is a terminal, wiped in the end."""

    _WIDTH = 40

    def __init__(self, options: argparse.Namespace) -> None:
        self._shown = sys.stderr.isatty() and not options.quiet
        self._begin_s = time.monotonic()

    def __enter__(self) -> Callable[[float], None]:
        return self._show

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _show(self, share: float) -> None:
        if self._shown:
            done = round(share * self._WIDTH)
            elapsed_s = time.monotonic() - self._begin_s
            sys.stderr.write(f"\r[{'#' * done}{'.' * (self._WIDTH - done)}] {100 * share:3.0f} %  {elapsed_s:.0f} s")
            sys.stderr.flush()


def _add_rows(made: dict[str, Any], measured: Repeated, manifests: Sequence[Manifest], labels: Sequence[str]) -> None:
    deadline_ms = 1000.0 / made["settings"]["rate_hz"]
    made["elapsed_s"] = round(measured.elapsed_s, 3)
    made["conditions"] = {
        "start": measured.start,
        "peak": measured.peak,
        "end": measured.end,
        "preempted": measured.preempted,
        "slowed_down": device.slowed_down(measured.start, measured.peak, measured.end),
    }
    rows = [
        [row_of(label, side[label], manifest, deadline_ms) for label in labels]
        for side, manifest in zip(measured.series, manifests, strict=True)
    ]
    made["rows"] = rows[0]
    if len(rows) > 1:
        own, other = measured.series
        made["beside"]["rows"] = rows[1]
        made["beside"]["ratios"] = [_ratio(label, own[label], other[label], len(labels) - 1) for label in labels]
    made["sustained"] = None
    if made["settings"]["mode"] == "sustained":
        made["sustained"] = sustained(measured.series[0][labels[-1]])


def _ratio(label: str, own: Sequence[Series], other: Sequence[Series], beside: int) -> dict[str, Any]:
    totals = ([series.total_ms for series in side] for side in (own, other))
    found = paired_ratio(*totals, beside=beside)
    return {
        "subset": label,
        "p50_ms": quantile(together(own), 0.5),
        "beside_p50_ms": quantile(together(other), 0.5),
        "ratio": found.ratio,
        "interval": [found.low, found.high],
        "verdict": found.verdict,
    }


def _operators(options: argparse.Namespace, opening: Opening) -> dict[str, Any]:
    say("profile: operators, by the runtime's own profiler", options)
    return operators.describe(Path(opening.model), opening.engine, threads=opening.threads)


def _add_processes(
    made: dict[str, Any], options: argparse.Namespace, opening: Opening, inputs: Mapping[str, Input]
) -> None:
    """A stream, start-up and memory, in processes of their own, one after the other."""
    made["live"] = made["load"] = made["memory"] = None
    if options.no_processes:
        return
    say("profile: a stream, then start-up and memory, in processes of their own", options)
    seconds = _STREAM_S[options.mode]
    made["live"] = live.live_times(opening, inputs, rate_hz=options.rate_hz, seconds=seconds)
    few = {name: single(given.modality, given.frames[0].data) for name, given in inputs.items()}
    made["load"] = probe.load_times(opening, few)
    made["memory"] = probe.memory_use(opening, few)


def _finish(
    made: dict[str, Any],
    options: argparse.Namespace,
    base: comparison.Report | None,
    wished: list[objectives.Objective],
) -> None:
    """Everything that is said about the finished numbers."""
    made["comparison"] = None
    if base is not None:
        made["comparison"] = comparison.to_dict(base, made, options.compare, forced=options.force)
    made["objectives"] = [
        {"text": one.objective.text, "met": one.is_met, "value": one.value, "found": one.found}
        for one in objectives.findings(wished, made)
    ]


def _write(made: Mapping[str, Any], options: argparse.Namespace) -> None:
    try:
        # First: a file that cannot be written must not take the numbers with it.
        print("\n".join(report.as_text(made)), flush=True)
    except BrokenPipeError:
        # Who reads no further (`| head`) still wants the files, and the exit code of a missed objective.
        discard_stdout()
    finally:
        _write_files(made, options)


def _write_files(made: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Every file that was asked for, even if another one cannot be written."""
    with ExitStack() as written:
        if options.picture is not None:
            written.callback(picture.write, made, options.picture)
        if options.md is not None:
            written.callback(write_whole, options.md, report.as_markdown(made))
        if options.json is not None:
            written.callback(write_whole, options.json, json.dumps(made, indent=1, allow_nan=False) + "\n")
