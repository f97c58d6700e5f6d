"""How hot the device is, and whether it slows itself down because of that or of its power supply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mars_runtime.profiling.host import Host

# Bits of the Raspberry Pi's firmware: now, and 16 bits higher since boot
# (https://www.raspberrypi.com/documentation/computers/os.html#get_throttled).
SINCE_BOOT = "since boot: "
_PI_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_HEX = re.compile(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]+)")
# Counters that only ever grow: x86 per core and package, Jetson's over-current alarms.
_COUNTERS = ("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count", "sys/class/hwmon/hwmon*/oc*_event_cnt")
# Cooling devices that take clock or whole cores from the processor. A fan takes nothing, and what a graphics unit is
# slowed down by (devfreq, gpu-throttle-alert) is no matter here.
_SLOWING = re.compile(
    r"cpufreq|^processor|powerclamp|(cpu|soc\d*)-(throttle-)?alert|cpu-isolate|cpu-hotplug|thermal-pause|^pause-cpu",
    re.IGNORECASE,
)
# Qualcomm's kernels tell a battery's voltage, current and charge as thermal zones.
_NO_HEAT = re.compile(r"[iv]bat|^socd?$|bcl", re.IGNORECASE)
# Kernels answer with such values for a sensor that is powered off.
_COLDEST_C, _HOTTEST_C = -40.0, 150.0


@dataclass(frozen=True, kw_only=True)
class Heat:
    """The device at one moment; None where it does not say.

    Attributes:
        zones_c: by name of the thermal zone, degrees Celsius; a name's second zone has its number too.
        hottest_c: the hottest of them.
        flags: why the device is slowed down now, in words; empty if it is not.
        throttled: whether there is a flag.
        events: by counter, how often it was slowed down since boot.
    """

    zones_c: Mapping[str, float]
    hottest_c: float | None
    flags: tuple[str, ...] | None
    throttled: bool | None
    events: Mapping[str, int]


def heat(host: Host, *, tools: bool = True) -> Heat:
    """What is told now; `tools` may start the board's own programs, which takes processor time."""
    zones = _zones(host)
    bits = _pi_bits(host, tools=tools)
    cooling = _cooling(host)
    told = [part for part in (_pi_flags(bits), cooling) if part is not None]
    flags = tuple(flag for part in told for flag in part) if told else None
    return Heat(
        zones_c=zones,
        hottest_c=max(zones.values(), default=None),
        flags=flags,
        throttled=None if flags is None else bool(flags),
        events=_events(host, bits),
    )


def _zones(host: Host) -> dict[str, float]:
    found: dict[str, float] = {}
    for zone in host.matching("sys/class/thermal/thermal_zone*"):
        value, place = host.number(f"{zone}/temp"), zone.rpartition("/")[2]
        name = host.text(f"{zone}/type") or place
        if value is None or _NO_HEAT.search(name):
            continue
        # Thousandths of a degree by the kernel's interface; some phones tell whole degrees.
        celsius = value / 1000.0 if abs(value) > _HOTTEST_C else value
        if _COLDEST_C <= celsius <= _HOTTEST_C and value != 0.0:
            found[f"{name} ({place})" if name in found else name] = celsius
    return found


def _pi_bits(host: Host, *, tools: bool) -> int | None:
    """The firmware's own answer. The kernel's file of that name holds a copy that another reader may have reset."""
    said = host.run(["vcgencmd", "get_throttled"]) if tools else None
    found = _HEX.fullmatch(said or "")
    return int(found[1], 16) if found else None


def _pi_flags(bits: int | None) -> list[str] | None:
    return None if bits is None else [name for bit, name in _PI_BITS.items() if bits >> bit & 1]


def _cooling(host: Host) -> list[str] | None:
    """Cooling devices that take clock now; None where there is none that could."""
    devices = [(path, host.text(f"{path}/type")) for path in host.matching("sys/class/thermal/cooling_device*")]
    slowing = [(path, kind) for path, kind in devices if kind and _SLOWING.search(kind)]
    states = [(kind, host.number(f"{path}/cur_state")) for path, kind in slowing]
    told = [(kind, state) for kind, state in states if state is not None]
    return [f"{kind} cools" for kind, state in told if state > 0] if told else None


def _events(host: Host, bits: int | None) -> dict[str, int]:
    counters = {path: host.number(path) for pattern in _COUNTERS for path in host.matching(pattern)}
    found = {path: int(count) for path, count in counters.items() if count is not None}
    if bits is not None:
        found |= {f"{SINCE_BOOT}{name}": bits >> (bit + 16) & 1 for bit, name in _PI_BITS.items()}
    return found
