"""The downgrade alarm: a sensor that liveness depends on went missing after it had been used.

In face anti-spoofing the attacker chooses what is missing. Covering a sensor in mid-session is an attack's first step,
so it is said in every decision until the sensor is back, and can hold all decisions back for a while.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mars_edge.defence import WORST, downgrade_risks
from mars_edge.manifest import Manifest, Policy

# One decision without a sensor whose stamp is off is no loss of that sensor, and nobody can make a file end.
_NOT_A_LOSS = ("skew", "ended")


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the alarm remembers.

    Attributes:
        used: critical sensors that have taken part in a decision of this session.
        missing: of those, the ones that are missing now, in fusion order.
        held: the ones whose loss holds decisions back, and until when.
        held_until_s: monotonic clock; None while nothing is held.
    """

    used: frozenset[str] = frozenset()
    missing: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    held_until_s: float | None = None


def critical_sensors(manifest: Manifest, policy: Policy) -> tuple[str, ...]:
    """Sensors whose loss helps an attacker, in fusion order.

    Those that `policy.require` names, and those whose covering leads to a subset that still decides and accepts more of
    the worst attack species than before, by the measured rates of the manifest (`mars_edge.defence`).
    """
    required = {name for entry in policy.require for name in entry.split("|")}
    risks = downgrade_risks(manifest) if manifest.positive_label is not None else ()
    gainful = {risk.sensor for risk in risks if risk.species == WORST and not risk.abstains and risk.gain > 0.0}
    return tuple(name for name in manifest.names if name in required | gainful)


def step(
    watch: Watch,
    critical: Collection[str],
    present: Collection[str],
    reasons: dict[str, str | None],
    now_s: float,
    latch_s: float,
) -> Watch:
    """The watch after one decision; every new loss holds decisions for `latch_s` seconds anew.

    Args:
        critical: see `critical_sensors`; its order is kept.
        present: sensors used in this decision.
        reasons: why a sensor is not used.
    """
    used = watch.used | (frozenset(critical) & frozenset(present))
    missing = tuple(n for n in critical if n in used and n not in present and reasons.get(n) not in _NOT_A_LOSS)
    lost = tuple(name for name in missing if name not in watch.missing)
    held, until_s = watch.held, watch.held_until_s
    if until_s is not None and now_s >= until_s:
        held, until_s = (), None
    if lost and latch_s > 0.0:
        held, until_s = (*held, *(name for name in lost if name not in held)), now_s + latch_s
    return Watch(used=used, missing=missing, held=held, held_until_s=until_s)


def objection(watch: Watch, latch_s: float) -> str | None:
    """Why no decision may be made now; None while nothing is held."""
    if watch.held_until_s is None:
        return None
    return f"{', '.join(watch.held)} went missing: no decision for {latch_s:g} s"
