"""Video files through OpenCV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mars_edge.errors import SensorError
from mars_runtime.sensors.driver import Frame, SourceEndedError, Traits
from mars_runtime.sensors.pace import Pacer
from mars_runtime.sensors.vision import load_opencv, to_rgb

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mjpeg", ".mjpg", ".ts", ".mpg")


class VideoFile:
    """A video file, once, at its own frame rate, in RGB."""

    def __init__(self, path: Path, *, rate_hz: float) -> None:
        self._path = path
        self._capture: Any = None
        self._cv2: Any = None
        self._ahead: NDArray[Any] | None = None
        self._index = 0
        self.traits = Traits(description=f"video file {path}", rate_hz=rate_hz, finite=True)
        self._pace = Pacer(rate_hz)

    def open(self) -> None:
        """Open the file and decode its first frame; a reopened file goes on where it was.

        Raises:
            SensorError: the file is not a video OpenCV can decode.
        """
        if self._capture is not None:
            return
        self._cv2 = load_opencv()
        self._capture = self._cv2.VideoCapture(str(self._path))
        rate_hz = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        if 1.0 <= rate_hz <= 240.0:
            self.traits = Traits(description=self.traits.description, rate_hz=rate_hz, finite=True)
            self._pace = Pacer(rate_hz)
        for _ in range(self._index):
            self._capture.grab()
        self._ahead = self._decode()
        if self._ahead is None and self._index == 0:
            self.close()
            raise SensorError(f"{self._path}: not a video OpenCV can decode")

    def _decode(self) -> NDArray[Any] | None:
        good, image = self._capture.read()
        return to_rgb(self._cv2, image) if good else None

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame; one frame is decoded ahead to know which one is the last."""
        if self._capture is None:
            raise SensorError(f"{self._path}: read before open")
        if self._ahead is None:
            raise SourceEndedError(f"{self.traits.description}: at its end")
        if not self._pace.wait(timeout_s):
            return None
        data, self._ahead = self._ahead, self._decode()
        self._index += 1
        return Frame(data=data, sequence=self._index, last=self._ahead is None)

    def close(self) -> None:
        """Release the decoder; the position is kept."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()
