"""What the driver of a camera with several streams is: one opening of the device, all its channels together."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from mars_runtime.sensors.driver import Frame, Traits


@runtime_checkable
class Bundle(Protocol):
    """One device with its channels, used by one thread at a time."""

    @property
    def traits(self) -> Traits:
        """Of the device: its description and identity."""

    @property
    def channels(self) -> Mapping[str, Traits]:
        """By channel; known before `open`, more exact after it."""

    @property
    def refused(self) -> Mapping[str, str]:
        """Why a channel is not open although the device is."""

    def open(self) -> None:
        """Open the device and every channel; on an open device, try again those that were refused.

        Raises:
            SensorError: no channel can be opened; `.gone` if the device does not exist.
        """

    def read_any(self, timeout_s: float) -> tuple[str, Frame] | None:
        """The next frame of any channel, or None if none came within about `timeout_s`.

        Raises:
            SourceEndedError: the last frame has been handed out.
            SensorError: the device failed; `.gone` if it has vanished.
        """

    def close(self) -> None:
        """Release the device; closing twice or without `open` does nothing."""


class Newest:
    """The newest item of each channel; what waits longest is taken first, so that no channel starves another.

    Any thread may call any method.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._items: dict[str, Any] = {}

    def put(self, channel: str, item: object) -> None:
        """Replace what waits in this channel; it keeps its turn."""
        with self._condition:
            self._items[channel] = item
            self._condition.notify()

    def take(self, timeout_s: float) -> tuple[str, Any] | None:
        """The channel and the item whose turn it is; None if none came within `timeout_s`."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._items, timeout_s):
                return None
            channel = next(iter(self._items))
            return channel, self._items.pop(channel)
