"""What one healthy sensor looks like, learned from its own samples: the limits that its kind alone cannot know.

Learn while everything is well, in the light and before the scenes the sensor will work in: what is seen then counts
as normal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mars_edge.errors import UsageError
from mars_edge.files import write_whole
from mars_edge.modality import Modality
from mars_runtime.capture import Sample
from mars_runtime.facts import STILL_SHARE, FactFinder
from mars_runtime.limits import DEPTH_NOISE_FLOOR, Limits, SensorKind, kind_of
from mars_runtime.sensors.driver import Traits

VERSION = 1
FEWEST_SAMPLES = 30
_TOLERATED = 0.1
_STROBES = range(2, 9)
# A strobe explains at least this part of how the brightness varies, and is at least this share of the range.
_STROBE_EXPLAINS = 0.8
_STROBE_SHARE = 0.02
# The least noise that counts: half a step of an 8-bit picture. A depth camera that has learned near things only must
# not take those further away, of which it is less certain, for noise.
_LEAST_NOISE = {"depth": DEPTH_NOISE_FLOOR}
_LEAST_PICTURE_NOISE = 0.5 / 255.0


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Numbers of one sensor in health; None where the notion does not apply.

    Attributes:
        samples, seconds: what it was learned from.
        period_s: median time between two samples.
        jitter_s: how much longer than that the longest of a thousand gaps is.
        noise_floor: pixel noise that 95 % of the samples stay under, standard deviation as a share of the range, of
            depth as a share of itself.
        dark_level: share of dark pixels that 95 % of the samples stay under, in the brightest phase of the strobe.
        strobe_frames: frames after which the light of an emitter repeats; 1 where there is no strobe.
        zero_depth_share: share of pixels that show no surface that 95 % of the samples stay under.
        still_share: difference to a held picture, share of the range, that 95 % of the samples are above.
        quiet_dbfs: level that 95 % of the sound is above.
    """

    kind: SensorKind
    samples: int
    seconds: float
    period_s: float
    jitter_s: float
    noise_floor: float | None = None
    dark_level: float | None = None
    strobe_frames: int = 1
    zero_depth_share: float | None = None
    still_share: float | None = None
    quiet_dbfs: float | None = None
    version: int = VERSION


def learn(samples: Sequence[Sample], modality: Modality, traits: Traits) -> Fingerprint:
    """The fingerprint of a sensor that was well while it gave `samples`, all of them and in order.

    Raises:
        UsageError: too few samples, or more than a tenth are not finite or repeat the one before.
    """
    if len(samples) < FEWEST_SAMPLES:
        raise UsageError(f"a fingerprint needs at least {FEWEST_SAMPLES} samples, {len(samples)} came")
    finder, kind = FactFinder.of(modality), kind_of(modality)
    seen = [finder.facts(sample.frame, traits, sample.at_s) for sample in samples]
    bad = sum(each.repeated or not each.usable for each in seen)
    if bad > _TOLERATED * len(seen):
        raise UsageError(f"{bad} of {len(seen)} samples repeat the one before or are not finite, as of a sick sensor")
    gaps_s = np.diff([sample.at_s for sample in samples])
    period_s = float(np.median(gaps_s))
    strobe = (
        strobe_period([float(sample.frame.data.mean()) for sample in samples]) if kind in ("colour", "infrared") else 1
    )
    picture = kind in ("colour", "infrared")
    return Fingerprint(
        kind=kind,
        samples=len(samples),
        seconds=float(samples[-1].at_s - samples[0].at_s),
        period_s=period_s,
        jitter_s=max(0.0, float(np.quantile(gaps_s, 0.999)) - period_s),
        noise_floor=_quantile([each.noise for each in seen], 0.95),
        dark_level=_quantile(_best_phase([each.dark for each in seen], strobe), 0.95) if picture else None,
        strobe_frames=strobe,
        zero_depth_share=_quantile([each.invalid_depth for each in seen], 0.95) if kind == "depth" else None,
        still_share=_quantile([each.still for each in seen], 0.05),
        quiet_dbfs=_quantile([each.loudness_dbfs for each in seen], 0.05),
    )


def _quantile(values: Sequence[float | None], share: float) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.quantile(known, share)) if known else None


def _best_phase(values: Sequence[float], frames: int) -> list[float]:
    return [min(values[max(0, end - frames) : end]) for end in range(frames, len(values) + 1)]


def strobe_period(brightness: Sequence[float]) -> int:
    """The shortest period, in frames, that explains how the mean brightness varies from frame to frame; 1 for none."""
    full_scale = 255.0
    levels = np.asarray(brightness, np.float64) / full_scale
    for frames in _STROBES:
        if levels.size < 4 * frames:
            break
        # Slow changes of the scene are taken out by the mean over one period around each frame.
        window = np.ones(frames) / frames
        quick = levels[frames - 1 :] - np.convolve(levels, window, "valid")
        phases = np.array([quick[phase::frames].mean() for phase in range(frames)])
        explained = float(np.var(phases[np.arange(quick.size) % frames]))
        total = float(np.var(quick))
        if total > 0.0 and explained >= _STROBE_EXPLAINS * total and np.ptp(phases) >= _STROBE_SHARE:
            return frames
    return 1


def overrides(found: Fingerprint) -> dict[str, Any]:
    """The fields of `Limits` that the fingerprint sets, as a user's own table would.

    Limits only move as far as health needs: a learned number below a default leaves the default, except that of noise,
    which is the sensor's own.
    """
    table: dict[str, Any] = {}
    if found.noise_floor is not None:
        table["noise_floor"] = max(found.noise_floor, _LEAST_NOISE.get(found.kind, _LEAST_PICTURE_NOISE))
    if found.dark_level is not None:
        table["dark_share"] = _between(found.dark_level, Limits(period_s=1.0).dark_share)
    if found.strobe_frames > 1:
        table["strobe_frames"] = found.strobe_frames
    if found.zero_depth_share is not None:
        table["invalid_depth_share"] = _between(found.zero_depth_share, Limits(period_s=1.0).invalid_depth_share)
    if found.still_share is not None and found.still_share < 2.0 * STILL_SHARE:
        # A sensor whose healthy pictures hardly differ cannot be told from a frozen one: 0 turns the rule off.
        table["still_share"] = found.still_share / 2.0 if found.still_share > STILL_SHARE / 4.0 else 0.0
    if found.quiet_dbfs is not None:
        table["silent_dbfs"] = min(Limits(period_s=1.0).silent_dbfs, found.quiet_dbfs - 6.0)
    longest_s = found.period_s + 2.0 * found.jitter_s
    if longest_s > Limits(period_s=found.period_s).stale_after_s:
        table["stale_s"] = longest_s
        table["lost_s"] = max(longest_s, Limits(period_s=found.period_s).lost_after_s)
    return table


def _between(learned: float, default: float) -> float:
    """The default, or where healthy samples come near it, half-way from them to everything."""
    return max(default, learned + 0.5 * (1.0 - learned)) if learned < 1.0 else 1.0 + 1e-9


def apply(limits: Limits, found: Fingerprint) -> Limits:
    """`limits` with what was learned."""
    return replace(limits, **overrides(found))


def save(found: Fingerprint, path: Path) -> None:
    """Write it as JSON; the file is whole or as it was before.

    Raises:
        OSError: the folder cannot be written to.
    """
    text = json.dumps(asdict(found), indent=2, allow_nan=False) + "\n"
    write_whole(path, text)


def load(path: Path) -> Fingerprint:
    """The fingerprint in a file.

    Raises:
        UsageError: no such file, not one of ours, or of another version.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"fingerprint {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"fingerprint {path}: not JSON: {error}") from error
    if not isinstance(table, dict):
        raise UsageError(f"fingerprint {path}: is a {type(table).__name__}, expected an object")
    if table.get("version") != VERSION:
        raise UsageError(f"fingerprint {path}: version is {table.get('version')!r}; this mars-edge reads {VERSION}")
    return _built(table, path)


def _built(table: Mapping[str, Any], path: Path) -> Fingerprint:
    known = [f.name for f in fields(Fingerprint)]
    if set(table) != set(known):
        odd = sorted(set(table) ^ set(known))[0]
        what = "unknown" if odd in table else "missing"
        raise UsageError(f"fingerprint {path}: {what} key {odd!r}; its keys: {', '.join(known)}")
    if table["kind"] not in get_args(SensorKind):
        allowed = ", ".join(get_args(SensorKind))
        raise UsageError(f"fingerprint {path}: kind is {table['kind']!r}, expected one of {allowed}")
    for key, value in table.items():
        if key != "kind" and not _fits(key, value):
            raise UsageError(f"fingerprint {path}: {key} is {value!r}, expected {_expected(key)}")
    return Fingerprint(**table)


_COUNTS = ("samples", "strobe_frames", "version")
_NEEDED_S = ("seconds", "period_s", "jitter_s")


def _fits(key: str, value: object) -> bool:
    if key in _COUNTS:
        return type(value) is int and value >= 1
    if value is None:
        return key not in _NEEDED_S
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        return False
    if key == "quiet_dbfs":
        return True
    return value > 0 if key == "period_s" else value >= 0  # type: ignore[operator]


def _expected(key: str) -> str:
    if key in _COUNTS:
        return "a whole number from 1"
    if key == "quiet_dbfs":
        return "a number or null"
    return "a number of at least 0" + ("" if key in _NEEDED_S else " or null")
