"""Arrays and numbers as JSON that any language can read."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def array(values: NDArray[Any]) -> dict[str, Any]:
    """Element type, shape and little-endian bytes in base64."""
    kept = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    return {
        "dtype": values.dtype.name,
        "shape": list(values.shape),
        "data": base64.b64encode(kept.tobytes()).decode("ascii"),
    }


def read_array(table: dict[str, Any]) -> NDArray[Any]:
    """The array of `array`."""
    kind = np.dtype(table["dtype"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(table["data"]), kind).reshape(table["shape"]).astype(table["dtype"])


def number(value: float) -> float | str:
    """JSON has no infinity: it is written as the string "inf"."""
    return "inf" if math.isinf(value) else value
