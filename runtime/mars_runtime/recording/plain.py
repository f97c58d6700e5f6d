"""Our frozen dataclasses as JSON and back, exactly: every float keeps its bits, every tuple stays one.

A field at its default is left out. Only dataclasses of this project are built, whatever a file says.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from mars_edge.errors import UsageError

# The key that says what a JSON object stands for; no field is called so.
_TAG = "!"
_PACKAGES = ("mars_runtime.", "mars_edge.")


def to_plain(value: Any) -> Any:
    """JSON types that `from_plain` turns into an equal value.

    Raises:
        TypeError: a value of a type that recordings do not hold; a bug of ours.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_TAG: "float", "value": repr(float(value))}
    if isinstance(value, np.ndarray):
        return {_TAG: "array", **array_to_plain(value)}
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _record(value)
    if isinstance(value, tuple | list):
        return {_TAG: "tuple", "value": [to_plain(each) for each in value]}
    if isinstance(value, frozenset | set):
        return {_TAG: "set", "value": [to_plain(each) for each in sorted(value)]}
    if isinstance(value, Mapping):
        return {_TAG: "map", "value": [[to_plain(key), to_plain(each)] for key, each in value.items()]}
    raise TypeError(f"{type(value).__name__} has no place in a recording")


def from_plain(plain: Any) -> Any:
    """The value that `to_plain` made the JSON of.

    Raises:
        UsageError: not of that form, or of a version with other fields.
    """
    if not isinstance(plain, dict):
        return plain
    try:
        return _built(plain)
    except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise UsageError(
            f"the recording holds {plain.get(_TAG)!r} in a form this version does not know ({error})"
        ) from error


def array_to_plain(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Type, shape and little-endian bytes of an array as JSON types."""
    kept = np.ascontiguousarray(array)
    kept = kept.astype(kept.dtype.newbyteorder("<"), copy=False)
    return {"dtype": kept.dtype.str, "shape": list(array.shape), "data": base64.b64encode(kept.tobytes()).decode()}


def array_from_plain(table: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """The array of `array_to_plain`, writable and in this machine's byte order."""
    stored = np.frombuffer(base64.b64decode(table["data"]), np.dtype(table["dtype"]))
    return stored.astype(stored.dtype.newbyteorder("="), copy=True).reshape(table["shape"])


def _record(value: Any) -> dict[str, Any]:
    kind: Any = type(value)
    entries = {_TAG: f"{kind.__module__}.{kind.__qualname__}"}
    for name, default in _fields(kind):
        each = getattr(value, name)
        if default is dataclasses.MISSING or type(each) is not type(default) or each != default:
            entries[name] = to_plain(each)
    return entries


@lru_cache(maxsize=256)
def _fields(kind: Any) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of what takes part in a comparison; anything else is no part of the value."""
    return tuple((f.name, f.default) for f in dataclasses.fields(kind) if f.compare)


def _built(plain: dict[str, Any]) -> Any:
    tag = plain[_TAG]
    if tag == "float":
        return float(plain["value"])
    if tag == "array":
        return array_from_plain(plain)
    if tag == "tuple":
        return tuple(from_plain(each) for each in plain["value"])
    if tag == "set":
        return frozenset(from_plain(each) for each in plain["value"])
    if tag == "map":
        return {from_plain(key): from_plain(each) for key, each in plain["value"]}
    return _kind(tag)(**{name: from_plain(each) for name, each in plain.items() if name != _TAG})


@lru_cache(maxsize=256)
def _kind(tag: str) -> Any:
    module, _, name = tag.rpartition(".")
    if not tag.startswith(_PACKAGES):
        raise ValueError(f"{tag} is none of ours")
    kind = getattr(importlib.import_module(module), name)
    if not dataclasses.is_dataclass(kind):
        raise ValueError(f"{tag} is no record")
    return kind
