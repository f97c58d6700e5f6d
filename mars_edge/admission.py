"""Which subsets of modalities an artifact may decide on: what the runtime obeys and a defender's table counts.

A subset decides if the policy allows it and its operating point is certified; every other one abstains, or
rejects under `fail_closed`.
"""

from __future__ import annotations

from collections.abc import Sequence

from mars_edge import subsets
from mars_edge.manifest import Manifest, Policy


def objection(
    manifest: Manifest, policy: Policy, present: Sequence[str], *, allow_uncertified: bool = False
) -> str | None:
    """Why this subset may not decide, or None if it may; needs no inference."""
    if not present:
        return "no sensor is usable"
    unmet = [entry for entry in policy.require if not set(entry.split("|")) & set(present)]
    if unmet:
        return f"requires {unmet[0]}"
    subset = subsets.label(present, manifest.names)
    missing = [name for name in manifest.names if name not in present]
    if missing and policy.on_missing != "continue":
        return f"{', '.join(missing)} missing"
    point = manifest.operating_points.get(subset)
    if point is None:
        return f"subset {subset} has no operating point"
    if not point.certified and not allow_uncertified:
        return f"subset {subset} is not certified"
    return None
