"""A microphone through PortAudio (python-sounddevice), as a stream of overlapping windows."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from mars_edge.errors import SensorError, UsageError
from mars_edge.modality import Modality
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.sensors.wav import hop_s

_POLL_S = 0.005


def load_portaudio() -> Any:
    """The `sounddevice` module.

    Raises:
        UsageError: the package or the PortAudio library is not installed; says how to install it.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise UsageError("a microphone needs the package sounddevice: pip install sounddevice") from error
    except OSError as error:
        raise UsageError("a microphone needs the PortAudio library: apt install libportaudio2") from error
    return sounddevice


class Microphone:
    """The newest window of a live input, every hop; nothing is handed out before one window is full.

    Blocking reads only: PortAudio's own thread fills its buffer, this class starts none.
    """

    def __init__(self, device: str, modality: Modality) -> None:
        self._portaudio = load_portaudio()
        self._device: int | str | None = int(device) if device.isdigit() else device or None
        self._rate_hz = modality.rate_hz
        self._hop = max(1, round(hop_s(modality.window_samples / modality.rate_hz) * modality.rate_hz))
        self._window = np.zeros(modality.window_samples, np.float32)
        self._filled = 0
        self._stream: Any = None
        self.overflows = 0
        self.traits = Traits(
            description=f"microphone {device or '(default)'}",
            rate_hz=modality.rate_hz / self._hop,
            raw=True,
            start_grace_s=2.0,
        )

    def open(self) -> None:
        """Start a mono float32 input stream at the modality's rate.

        Raises:
            SensorError: no such device, or it refuses the rate.
        """
        self._filled = 0
        # PortAudio lists devices once, when it starts; a device plugged in later needs a fresh start.
        self._portaudio._terminate()
        self._portaudio._initialize()
        try:
            self._stream = self._portaudio.InputStream(
                samplerate=self._rate_hz, channels=1, dtype="float32", device=self._device
            )
            self._stream.start()
        except (self._portaudio.PortAudioError, ValueError) as error:
            self.close()
            raise SensorError(f"{self.traits.description}: {_one_line(error)}", gone=True) from error

    def read(self, timeout_s: float) -> Frame | None:
        """The newest full window, (T,) float32, once per hop; overflows are counted."""
        if self._stream is None:
            raise SensorError(f"{self.traits.description}: read before open")
        until_s = time.monotonic() + timeout_s
        try:
            while self._stream.read_available < self._hop:
                if time.monotonic() >= until_s:
                    return None
                time.sleep(_POLL_S)
            block, overflowed = self._stream.read(self._hop)
        except self._portaudio.PortAudioError as error:
            raise SensorError(f"{self.traits.description}: {_one_line(error)}") from error
        self.overflows += int(overflowed)
        return self._append(block[:, 0])

    def _append(self, block: np.ndarray[Any, np.dtype[np.float32]]) -> Frame | None:
        self._window = np.concatenate([self._window, block])[-self._window.size :]
        self._filled = min(self._window.size, self._filled + block.size)
        return Frame(data=self._window) if self._filled == self._window.size else None

    def close(self) -> None:
        """Stop and release the stream."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close(ignore_errors=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
