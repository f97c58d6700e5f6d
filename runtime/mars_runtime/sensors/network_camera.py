"""A network camera (http, https, rtsp, rtmp) through OpenCV's FFmpeg."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mars_edge.errors import SensorError
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.sensors.stream_failure import why_no_stream, without_password
from mars_runtime.sensors.vision import load_opencv, to_rgb

# Leaves a second of the five that an open may take for finding out why it failed.
_OPEN_TIMEOUT_MS = 3800
_READ_TIMEOUT_MS = 1000
# By default FFmpeg studies a stream for seconds before it hands out the first frame, late by as much ever after.
_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_OPTIONS = "rtsp_transport;tcp|fflags;nobuffer|analyzeduration;300000"


class NetworkCamera:
    """One stream. FFmpeg bounds an open by 3.8 s and a read by 1 s, not always: run it isolated."""

    def __init__(self, url: str, *, rate_hz: float) -> None:
        self._url = url
        self._capture: Any = None
        self._cv2: Any = None
        self.traits = Traits(description=f"stream {without_password(url)}", rate_hz=rate_hz)

    def open(self) -> None:
        """Connect and wait for the stream's description.

        Raises:
            SensorError: why there is no stream: no such host, refused, silent, 401, 404, nothing to decode.
        """
        self.close()
        self._cv2 = cv2 = load_opencv()
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT_MS]
        with _capture_options():
            self._capture = cv2.VideoCapture(self._url, cv2.CAP_FFMPEG, limits)
        if not self._capture.isOpened():
            self.close()
            raise SensorError(f"{self.traits.description}: {why_no_stream(self._url)}")
        self._read_back()

    def _read_back(self) -> None:
        rate_hz = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        code = int(self._capture.get(self._cv2.CAP_PROP_FOURCC))
        # Motion JPEG carries no rate: FFmpeg then says 25. Others say 90000 or 0 where they do not know.
        known = 1.0 <= rate_hz <= 240.0 and code != self._cv2.VideoWriter.fourcc(*"MJPG")
        if known:
            self.traits = Traits(description=self.traits.description, rate_hz=rate_hz)

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame in RGB.

        Raises:
            SensorError: the server ended the stream, or sent nothing for a second.
        """
        if self._capture is None:
            raise SensorError(f"{self.traits.description}: read before open")
        begin_s = time.monotonic()
        good, image = self._capture.read()
        if not good:
            silent = time.monotonic() - begin_s >= 0.9e-3 * _READ_TIMEOUT_MS
            why = f"the server sent nothing for {_READ_TIMEOUT_MS / 1000.0:g} s" if silent else "the stream ended"
            raise SensorError(f"{self.traits.description}: gave no frame: {why}")
        return Frame(data=to_rgb(self._cv2, image))

    def close(self) -> None:
        """Hang up."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()


@contextmanager
def _capture_options() -> Iterator[None]:
    """OpenCV takes FFmpeg's options from the environment alone; video files of the same process must not get them."""
    before = os.environ.get(_VARIABLE)
    os.environ.setdefault(_VARIABLE, _OPTIONS)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
