"""The machine a measurement was made on: processor, usable cores, what else runs."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

# Above this load per core, other work shares the cores that are timed.
_BUSY = 0.5
_CPUINFO = Path("/proc/cpuinfo")
# A board's name, where its processor has none (https://docs.kernel.org/devicetree/usage-model.html).
_DEVICE_TREE = Path("/proc/device-tree/model")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a time was measured.

    Attributes:
        processor: its model name, or the architecture where it has none.
        cores: that this process may use.
        load: average number of running processes over the last minute; None where the system does not say.
    """

    processor: str
    cores: int
    load: float | None

    @property
    def is_busy(self) -> bool:
        """Whether other work ran on a good share of the cores in the minute before."""
        return self.load is not None and self.load > _BUSY * self.cores

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} {'core' if self.cores == 1 else 'cores'}"


def this_machine() -> Machine:
    """The machine this runs on, now."""
    return Machine(
        processor=_processor(),
        cores=usable_cores(),
        load=load_average(),
    )


def load_average() -> float | None:
    """Running processes, averaged over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        # Windows has no such call; Android answers and refuses.
        return None


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_of(cpuinfo: str) -> str | None:
    """The model name in the text of /proc/cpuinfo; None where there is none, as on most Arm boards."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    return None


def _processor() -> str:
    if _CPUINFO.is_file() and (name := processor_of(_CPUINFO.read_text(encoding="utf-8", errors="replace"))):
        return name
    if _DEVICE_TREE.is_file():
        return _DEVICE_TREE.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    return platform.processor() or platform.machine()
