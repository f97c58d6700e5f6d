"""A microphone through PortAudio (python-sounddevice), as a stream of overlapping windows.

PortAudio's own thread calls us with every block and must not wait: a block goes into a ring, `read` takes it out. The
device runs at its own rate and is converted here, because drivers that convert often do it without a filter.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import sys
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import SensorError, UsageError
from mars_edge.modality import Modality
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.sensors.resample import Resampler
from mars_runtime.sensors.sound_system import why_no_input
from mars_runtime.sensors.wav import hop_s

_RING_S = 2.0
# Of PortAudio's buffer: more than its own "high" (35 ms), so that a busy machine loses nothing; a hop is 50 ms or more.
_LATENCY_S = 0.1
_LOST_S = 0.25
_DRIFT = 1e-3


def require_portaudio() -> None:
    """Refuse a microphone where it cannot work; loads nothing, since loading starts PortAudio, which may hang.

    Raises:
        UsageError: the package or the PortAudio library is not installed; says how to install it.
    """
    if importlib.util.find_spec("sounddevice") is None:
        raise UsageError("a microphone needs the package sounddevice: pip install 'mars-edge[audio]'")
    # On other systems the package brings the library.
    if sys.platform == "linux" and ctypes.util.find_library("portaudio") is None:
        raise UsageError("a microphone needs the PortAudio library: apt install libportaudio2")


def load_portaudio() -> Any:
    """The `sounddevice` module; its import looks for every device there is.

    Raises:
        SensorError: the package or the PortAudio library is not installed, or PortAudio does not start.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise SensorError("a microphone needs the package sounddevice: pip install 'mars-edge[audio]'") from error
    except OSError as error:
        raise SensorError("a microphone needs the PortAudio library: apt install libportaudio2") from error
    except Exception as error:
        # sounddevice's own PortAudioError is not importable before the import has succeeded.
        raise SensorError(f"PortAudio does not start: {_one_line(error)}") from error
    return sounddevice


def inputs(portaudio: Any) -> list[dict[str, Any]]:
    """Every device of PortAudio that gives sound, as PortAudio describes it."""
    return [device for device in portaudio.query_devices() if device["max_input_channels"] > 0]


class Ring:
    """The newest seconds of sound between PortAudio's thread and ours; what does not fit is lost and counted."""

    def __init__(self, samples: int) -> None:
        self._samples = np.zeros(samples, np.float32)
        self._heard = threading.Condition()
        self._written = 0
        self._taken = 0
        self._newest_s: float | None = None
        self._overflowed = False
        self.overflows = 0

    def put(self, block: NDArray[np.float32], newest_s: float | None, *, overflowed: bool) -> None:
        """Append a block, (T,); `newest_s` is when its last sample was heard, where that is known."""
        with self._heard:
            lost = self._written + block.size - self._taken - self._samples.size
            if lost > 0:
                self._taken += lost
            if lost > 0 or overflowed:
                self.overflows += 1
                self._overflowed = True
            self._written += block.size
            kept = block[-self._samples.size :]
            self._samples[(self._written - kept.size + np.arange(kept.size)) % self._samples.size] = kept
            self._newest_s = newest_s
            self._heard.notify()

    def take(self, count: int, timeout_s: float) -> tuple[NDArray[np.float32], float | None, bool] | None:
        """The oldest `count` samples, seconds from the newest sample's time, whether sound before them was lost."""
        with self._heard:
            if not self._heard.wait_for(lambda: self._written - self._taken >= count, timeout_s):
                return None
            at = (self._taken + np.arange(count)) % self._samples.size
            block = self._samples[at]
            self._taken += count
            overflowed, self._overflowed = self._overflowed, False
            return block, self._newest_s, overflowed

    @property
    def waiting(self) -> int:
        """Samples not yet taken."""
        with self._heard:
            return self._written - self._taken


class Arrival:
    """The clock that counts samples, against the monotonic one, by the least delay that was seen.

    PortAudio's own time stamps are guesses of the host and jump. Sound that is lost without a word shows here: the
    samples fall behind by more than clocks drift.
    """

    def __init__(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self._heard_s = 0.0
        self._least_late_s: float | None = None

    def lost(self, count: int, now_s: float) -> bool:
        """Whether `count` samples that arrive now are over 0.25 s too few; each loss is told once."""
        self._heard_s += count / self._rate_hz
        late_s = now_s - self._heard_s
        if self._least_late_s is None or late_s < self._least_late_s:
            self._least_late_s = late_s
        if late_s - self._least_late_s > _LOST_S:
            self._least_late_s = late_s
            return True
        self._least_late_s += _DRIFT * count / self._rate_hz
        return False

    @property
    def newest_s(self) -> float | None:
        """When the last sample of the last block was heard, or up to the least delay later; None before the first."""
        return None if self._least_late_s is None else self._heard_s + self._least_late_s


class Microphone:
    """The newest window of a live input, every hop; nothing is handed out before one window is full.

    A frame carries the flag "overflow" when sound was lost before its newest hop; `captured_s` counts samples.
    """

    def __init__(self, device: str, modality: Modality) -> None:
        self._device: int | str | None = int(device) if device.isdigit() else device or None
        self._rate_hz = round(modality.rate_hz)
        self._window_samples = modality.window_samples
        self._hop_s = hop_s(modality.window_samples / modality.rate_hz)
        self._portaudio: Any = None
        self._stream: Any = None
        self._ring = Ring(1)
        self._block = 1
        self._arrival = Arrival(self._rate_hz)
        self._device_hz = self._rate_hz
        self._resampler = Resampler(self._rate_hz, self._rate_hz)
        self._window = np.zeros(0, np.float32)
        self.overflows = 0
        self.traits = Traits(
            description=f"microphone {device or '(default)'}",
            rate_hz=1.0 / self._hop_s,
            raw=True,
            start_grace_s=2.0,
        )

    def open(self) -> None:
        """Start a mono float32 input stream at the device's own rate, at the modality's where that is refused.

        Raises:
            SensorError: no such device, or it refuses both.
        """
        self.close()
        self._portaudio = portaudio = load_portaudio()
        # PortAudio lists devices once, when it starts; a device plugged in later needs a fresh start.
        portaudio._terminate()
        portaudio._initialize()
        try:
            found = portaudio.query_devices(self._device, "input")
            self._start(found)
        except (portaudio.PortAudioError, ValueError) as error:
            self.close()
            cause = _cause(error) if inputs(portaudio) else f"no sound input: {why_no_input()}"
            raise SensorError(f"{self.traits.description}: {cause}", gone=True) from error
        self.traits = Traits(
            description=self.traits.description,
            rate_hz=self._device_hz / self._block,
            raw=True,
            start_grace_s=2.0,
            identity=str(found["name"]),
        )

    def _start(self, found: dict[str, Any]) -> None:
        rates = dict.fromkeys([round(found["default_samplerate"]), self._rate_hz])
        channels = [count for count in (1, 2) if count <= max(1, found["max_input_channels"])]
        refusal: Exception | None = None
        for rate_hz, count in ((rate_hz, count) for rate_hz in rates for count in channels):
            self._prepare(rate_hz)
            try:
                self._stream = self._portaudio.InputStream(
                    samplerate=rate_hz,
                    channels=count,
                    dtype="float32",
                    device=self._device,
                    latency=_LATENCY_S,
                    callback=self._hear,
                )
                self._stream.start()
                return
            except self._portaudio.PortAudioError as error:
                self.close()
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def _prepare(self, device_hz: int) -> None:
        self._device_hz = device_hz
        self._resampler = Resampler(device_hz, self._rate_hz)
        self._block = max(1, round(self._hop_s * device_hz))
        self._ring = Ring(round(_RING_S * device_hz))
        self._arrival = Arrival(device_hz)
        self._window = np.zeros(0, np.float32)

    def _hear(self, block: NDArray[np.float32], count: int, times: Any, status: Any) -> None:
        """In PortAudio's thread: copy, and out."""
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        lost = self._arrival.lost(count, time.monotonic())
        self._ring.put(mono, self._arrival.newest_s, overflowed=bool(status.input_overflow) or lost)

    def read(self, timeout_s: float) -> Frame | None:
        """The newest full window, (T,) float32, once per hop.

        Raises:
            SensorError: the stream has stopped.
        """
        if self._stream is None:
            raise SensorError(f"{self.traits.description}: read before open")
        until_s = time.monotonic() + timeout_s
        while True:
            taken = self._ring.take(self._block, max(0.0, until_s - time.monotonic()))
            if taken is None:
                self._raise_if_stopped()
                return None
            if (frame := self._append(*taken)) is not None:
                return frame

    def _raise_if_stopped(self) -> None:
        try:
            active = self._stream.active
        except self._portaudio.PortAudioError as error:
            raise SensorError(f"{self.traits.description}: {_cause(error)}") from error
        if not active:
            raise SensorError(f"{self.traits.description}: the device or its sound server has gone", gone=True)

    def _append(self, block: NDArray[np.float32], newest_s: float | None, overflowed: bool) -> Frame | None:
        self.overflows += int(overflowed)
        fresh = self._resampler.push(block)
        self._window = np.concatenate([self._window, fresh])[-self._window_samples :]
        if self._window.size < self._window_samples:
            return None
        waiting_s = self._ring.waiting / self._device_hz
        return Frame(
            data=self._window,
            captured_s=None if newest_s is None else newest_s - waiting_s,
            flags=frozenset({"overflow"} if overflowed else ()),
        )

    def close(self) -> None:
        """Stop and release the stream."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close(ignore_errors=True)


def _cause(error: Exception) -> str:
    """PortAudio's words, with what a person can do about them."""
    text = _one_line(error)
    hints = {
        "Device unavailable": "another program has it, or its sound server does not answer",
        "No input device matching": "`mars-edge devices` lists those there are",
        "Error querying device": "`mars-edge devices` lists those there are",
        "Invalid device": "`mars-edge devices` lists those there are",
    }
    hint = next((hint for words, hint in hints.items() if words in text), None)
    return text if hint is None else f"{text}: {hint}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
