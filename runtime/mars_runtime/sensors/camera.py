"""A live camera at a V4L2 node, through OpenCV; 16-bit and grey formats stay as the sensor gives them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import SensorError, UsageError
from mars_runtime.sensors.camera_node import camera_identity, require_node, why_not
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.sensors.vision import load_opencv, to_rgb

# One channel each; OpenCV would turn them into 8-bit colour.
KEPT_FORMATS: dict[str, np.dtype[Any]] = {"Y16": np.dtype("<u2"), "Z16": np.dtype("<u2"), "GREY": np.dtype("u1")}
FORMATS = ("MJPG", "YUYV", *KEPT_FORMATS)
# Pixel formats that reach us without lossy compression: two equal frames are then a fault.
_UNCOMPRESSED = ("YUYV", "UYVY", "NV12", "YU12", "BGR3", "RGB3", *KEPT_FORMATS)
_RATE_TOLERANCE = 0.02
# Older stamps are of another clock: some drivers stamp with the time of day.
_OLDEST_STAMP_S = 5.0


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """What a user asks of a camera; None leaves it to the camera."""

    format: str | None = None
    width: int | None = None
    height: int | None = None
    rate: float | None = None


def parse_camera(text: str) -> tuple[Path, CameraSettings]:
    """Node and settings of `/dev/video2?format=Y16&width=640&height=480&rate=30`.

    Raises:
        UsageError: no /dev/videoN or index, an unknown or repeated key, or a value that is not allowed.
    """
    place, _, query = text.partition("?")
    node = Path(f"/dev/video{place}" if place.isdigit() else place)
    if not str(node).startswith("/dev/"):
        raise UsageError(f"{place!r} is no camera: expected an index or a node, e.g. /dev/video0")
    pairs = parse_qsl(query, keep_blank_values=True)
    known = [f.name for f in fields(CameraSettings)]
    for key, _ in pairs:
        if key not in known:
            raise UsageError(f"unknown setting {key!r}; known: {', '.join(known)}")
        if [other for other, _ in pairs].count(key) > 1:
            raise UsageError(f"setting {key} is given twice")
    return node, _settings(dict(pairs))


def _settings(given: Mapping[str, str]) -> CameraSettings:
    wanted = given.get("format")
    if wanted is not None and wanted not in FORMATS:
        raise UsageError(f"format={wanted}: unknown; known: {', '.join(FORMATS)}")
    for key in ("width", "height"):
        if key in given and not (given[key].isdigit() and 0 < int(given[key]) <= 16384):
            raise UsageError(f"{key}={given[key]}: expected a whole number from 1 to 16384")
    if ("width" in given) != ("height" in given):
        raise UsageError("width and height go together")
    return CameraSettings(
        format=wanted,
        width=int(given["width"]) if "width" in given else None,
        height=int(given["height"]) if "height" in given else None,
        rate=_rate(given["rate"]) if "rate" in given else None,
    )


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1000.0:
        raise UsageError(f"rate={text}: expected a number above 0, up to 1000")
    return value


class Camera:
    """One V4L2 node. OpenCV waits up to 10 s for a frame, so run it isolated."""

    def __init__(self, node: Path, *, rate_hz: float, settings: CameraSettings | None = None) -> None:
        self._node = node
        self._settings = settings or CameraSettings()
        self._capture: Any = None
        self._cv2: Any = None
        self._kept: np.dtype[Any] | None = None
        self._size = (0, 0)
        self.traits = Traits(description=f"camera {node}", rate_hz=self._settings.rate or rate_hz)

    def open(self) -> None:
        """Open the node, ask for the settings, and read back what it gives.

        Raises:
            SensorError: why it cannot be opened, `.gone` if there is none; or it gives other settings than asked for.
        """
        self.close()
        require_node(self._node)
        self._cv2 = load_opencv()
        self._capture = self._cv2.VideoCapture(str(self._node), self._cv2.CAP_V4L2)
        try:
            if not self._capture.isOpened():
                raise why_not(self._node)
            self._ask()
            self._read_back()
        except SensorError:
            self.close()
            raise

    def _ask(self) -> None:
        cv2, wanted = self._cv2, self._settings
        if wanted.format is not None:
            self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*wanted.format.ljust(4)))
        for name, value in (("FRAME_WIDTH", wanted.width), ("FRAME_HEIGHT", wanted.height), ("FPS", wanted.rate)):
            if value is not None:
                self._capture.set(getattr(cv2, f"CAP_PROP_{name}"), value)

    def _read_back(self) -> None:
        cv2 = self._cv2
        code = int(self._capture.get(cv2.CAP_PROP_FOURCC))
        given = code.to_bytes(4, "little", signed=code < 0).decode("ascii", "replace").rstrip()
        width, height = (int(self._capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        rate_hz = float(self._capture.get(cv2.CAP_PROP_FPS))
        self._compare(given, (width, height), rate_hz)
        self._kept, self._size = KEPT_FORMATS.get(given), (height, width)
        if self._kept is not None:
            self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        known_rate_hz = rate_hz if 1.0 <= rate_hz <= 1000.0 else self.traits.rate_hz
        self.traits = Traits(
            description=f"camera {self._node} ({given}, {width} x {height}, {known_rate_hz:g} Hz)",
            rate_hz=known_rate_hz,
            raw=given in _UNCOMPRESSED,
            identity=camera_identity(self._node),
        )

    def _compare(self, given: str, size: tuple[int, int], rate_hz: float) -> None:
        wanted = self._settings
        if wanted.format not in (None, given):
            raise SensorError(f"{self._node}: asked for format {wanted.format}, gives {given or 'none'}")
        if wanted.width is not None and (wanted.width, wanted.height) != size:
            raise SensorError(f"{self._node}: asked for {wanted.width} x {wanted.height}, gives {size[0]} x {size[1]}")
        if wanted.rate is not None and abs(rate_hz - wanted.rate) > _RATE_TOLERANCE * wanted.rate:
            raise SensorError(f"{self._node}: asked for {wanted.rate:g} frames per second, gives {rate_hz:g}")

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame, colour in RGB order, with the kernel's own time stamp.

        Raises:
            SensorError: no frame came; `.gone` if the device node has vanished.
        """
        if self._capture is None:
            raise SensorError(f"{self.traits.description}: read before open")
        good, image = self._capture.read()
        if not good:
            gone = not self._node.exists()
            raise SensorError(f"{self.traits.description}: {'unplugged' if gone else 'gave no frame'}", gone=gone)
        return Frame(data=self._as_given(image), captured_s=self._captured_s())

    def _as_given(self, image: NDArray[Any]) -> NDArray[Any]:
        if self._kept is None:
            return to_rgb(self._cv2, image)
        if image.shape == self._size and image.dtype == self._kept:
            return image
        # OpenCV hands formats it has no name for out as bytes.
        content = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
        height, width = self._size
        if content.size < height * width * self._kept.itemsize:
            raise SensorError(f"{self.traits.description}: a frame of {content.size} bytes is too short")
        return content.view(self._kept)[: height * width].reshape(height, width)

    def _captured_s(self) -> float | None:
        stamp_s = float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1000.0
        now_s = time.monotonic()
        return stamp_s if now_s - _OLDEST_STAMP_S < stamp_s <= now_s else None

    def close(self) -> None:
        """Release the node."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()
