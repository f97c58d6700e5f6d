"""Recording sensors without a model: nothing is decided, everything that arrives is kept."""

from __future__ import annotations

import glob
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mars_edge.errors import SensorError, UsageError
from mars_edge.faults import Fault
from mars_edge.modality import Modality
from mars_runtime.health import Ended
from mars_runtime.recording.recorder import Kept, Recorder
from mars_runtime.recording.session import Session
from mars_runtime.sensor_set import SensorSet
from mars_runtime.sensors.pictures import PICTURE_SUFFIXES, load_picture
from mars_runtime.sensors.simulated import RIG_MODALITIES, World
from mars_runtime.sensors.source import SensorSpec, check_names, make_drivers

_POLL_S = 0.1
_SOUND_HZ = 16000.0
_SOUND_WINDOW_S = 1.0
_RIG_SIZE = (112, 112)


def assumed_modality(spec: SensorSpec) -> Modality:
    """What a source feeds, told from the source alone: of a file by its content, else the usual.

    Cameras and streams are colour pictures; a microphone is mono at 16 kHz in windows of 1 s. Nothing is converted:
    a live sensor that gives something else is recorded as it is.

    Raises:
        UsageError: the name is no identifier, or the file cannot be read.
    """
    source, path = spec.source, Path(spec.source)
    if source.startswith("replay:"):
        return _recorded(spec)
    if source.startswith("audio:") or path.suffix.lower() == ".wav":
        rate_hz = _wav_rate_hz(path) if path.is_file() else _SOUND_HZ
        return Modality(name=spec.name, kind="audio", rate_hz=rate_hz, window_s=_SOUND_WINDOW_S)
    if source.startswith("sim:"):
        view = source.removeprefix("sim:") or spec.name
        if view not in RIG_MODALITIES:
            has = ", ".join(RIG_MODALITIES)
            raise UsageError(f"--sensor {spec.name}={source}: the simulated rig has no {view!r}; it has: {has}")
        return _image(spec.name, "uint16" if view == "depth" else "uint8", _RIG_SIZE, 3 if view == "rgb" else 1)
    picture = _first_picture(path)
    if picture is None:
        return _image(spec.name, "uint8", (480, 640), 3)
    return _of_picture(spec, picture)


def _recorded(spec: SensorSpec) -> Modality:
    from mars_runtime.recording.reader import open_recording

    path, _, name = spec.source.removeprefix("replay:").partition("#")
    modalities = open_recording(Path(path)).session.modalities
    name = name or spec.name
    if name not in modalities:
        raise UsageError(f"{path}: has no sensor {name!r}; its sensors: {', '.join(modalities)}")
    return replace(modalities[name], name=spec.name)


def _wav_rate_hz(path: Path) -> float:
    try:
        with wave.open(str(path), "rb") as file:
            return float(file.getframerate())
    except (wave.Error, EOFError, RuntimeError) as error:
        raise UsageError(f"{path}: not a readable PCM WAV file ({error or 'it ends early'})") from error


def _first_picture(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """The first picture of a file or a glob; None where the source is no picture."""
    found = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path))))  # noqa: PTH207
    if not found or found[0].suffix.lower() not in PICTURE_SUFFIXES:
        return None
    try:
        return load_picture(found[0])
    except SensorError as error:
        raise UsageError(str(error)) from error


def _of_picture(spec: SensorSpec, picture: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Modality:
    name, dtype = spec.name, picture.dtype.name
    if dtype not in ("uint8", "uint16", "float32"):
        raise UsageError(f"--sensor {name}={spec.source}: holds {dtype}, expected uint8, uint16 or float32")
    if spec.source.endswith(".npy") and picture.ndim <= 2:
        shape = {"length": picture.shape[0], **({"channels": picture.shape[1]} if picture.ndim == 2 else {})}
        kind = "vector" if picture.ndim == 1 else "sequence"
        return Modality.from_dict({"name": name, "kind": kind, "dtype": dtype, "range": [0.0, 1.0], **shape})
    return _image(name, dtype, picture.shape[:2], 1 if picture.ndim == 2 else picture.shape[2])


def _image(name: str, dtype: str, size: tuple[int, ...], channels: int) -> Modality:
    top = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    return Modality.from_dict(
        {"name": name, "kind": "image", "dtype": dtype, "range": [0.0, top], "channels": channels, "size": list(size)}
    )


class SensorLog:
    """Runs sensors and records what they give until stopped, or until every finite source has ended.

    Raises:
        UsageError: a bad source or fault, the file exists, or the packages are not installed.
    """

    def __init__(
        self,
        path: Path,
        specs: Sequence[SensorSpec],
        modalities: Mapping[str, Modality],
        *,
        faults: Sequence[Fault] = (),
        seed: int = 0,
    ) -> None:
        check_names(specs, list(modalities))
        world = World(seed, max((m.rate_hz for m in modalities.values() if m.kind == "image"), default=15.0))
        drivers = make_drivers(specs, modalities, world)
        health = {spec.name: spec.health for spec in specs}
        self._sensors = SensorSet(drivers, modalities, health=health, faults=faults, seed=seed)
        self.traits = self._sensors.traits
        self._path = path
        self._modalities = {name: modalities[name] for name in drivers}
        self._stopped = False
        self._ended: set[str] = set()

    def stop(self) -> None:
        """End `run` soon; callable from a signal handler."""
        self._stopped = True

    def run(self, *, max_seconds: float | None = None, progress: Callable[[float], None] = lambda s: None) -> Kept:
        """Record; what was kept in the end.

        Raises:
            MarsEdgeError: the disk failed.
        """
        session = Session(
            modalities=self._modalities,
            traits=dict(self.traits),
            utc_offset_s=time.time() - time.monotonic(),
        )
        recorder = Recorder(self._path, session)
        try:
            self._sensors.start()
            self._sensors.begin()
            while not self._stopped and (max_seconds is None or self._sensors.time_s() < max_seconds):
                self._sensors.doorbell.wait(_POLL_S)
                self._take(recorder)
                progress(self._sensors.time_s())
                if self._finished():
                    break
        finally:
            self._sensors.close()
            self._take(recorder)
            kept = recorder.close()
        return kept

    def _take(self, recorder: Recorder) -> None:
        for name, capture in self._sensors.captures.items():
            delivery = capture.take()
            if delivery.sample is not None or delivery.events:
                at_s = delivery.events[-1].at_s if delivery.events else time.monotonic()
                recorder.delivery(name, delivery, capture.traits, at_s)
            if any(isinstance(event, Ended) for event in delivery.events):
                self._ended.add(name)

    def _finished(self) -> bool:
        """Every finite source has ended and nothing but still images is left."""
        captures = self._sensors.captures.values()
        finite = [capture for capture in captures if capture.traits.finite]
        live = [capture for capture in captures if not (capture.traits.finite or capture.traits.static)]
        return bool(finite) and not live and len(self._ended) == len(finite)
