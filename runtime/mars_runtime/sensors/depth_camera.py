"""Cameras behind their vendors' kits: `realsense:SERIAL/depth`, `depthai:ID/rgb`, `orbbec:SERIAL/depth`.

All channels of one camera share one process and one opening of it. Kits are optional and imported there; none is
imported here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mars_edge.errors import UsageError
from mars_runtime.sensors import oak, orbbec, realsense
from mars_runtime.sensors.bundle import Bundle
from mars_runtime.sensors.shared_camera import Channel, SharedCamera


@dataclass(frozen=True, kw_only=True)
class Kit:
    """One vendor's cameras.

    Attributes:
        make: device and wanted rates by channel to a bundle.
        module: what must be importable.
        tested: whether these drivers have been run, and on what.
    """

    make: Callable[[str, Mapping[str, float]], Bundle]
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


@dataclass(frozen=True, kw_only=True)
class Place:
    """One channel of one camera of one kit; without a device the only camera connected."""

    scheme: str
    device: str
    channel: str

    @property
    def camera(self) -> tuple[str, str]:
        """Equal for two channels of one camera, if both name it the same way; a file may be named in any."""
        path = Path(self.device)
        return self.scheme, str(path.resolve()) if self.device and path.is_file() else self.device


def parse_place(scheme: str, text: str) -> Place:
    """The place of `DEVICE/CHANNEL`.

    Raises:
        UsageError: unknown channel, or the vendor's kit is not installed.
    """
    kit = KITS[scheme]
    device, _, channel = text.rpartition("/")
    if channel not in kit.channels:
        example = f"{scheme}:{device or 'SERIAL'}/{kit.channels[0]}"
        raise UsageError(f"unknown channel {channel!r}; known: {', '.join(kit.channels)}; e.g. {example}")
    if importlib.util.find_spec(kit.module) is None:
        raise UsageError(f"needs the package {kit.module}: pip install 'mars-edge[{scheme}]'")
    return Place(scheme=scheme, device=device, channel=channel)


def make_depth_camera(rates_hz: Mapping[Place, float]) -> dict[Place, Channel]:
    """A driver for each place, all of one camera; not yet opened."""
    first = next(iter(rates_hz))
    wanted = {place.channel: rate_hz for place, rate_hz in rates_hz.items()}
    channels = SharedCamera(partial(KITS[first.scheme].make, first.device, wanted)).channels()
    return {place: channels[place.channel] for place in rates_hz}
