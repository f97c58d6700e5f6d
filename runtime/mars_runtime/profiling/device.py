"""The device a report was made on, and its state meanwhile; a field that cannot be read is None, never a guess."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mars_runtime.machine import load_average, usable_cores
from mars_runtime.profiling import board, thermal
from mars_runtime.profiling import governor as clock_rates
from mars_runtime.profiling.host import Host


@dataclass(frozen=True, kw_only=True)
class Device:
    """What does not change while a report is made.

    Attributes:
        cores: that this process may use; `cores_present` are all there are.
        governor: of all cores; of several, each once.
        ram_mb: 10^6 bytes that the kernel manages.
        virtual: whether a hypervisor is underneath, so that another machine's work may take its time; None if unknown.
    """

    board: str | None
    soc: str | None
    processor: str | None
    architecture: str
    cores: int
    cores_present: int | None
    governor: str | None
    clocks: tuple[clock_rates.Clock, ...]
    turbo: bool | None
    power_mode: str | None
    ram_mb: float | None
    swap_mb: float | None
    kernel: str
    system: str | None
    virtual: bool | None
    python: str


def describe(host: Host | None = None) -> Device:
    """This device, or the one whose tree `host` holds; architecture, kernel, usable cores and Python are this one's."""
    host = host or Host()
    clocks = clock_rates.clocks(host)
    memory = _memory_mb(host)
    cpuinfo = host.text("proc/cpuinfo")
    return Device(
        board=board.board(host),
        soc=board.soc(host),
        processor=board.processor(host),
        architecture=platform.machine(),
        cores=usable_cores(),
        cores_present=_cores_present(host),
        governor=clock_rates.governor(clocks),
        clocks=clocks,
        turbo=clock_rates.turbo(host),
        power_mode=board.power_mode(host),
        ram_mb=memory.get("MemTotal"),
        swap_mb=memory.get("SwapTotal"),
        kernel=platform.release(),
        system=board.system(host),
        virtual=_virtual(cpuinfo),
        python=platform.python_version(),
    )


def conditions(host: Host | None = None, *, tools: bool = True) -> dict[str, Any]:
    """Temperatures, throttling, clocks and load at this moment, as JSON types.

    Args:
        host: None means this machine.
        tools: also ask the board's own programs; leave it off between two measured rounds.
    """
    host = host or Host()
    now = thermal.heat(host, tools=tools)
    return {**asdict(now), "mhz": clock_rates.frequencies_mhz(host), "load": load_average()}


def slowed_down(start: Mapping[str, Any], peak: Mapping[str, Any], end: Mapping[str, Any]) -> bool | None:
    """Whether three `conditions` of one run show that the device slowed itself down; None where nothing tells.

    A mark that stays set since boot cannot tell of a second time.
    """
    states = [state.get("throttled") for state in (start, peak, end)]
    before, after = start.get("events") or {}, end.get("events") or {}
    told = [bool(state) for state in states if state is not None]
    told += [after[name] > count for name, count in before.items() if name in after]
    if any(told):
        return True
    spent = any(count and name.startswith(thermal.SINCE_BOOT) for name, count in before.items())
    return None if spent or not told else False


def _cores_present(host: Host) -> int | None:
    """From a list such as "0-3,8"; None where the kernel has no such file."""
    text = host.text("sys/devices/system/cpu/present")
    if text is None:
        return None
    ends = [part.split("-") for part in text.split(",")]
    try:
        return sum(int(part[-1]) - int(part[0]) + 1 for part in ends)
    except ValueError:
        return None


def _memory_mb(host: Host) -> dict[str, float]:
    lines = (line.split() for line in (host.text("proc/meminfo") or "").splitlines())
    return {w[0].rstrip(":"): round(int(w[1]) * 1024 / 1e6, 1) for w in lines if len(w) == 3 and w[1].isdigit()}


def _virtual(cpuinfo: str | None) -> bool | None:
    """x86 tells it by a flag; elsewhere nothing does."""
    flags = [line for line in (cpuinfo or "").splitlines() if line.startswith("flags")]
    return " hypervisor " in f"{flags[0]} " if flags else None
