"""Cameras, network streams and video files through OpenCV."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mars_edge.errors import SensorError
from mars_runtime.sensors.driver import Frame, SourceEndedError, Traits
from mars_runtime.sensors.pace import Pacer
from mars_runtime.sensors.vision import load_opencv

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mjpeg", ".mjpg", ".ts", ".mpg")
_OPEN_TIMEOUT_MS = 5000
_READ_TIMEOUT_MS = 1000
# Pixel formats that reach us without lossy compression: two equal frames are then a fault.
_UNCOMPRESSED = ("YUYV", "UYVY", "GREY", "Y16 ", "Z16 ", "NV12", "YU12", "BGR3", "RGB3")


def _to_rgb(cv2: Any, image: NDArray[Any]) -> NDArray[Any]:
    if image.ndim == 3 and image.shape[2] == 3:
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[no-any-return]
    return image


class Camera:
    """A live V4L2 device (index or path) or a network stream (http, https, rtsp, rtmp)."""

    def __init__(self, source: int | str, *, rate_hz: float) -> None:
        self._source = source
        self._capture: Any = None
        self._cv2: Any = None
        self._node = Path(f"/dev/video{source}") if isinstance(source, int) else Path(source)
        self._is_stream = isinstance(source, str) and "://" in source
        kind = "stream" if self._is_stream else "camera"
        self.traits = Traits(description=f"{kind} {source}", rate_hz=rate_hz)

    def open(self) -> None:
        """Open the device or stream and read its rate and pixel format back.

        Raises:
            SensorError: it cannot be opened; `.gone` if the device node does not exist.
        """
        self.close()
        if not self._is_stream and not self._node.exists():
            raise SensorError(f"{self._node}: no such device", gone=True)
        if not self._is_stream and not os.access(self._node, os.R_OK | os.W_OK):
            raise SensorError(f"permission denied on {self._node}: add the user to group video")
        self._cv2 = load_opencv()
        self._capture = self._opened()
        if not self._capture.isOpened():
            self.close()
            raise SensorError(f"{self.traits.description}: cannot be opened")
        self._read_back()

    def _opened(self) -> Any:
        cv2 = self._cv2
        if not self._is_stream:
            return cv2.VideoCapture(str(self._node), cv2.CAP_V4L2)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT_MS]
        return cv2.VideoCapture(self._source, cv2.CAP_FFMPEG, limits)

    def _read_back(self) -> None:
        rate_hz = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        code = int(self._capture.get(self._cv2.CAP_PROP_FOURCC))
        pixel_format = code.to_bytes(4, "little", signed=code < 0).decode("ascii", "replace")
        self.traits = Traits(
            description=self.traits.description,
            # Streams report 90000 or 0 where the container does not know.
            rate_hz=rate_hz if 1.0 <= rate_hz <= 240.0 else self.traits.rate_hz,
            raw=not self._is_stream and pixel_format in _UNCOMPRESSED,
        )

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame in RGB; OpenCV bounds the wait itself (1 s for streams, 10 s for V4L2).

        Raises:
            SensorError: no frame came; `.gone` if the device node has vanished.
        """
        if self._capture is None:
            raise SensorError(f"{self.traits.description}: read before open")
        good, image = self._capture.read()
        if not good:
            gone = not self._is_stream and not self._node.exists()
            raise SensorError(f"{self.traits.description}: {'unplugged' if gone else 'gave no frame'}", gone=gone)
        return Frame(data=_to_rgb(self._cv2, image))

    def close(self) -> None:
        """Release the device."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()


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
        return _to_rgb(self._cv2, image) if good else None

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
