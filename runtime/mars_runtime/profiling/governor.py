"""How fast the cores may run: cpufreq's governor and frequencies, per group of cores that share a clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mars_runtime.profiling.host import Host

_POLICIES = "sys/devices/system/cpu/cpufreq/policy*"


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The cores of one cpufreq policy; None for what is not told.

    Attributes:
        cores: as the kernel lists them, e.g. "0-3" or "0 1 2 3".
        min_mhz, max_mhz: the limits that are set now.
        hardware_max_mhz: what the cores could do.
        now_mhz: at the moment of reading.
    """

    cores: str | None
    governor: str | None
    min_mhz: float | None
    max_mhz: float | None
    hardware_max_mhz: float | None
    now_mhz: float | None


def clocks(host: Host) -> tuple[Clock, ...]:
    """Every policy in order; empty where the kernel has no cpufreq, as in most virtual machines."""
    return tuple(_clock(host, policy) for policy in host.matching(_POLICIES))


def governor(clocks: Sequence[Clock]) -> str | None:
    """The governor of all cores, or those of the groups in order, each once; None where there is none."""
    names = dict.fromkeys(clock.governor for clock in clocks if clock.governor)
    return ", ".join(names) or None


def frequencies_mhz(host: Host) -> list[float] | None:
    """The clock of each group of cores now; None where one is not told."""
    now = [_mhz(host, f"{policy}/scaling_cur_freq") for policy in host.matching(_POLICIES)]
    told = [mhz for mhz in now if mhz is not None]
    return told if told and len(told) == len(now) else None


def turbo(host: Host) -> bool | None:
    """Whether the cores may exceed their nominal clock; None where that is not told."""
    barred = host.number("sys/devices/system/cpu/intel_pstate/no_turbo")
    if barred is not None:
        return barred == 0
    boost = host.number("sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == 1


def _clock(host: Host, policy: str) -> Clock:
    return Clock(
        cores=host.text(f"{policy}/related_cpus"),
        governor=host.text(f"{policy}/scaling_governor"),
        min_mhz=_mhz(host, f"{policy}/scaling_min_freq"),
        max_mhz=_mhz(host, f"{policy}/scaling_max_freq"),
        hardware_max_mhz=_mhz(host, f"{policy}/cpuinfo_max_freq"),
        now_mhz=_mhz(host, f"{policy}/scaling_cur_freq"),
    )


def _mhz(host: Host, path: str) -> float | None:
    """cpufreq tells kHz (https://docs.kernel.org/admin-guide/pm/cpufreq.html)."""
    khz = host.number(path)
    return None if khz is None else khz / 1000.0
