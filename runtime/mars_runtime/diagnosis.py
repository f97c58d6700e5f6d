"""From the numbers of an examination to what is wrong and what to do: pure functions, one per cause.

A cause is named only with the number it was judged on, since most have more than one explanation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mars_runtime.examination import Measured
from mars_runtime.limits import DEPTH_NOISE_FLOOR, Limits

Verdict = Literal["ok", "suspect", "broken"]

# A sensor is compared with the fault table's own numbers, so that doctor and run agree.
_LIMITS = Limits(period_s=0.1)
_FAR = 0.9
_DIM = 0.15
_LATE_S = 0.3
_CALM_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One cause with its evidence and what to do about it; `broken` if no sample can be used."""

    cause: str
    evidence: str
    advice: str
    broken: bool = False


Others = Mapping[str, Measured]
Rule = Callable[[Measured, Others], Finding | None]

# What an error says: (pattern, cause, advice).
_ERRORS = (
    (r"permission", "permission", "then log in again; `groups` must show it"),
    (r"busy", "busy", "end that program, or take the camera's pictures from it"),
    (r"\b401\b|\b403\b", "no access", "check user name and password of the camera"),
    (r"\b404\b|\b454\b", "wrong address", "look the path up in the camera's manual"),
    (r"not look|pip install|apt install", "not installed", "install it"),
    (r"no sound input", "no sound device", "plug a microphone in, or start the sound server of this user"),
    (r"refused by|no host", "no server", "is the camera on, and on this network?"),
    (
        r"no such|unplugged|No input device|connected: none",
        "not there",
        "plug it in; `mars-edge devices` lists what is",
    ),
    (r"asked for", "other settings", "ask for a format and size that `mars-edge devices` lists"),
    (r"gave no sample|sent nothing", "silent", "unplug it and plug it in again; another port or cable"),
    (r"within|does not answer|process", "no answer", "unplug it and plug it in again; restart its server"),
)


def diagnose(measured: Measured, others: Others) -> tuple[Verdict, list[Finding]]:
    """What is wrong with one sensor, seen beside the others that were examined at the same time."""
    found = [finding for rule in RULES if (finding := rule(measured, others)) is not None]
    if any(finding.broken for finding in found):
        return "broken", found
    return ("suspect" if found else "ok"), found


def _error(measured: Measured, others: Others) -> Finding | None:
    if measured.error is None:
        return None
    for pattern, cause, advice in _ERRORS:
        if re.search(pattern, measured.error):
            return Finding(cause=cause, evidence=measured.error, advice=advice, broken=True)
    return Finding(cause="fails", evidence=measured.error, advice="unplug it and plug it in again", broken=True)


def _misfit(measured: Measured, others: Others) -> Finding | None:
    if measured.misfit is None:
        return None
    return Finding(
        cause="wrong kind of sample",
        evidence=measured.misfit,
        advice="name another source, or another format (v4l2:NODE?format=Y16)",
        broken=True,
    )


def _unusable(measured: Measured, others: Others) -> Finding | None:
    if measured.unusable == 0.0:
        return None
    evidence = f"{_percent(measured.unusable)} of the samples hold values that are no numbers"
    return Finding(cause="not finite", evidence=evidence, advice="the driver of this sensor is at fault", broken=True)


def _frozen(measured: Measured, others: Others) -> Finding | None:
    if measured.repeated < _CALM_SHARE or measured.samples < _LIMITS.frozen_frames:
        return None
    evidence = f"{_percent(measured.repeated)} of the samples repeat the one before, bit for bit"
    return Finding(cause="frozen", evidence=evidence, advice="unplug it and plug it in again", broken=True)


def _emitter_off(measured: Measured, others: Others) -> Finding | None:
    """No infrared light, or no depth from the light that is not there."""
    if measured.kind == "infrared" and _dark(measured):
        lit = any(other.kind == "colour" and not _dark(other) for other in others.values())
        beside = "while the colour camera sees the scene" if lit else "and no lit colour picture to compare with"
        return Finding(
            cause="emitter off" if lit else "emitter off or covered",
            evidence=f"{_percent(measured.dark)} of the infrared pixels are dark, {beside}",
            advice="switch the infrared emitter on; look for a cover or a thumb",
        )
    if measured.kind == "depth" and _no_depth(measured):
        dark = any(other.kind == "infrared" and _dark(other) for other in others.values())
        if dark:
            return Finding(
                cause="emitter off",
                evidence=f"{_percent(measured.invalid_depth)} of the pixels have no depth, and the infrared is dark",
                advice="switch the infrared emitter on",
            )
    return None


def _no_range(measured: Measured, others: Others) -> Finding | None:
    if measured.kind != "depth" or not _no_depth(measured) or _emitter_off(measured, others) is not None:
        return None
    far = measured.depth is not None and measured.depth >= _FAR
    evidence = f"{_percent(measured.invalid_depth)} of the pixels have no depth"
    if far:
        evidence += f", the rest is at {_percent(measured.depth)} of the range"
    return Finding(
        cause="too far" if far else "too far, too near or covered",
        evidence=evidence,
        advice="put something within the camera's range; wipe the lens; keep sunlight out",
    )


def _too_far(measured: Measured, others: Others) -> Finding | None:
    if measured.kind != "depth" or measured.depth is None or _no_depth(measured) or measured.depth < _FAR:
        return None
    evidence = f"the median depth is {_percent(measured.depth)} of the range"
    return Finding(cause="too far", evidence=evidence, advice="bring the scene nearer")


def _strobe(measured: Measured, others: Others) -> Finding | None:
    if measured.strobe_frames < 2:
        return None
    part = f", {_percent(measured.phase_dark)} of the pictures are dark" if measured.phase_dark else ""
    return Finding(
        cause="strobe phase",
        evidence=f"the light repeats every {measured.strobe_frames} frames{part}",
        advice='let health know: `--learn FILE`, then fingerprint = "FILE" in the sensors file',
    )


def _covered(measured: Measured, others: Others) -> Finding | None:
    if measured.kind not in ("colour", "infrared"):
        return None
    if measured.kind == "colour" and _dark(measured):
        return Finding(
            cause="covered or dark",
            evidence=f"{_percent(measured.dark)} of the pixels are dark",
            advice="take the cover off, or switch a light on",
        )
    if measured.flat is None or measured.flat < _LIMITS.covered_share or _dark(measured):
        return None
    evidence = f"{_percent(measured.flat)} of the picture has no texture"
    return Finding(cause="covered", evidence=evidence, advice="look for a cover, a thumb or a lens out of focus")


def _saturated(measured: Measured, others: Others) -> Finding | None:
    if measured.saturated is None or measured.saturated < _LIMITS.saturated_share:
        return None
    evidence = f"{_percent(measured.saturated)} of the pixels are at full scale"
    return Finding(cause="too bright", evidence=evidence, advice="less light, or a shorter exposure")


def _noise(measured: Measured, others: Others) -> Finding | None:
    depth = measured.kind == "depth"
    most = (replace(_LIMITS, noise_floor=DEPTH_NOISE_FLOOR) if depth else _LIMITS).noise_most
    if measured.noise is None or measured.noise <= most:
        return None
    evidence = f"pixel noise is {measured.noise:.1%} of the {'depth' if depth else 'range'}, usual is below {most:.1%}"
    advice = "look for a film or a thumb over the lens; keep sunlight out" if depth else "more light; check the cable"
    return Finding(cause="noise", evidence=evidence, advice=advice)


def _slow(measured: Measured, others: Others) -> Finding | None:
    rate_hz = measured.rate_hz
    if rate_hz is None or rate_hz >= _LIMITS.normal_share * measured.nominal_hz:
        return None
    advice = "end what else uses this machine, the bus or the network"
    if measured.slow_link:
        advice = "a USB 3 port and cable"
    elif measured.brightness is not None and measured.brightness < _DIM:
        advice = "more light: automatic exposure takes longer than a frame"
    evidence = f"{rate_hz:.1f} samples per second, nominal are {measured.nominal_hz:g}"
    return Finding(cause="rate below nominal", evidence=evidence, advice=advice)


def _gaps(measured: Measured, others: Others) -> Finding | None:
    if measured.rate_hz is None or measured.nominal_hz <= 0.0:
        return None
    limit_s = Limits(period_s=1.0 / measured.nominal_hz).stale_after_s
    if measured.longest_gap_s <= limit_s:
        return None
    evidence = f"{1000 * measured.longest_gap_s:.0f} ms without a sample; {1000 * limit_s:.0f} ms mask it"
    return Finding(cause="gaps", evidence=evidence, advice="a wired network or another bus; else a larger stale_s")


def _link(measured: Measured, others: Others) -> Finding | None:
    if not measured.slow_link:
        return None
    evidence = "the camera knows USB 3 and is connected by USB 2"
    return Finding(cause="USB 2 link", evidence=evidence, advice="a USB 3 port and cable, without a hub")


def _late(measured: Measured, others: Others) -> Finding | None:
    if measured.late_s is None or measured.late_s < _LATE_S:
        return None
    evidence = f"samples are {1000 * measured.late_s:.0f} ms old when they arrive"
    return Finding(cause="late", evidence=evidence, advice="a smaller picture or a buffer less on the way")


def _sound(measured: Measured, others: Others) -> Finding | None:
    if measured.kind != "audio":
        return None
    if measured.zeros_s is not None and measured.zeros_s >= _LIMITS.zeros_s:
        evidence = f"nothing but exact zeros for {measured.zeros_s:.1f} s"
        return Finding(
            cause="muted", evidence=evidence, advice="unmute it; check the switch and the mixer", broken=True
        )
    if measured.clipped is not None and measured.clipped > _LIMITS.clipped_share:
        evidence = f"{_percent(measured.clipped)} of the sound is at full scale"
        return Finding(cause="too loud", evidence=evidence, advice="lower the microphone's gain")
    if measured.loudness_dbfs is not None and measured.loudness_dbfs < _LIMITS.silent_dbfs:
        evidence = f"{measured.loudness_dbfs:.0f} dBFS, silence is below {_LIMITS.silent_dbfs:g}"
        return Finding(cause="too quiet", evidence=evidence, advice="raise the gain; a quiet room is no fault")
    return None


def _lost_sound(measured: Measured, others: Others) -> Finding | None:
    if measured.overflows == 0:
        return None
    evidence = f"sound was lost {measured.overflows} times"
    return Finding(cause="overflow", evidence=evidence, advice="end what else uses this machine")


def _dark(measured: Measured) -> bool:
    return measured.dark is not None and measured.dark >= _LIMITS.dark_share


def _no_depth(measured: Measured) -> bool:
    return measured.invalid_depth is not None and measured.invalid_depth > _LIMITS.invalid_depth_share


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100.0 * share:.0f} %"


RULES: tuple[Rule, ...] = (
    _error,
    _misfit,
    _unusable,
    _frozen,
    _emitter_off,
    _no_range,
    _too_far,
    _strobe,
    _covered,
    _saturated,
    _noise,
    _slow,
    _gaps,
    _link,
    _late,
    _sound,
    _lost_sound,
)
