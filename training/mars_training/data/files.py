"""Lists, tables, images, maps, sounds and videos as data sets ship them; whatever is wrong with a file names the file.

Axes: H height, W width.
"""

from __future__ import annotations

import csv
import io
import re
import wave
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_training.data.arrays import load_array

Line = tuple[int, list[str]]
"""The number of a line in its file, from 1, and its cells."""


def read_list(path: Path, cells: int) -> list[Line]:
    """The lines of a file of words between blanks, empty lines left out.

    A byte-order mark, either newline and a last line without one are all accepted.

    Raises:
        UsageError: no such file, not UTF-8, no line at all, or a line without exactly `cells` words.
    """
    lines = enumerate(read_text(path).split("\n"), start=1)
    return _checked([(at, line.split()) for at, line in lines if line.strip()], path, cells)


def read_csv(path: Path, cells: int) -> list[Line]:
    """The rows of a comma-separated file without a header; quoted cells may hold commas, quotes and line breaks.

    Raises:
        UsageError: no such file, not UTF-8, no row at all, or a row without exactly `cells` cells.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: {error}") from None
    return _checked(rows, path, cells)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte-order mark, its newlines as they are.

    Raises:
        UsageError: no such file, or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"no file {path}; give the folder of the data set with --data DIR") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error}") from None


def _checked(rows: list[Line], path: Path, cells: int) -> list[Line]:
    if not rows:
        raise UsageError(f"{path} is empty")
    for at, row in rows:
        if len(row) != cells:
            raise UsageError(f"{path}, line {at}: {len(row)} cells, expected {cells}")
    return rows


def need_files(paths: Iterable[Path], listed_in: Path) -> None:
    """Return if every file is there.

    Raises:
        UsageError: one is missing; names the first, and how many more.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" (nor are {len(missing) - 1} more of its files)" if missing[1:] else ""
        raise UsageError(f"{listed_in} needs {missing[0]}, which is not there{more}")


def in_number_order(paths: Iterable[Path]) -> list[Path]:
    """The paths by name, runs of digits compared as numbers: 2.jpg comes before 10.jpg."""
    return sorted(paths, key=lambda path: ([int(part) for part in re.findall(r"\d+", path.stem)], path.name))


def read_colour(path: Path) -> NDArray[np.uint8]:
    """The image (H, W, 3) in red, green, blue.

    Raises:
        UsageError: no such file, or not an image.
    """
    return cv2.cvtColor(_image(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def read_grey(path: Path) -> NDArray[np.uint8]:
    """The image (H, W) in grey, also where the file stores it as three equal channels.

    Raises:
        UsageError: no such file, or not an image.
    """
    return _image(path, cv2.IMREAD_GRAYSCALE)


def read_unit(path: Path, channels: int) -> NDArray[np.float32]:
    """The image in 0..1, from 8 or 16 bits: (H, W) for one channel, (H, W, 3) in red, green, blue for three.

    Raises:
        UsageError: no such file, not an image, or another number of channels.
    """
    stored = _image(path, cv2.IMREAD_UNCHANGED)
    if (1 if stored.ndim == 2 else stored.shape[2]) != channels or stored.dtype.kind != "u":
        raise UsageError(f"{path} has shape {stored.shape} and type {stored.dtype}; expected {channels} channels")
    ordered = stored if channels == 1 else stored[:, :, ::-1]
    return np.ascontiguousarray(ordered, dtype=np.float32) / np.float32(np.iinfo(stored.dtype).max)


def read_codes(path: Path) -> NDArray[np.uint8]:
    """The 8-bit image (H, W) whose values are codes, such as classes, exactly as stored.

    Raises:
        UsageError: no such file, not an image, or not one channel of 8 bits.
    """
    stored = _image(path, cv2.IMREAD_UNCHANGED)
    if stored.ndim != 2 or stored.dtype != np.uint8:
        raise UsageError(f"{path} has shape {stored.shape} and type {stored.dtype}; expected (H, W) and uint8")
    return stored


def _image(path: Path, how: int) -> NDArray[Any]:
    need_file(path)
    image = cv2.imread(str(path), how)
    if image is None:
        raise UsageError(f"{path} is not an image that OpenCV can read")
    return image


def need_file(path: Path) -> None:
    """Return if the file is there.

    Raises:
        UsageError: it is not.
    """
    if not path.is_file():
        raise UsageError(f"no file {path}")


def read_map(path: Path) -> NDArray[np.float32]:
    """The numbers (H, W) in an .npy file.

    Raises:
        UsageError: no such file, not an .npy file, or not float32 (H, W).
    """
    need_file(path)
    values = load_array(path)
    if values.ndim != 2 or values.dtype != np.float32:
        raise UsageError(f"{path} has shape {values.shape} and type {values.dtype}; expected (H, W) and float32")
    return values


def wav_frames(path: Path) -> tuple[tuple[int, int, int], bytes]:
    """(channels, bytes per sample, rate in Hz) of a wav file, and its frames.

    Raises:
        wave.Error: it cannot be read; the standard library has other answers too to a file that was cut.
    """
    try:
        with wave.open(str(path), "rb") as file:
            found = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            return found, file.readframes(file.getnframes())
    except (OSError, EOFError, RuntimeError) as error:
        raise wave.Error(str(error)) from None


def read_wav(path: Path, *, rate_hz: int) -> NDArray[np.float32]:
    """Mono 16-bit samples as float32 in -1..1.

    Raises:
        UsageError: no such file, not a wav file, or of another rate, width or channel count.
    """
    need_file(path)
    try:
        found, data = wav_frames(path)
    except wave.Error as error:
        raise UsageError(f"{path} is not a wav file: {error}") from None
    if found != (1, 2, rate_hz):
        raise UsageError(
            f"{path} has {found[0]} channels, {8 * found[1]} bits, {found[2]} Hz; expected 1, 16 and {rate_hz}"
        )
    return np.frombuffer(data, dtype="<i2").astype(np.float32) / np.float32(32768.0)


def read_middle_frame(path: Path) -> NDArray[np.uint8]:
    """The middle frame (H, W, 3) of a video in red, green, blue: number n // 2 of n, from 0.

    Raises:
        UsageError: no such file, or no frame in it can be decoded.
    """
    need_file(path)
    # Counted by decoding: the count in the header of an FLV file is an estimate.
    middle = _count_frames(path) // 2
    video = cv2.VideoCapture(str(path))
    try:
        for _ in range(middle):
            video.grab()
        read, frame = video.read()
    finally:
        video.release()
    if not read:
        raise UsageError(f"{path} is not a video that OpenCV can read")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def _count_frames(path: Path) -> int:
    video = cv2.VideoCapture(str(path))
    count = 0
    try:
        while video.grab():
            count += 1
    finally:
        video.release()
    return count
