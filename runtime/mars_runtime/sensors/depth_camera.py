"""Cameras behind their vendors' kits: `realsense:SERIAL/depth`, `depthai:ID/rgb`, `orbbec:SERIAL/depth`.

Each stream runs in a process of its own. Kits are optional and imported there; none is imported here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mars_edge.errors import UsageError
from mars_runtime.sensors import oak, orbbec, realsense
from mars_runtime.sensors.driver import Driver
from mars_runtime.sensors.isolated import IsolatedDriver


@dataclass(frozen=True, kw_only=True)
class Kit:
    """One vendor's cameras.

    Attributes:
        make: device, channel and `rate_hz=` to a driver.
        module: what must be importable.
        tested: whether these drivers have been run, and on what.
    """

    make: Callable[..., Driver]
    channels: tuple[str, ...]
    module: str
    tested: str


KITS = {
    "realsense": Kit(
        make=realsense.RealSense,
        channels=tuple(realsense.CHANNELS),
        module="pyrealsense2",
        tested="on recordings of the library's software device, not on a camera",
    ),
    "depthai": Kit(make=oak.Oak, channels=oak.CHANNEL_NAMES, module="depthai", tested="not tested on a camera"),
    "orbbec": Kit(
        make=orbbec.Orbbec,
        channels=tuple(orbbec.CHANNELS),
        module="pyorbbecsdk",
        tested="not tested on a camera",
    ),
}


def make_depth_camera(scheme: str, place: str, *, rate_hz: float) -> Driver:
    """The driver of `DEVICE/CHANNEL`, not yet opened; without a device the only one connected.

    Raises:
        UsageError: unknown channel, or the vendor's kit is not installed.
    """
    kit = KITS[scheme]
    device, _, channel = place.rpartition("/")
    if channel not in kit.channels:
        example = f"{scheme}:{device or 'SERIAL'}/{kit.channels[0]}"
        raise UsageError(f"unknown channel {channel!r}; known: {', '.join(kit.channels)}; e.g. {example}")
    if importlib.util.find_spec(kit.module) is None:
        raise UsageError(f"needs the package {kit.module}: pip install 'mars-edge[{scheme}]'")
    return IsolatedDriver(partial(kit.make, device, channel, rate_hz=rate_hz))
