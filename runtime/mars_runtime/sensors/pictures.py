"""Still images and image sequences; 16-bit files keep their 16 bits."""

from __future__ import annotations

import struct
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import SensorError
from mars_runtime.sensors.driver import Frame, SourceEndedError, Traits
from mars_runtime.sensors.pace import Pacer
from mars_runtime.sensors.vision import load_opencv

_MOST_PIXELS = 2**26
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".webp", ".npy")


def load_picture(path: Path) -> NDArray[Any]:
    """The stored array: bit depth and channel count as in the file, colour in RGB order.

    A `.npy` file is taken as it is. An alpha channel is dropped.

    Raises:
        SensorError: the file cannot be read or decoded.
    """
    if path.suffix.lower() == ".npy":
        return _load_array(path)
    cv2 = load_opencv()
    content = _bytes(path)
    _refuse_giants(content, path)
    image: NDArray[Any] | None = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise SensorError(f"{path}: not a readable image")
    if image.ndim == 3 and image.shape[2] >= 3:
        return np.ascontiguousarray(image[:, :, 2::-1])
    return image


def _bytes(path: Path) -> NDArray[np.uint8]:
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise SensorError(f"{path}: {error.strerror}", gone=not path.exists()) from error
    if content.size == 0:
        raise SensorError(f"{path}: the file is empty")
    return content


def _refuse_giants(content: NDArray[np.uint8], path: Path) -> None:
    """A damaged PNG header can claim gigapixels, which OpenCV would allocate before it looks further."""
    head = content[:24].tobytes()
    if head.startswith(b"\x89PNG") and len(head) == 24:
        width, height = struct.unpack(">II", head[16:])
        if width * height > _MOST_PIXELS:
            raise SensorError(f"{path}: claims {width} x {height} pixels, allowed are {_MOST_PIXELS} in all")


def _load_array(path: Path) -> NDArray[Any]:
    try:
        # Mapped first: a header that claims more than the file holds is refused instead of allocated.
        array: NDArray[Any] = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, tokenize.TokenError) as error:
        raise SensorError(f"{path}: not a readable .npy array", gone=not path.exists()) from error
    return array


class StillPicture:
    """One file repeated at the nominal rate for ever; a constant picture is legitimate here."""

    def __init__(self, path: Path, *, rate_hz: float) -> None:
        self._path = path
        self._pace = Pacer(rate_hz)
        self._data: NDArray[Any] | None = None
        self.traits = Traits(description=f"still image {path}", rate_hz=rate_hz, static=True)

    def open(self) -> None:
        """Decode the file once."""
        self._data = load_picture(self._path)

    def read(self, timeout_s: float) -> Frame | None:
        """The same array each time, at the nominal rate."""
        if self._data is None:
            raise SensorError(f"{self._path}: read before open")
        return Frame(data=self._data) if self._pace.wait(timeout_s) else None

    def close(self) -> None:
        """Forget the decoded array."""
        self._data = None


class PictureSequence:
    """The files of a glob in natural order, once, at the nominal rate."""

    def __init__(self, paths: list[Path], *, pattern: str, rate_hz: float) -> None:
        self._paths = paths
        self._pace = Pacer(rate_hz)
        self._next: int | None = None
        self.traits = Traits(description=f"image sequence {pattern} ({len(paths)} files)", rate_hz=rate_hz, finite=True)

    def open(self) -> None:
        """Start at the first file, or go on where an earlier failure stopped."""
        self._next = 0 if self._next is None else self._next

    def read(self, timeout_s: float) -> Frame | None:
        """The next file; a file that cannot be decoded raises once and is then passed over."""
        if self._next is None:
            raise SensorError(f"{self._paths[0]}: read before open")
        if self._next >= len(self._paths):
            raise SourceEndedError(f"{self.traits.description}: at its end")
        if not self._pace.wait(timeout_s):
            return None
        index, self._next = self._next, self._next + 1
        data = load_picture(self._paths[index])
        return Frame(data=data, sequence=index, last=self._next == len(self._paths))

    def close(self) -> None:
        """Keep the position, so that reopening does not start the recording again."""
