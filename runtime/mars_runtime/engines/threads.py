"""How many threads an engine runs on where nobody says: as many as one decision has work for.

Waking a thread and waiting for it costs the same whatever the network: a small one is slower on two than on one.
"""

from __future__ import annotations

from mars_edge.manifest import Manifest, subset_cost

MACS_PER_THREAD = {"fp32": 125_000_000, "fp16": 125_000_000, "int8": 500_000_000}
"""By precision, the multiply-accumulates of a decision with everything present that give one thread enough to do.

Measured with benchmarks/methods.py on two idle cores of a server (docs/log.md, 2026-11-25). fp32: two threads take 1.06
of the time of one at 226 M, 0.67 at 322 M. int8: 1.55 at 322 M, 1.23 at 737 M, no difference shown at 1.5 G; in dense
convolutions three to four multiply-accumulates take the time of one in fp32.
"""

_MOST = 256


def default_threads(manifest: Manifest, cores: int) -> int:
    """One for every `MACS_PER_THREAD` of a decision with everything present; from 1 to `cores`.

    A manifest of an earlier version states no costs: one per core.
    """
    if not manifest.costs:
        return max(1, min(cores, _MOST))
    wanted = subset_cost(manifest, manifest.names).macs // MACS_PER_THREAD[manifest.precision]
    return max(1, min(wanted, cores, _MOST))
