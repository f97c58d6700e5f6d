"""Cells of a table: from a file, or a text, to the raw sample that `Modality.preprocess` takes.

Axes: H height, W width, C channels, T time, L values.
A file that contradicts its modality is refused by name: converting it here would hide from training what the sensor
on the device then does not do.
"""

from __future__ import annotations

import csv
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data.arrays import load_array
from mars_training.data.files import wav_frames

SUFFIXES: dict[str, tuple[str, ...]] = {
    "image": (".png", ".jpg", ".jpeg", ".npy"),
    "audio": (".wav",),
    "sequence": (".npy", ".csv"),
    "vector": (".npy", ".csv"),
    "text": (".txt",),
}
"""By kind, how the names of its files end."""
_SLACK = 1e-6  # share of the range that rounding may exceed it by


@dataclass(frozen=True, kw_only=True)
class Field:
    """One modality as a table declares it.

    Attributes:
        modality: what the model sees.
        channels_first: image files hold (C, H, W) instead of (H, W, C).
        clips: the range was declared, so values outside are clipped; else they are refused.
    """

    modality: Modality
    channels_first: bool = False
    clips: bool = True


def read_cell(field: Field, cell: Path | str) -> Any:
    """The raw sample of one cell: an array, or a str for text.

    Raises:
        UsageError: the file cannot be read, or is not what the modality declares; the message names the file.
    """
    kind = field.modality.kind
    if kind == "text":
        return cell if isinstance(cell, str) else _text(cell)
    path = Path(cell)
    if kind == "audio":
        return _audio(path, field.modality)
    return _checked(field, _array(field, path), path)


def _array(field: Field, path: Path) -> NDArray[Any]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _native(load_array(path), field)
    if suffix == ".csv":
        return _numbers(path, field.modality)
    return decode_picture(path)


def decode_picture(path: Path) -> NDArray[Any]:
    """The stored picture (H, W) or (H, W, 3): bit depth as in the file, colour in RGB order, alpha dropped.

    Raises:
        UsageError: the file cannot be read or decoded.
    """
    import cv2

    try:
        content = np.fromfile(path, dtype=np.uint8)
        # OpenCV raises on empty input and on headers that claim gigapixels, and answers None for the rest.
        image: NDArray[Any] | None = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error):
        image = None
    if image is None:
        raise UsageError(f"{path}: not a readable picture")
    if image.ndim == 3 and image.shape[2] >= 3:
        return np.ascontiguousarray(image[:, :, 2::-1])
    return image


def _native(array: NDArray[Any], field: Field) -> NDArray[Any]:
    """Channels last; floating-point numbers of any width, and either byte order, as the modality's type."""
    if field.channels_first and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    wanted = np.dtype(field.modality.dtype)
    both_float = wanted.kind == "f" and array.dtype.kind == "f"
    if both_float or array.dtype.newbyteorder("=") == wanted:
        with np.errstate(over="ignore"):  # an infinity is refused by name below
            return np.ascontiguousarray(array, dtype=wanted)
    return array


def _numbers(path: Path, modality: Modality) -> NDArray[Any]:
    """The numbers of a .csv: (T, C) for a sequence, (L,) for the one row of a vector; a header line is skipped."""
    rows = _number_rows(path)
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise UsageError(f"{path}: rows have {min(lengths)} to {max(lengths)} numbers; all must have as many")
    if modality.kind == "vector" and len(rows) != 1:
        raise UsageError(f"{path}: has {len(rows)} rows; a vector is one row of {modality.length} numbers")
    values = np.array(rows[0] if modality.kind == "vector" else rows, dtype=np.float64)
    return _as_type(values, modality, path)


def _number_rows(path: Path) -> list[list[float]]:
    rows: list[list[float]] = []
    for line, cells in _csv_lines(path):
        numbers = _floats(cells)
        if numbers is not None:
            rows.append(numbers)
        elif rows or line > 1 or any(_floats([cell]) for cell in cells):
            raise UsageError(f"{path}: line {line} is not all numbers: {','.join(cells)[:60]!r}")
    if not rows:
        raise UsageError(f"{path}: holds no numbers")
    return rows


def _csv_lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [(line, cells) for line, cells in enumerate(csv.reader(file, strict=True), 1) if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not a readable .csv file ({error})") from None


def _floats(cells: Sequence[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return None


def _as_type(values: NDArray[np.float64], modality: Modality, path: Path) -> NDArray[Any]:
    wanted = np.dtype(modality.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        typed = values.astype(wanted)
    if wanted.kind == "u" and not np.array_equal(typed.astype(np.float64), values):
        raise UsageError(f"{path}: holds numbers that are no {wanted}, which modality {modality.name!r} declares")
    return typed


def _checked(field: Field, array: NDArray[Any], path: Path) -> NDArray[Any]:
    modality = field.modality
    if not _fits(modality, array.shape) or array.dtype != np.dtype(modality.dtype):
        stored = array.transpose(2, 0, 1) if field.channels_first and array.ndim == 3 else array
        raise UsageError(f"{path}: is {stored.shape} {array.dtype}; modality {modality.name!r} takes {accepts(field)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(np.count_nonzero(~np.isfinite(array)))
        raise UsageError(f"{path}: {bad} of {array.size} values are not finite")
    if not field.clips:
        _need_range(modality, array, path)
    return array


def _need_range(modality: Modality, array: NDArray[Any], path: Path) -> None:
    low, high = float(array.min()), float(array.max())
    slack = _SLACK * (modality.range[1] - modality.range[0])
    if low < modality.range[0] - slack or high > modality.range[1] + slack:
        raise UsageError(
            f"{path}: values reach from {low:g} to {high:g}, outside the default range {modality.range[0]:g} to "
            f"{modality.range[1]:g}; set range in [modality.{modality.name}], values outside it are then clipped"
        )


def _fits(modality: Modality, shape: tuple[int, ...]) -> bool:
    if 0 in shape:
        return False
    if modality.kind == "image":
        return (len(shape) == 2 and modality.channels == 1) or (len(shape) == 3 and shape[2] == modality.channels)
    if modality.kind == "sequence":
        return len(shape) == 2 and shape[1] == modality.channels
    return shape == modality.shape


def accepts(field: Field) -> str:
    """What a file of this modality must hold, for a message: "(T, 6) float32"."""
    m = field.modality
    if m.kind == "text":
        return "text"
    if m.kind == "audio":
        return f"mono 16-bit at {m.rate_hz:g} Hz"
    image = f"({m.channels}, H, W)" if field.channels_first else f"(H, W, {m.channels})"
    if m.kind == "image" and m.channels == 1:
        image = f"(H, W) or {image}"
    shapes = {"image": image, "sequence": f"(T, {m.channels})", "vector": f"({m.length},)"}
    return f"{shapes[m.kind]} {m.dtype}"


def _audio(path: Path, modality: Modality) -> NDArray[np.float32]:
    try:
        (channels, width, rate_hz), data = wav_frames(path)
    except wave.Error as error:
        raise UsageError(f"{path}: not a readable .wav file ({str(error) or 'it ends early'})") from None
    if (channels, width, rate_hz) != (1, 2, modality.rate_hz):
        raise UsageError(
            f"{path}: has {channels} channels, {8 * width} bits, {rate_hz} Hz; modality {modality.name!r} takes "
            f"1 channel, 16 bits, {modality.rate_hz:g} Hz"
        )
    if len(data) < 2:
        raise UsageError(f"{path}: holds no audio samples")
    return np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2").astype(np.float32) / np.float32(32768.0)


def _text(path: Path) -> str:
    try:
        content = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a readable text file in UTF-8 ({error})") from None
    if not content:
        raise UsageError(f"{path}: holds no text; leave the cell empty where a row has none")
    return content
