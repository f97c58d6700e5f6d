"""WAV files as a stream of overlapping windows."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import SensorError, UsageError
from mars_edge.modality import Modality
from mars_runtime.sensors.driver import Frame, SourceEndedError, Traits
from mars_runtime.sensors.pace import Pacer


def hop_s(window_s: float) -> float:
    """Seconds between the starts of two windows of live audio: a tenth of the window, 50 to 250 ms."""
    return min(0.25, max(0.05, window_s / 10.0))


def load_wav(path: Path, rate_hz: float) -> NDArray[np.float32]:
    """The samples of a mono PCM file, (T,) float32 in -1..1.

    Raises:
        SensorError: the file cannot be read.
        UsageError: not PCM WAV, not mono, or of another sampling rate than `rate_hz`.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, file_rate_hz, frames = file.getparams()[:4]
            content = file.readframes(frames)
    except OSError as error:
        raise SensorError(f"{path}: {error.strerror}", gone=not path.exists()) from error
    except (wave.Error, EOFError, RuntimeError) as error:
        # RuntimeError: the standard library's answer to a chunk that claims to be longer than the file.
        raise UsageError(f"{path}: not a readable PCM WAV file ({error or 'it ends early'})") from error
    if channels != 1:
        raise UsageError(f"{path}: has {channels} channels, expected 1 (mono)")
    if width not in (1, 2, 3, 4):
        raise UsageError(f"{path}: has samples of {width} bytes, expected 1 to 4")
    if file_rate_hz != rate_hz:
        raise UsageError(f"{path}: is sampled at {file_rate_hz} Hz, expected {rate_hz:g} Hz")
    if not content:
        raise UsageError(f"{path}: holds no audio samples")
    return _to_float(content, width)


def _to_float(content: bytes, width_bytes: int) -> NDArray[np.float32]:
    if width_bytes == 1:
        return (np.frombuffer(content, np.uint8).astype(np.float32) - 128.0) / 128.0
    usable = np.frombuffer(content[: len(content) // width_bytes * width_bytes], np.uint8)
    # Each sample becomes the top bytes of a little-endian int32: sign and scale come for free.
    padded = np.zeros((usable.size // width_bytes, 4), np.uint8)
    padded[:, 4 - width_bytes :] = usable.reshape(-1, width_bytes)
    return (padded.view("<i4")[:, 0] / 2.0**31).astype(np.float32)


class WavFile:
    """A WAV file, window by window at its own speed, once.

    A file shorter than the window is handed out whole in one frame (`Modality.preprocess` pads it as
    in training). The last window ends with the last sample of the file.
    """

    def __init__(self, path: Path, modality: Modality) -> None:
        self._path = path
        self._modality = modality
        self._window = modality.window_samples
        step_s = hop_s(self._window / modality.rate_hz)
        self._hop = max(1, round(step_s * modality.rate_hz))
        self._pace = Pacer(modality.rate_hz / self._hop)
        self._signal: NDArray[np.float32] | None = None
        self._end = 0
        self.traits = Traits(
            description=f"wav file {path}", rate_hz=modality.rate_hz / self._hop, finite=True, start_grace_s=2.0
        )

    def open(self) -> None:
        """Read the whole file; the position survives a close."""
        self._signal = load_wav(self._path, self._modality.rate_hz)

    def read(self, timeout_s: float) -> Frame | None:
        """The next window, (T,) float32 with T <= the modality's window."""
        if self._signal is None:
            raise SensorError(f"{self._path}: read before open")
        total = self._signal.size
        if self._end >= total:
            raise SourceEndedError(f"{self.traits.description}: at its end")
        if not self._pace.wait(timeout_s):
            return None
        self._end = min(total, self._window if self._end == 0 else self._end + self._hop)
        window = self._signal[max(0, self._end - self._window) : self._end]
        return Frame(data=window, sequence=self._end, last=self._end == total)

    def close(self) -> None:
        """Forget the samples, keep the position."""
        self._signal = None
