"""The fault injector: what broken sensors do, for training, evaluation and live streams alike.

Names follow PX4's failure injection (off, stuck, garbage, wrong, slow, delayed, intermittent,
https://docs.px4.io/main/en/debug/failure_injection.html) plus optical ones. Two families:

- content faults change what a sample shows: `corrupt` is a pure function of (array, generator);
- timing faults change when samples come: the runtime's driver wrapper carries them out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError

TimingFault = Literal["off", "unplug", "stuck", "slow", "delayed", "intermittent"]
ContentFault = Literal["black", "saturate", "garbage", "cover", "blur", "wrong"]
TIMING_FAULTS: tuple[str, ...] = get_args(TimingFault)
CONTENT_FAULTS: tuple[str, ...] = get_args(ContentFault)
FAULTS: tuple[str, ...] = TIMING_FAULTS + CONTENT_FAULTS

SLOW_DIVISOR = 8
DELAY_S = 0.5
# Each phase of an intermittent connection lasts between these bounds.
INTERMITTENT_PHASE_S = (0.3, 1.0)

_SPEC = re.compile(r"(?P<sensor>[^=]+)=(?P<kind>[^@+]+)(@(?P<start>[^+]+))?(\+(?P<length>.+))?")
_DURATION = re.compile(r"(?P<value>\d+(\.\d+)?)(?P<unit>ms|s)")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault on one sensor during `start_s <= t < start_s + length_s` of the stream's time."""

    sensor: str
    kind: str
    start_s: float = 0.0
    length_s: float = math.inf

    def active(self, t_s: float) -> bool:
        """Whether the fault holds at stream time `t_s`."""
        return self.start_s <= t_s < self.start_s + self.length_s

    def __str__(self) -> str:
        tail = "" if math.isinf(self.length_s) else f"+{self.length_s:g}s"
        return f"{self.sensor}={self.kind}@{self.start_s:g}s{tail}"


def parse_fault(text: str, sensors: Sequence[str]) -> Fault:
    """The fault a flag such as "depth=off@3s+4s" or "ir=black@500ms" means; without +LENGTH it stays.

    Raises:
        UsageError: not of that form, an unknown fault, or a sensor that is not in `sensors`.
    """
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--inject {text!r} is not NAME=FAULT@START+LENGTH, e.g. depth=off@3s+4s")
    sensor, kind = match["sensor"], match["kind"]
    if kind not in FAULTS:
        raise UsageError(f"--inject {text!r}: unknown fault {kind!r}; faults: {', '.join(FAULTS)}")
    if sensor not in sensors:
        raise UsageError(f"--inject {text!r}: unknown sensor {sensor!r}; sensors: {', '.join(sensors)}")
    start_s = 0.0 if match["start"] is None else _seconds(match["start"], text)
    length_s = math.inf if match["length"] is None else _seconds(match["length"], text)
    return Fault(sensor=sensor, kind=kind, start_s=start_s, length_s=length_s)


def _seconds(duration: str, text: str) -> float:
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise UsageError(f"--inject {text!r}: {duration!r} is not a time such as 3s, 0.5s or 500ms")
    return float(match["value"]) * (0.001 if match["unit"] == "ms" else 1.0)


def corrupt(kind: str, sample: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """A new array of the same shape and dtype showing the content fault `kind`; the input is not changed.

    Raises:
        UsageError: `kind` is not a content fault.
    """
    if kind not in _CONTENT:
        raise UsageError(f"unknown content fault {kind!r}; content faults: {', '.join(CONTENT_FAULTS)}")
    result: NDArray[Any] = _CONTENT[kind](sample, generator)
    return result


def _full_scale(sample: NDArray[Any]) -> float:
    return float(np.iinfo(sample.dtype).max) if np.issubdtype(sample.dtype, np.integer) else 1.0


def _black(sample: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    return np.zeros_like(sample)


def _saturate(sample: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    return np.full_like(sample, _full_scale(sample))


def _garbage(sample: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    if np.issubdtype(sample.dtype, np.integer):
        return generator.integers(0, np.iinfo(sample.dtype).max, sample.shape, sample.dtype, endpoint=True)
    return generator.uniform(-1.0, 1.0, sample.shape).astype(sample.dtype)


def _cover(sample: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """A finger on the lens: a dark, textureless field with sensor noise of 0.3 % of full scale."""
    scale = _full_scale(sample)
    field = 0.12 * scale + generator.normal(0.0, 0.003 * scale, sample.shape)
    return np.clip(field, 0.0, scale).astype(sample.dtype)


def _blur(sample: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """A box mean over an eighth of each of the first two axes: far out of focus."""
    smooth = sample.astype(np.float64)
    for axis in range(min(2, sample.ndim)):
        smooth = _box_mean(smooth, axis, max(1, sample.shape[axis] // 8))
    return smooth.astype(sample.dtype)


def _box_mean(values: NDArray[np.float64], axis: int, width: int) -> NDArray[np.float64]:
    moved = np.moveaxis(values, axis, 0)
    count = moved.shape[0]
    total = np.concatenate([np.zeros_like(moved[:1]), np.cumsum(moved, axis=0)])
    low = np.maximum(0, np.arange(count) - width // 2)
    high = np.minimum(count, np.arange(count) + width // 2 + 1)
    means = (total[high] - total[low]) / (high - low).reshape(-1, *[1] * (moved.ndim - 1))
    return np.moveaxis(means, 0, axis)


def _wrong(sample: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """Plausible values in the wrong place: the first axis reversed and rolled by half its length."""
    return np.ascontiguousarray(np.roll(sample[::-1], sample.shape[0] // 2, axis=0))


_CONTENT: dict[str, Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]] = {
    "black": _black,
    "saturate": _saturate,
    "garbage": _garbage,
    "cover": _cover,
    "blur": _blur,
    "wrong": _wrong,
}


class IntermittentPhases:
    """Whether an intermittent connection is up at time t >= 0; it starts down; same seed, same phases."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._ends_s = [0.0]

    def up(self, t_s: float) -> bool:
        """True in every second phase; phase lengths are uniform in INTERMITTENT_PHASE_S."""
        while self._ends_s[-1] <= t_s:
            self._ends_s.append(self._ends_s[-1] + self._generator.uniform(*INTERMITTENT_PHASE_S))
        # _ends_s[i] is the end of phase i - 1, so phase 0 (down) runs up to _ends_s[1].
        phase = int(np.searchsorted(self._ends_s, t_s, side="right")) - 1
        return phase % 2 == 1
