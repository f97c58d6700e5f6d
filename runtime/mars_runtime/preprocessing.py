"""A raw sample to the network's tensor on the device: the bits of `mars_edge.preprocess`, pictures that shrink faster.

Design decision: `mars_edge.preprocess` stays the one definition. Our C library (runtime/native/mars_preprocess.cpp)
shrinks, scales and splits a picture in one pass; it is used only where it is there and gives, for a few pictures that
are tried when it is loaded, every bit that this machine's OpenCV gives.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.modality import Modality, SampleType

LIBRARY = Path(__file__).parent / "_native" / "libmars_preprocess.so"
_ABI = 1
_TYPES: dict[SampleType, int] = {"uint8": 0, "uint16": 1, "float32": 2}
_MOST_CHANNELS = 4
# Sides that make sums of seven and five products: long enough to tell one order of rounding from another.
_TRIED_FROM, _TRIED_TO = (61, 83), (13, 15)


class _Picture(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("channels", ctypes.c_int32),
    )


class _Planes(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("low", ctypes.c_float),
        ("high", ctypes.c_float),
        ("factor", ctypes.c_float),
    )


def preprocess(modality: Modality, raw: NDArray[Any] | str) -> NDArray[np.float32]:
    """The tensor that `modality.preprocess(raw)` gives, to the last bit; the lock is free while pixels are summed.

    Raises:
        UsageError: see `Modality.preprocess`.
    """
    if isinstance(raw, np.ndarray) and _may_shrink(modality, raw) and (library := _library()) is not None:
        tensor = _shrunk(library, modality, raw)
        if tensor is not None:
            return tensor
    return modality.preprocess(raw)


def has_library() -> bool:
    """Whether pictures go through the library here."""
    return _library() is not None


def _may_shrink(modality: Modality, raw: NDArray[Any]) -> bool:
    """Whether it is a picture of this modality, of four channels at most, with no side shorter than the tensor's."""
    if modality.size is None or raw.ndim not in (2, 3):
        return False
    channels = raw.shape[2] if raw.ndim == 3 else 1
    fits = channels == modality.channels <= _MOST_CHANNELS and raw.dtype == modality.dtype
    return fits and raw.shape[0] >= modality.size[0] and raw.shape[1] >= modality.size[1]


def _shrunk(library: ctypes.CDLL, modality: Modality, raw: NDArray[Any]) -> NDArray[np.float32] | None:
    """None for what the library leaves to the general way."""
    picture = raw if _has_plain_rows(raw, modality.channels) else raw.copy(order="C")
    low, high = modality.range
    height, width = modality.shape[1:]
    planes = np.empty(modality.shape, np.float32)
    source = _Picture(
        picture.ctypes.data,
        picture.strides[0],
        _TYPES[modality.dtype],
        picture.shape[0],
        picture.shape[1],
        modality.channels,
    )
    target = _Planes(planes.ctypes.data, height, width, low, high, 1.0 / (high - low))
    done: int = library.mars_shrink(ctypes.byref(source), ctypes.byref(target))
    return planes if done == 0 else None


def _has_plain_rows(raw: NDArray[Any], channels: int) -> bool:
    """Whether the pixels of each row lie side by side; the rows may lie apart, as in a part of a picture."""
    beside = (raw.itemsize * channels, raw.itemsize)[: raw.ndim - 1]
    return raw.flags.aligned and raw.strides[1:] == beside


@cache
def _library() -> ctypes.CDLL | None:
    """None where it was not built, is another version's, or sums otherwise than this machine's OpenCV."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
        known = library.mars_preprocess_abi() == _ABI
        library.mars_shrink.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return library if known and _agrees(library) else None


def _agrees(library: ctypes.CDLL) -> bool:
    """Whether it gives the bits of `Modality.preprocess`: builds of OpenCV round a sum of products once or twice."""
    uneven = _uneven((*_TRIED_FROM, _MOST_CHANNELS))
    for dtype in _TYPES:
        high = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
        for channels in range(1, _MOST_CHANNELS + 1):
            tried = Modality(
                name="tried", kind="image", channels=channels, size=_TRIED_TO, dtype=dtype, range=(0.0, high)
            )
            raw = (uneven[:, :, :channels] * high).astype(dtype)
            tensor = _shrunk(library, tried, raw)
            if tensor is None or not np.array_equal(tensor, tried.preprocess(raw)):
                return False
    return True


def _uneven(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Values in 0..1, one in ten of them 0, with all their bits in use; importing numpy.random takes 8 ms and 7 MB."""
    at = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    return np.maximum(at * 0.6180339887498949 % 1.0 - 0.1, 0.0)
