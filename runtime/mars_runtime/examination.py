"""What a sensor does when it is opened and listened to for some seconds: the numbers a diagnosis is made from."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import MarsEdgeError, SensorError, UsageError
from mars_edge.modality import Modality
from mars_runtime.capture import Sample
from mars_runtime.facts import FactFinder
from mars_runtime.fingerprint import strobe_period
from mars_runtime.health import SampleSeen
from mars_runtime.limits import SensorKind, kind_of
from mars_runtime.sensors.camera import parse_camera
from mars_runtime.sensors.driver import Driver, Frame, SourceEndedError, Traits
from mars_runtime.sensors.pace import Clock

FIRST_SAMPLE_S = 5.0
_READ_S = 0.1
# Samples kept for a fingerprint; 5 s of full HD colour would be a gigabyte.
MOST_KEPT_BYTES = 300 * 2**20
# Share of dark pixels that makes a picture dark, as in the fault table.
_DARK = 0.98
_SOUND_HZ = 16000.0
_DEPTH_MM = 4000.0
_SYSFS = Path("/sys/class/video4linux")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers of one sensor; None where the notion does not apply. Shares are 0..1, pixel levels 0..1 of the range.

    Attributes:
        error: why it could not be opened or read, in the driver's words; `gone` if the device is not there.
        misfit: how its samples differ from what the model wants.
        seconds: from its first to its last sample.
        repeated, unusable: shares of the samples.
        dark, flat, noise: medians, each sample judged by the best of its strobe period.
        phase_dark: share of the samples that are dark although others of their strobe period are not.
        depth: median of the pixels that have a depth, as a share of the modality's range.
        late_s: median time from the device's own stamp to receipt.
        slow_link: the link is slower than the device can use.
    """

    kind: SensorKind
    description: str
    nominal_hz: float
    error: str | None = None
    gone: bool = False
    misfit: str | None = None
    open_s: float | None = None
    samples: int = 0
    seconds: float = 0.0
    longest_gap_s: float = 0.0
    repeated: float = 0.0
    unusable: float = 0.0
    overflows: int = 0
    strobe_frames: int = 1
    brightness: float | None = None
    dark: float | None = None
    phase_dark: float = 0.0
    saturated: float | None = None
    flat: float | None = None
    noise: float | None = None
    invalid_depth: float | None = None
    depth: float | None = None
    zeros_s: float | None = None
    loudness_dbfs: float | None = None
    clipped: float | None = None
    late_s: float | None = None
    slow_link: bool = False

    @property
    def rate_hz(self) -> float | None:
        """Samples per second; None of fewer than two."""
        return (self.samples - 1) / self.seconds if self.samples > 1 and self.seconds > 0.0 else None


class Listener:
    """Follows one open sensor: facts of every sample, and the samples themselves up to 300 MiB.

    Args:
        modality: what a model wants of the sensor; None takes it from the first sample.
        stop: ends it early.
    """

    def __init__(
        self,
        driver: Driver,
        modality: Modality | None,
        *,
        keep: bool,
        clock: Clock,
        stop: threading.Event | None = None,
    ) -> None:
        self.modality = modality
        self.kept: list[Sample] = []
        self._given = modality is not None
        self._driver = driver
        self._keep = keep
        self._clock = clock
        self._stop = stop or threading.Event()
        self._finder: FactFinder | None = None
        self._kept_bytes = 0
        self._seen: list[SampleSeen] = []
        self._brightness: list[float] = []
        self._depths: list[float] = []
        self._overflows = 0
        self._misfit: str | None = None

    def listen(self, seconds: float) -> None:
        """Take every sample until `seconds` after the first, which may take 5 s.

        Raises:
            SensorError: the driver's, or no sample came.
        """
        until_s, first = self._clock() + FIRST_SAMPLE_S, True
        while (now_s := self._clock()) < until_s and not self._stop.is_set():
            frame = self._driver.read(min(_READ_S, until_s - now_s))
            if frame is not None:
                until_s = self._clock() + seconds if first else until_s
                first = False
                self._hear(frame)
                if frame.last:
                    return
        if first:
            raise SensorError(f"{self._driver.traits.description}: opens, but gave no sample in {FIRST_SAMPLE_S:g} s")

    def _hear(self, frame: Frame) -> None:
        at_s = self._clock()
        if self.modality is None:
            self.modality = modality_of(frame)
        if self._finder is None:
            self._finder = FactFinder.of(self.modality)
        self._seen.append(self._finder.facts(frame, self._driver.traits, at_s))
        self._overflows += "overflow" in frame.flags
        self._look(frame.data)
        if self._keep and self._kept_bytes < MOST_KEPT_BYTES:
            self.kept.append(Sample(frame=frame, at_s=at_s))
            self._kept_bytes += frame.data.nbytes

    def _look(self, data: NDArray[Any]) -> None:
        assert self.modality is not None
        if self._given and self._misfit is None:
            try:
                self.modality.preprocess(data)
            except UsageError as error:
                self._misfit = str(error)
        if data.dtype == np.uint8 and data.ndim >= 2:
            self._brightness.append(float(data[::4, ::4].mean()) / 255.0)
        elif data.dtype == np.uint16 and data.ndim >= 2:
            valid = data[::4, ::4][data[::4, ::4] > 0]
            if valid.size:
                self._depths.append(float(np.median(valid)) / self.modality.range[1])

    @property
    def traits(self) -> Traits:
        """Of the driver, as it read them back."""
        return self._driver.traits

    def numbers(self) -> dict[str, Any]:
        """What was heard, as fields of `Measured`."""
        seen = self._seen
        times_s = [each.at_s for each in seen]
        strobe = strobe_period([255.0 * value for value in self._brightness]) if self._brightness else 1
        dark = [each.dark for each in seen] if self._brightness else []
        late_s = [each.at_s - each.stamped_s for each in seen if each.stamped_s is not None]
        return {
            "misfit": self._misfit,
            "samples": len(seen),
            "seconds": times_s[-1] - times_s[0] if seen else 0.0,
            "longest_gap_s": float(np.diff(times_s).max()) if len(seen) > 1 else 0.0,
            "repeated": _share([each.repeated for each in seen]),
            "unusable": _share([not each.usable for each in seen]),
            "overflows": self._overflows,
            "strobe_frames": strobe,
            "brightness": _median(_best(self._brightness, strobe, max)),
            "dark": _median(_best(dark, strobe, min)),
            "phase_dark": _share([value >= _DARK for value in dark]),
            "saturated": _median([each.saturated for each in seen]),
            "flat": _median(_best([each.flat for each in seen if each.flat is not None], strobe, min)),
            "noise": _median(_best([each.noise for each in seen if each.noise is not None], strobe, min)),
            "invalid_depth": _median([each.invalid_depth for each in seen]) if self._is("depth") else None,
            "depth": _median(self._depths),
            "zeros_s": max((each.zeros_s for each in seen if each.zeros_s is not None), default=None),
            "loudness_dbfs": _median([each.loudness_dbfs for each in seen if each.loudness_dbfs is not None]),
            "clipped": _median([each.clipped for each in seen if each.clipped is not None]),
            "late_s": _median(late_s),
        }

    def _is(self, kind: SensorKind) -> bool:
        return self.modality is not None and kind_of(self.modality) == kind


def examine(
    driver: Driver,
    source: str,
    modality: Modality | None,
    *,
    seconds: float,
    keep: bool = False,
    clock: Clock = time.monotonic,
    sysfs: Path = _SYSFS,
    stop: threading.Event | None = None,
) -> tuple[Measured, Listener]:
    """Open, listen for `seconds` after the first sample, close; a `SensorError` is a finding and never raised.

    Args:
        stop: when it is set, the listening ends within 0.1 s.
    """
    listener, error, open_s, begin_s = (
        Listener(driver, modality, keep=keep, clock=clock, stop=stop),
        None,
        None,
        clock(),
    )
    try:
        driver.open()
        open_s = clock() - begin_s
        listener.listen(seconds)
    except SourceEndedError:
        pass
    except SensorError as failure:
        error = failure
    finally:
        driver.close()
    traits, found = driver.traits, listener.modality
    measured = Measured(
        kind="other" if found is None else kind_of(found),
        description=traits.description,
        nominal_hz=traits.rate_hz,
        error=None if error is None else str(error),
        gone=error is not None and error.gone,
        open_s=open_s,
        slow_link=slow_link(source, traits.description, sysfs),
        **listener.numbers(),
    )
    return measured, listener


def modality_of(frame: Frame) -> Modality:
    """What a sample looks like: sound, depth in mm up to 4 m, a grey or a coloured picture, else a sequence."""
    data = frame.data
    if data.ndim == 1:
        return Modality(name="sensor", kind="audio", rate_hz=_SOUND_HZ, window_s=max(data.size / _SOUND_HZ, 0.1))
    if data.dtype == np.uint16 and data.ndim == 2:
        return Modality(name="sensor", kind="image", size=data.shape, dtype="uint16", range=(0, _DEPTH_MM))
    if data.dtype == np.uint8:
        channels = data.shape[2] if data.ndim == 3 else 1
        return Modality(
            name="sensor", kind="image", size=data.shape[:2], channels=channels, dtype="uint8", range=(0, 255)
        )
    return Modality(name="sensor", kind="sequence", channels=data.shape[-1], length=data.shape[0])


def slow_link(source: str, description: str, sysfs: Path = _SYSFS) -> bool:
    """Whether a camera that knows USB 3 is connected by USB 2.

    A USB device that reports version 2.1 describes faster speeds than it now has (USB 3.2 specification, 9.2.6.6).
    Depth cameras' kits name the link themselves.
    """
    if re.search(r"USB (2(\.\d+)?|HIGH)\b", description):
        return True
    if not (source.isdigit() or source.startswith(("/dev/video", "v4l2:"))):
        return False
    try:
        node, _ = parse_camera(source.removeprefix("v4l2:"))
        device = (sysfs / node.name / "device").resolve().parent
        version, speed = (float((device / key).read_text()) for key in ("version", "speed"))
    except (OSError, ValueError, MarsEdgeError):
        return False
    return speed <= 480.0 and 2.1 <= version < 3.0


def _share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else 0.0


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _best(values: Sequence[float], frames: int, best: Any) -> list[float]:
    """The best of every `frames` values in a row."""
    if len(values) < frames:
        return list(values)
    return [best(values[end - frames : end]) for end in range(frames, len(values) + 1)]
