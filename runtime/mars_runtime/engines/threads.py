"""How many threads an engine runs on where nobody says: as many as one decision has work for.

Waking a thread and waiting for it costs the same whatever the network: a small one is slower on two than on one.
"""

from __future__ import annotations

from mars_edge.manifest import Manifest, subset_cost

MACS_PER_THREAD = 100_000_000
"""Multiply-accumulates of a decision with everything present that give one thread enough to do."""

_MOST = 256


def default_threads(manifest: Manifest, cores: int) -> int:
    """One for every `MACS_PER_THREAD` of a decision with everything present; from 1 to `cores`.

    A manifest of an earlier version states no costs: one per core.
    """
    wanted = subset_cost(manifest, manifest.names).macs // MACS_PER_THREAD if manifest.costs else cores
    return max(1, min(wanted, cores, _MOST))
