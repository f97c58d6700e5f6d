"""Which board this is, and in which power mode: from the device tree, firmware tables, and the makers' own tools."""

from __future__ import annotations

import re
from collections.abc import Callable

from mars_runtime.profiling.host import Host

_DEVICE_TREE = ("proc/device-tree", "sys/firmware/devicetree/base")
# Firmware of machines that were never given a name.
_PLACEHOLDERS = ("to be filled by o.e.m.", "default string", "system product name", "none", "not specified")
_NVPMODEL = re.compile(r"NV Power Mode:\s*(\S+)")


def board(host: Host) -> str | None:
    """The board's name as its maker writes it; None where nothing says it."""
    return _first(host, _device_tree_model, _phone, _firmware)


def soc(host: Host) -> str | None:
    """The chip: a phone's own word for it, else the last entry of the device tree's `compatible`, as "brcm,bcm2712"."""
    named = _property(host, "ro.soc.model") or _property(host, "ro.board.platform")
    if named is not None:
        return named
    for tree in _DEVICE_TREE:
        compatible = host.text(f"{tree}/compatible")
        if compatible:
            return compatible.split("\0")[-1] or None
    return None


def power_mode(host: Host) -> str | None:
    """Jetson's nvpmodel, Android's battery saver, or a PC's platform profile; None elsewhere."""
    return _first(host, _nvpmodel, _battery_saver, lambda h: h.text("sys/firmware/acpi/platform_profile"))


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
