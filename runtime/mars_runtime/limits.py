"""Every number of the fault table for one sensor: defaults, what the kind of sensor changes, what a user sets.

Sources of the default numbers: PX4 DataValidator, ArduPilot, Frigate, ffmpeg freezedetect and blackdetect, ROS
diagnostics, Autoware image_diagnostics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_runtime.sensors.driver import Traits

SensorKind = Literal["colour", "infrared", "depth", "audio", "other"]

# Frames over which the brightest phase of an infrared emitter is looked for: strobes of 2, 3 and 4 frames.
_INFRARED_STROBE_FRAMES = 4
_INFRARED_DARK_S = 2.0
_NO_CALLBACK_S = 0.5
# Depth errs in proportion to itself: 1.6 % of it from pixel to pixel is beyond what cameras are sold with at any range
# they are sold for, and ten times what the simulated rig shows (0.13 % at most over its streams and species).
DEPTH_NOISE_FLOOR = 0.004
# In decibels of full scale, so below 0 as a rule.
_SIGNED = ("silent_dbfs",)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Every number of the fault table for one sensor; seconds, counts and shares (0..1).

    Attributes:
        period_s: T, nominal seconds between samples.
        stale_s: age at which the sensor is masked; None means max(3 T, 0.2 s).
        lost_s: age at which reconnecting starts; None means max(10 T, 1 s).
        frozen_frames, frozen_s: a raw sensor repeating itself for this many samples and this long is frozen.
        distinct_frames: different samples that end "frozen".
        good_samples, good_s: consecutive good samples, over this long, that end any other fault.
        flap_changes, flap_window_s, flap_hold_s: more changes than this in the window hold the sensor missing.
        clock_jump_s, clock_samples: time stamps that jump by more than this against their receipt, or do not advance,
            this many times in a row.
        still_share, still_s, still_samples: a mean absolute difference to a held picture of at most this share of the
            range for this long is suspect; so many samples above it end that. A share of 0 turns the rule off.
        covered_share, covered_s: share of the blocks of a picture without texture.
        noise_floor, noise_ratio, noise_s: noise (standard deviation, share of the range; of depth, of the depth itself)
            above ratio x floor. The default floor is that of a poor camera in the dark, of depth `DEPTH_NOISE_FLOOR`; a
            fingerprint knows the sensor's own.
        invalid_depth_share, invalid_depth_s: share of the pixels of a depth picture that show no surface.
        strobe_frames: a picture counts as dark, covered or noisy by the best of so many frames.
        callback_s: a microphone without a callback for this long is dead.
        zeros_s, zeros_leave_s: a microphone that gives exact zeros for this long is dead, until it has not for so long.
        silent_dbfs, silent_s: sound below this level.
        clipped_share, clipped_s: share of the audio samples at full scale.
        skew_s: a sample whose stamp differs from the reference sensor's by more than this takes no part in that
            decision; None means max(50 ms, 1.5 T).
        masking: content faults that mask instead of degrade.
    """

    period_s: float
    start_grace_s: float = 15.0
    stale_s: float | None = None
    lost_s: float | None = None
    errors_in_a_row: int = 3
    frozen_frames: int = 5
    frozen_s: float = 0.5
    distinct_frames: int = 3
    good_samples: int = 10
    good_s: float = 1.0
    flap_changes: int = 5
    flap_window_s: float = 60.0
    flap_hold_s: float = 30.0
    slow_share: float = 0.6
    normal_share: float = 0.8
    rate_window_s: float = 5.0
    clock_jump_s: float = 0.1
    clock_samples: int = 3
    dark_share: float = 0.98
    dark_s: float = 1.0
    saturated_share: float = 0.5
    saturated_s: float = 1.0
    covered_share: float = 0.8
    covered_s: float = 2.0
    noise_floor: float = 0.03
    noise_ratio: float = 4.0
    noise_s: float = 1.0
    invalid_depth_share: float = 0.9
    invalid_depth_s: float = 1.0
    still_share: float = 0.001
    still_s: float = 2.0
    still_samples: int = 3
    strobe_frames: int = 1
    callback_s: float = math.inf
    zeros_s: float = 0.5
    zeros_leave_s: float = 1.0
    silent_dbfs: float = -60.0
    silent_s: float = 2.0
    clipped_share: float = 0.01
    clipped_s: float = 1.0
    skew_s: float | None = None
    masking: frozenset[str] = frozenset()

    @cached_property
    def skew_after_s(self) -> float:
        """Difference to the reference sensor's stamp above which a sample is left out of a decision."""
        return max(0.05, 1.5 * self.period_s) if self.skew_s is None else self.skew_s

    @cached_property
    def stale_after_s(self) -> float:
        """Age at which a sensor is stale; also the age limit of a cached feature."""
        return max(3.0 * self.period_s, 0.2) if self.stale_s is None else self.stale_s

    @cached_property
    def lost_after_s(self) -> float:
        """Age at which a sensor is lost and its capture thread reconnects."""
        return max(10.0 * self.period_s, 1.0) if self.lost_s is None else self.lost_s

    @cached_property
    def shortest_silence_s(self) -> float:
        """Age up to which silence is no fault at all."""
        return min(self.stale_after_s, self.lost_after_s, self.callback_s)

    @cached_property
    def noise_most(self) -> float:
        """Noise above this is a fault: share of the range."""
        return self.noise_ratio * self.noise_floor

    def excusing(self, excused_s: float) -> Limits:
        """Limits on silence that are longer by what was this process's own stall and not the sensor's."""
        if excused_s <= 0.0:
            return self
        return replace(
            self,
            stale_s=self.stale_after_s + excused_s,
            lost_s=self.lost_after_s + excused_s,
            callback_s=self.callback_s + excused_s,
        )


def kind_of(modality: Modality) -> SensorKind:
    """What faults a sensor of this modality can show.

    A 16-bit picture counts as depth, an 8-bit one of a single channel as infrared.
    """
    if modality.kind == "audio":
        return "audio"
    if modality.kind != "image":
        return "other"
    if modality.dtype == "uint16":
        return "depth"
    return "infrared" if modality.dtype == "uint8" and modality.channels == 1 else "colour"


def limits_of(kind: SensorKind, traits: Traits, *, masking: frozenset[str] = frozenset()) -> Limits:
    """The defaults for one kind of sensor at its rate."""
    limits = Limits(period_s=traits.period_s, start_grace_s=traits.start_grace_s, masking=masking)
    if kind == "infrared":
        return replace(limits, strobe_frames=_INFRARED_STROBE_FRAMES, dark_s=_INFRARED_DARK_S)
    if kind == "depth":
        return replace(limits, noise_floor=DEPTH_NOISE_FLOOR)
    if kind == "audio" and not traits.finite:
        return replace(limits, callback_s=max(_NO_CALLBACK_S, 2.0 * traits.period_s))
    return limits


def with_overrides(limits: Limits, table: Mapping[str, Any], where: str) -> Limits:
    """`limits` with the numbers of a user's TOML table.

    Raises:
        UsageError: an unknown key, or a value that is not a number of at least 0.
    """
    known = [f.name for f in fields(Limits) if f.name not in ("period_s", "masking")]
    for key, value in table.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; known keys: {', '.join(known)}")
        if not _allowed(key, value):
            raise UsageError(f"{where}: {key} is {value!r}, expected {_wanted(key)}")
    return replace(limits, **table)


def _is_count(key: str) -> bool:
    return type(getattr(Limits(period_s=1.0), key)) is int


def _wanted(key: str) -> str:
    if key in _SIGNED:
        return "a number"
    return "a whole number of at least 0" if _is_count(key) else "a number of at least 0"


def _allowed(key: str, value: object) -> bool:
    if type(value) is not int and (type(value) is not float or _is_count(key)):
        return False
    return math.isfinite(value) and (key in _SIGNED or value >= 0)
