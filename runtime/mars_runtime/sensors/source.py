"""From what the user wrote (`depth=frames/*.png`, a TOML table) to a driver."""

from __future__ import annotations

import glob
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from numpy.typing import NDArray

from mars_edge.errors import MarsEdgeError, SensorError, UsageError
from mars_edge.modality import Modality
from mars_runtime import fingerprint
from mars_runtime.sensors.camera import Camera, parse_camera
from mars_runtime.sensors.camera_node import require_node
from mars_runtime.sensors.depth_camera import KITS, Place, make_depth_camera, parse_place
from mars_runtime.sensors.driver import Driver
from mars_runtime.sensors.isolated import IsolatedDriver
from mars_runtime.sensors.network_camera import NetworkCamera
from mars_runtime.sensors.pictures import PICTURE_SUFFIXES, PictureSequence, StillPicture, load_picture
from mars_runtime.sensors.realsense import RECORDINGS
from mars_runtime.sensors.simulated import RIG_MODALITIES, SimulatedSensor, World
from mars_runtime.sensors.video import VIDEO_SUFFIXES, VideoFile
from mars_runtime.sensors.vision import hushed
from mars_runtime.sensors.wav import WavFile, load_wav

ALLOWED = (
    "sim:, a camera index or /dev/videoN, v4l2:/dev/videoN?format=Y16, an image, video or .wav file, "
    "a glob such as 'frames/*.png', http:// https:// rtsp:// rtmp://, audio:NAME-or-index, "
    "replay:FILE#SENSOR, realsense:SERIAL/depth, depthai:ID/rgb, orbbec:SERIAL/depth"
)
_STREAM_SCHEMES = ("http", "https", "rtsp", "rtmp")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")


@dataclass(frozen=True, kw_only=True)
class SensorSpec:
    """One `--sensor NAME=SOURCE` or one `[sensor.NAME]` table.

    Attributes:
        health: overrides of `mars_runtime.health.Limits` by field name.
    """

    name: str
    source: str
    rate_hz: float | None = None
    health: Mapping[str, Any] = field(default_factory=dict)


def parse_flag(text: str) -> SensorSpec:
    """The spec of `NAME=SOURCE`.

    Raises:
        UsageError: no "=", or an empty side.
    """
    name, equals, source = text.partition("=")
    if not (equals and name.strip() and source.strip()):
        raise UsageError(f"--sensor {text!r} is not NAME=SOURCE, e.g. depth=sim: or rgb=0")
    return SensorSpec(name=name.strip(), source=source.strip())


def load_table(path: Path) -> list[SensorSpec]:
    """The specs of a TOML file with one `[sensor.NAME]` table per sensor.

    Raises:
        UsageError: missing or malformed file, or an unknown key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--sensors {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--sensors {path}: not TOML: {error}") from error
    _only_keys(table, ("sensor",), f"--sensors {path}")
    entries = table.get("sensor", {})
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UsageError(f"--sensors {path}: expected one [sensor.NAME] table per sensor")
    return [
        _table_entry(name, entry, f"--sensors {path}: sensor.{name}", path.parent) for name, entry in entries.items()
    ]


def _table_entry(name: str, entry: Mapping[str, Any], where: str, folder: Path) -> SensorSpec:
    _only_keys(entry, ("source", "rate_hz", "fingerprint", "health"), where)
    source, rate_hz, health = entry.get("source"), entry.get("rate_hz"), entry.get("health", {})
    if not isinstance(source, str) or not source:
        raise UsageError(f"{where}: source is {source!r}, expected one of: {ALLOWED}")
    if rate_hz is not None and not (type(rate_hz) in (int, float) and 0 < rate_hz <= 1000):
        raise UsageError(f"{where}: rate_hz is {rate_hz!r}, expected a number above 0, up to 1000")
    if not isinstance(health, dict):
        raise UsageError(f"{where}: health is {health!r}, expected a table")
    if "fingerprint" in entry:
        # What the user sets himself stands above what was learned.
        health = {**_learned(entry["fingerprint"], where, folder), **health}
    return SensorSpec(name=name, source=source, rate_hz=None if rate_hz is None else float(rate_hz), health=health)


def _learned(value: object, where: str, folder: Path) -> dict[str, Any]:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: fingerprint is {value!r}, expected a file that `mars-edge doctor --learn` wrote")
    return fingerprint.overrides(fingerprint.load(folder / value))


def _only_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(known)}")


def check_names(specs: Sequence[SensorSpec], modalities: Sequence[str]) -> None:
    """Every spec names a modality of the model, none twice.

    Raises:
        UsageError: an unknown or repeated name.
    """
    seen: set[str] = set()
    for spec in specs:
        if spec.name not in modalities:
            raise UsageError(f"unknown sensor {spec.name!r}; this model has: {', '.join(modalities)}")
        if spec.name in seen:
            raise UsageError(
                f"sensor {spec.name!r} is given twice; each of {', '.join(modalities)} may have one source"
            )
        seen.add(spec.name)


def make_drivers(specs: Sequence[SensorSpec], modalities: Mapping[str, Modality], world: World) -> dict[str, Driver]:
    """By sensor, the drivers of sources that run together: the channels of one camera share one opening of it.

    Raises:
        UsageError: as `make_driver`; or two sensors name one channel of one camera.
    """
    places = {spec.name: _place(spec, modalities[spec.name]) for spec in specs if _kit(spec.source)}
    cameras: dict[tuple[str, str], dict[Place, float]] = {}
    for spec in specs:
        if spec.name in places:
            place = places[spec.name]
            rates_hz = cameras.setdefault(place.camera, {})
            if place.channel in {other.channel for other in rates_hz}:
                where = f"--sensor {spec.name}={spec.source}"
                raise UsageError(f"{where}: {place.channel} of this camera feeds another sensor; a channel feeds one")
            rates_hz[place] = _rate_hz(spec, modalities[spec.name])
    shared = {place: driver for camera in cameras.values() for place, driver in make_depth_camera(camera).items()}
    return {
        spec.name: shared[places[spec.name]] if spec.name in places else make_driver(spec, modalities[spec.name], world)
        for spec in specs
    }


def make_driver(spec: SensorSpec, modality: Modality, world: World) -> Driver:
    """The driver of one source that runs alone, not yet opened; `world` is what `sim:` sources look at.

    Raises:
        UsageError: unknown scheme, missing file, or a source of the wrong kind for the modality.
    """
    source = spec.source
    if source.startswith("sim:"):
        return _simulated(spec, modality, world)
    if source.startswith("audio:"):
        return _microphone(spec, modality)
    if source.startswith("replay:"):
        return _replay(spec)
    if source.isdigit() or source.startswith(("/dev/video", "v4l2:")):
        return _camera(spec, modality)
    if _kit(source):
        place = _place(spec, modality)
        return make_depth_camera({place: _rate_hz(spec, modality)})[place]
    scheme = _SCHEME.match(source)
    if scheme is not None and not Path(source).exists():
        return _stream(spec, modality, scheme.group(1).lower())
    return _file(spec, modality)


def _rate_hz(spec: SensorSpec, modality: Modality) -> float:
    return spec.rate_hz or (15.0 if modality.kind == "audio" else modality.rate_hz)


def _need_kind(spec: SensorSpec, modality: Modality, kinds: Sequence[str], what: str) -> None:
    if modality.kind not in kinds:
        raise UsageError(
            f"--sensor {spec.name}={spec.source}: {what} cannot feed {spec.name}, which is {modality.kind}"
        )


def _simulated(spec: SensorSpec, modality: Modality, world: World) -> Driver:
    view = spec.source.removeprefix("sim:") or modality.name
    if view not in RIG_MODALITIES:
        has = ", ".join(RIG_MODALITIES)
        raise UsageError(f"--sensor {spec.name}={spec.source}: the simulated rig has no {view!r}; it has: {has}")
    return SimulatedSensor(world, view)


def _microphone(spec: SensorSpec, modality: Modality) -> Driver:
    from mars_runtime.sensors.microphone import Microphone, require_portaudio

    _need_kind(spec, modality, ("audio",), "a microphone")
    require_portaudio()
    # A sound server that hangs hangs every call of PortAudio, its start and its close too.
    return IsolatedDriver(partial(Microphone, spec.source.removeprefix("audio:"), modality))


def _replay(spec: SensorSpec) -> Driver:
    from mars_runtime.recording.channel import is_empty, open_channel

    path, _, name = spec.source.removeprefix("replay:").partition("#")
    if not path:
        raise UsageError(
            f"--sensor {spec.name}={spec.source}: a recorded sensor is replay:FILE#SENSOR, e.g. replay:run.mcap#depth"
        )
    driver = open_channel(path, name or spec.name)
    if is_empty(path, name or spec.name):
        raise UsageError(f"--sensor {spec.name}={spec.source}: the recording holds nothing of {name or spec.name}")
    return driver


def _camera(spec: SensorSpec, modality: Modality) -> Driver:
    _need_kind(spec, modality, ("image",), "a camera")
    try:
        node, settings = parse_camera(spec.source.removeprefix("v4l2:"))
    except UsageError as error:
        raise UsageError(f"--sensor {spec.name}={spec.source}: {error}") from error
    make = partial(Camera, node, rate_hz=_rate_hz(spec, modality), settings=settings)
    return IsolatedDriver(make, check=partial(require_node, node))


def _kit(source: str) -> str:
    """The scheme of a camera behind a vendor's kit; empty for any other source."""
    scheme = _SCHEME.match(source)
    return scheme.group(1) if scheme is not None and scheme.group(1) in KITS else ""


def _place(spec: SensorSpec, modality: Modality) -> Place:
    _need_kind(spec, modality, ("image",), "a camera")
    scheme = _kit(spec.source)
    try:
        place = parse_place(scheme, spec.source.removeprefix(f"{scheme}:"))
    except UsageError as error:
        raise UsageError(f"--sensor {spec.name}={spec.source}: {error}") from error
    if scheme == "realsense" and place.device.endswith(RECORDINGS):
        _need_recording(Path(place.device), f"--sensor {spec.name}={spec.source}")
    return place


def _need_recording(path: Path, where: str) -> None:
    """A file is the user's choice: a missing or a wrong one is refused before anything starts."""
    if not path.is_file():
        raise UsageError(f"{where}: no such file")
    with path.open("rb") as file:
        head = file.read(16)
    # The file headers of SQLite, which rosbag2 keeps its messages in, and of rosbag 1.
    if not head.startswith((b"SQLite format 3\0", b"#ROSBAG V2.0")):
        raise UsageError(f"{where}: is no recording of a RealSense camera")


def _stream(spec: SensorSpec, modality: Modality, scheme: str) -> Driver:
    if scheme not in _STREAM_SCHEMES:
        raise UsageError(f"--sensor {spec.name}={spec.source}: unknown source {scheme + ':'!r}; allowed: {ALLOWED}")
    _need_kind(spec, modality, ("image",), "a video stream")
    if not urlsplit(spec.source).hostname:
        raise UsageError(f"--sensor {spec.name}={spec.source}: names no host")
    return IsolatedDriver(partial(NetworkCamera, spec.source, rate_hz=_rate_hz(spec, modality)))


def _file(spec: SensorSpec, modality: Modality) -> Driver:
    path, where = Path(spec.source), f"--sensor {spec.name}={spec.source}"
    if not path.exists() and glob.has_magic(spec.source):
        return _sequence(spec, modality)
    if path.is_dir():
        raise UsageError(f"{where}: is a folder; name its files, e.g. '{path}/*.png'")
    if not path.is_file():
        raise UsageError(f"{where}: no such file; allowed: {ALLOWED}")
    suffix = path.suffix.lower()
    if suffix == ".wav":
        _need_kind(spec, modality, ("audio",), "a wav file")
        _check_first(modality, lambda: load_wav(path, modality.rate_hz), where)
        return WavFile(path, modality)
    if suffix in PICTURE_SUFFIXES:
        _need_kind(spec, modality, _picture_kinds(suffix), f"a {suffix} file")
        _check_first(modality, lambda: load_picture(path), where)
        return StillPicture(path, rate_hz=_rate_hz(spec, modality))
    if suffix in VIDEO_SUFFIXES:
        _need_kind(spec, modality, ("image",), "a video file")
        return _video(path, _rate_hz(spec, modality), where)
    if suffix == ".mcap":
        raise UsageError(f"{where}: is a recording; name its sensor: --sensor {spec.name}=replay:{path}#{spec.name}")
    if suffix in RECORDINGS:
        raise UsageError(f"{where}: is a recording; name its stream: --sensor {spec.name}=realsense:{path}/depth")
    known = ", ".join((*PICTURE_SUFFIXES, *VIDEO_SUFFIXES, ".wav"))
    raise UsageError(f"{where}: unknown file type {suffix!r}; known: {known}")


def _check_first(modality: Modality, load: Callable[[], NDArray[Any]], where: str) -> None:
    """Files are the user's choice, so a wrong one is refused before anything starts."""
    try:
        with hushed():
            sample = load()
        modality.preprocess(sample)
    except MarsEdgeError as error:
        raise UsageError(f"{where}: {error}") from error


def _video(path: Path, rate_hz: float, where: str) -> VideoFile:
    driver = VideoFile(path, rate_hz=rate_hz)
    try:
        with hushed():
            driver.open()
    except SensorError as error:
        raise UsageError(f"{where}: {error}") from error
    return driver


def _picture_kinds(suffix: str) -> Sequence[str]:
    return ("image", "sequence", "vector") if suffix == ".npy" else ("image",)


def _sequence(spec: SensorSpec, modality: Modality) -> Driver:
    where = f"--sensor {spec.name}={spec.source}"
    # Path.glob refuses absolute patterns.
    matches = glob.glob(spec.source)  # noqa: PTH207
    paths = sorted(map(Path, matches), key=_natural)
    if not paths:
        raise UsageError(f"{where}: no file matches")
    odd = [path for path in paths if path.suffix.lower() not in PICTURE_SUFFIXES]
    if odd:
        raise UsageError(f"{where}: {odd[0].name} is no image; known: {', '.join(PICTURE_SUFFIXES)}")
    for suffix in {path.suffix.lower() for path in paths}:
        _need_kind(spec, modality, _picture_kinds(suffix), f"a sequence of {suffix} files")
    _check_first(modality, lambda: load_picture(paths[0]), where)
    return PictureSequence(paths, pattern=spec.source, rate_hz=_rate_hz(spec, modality))


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
