"""Options the device commands share, and what they stand for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from mars_edge.errors import UsageError
from mars_edge.faults import Fault, parse_fault
from mars_edge.manifest import Manifest, Policy
from mars_edge.options import OneLineParser, positive
from mars_runtime import policy
from mars_runtime.engines import Engine, open_engine
from mars_runtime.pipeline import Settings
from mars_runtime.region import RegionSettings, load_calibration
from mars_runtime.sensors.source import ALLOWED, SensorSpec, load_table, parse_flag
from mars_runtime.sinks import Sink
from mars_runtime.stream import Stream, default_specs

RATE_HZ = positive(float, least=0.001, most=1000)
# What the native engine takes; a C int would wrap silently.
MOST_THREADS = 256


def add_engine_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Which model, and how it is executed."""
    add = parser.add_argument
    add("--model", required=required, metavar="FILE", help="a .pte or .onnx file, or the name of a bundled model")
    threads = "threads of the engine, 1 to 256; default: by MACs"
    add("--threads", type=positive(int, most=MOST_THREADS), metavar="N", help=threads)
    add("--engine", metavar="NAME", help="executorch-native, executorch-python or onnxruntime; default: the best there")
    add("--no-self-test", action="store_true", help="skip the model's golden input at start")


def open_from(options: argparse.Namespace) -> Engine:
    """The engine those options describe; errors as `open_engine`."""
    return open_engine(
        options.model, threads=options.threads, engine=options.engine, self_test=not options.no_self_test
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Which sensors, broken how, and for how long."""
    add = parser.add_argument
    add("--sensor", action="append", default=[], metavar="NAME=SOURCE", help=f"repeatable; SOURCE is {ALLOWED}")
    add("--sensors", type=Path, metavar="FILE.toml", help="the same as a file: one [sensor.NAME] table each")
    add("--inject", action="append", default=[], metavar="NAME=FAULT@START+LENGTH", help="break a sensor; repeatable")
    add("--max-seconds", type=positive(float), metavar="S", help="stop this long after the first decision")
    add(
        "--seed",
        type=positive(int, zero=True),
        default=0,
        help="of the simulated rig and the injected faults (default 0)",
    )
    add("--quiet", action="store_true", help="nothing on stderr but errors")


def given_specs(options: argparse.Namespace) -> list[SensorSpec]:
    """The sources those options name; empty where they name none."""
    given = [parse_flag(text) for text in options.sensor]
    if options.sensors is not None:
        given += load_table(options.sensors)
        if not given:
            raise UsageError(f"--sensors {options.sensors}: no [sensor.NAME] table in it")
    return given


def specs_from(options: argparse.Namespace, manifest: Manifest) -> list[SensorSpec]:
    """The sources those options name, or the simulated rig for every modality."""
    return given_specs(options) or default_specs(manifest)


def flags_of(manifest: Manifest) -> str:
    """How samples of this model are given: "--rgb, --depth, --ir"."""
    return ", ".join(f"--{name}" for name in manifest.names)


def files_from(rest: Sequence[str], manifest: Manifest, command: str) -> dict[str, Path]:
    """The files of `--NAME FILE` and `--NAME=FILE`; the names come from the model, so argparse cannot know them.

    Raises:
        UsageError: an argument of another form, a modality twice, or no such file.
    """
    found: dict[str, Path] = {}
    words = iter(word for item in rest for word in (item.split("=", 1) if item.startswith("--") else [item]))
    for flag in words:
        if not flag.startswith("--") or flag[2:] not in manifest.names:
            raise UsageError(f"{command}: unknown argument {flag!r}; {manifest.name} takes: {flags_of(manifest)}")
        path = next(words, None)
        if path is None or not Path(path).is_file():
            raise UsageError(f"{command}: {flag} {path or ''}: no such file".replace(" :", ":"))
        if flag[2:] in found:
            raise UsageError(f"{command}: {flag} is given twice; allowed: once")
        found[flag[2:]] = Path(path)
    return found


def faults_from(options: argparse.Namespace, specs: Sequence[SensorSpec]) -> list[Fault]:
    """The faults of `--inject`.

    Raises:
        UsageError: an unknown sensor or fault, or one that begins when all is over.
    """
    faults = [parse_fault(text, [spec.name for spec in specs]) for text in options.inject]
    for fault in faults:
        if options.max_seconds is not None and fault.start_s >= options.max_seconds:
            raise UsageError(f"--inject {fault}: would break nothing, since --max-seconds is {options.max_seconds:g}")
    return faults


def given(options: argparse.Namespace, *groups: Callable[[argparse.ArgumentParser], None]) -> list[str]:
    """The flags of these groups of options that were given another value than their default."""
    parser = OneLineParser(add_help=False)
    for add_group in groups:
        add_group(parser)
    defaults = vars(parser.parse_args([]))
    changed = [name for name, default in defaults.items() if getattr(options, name) != default]
    return [f"--{name.replace('_', '-')}" for name in changed]


def add_loop_options(parser: argparse.ArgumentParser) -> None:
    """When decisions are made."""
    add = parser.add_argument
    add("--rate-hz", type=RATE_HZ, metavar="HZ", help="decisions per second, up to 1000")
    add("--newest", action="store_true", help="decide on every new sample, at most --rate-hz (60) times a second")
    add("--deadline-ms", type=positive(float), metavar="MS", help="abstain when a decision comes later than this")


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    """What may be decided; without --unsafe only stricter than the model's own policy."""
    add = parser.add_argument
    add("--require", action="append", default=[], metavar="NAMES", help="abstain without one of these, e.g. 'depth|ir'")
    add("--on-missing", choices=policy.ON_MISSING, help="what a missing sensor means; only stricter than the model's")
    add(
        "--latch",
        type=positive(float),
        default=0.0,
        metavar="S",
        help="decide nothing for S seconds after a sensor that liveness depends on went missing",
    )
    add("--unsafe", action="store_true", help="let --on-missing loosen, and decide on uncertified subsets")


def add_region_options(parser: argparse.ArgumentParser) -> None:
    """What of every picture is decided on."""
    add = parser.add_argument
    add("--region", choices=("none", "face"), default="none", help="crop pictures to the face; without one it abstains")
    add("--face-model", metavar="YUNET.onnx", help="finds the face; default: the Haar cascade that OpenCV brings")
    add("--calibration", type=Path, metavar="FILE.toml", help="where sensors see what: [sensor.NAME] to_reference")


def region_from(options: argparse.Namespace) -> RegionSettings | None:
    """How faces are looked for; None without --region face.

    Raises:
        UsageError: an option that has no meaning without it, or a calibration that cannot be read.
    """
    if options.region == "none":
        given = {"--face-model": options.face_model, "--calibration": options.calibration}
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name} has no meaning without --region face")
        return None
    matrices = {} if options.calibration is None else load_calibration(options.calibration)
    return RegionSettings(yunet=options.face_model, to_reference=matrices)


def add_map_options(parser: argparse.ArgumentParser) -> None:
    """Where the answers of a segmentation go."""
    what = "segmentation: write the map of each decision as PNG, and an overlay"
    parser.add_argument("--maps", type=folder, metavar="DIR", help=what)


def maps_from(options: argparse.Namespace, stream: Stream) -> list[Sink]:
    """The sink of `--maps`, if it was given.

    Raises:
        UsageError: the model is no segmentation, or the folder cannot be made.
    """
    if options.maps is None:
        return []
    manifest = stream.manifest
    if manifest.task != "segmentation":
        raise UsageError(f"--maps: {manifest.name} answers with a label ({manifest.task}), not with a map")
    from mars_runtime.maps import MapFiles

    camera = next((m.name for m in manifest.modalities if m.kind == "image" and m.name in stream.traits), None)
    return [MapFiles(options.maps, None if camera is None else (lambda: stream.latest(camera)))]


def folder(text: str) -> Path:
    """An argparse type: a folder that is named; the current one must be written as a dot."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no folder")
    return Path(text)


def policy_from(options: argparse.Namespace, manifest: Manifest) -> Policy:
    """The model's policy, tightened as those options wish."""
    return policy.stricter(
        manifest.policy,
        manifest.names,
        require=options.require,
        on_missing=options.on_missing,
        unsafe=options.unsafe,
    )


def settings_from(options: argparse.Namespace, manifest: Manifest, specs: Sequence[SensorSpec]) -> Settings:
    """How the loop runs by those options."""
    return Settings(
        rate_hz=options.rate_hz,
        newest=options.newest,
        deadline_s=None if options.deadline_ms is None else options.deadline_ms / 1000.0,
        policy=policy_from(options, manifest),
        allow_uncertified=options.unsafe,
        latch_s=options.latch,
        health={spec.name: spec.health for spec in specs},
        region=region_from(options) if "region" in options else None,
    )
