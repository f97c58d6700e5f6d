"""The fault injector: what broken sensors do, for training, evaluation and live streams alike.

Names follow PX4's failure injection (off, stuck, garbage, wrong, slow, delayed, intermittent,
https://docs.px4.io/main/en/debug/failure_injection.html) plus optical ones. Three families:

- content faults change what a sample shows: `corrupt` is a pure function of (array, generator);
- moment faults show a moment that is not this one: plausible data, so they need the samples before;
- timing faults change when samples come.

A `FaultLine` carries all of them out on a live sensor, `corrupt_series` on recorded arrays; both are seeded.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError

TimingFault = Literal["off", "unplug", "stuck", "slow", "delayed", "intermittent"]
MomentFault = Literal["swap", "skew"]
ContentFault = Literal["black", "saturate", "garbage", "cover", "scatter", "blur", "wrong"]
TIMING_FAULTS: tuple[str, ...] = get_args(TimingFault)
CONTENT_FAULTS: tuple[str, ...] = get_args(ContentFault)
MOMENT_FAULTS: tuple[str, ...] = get_args(MomentFault)
FAULTS: tuple[str, ...] = TIMING_FAULTS + CONTENT_FAULTS + MOMENT_FAULTS

SLOW_DIVISOR = 8
DELAY_S = 0.5
# Younger than the age limit of any sensor, so only the sensors' own stamps can tell it from a sample of now.
SKEW_S = 0.15
# Of a covered depth camera: how many pixels match falsely, and between which distances.
FALSE_MATCH_SHARE = 0.03
FALSE_MATCH_MM = (200.0, 10_000.0)
# A swapped sample is one of so many earlier ones, each at least so long after the one before.
SWAP_KEPT = 16
SWAP_SPACING_S = 0.5
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
    """An opaque cover on the lens: a dark, textureless field; of 16-bit depth no measurement but a few false matches.

    Below their shortest range stereo and structured light find no match, but flickering dots at any distance
    (https://github.com/realsenseai/librealsense/issues/8400, 5962, 12495).
    """
    return _false_matches(sample, generator) if _is_depth(sample) else _field(sample, generator)


def _is_depth(sample: NDArray[Any]) -> bool:
    return sample.dtype == np.uint16 and sample.ndim >= 2


def _false_matches(sample: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """Zeros, and a few dots whose disparity is drawn evenly, so that most of them are near."""
    near, far = FALSE_MATCH_MM
    disparity = generator.uniform(1.0 / far, 1.0 / near, sample.shape)
    dots = generator.random(sample.shape) < FALSE_MATCH_SHARE
    return np.where(dots, 1.0 / disparity, 0.0).astype(sample.dtype)


def _field(sample: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """12 % of full scale everywhere, with noise of 0.3 % of full scale."""
    scale = _full_scale(sample)
    field = 0.12 * scale + generator.normal(0.0, 0.003 * scale, sample.shape)
    return np.clip(field, 0.0, scale).astype(sample.dtype)


def _scatter(sample: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """A translucent film on the lens: the light of the scene without its picture; of depth a far, noisy field.

    A time-of-flight camera that is not told by its own confidence that the light was scattered gives such a field:
    a value everywhere (7.9 m of millimetres), neighbours of no common surface (standard deviation 2.5 %).
    """
    if _is_depth(sample):
        return _field(sample, generator)
    scale = _full_scale(sample)
    lowest = 0.0 if np.issubdtype(sample.dtype, np.integer) else -scale
    colour = sample.astype(np.float64).mean(axis=tuple(range(min(2, sample.ndim))))
    noisy = colour + generator.normal(0.0, 0.003 * scale, sample.shape)
    shown: NDArray[Any] = np.clip(noisy, lowest, scale).astype(sample.dtype)
    return shown


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
    "scatter": _scatter,
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


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a sensor hands out at one moment.

    Attributes:
        sequence: the source's own frame number, or None where it has none.
        stamped_s: capture by the device's clock, or None where it has none.
        carrier: whatever belongs to this delivery and not to its content; passed on untouched.
    """

    data: NDArray[Any]
    sequence: int | None = None
    stamped_s: float | None = None
    carrier: Any = None


class FaultLine:
    """What is left of one sensor's samples behind its faults; the same seed and samples give the same result.

    With several faults active, each is applied in turn. A fault of kind "unplug" lets nothing through; that the
    device is gone as well is said by `active`. Used by one thread, except `set_faults`.
    """

    def __init__(self, faults: Sequence[Fault], *, seed: int) -> None:
        self._faults = tuple(faults)
        self._generator = np.random.default_rng(seed)
        self._phases = IntermittentPhases(seed)
        self._count = 0
        self._held: Shown | None = None
        self._late: deque[tuple[float, Shown]] = deque()
        self._earlier: deque[tuple[float, Shown]] = deque(maxlen=SWAP_KEPT)
        self._passed: deque[tuple[float, Shown]] = deque()
        self._swapped: Shown | None = None

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Every fault, active or not."""
        return self._faults

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Replace every fault, from the next sample on; any thread may ask."""
        self._faults = tuple(faults)

    def active(self, kind: str, now_s: float) -> bool:
        """Whether a fault of this kind holds at stream time `now_s`."""
        return any(fault.kind == kind and fault.active(now_s) for fault in self._faults)

    def passed(self, shown: Shown | None, now_s: float) -> Shown | None:
        """What is handed out at `now_s` when the sensor gives `shown`, or None."""
        active = [fault for fault in self._faults if fault.active(now_s)]
        self._remember(shown, now_s)
        if not any(fault.kind == "delayed" for fault in active):
            self._late.clear()
        for fault in active:
            shown = self._applied(fault, shown, now_s)
        if shown is not None and not any(fault.kind == "stuck" for fault in active):
            self._held = shown
        return shown

    def _remember(self, shown: Shown | None, now_s: float) -> None:
        """Keep true samples of earlier moments: spaced ones for "swap", the newest for "skew"."""
        if shown is None:
            return
        if not self._earlier or now_s - self._earlier[-1][0] >= SWAP_SPACING_S:
            self._earlier.append((now_s, shown))
        self._passed.append((now_s, shown))
        while len(self._passed) > 1 and self._passed[1][0] <= now_s - SKEW_S:
            self._passed.popleft()

    def _applied(self, fault: Fault, shown: Shown | None, now_s: float) -> Shown | None:
        if fault.kind == "delayed":
            return self._delayed(shown, now_s)
        if shown is None or fault.kind in ("off", "unplug"):
            return None
        if fault.kind == "stuck":
            self._held = self._held or shown
            return replace(shown, data=self._held.data, sequence=self._held.sequence)
        if fault.kind == "slow":
            self._count += 1
            return shown if self._count % SLOW_DIVISOR == 0 else None
        if fault.kind == "intermittent":
            return shown if self._phases.up(now_s - fault.start_s) else None
        if fault.kind == "swap":
            return replace(shown, data=self._other().data)
        if fault.kind == "skew":
            _, before = self._passed[0]
            return replace(shown, data=before.data, stamped_s=before.stamped_s)
        return replace(shown, data=corrupt(fault.kind, shown.data, self._generator))

    def _delayed(self, shown: Shown | None, now_s: float) -> Shown | None:
        if shown is not None:
            self._late.append((now_s + DELAY_S, shown))
        if self._late and self._late[0][0] <= now_s:
            return self._late.popleft()[1]
        return None

    def _other(self) -> Shown:
        """An earlier sample, not the one swapped in before where there is another."""
        choice = [shown for _, shown in self._earlier if shown is not self._swapped] or [self._earlier[-1][1]]
        self._swapped = choice[int(self._generator.integers(len(choice)))]
        return self._swapped


def corrupt_series(
    kind: str, samples: Sequence[NDArray[Any]], *, rate_hz: float, seed: int, start: int = 0
) -> list[NDArray[Any] | None]:
    """The samples of one sensor at `rate_hz` with a fault of any kind from number `start` on; None where none comes.

    For training and evaluation on recorded data; the input is not changed.

    Raises:
        UsageError: an unknown fault.
    """
    if kind not in FAULTS:
        raise UsageError(f"unknown fault {kind!r}; faults: {', '.join(FAULTS)}")
    # Half a period early: rounding must not decide whether the fault holds at its first sample.
    fault = Fault(sensor="series", kind=kind, start_s=(start - 0.5) / rate_hz)
    line = FaultLine([fault], seed=seed)
    passed = [line.passed(Shown(data=sample), number / rate_hz) for number, sample in enumerate(samples)]
    return [None if shown is None else shown.data for shown in passed]
