"""Which board and processor this is, and in which power mode: from the kernel, firmware, and the makers' own tools."""

from __future__ import annotations

import re
from collections.abc import Callable

from mars_runtime.profiling.host import Host

_DEVICE_TREE = ("proc/device-tree", "sys/firmware/devicetree/base")
# Firmware of machines that were never given a name.
_PLACEHOLDERS = ("to be filled by o.e.m.", "default string", "system product name", "none", "not specified")
# Last entries of `compatible` that name no chip: every machine of Apple's, and what emulators make up.
_NO_CHIPS = ("apple,arm-platform", "linux,dummy-virt", "riscv-virtio")
# Arm's own cores by the part number in their identification register
# (https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/arch/arm64/include/asm/cputype.h).
_ARM = 0x41
_ARM_CORES = {
    0xC07: "Cortex-A7", 0xC09: "Cortex-A9", 0xC0F: "Cortex-A15",
    0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
    0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77",
    0xD0E: "Cortex-A76AE", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD44: "Cortex-X1",
    0xD46: "Cortex-A510", 0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4B: "Cortex-A78C",
    0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3", 0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
}  # fmt: skip
_CORE = re.compile(r"^CPU implementer\s*:\s*(0x[0-9a-f]+)\n(?:.+\n)*?CPU part\s*:\s*(0x[0-9a-f]+)", re.MULTILINE)
_MODEL_NAME = re.compile(r"^model name[ \t]*:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_NVPMODEL = re.compile(r"NV Power Mode:\s*(\S+)")


def board(host: Host) -> str | None:
    """The board's name as its maker writes it; None where nothing says it."""
    # A phone's device tree names the design of its chip's maker.
    return _first(host, _phone, _device_tree_model, _firmware)


def processor(host: Host) -> str | None:
    """On Arm the kinds of its cores, each once, else the model's name; None where the kernel tells neither.

    A core of another maker than Arm is told by its numbers.
    """
    cpuinfo = host.text("proc/cpuinfo") or ""
    cores = [_core(int(maker, 16), int(part, 16)) for maker, part in _CORE.findall(cpuinfo)]
    if cores:
        return ", ".join(dict.fromkeys(cores))
    # On Arm this line, where it is there at all, holds the architecture.
    named = _MODEL_NAME.search(cpuinfo)
    return named[1] if named else None


def _core(maker: int, part: int) -> str:
    known = _ARM_CORES.get(part) if maker == _ARM else None
    return known or f"implementer {maker:#04x} part {part:#05x}"


def soc(host: Host) -> str | None:
    """The chip: a phone's own word for it, else the last entry of the device tree's `compatible`, as "brcm,bcm2712".

    None where that entry names no chip.
    """
    named = _property(host, "ro.soc.model") or _property(host, "ro.board.platform")
    if named is not None:
        return named
    for tree in _DEVICE_TREE:
        compatible = host.text(f"{tree}/compatible")
        if compatible:
            return next((entry for entry in reversed(compatible.split("\0")) if entry not in _NO_CHIPS), None)
    return None


def power_mode(host: Host) -> str | None:
    """Jetson's nvpmodel, Android's battery saver, or a PC's platform profile, and a battery in use; None elsewhere."""
    mode = _first(host, _nvpmodel, _battery_saver, lambda h: h.text("sys/firmware/acpi/platform_profile"))
    parts = [mode, "on battery" if _discharges(host) else None]
    return ", ".join(part for part in parts if part) or None


def _discharges(host: Host) -> bool:
    """Whether a battery feeds the machine now; one of a mouse or a pen feeds only that."""
    told = [
        [host.text(f"{supply}/{field}") for field in ("type", "scope", "status")]
        for supply in host.matching("sys/class/power_supply/*")
    ]
    return any(kind == "Battery" and scope != "Device" and state == "Discharging" for kind, scope, state in told)


def system(host: Host) -> str | None:
    """The operating system's name and version, as people say it."""
    android = _property(host, "ro.build.version.release")
    if android is not None:
        return f"Android {android}"
    release = host.text("etc/os-release") or host.text("usr/lib/os-release") or ""
    entries = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    name = entries.get("PRETTY_NAME", "").strip("\"'")
    jetpack = host.text("etc/nv_tegra_release")
    tegra = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", jetpack or "")
    return (f"{name}, L4T {tegra[1]}.{tegra[2]}" if tegra else name) or None


def _first(host: Host, *readers: Callable[[Host], str | None]) -> str | None:
    return next((found for found in (read(host) for read in readers) if found), None)


def _device_tree_model(host: Host) -> str | None:
    return next((model for tree in _DEVICE_TREE if (model := host.text(f"{tree}/model"))), None)


def _phone(host: Host) -> str | None:
    maker, model = _property(host, "ro.product.manufacturer"), _property(host, "ro.product.model")
    return " ".join(part for part in (maker, model) if part) or None


def _firmware(host: Host) -> str | None:
    names = [host.text(f"sys/class/dmi/id/{field}") for field in ("sys_vendor", "product_name")]
    told = [name for name in names if name and name.lower() not in _PLACEHOLDERS]
    return " ".join(told) or None


def _property(host: Host, name: str) -> str | None:
    """A system property of Android, which Termux may read too; None on other systems."""
    return host.run(["getprop", name])


def _nvpmodel(host: Host) -> str | None:
    said = host.run(["nvpmodel", "-q"])
    found = _NVPMODEL.search(said or "")
    if found:
        return found[1]
    stored = host.text("var/lib/nvpmodel/status")
    return stored if stored and stored.startswith("pmode:") else None


def _battery_saver(host: Host) -> str | None:
    said = host.run(["settings", "get", "global", "low_power"])
    return {"0": "battery saver off", "1": "battery saver on"}.get(said or "")
