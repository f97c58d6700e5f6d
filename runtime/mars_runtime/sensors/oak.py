"""The streams of an OAK camera through DepthAI 3; written against its interface and not yet run on a camera."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mars_edge.errors import SensorError
from mars_runtime.sensors.bundle import Newest
from mars_runtime.sensors.driver import Frame, Traits

# channel: (socket, picture type, uncompressed); depth is computed from both grey cameras on the device.
CHANNELS = {"rgb": ("CAM_A", "RGB888i", False), "left": ("CAM_B", "GRAY8", True), "right": ("CAM_C", "GRAY8", True)}
DEPTH = "depth"
CHANNEL_NAMES = (*CHANNELS, DEPTH)
_SIZE = (640, 400)


class Oak:
    """A live camera by device id; depth is uint16 in mm, `left` and `right` are the grey cameras.

    DepthAI starts threads of its own, and boots the camera when it opens: run it isolated. One pipeline carries all
    channels, each at its own rate.

    Args:
        rates_hz: wanted, by channel.
    """

    def __init__(self, device: str, rates_hz: Mapping[str, float]) -> None:
        self._device = device
        self._rates_hz = rates_hz
        self._library: Any = None
        self._connected: Any = None
        self._pipeline: Any = None
        self._cameras: dict[str, Any] = {}
        self._queues: dict[str, Any] = {}
        self._newest = Newest()
        name = f"OAK {device}".rstrip()
        self.traits = Traits(description=name, rate_hz=max(rates_hz.values()))
        self.channels = {
            channel: Traits(
                description=f"{name} {channel}", rate_hz=rate, raw=channel != DEPTH and CHANNELS[channel][2]
            )
            for channel, rate in rates_hz.items()
        }
        self.refused: dict[str, str] = {}

    def open(self) -> None:
        """Boot the camera and start all channels; an open one has no more to give and is left alone.

        Raises:
            SensorError: no such camera (`.gone`), it does not boot, it has none of the channels, or the library is
                not installed.
        """
        if self._pipeline is not None:
            return
        self._library = dai = _load()
        info = self._found()
        try:
            self._connected = dai.Device(info)
            self._pipeline = dai.Pipeline(self._connected)
            self._build()
            self._pipeline.start()
        except RuntimeError as error:
            self.close()
            raise SensorError(f"{self.traits.description}: {' '.join(str(error).split())}") from error
        except SensorError:
            self.close()
            raise
        self._describe(info.deviceId)

    def _found(self) -> Any:
        devices = {info.deviceId: info for info in self._library.Device.getAllAvailableDevices()}
        if not self._device and len(devices) == 1:
            return next(iter(devices.values()))
        if self._device not in devices:
            there = ", ".join(devices) or "none"
            raise SensorError(f"{self.traits.description}: no such camera; connected: {there}", gone=True)
        return devices[self._device]

    def _build(self) -> None:
        there = list(self._connected.getConnectedCameras())
        self.refused = {}
        for channel, rate_hz in self._rates_hz.items():
            needs = ("left", "right") if channel == DEPTH else (channel,)
            absent = [CHANNELS[need][0] for need in needs if self._socket(need) not in there]
            if absent:
                what = f"has no camera at {', '.join(absent)}"
                self.refused[channel] = f"{self.channels[channel].description}: {what}"
                continue
            output = self._depth(rate_hz) if channel == DEPTH else self._picture(channel, rate_hz)
            self._queues[channel] = output.createOutputQueue(maxSize=1, blocking=False)
            self._queues[channel].addCallback(self._arrival(channel))
        if not self._queues:
            raise SensorError(next(iter(self.refused.values())))

    def _arrival(self, channel: str) -> Any:
        newest = self._newest

        def arrive(frame: Any) -> None:
            newest.put(channel, frame)

        return arrive

    def _depth(self, rate_hz: float) -> Any:
        stereo = self._pipeline.create(self._library.node.StereoDepth)
        for side, entry in (("left", stereo.left), ("right", stereo.right)):
            self._camera(side).requestOutput(_SIZE, fps=rate_hz).link(entry)
        return stereo.depth

    def _picture(self, channel: str, rate_hz: float) -> Any:
        kind = getattr(self._library.ImgFrame.Type, CHANNELS[channel][1])
        return self._camera(channel).requestOutput(_SIZE, type=kind, fps=rate_hz)

    def _camera(self, channel: str) -> Any:
        """The one node of a socket, which may have several outputs."""
        if channel not in self._cameras:
            node = self._pipeline.create(self._library.node.Camera)
            self._cameras[channel] = node.build(self._socket(channel))
        return self._cameras[channel]

    def _socket(self, channel: str) -> Any:
        return getattr(self._library.CameraBoardSocket, CHANNELS[channel][0])

    def _describe(self, device_id: str) -> None:
        speed = str(self._connected.getUsbSpeed()).rpartition(".")[2]
        self.traits = replace(self.traits, description=f"OAK {device_id}", identity=device_id)
        for channel in self._queues:
            description = f"OAK {device_id} {channel} ({_SIZE[0]} x {_SIZE[1]}, USB {speed})"
            self.channels[channel] = replace(self.channels[channel], description=description, identity=device_id)

    def read_any(self, timeout_s: float) -> tuple[str, Frame] | None:
        """The next frame with its number and its time, which DepthAI keeps in step with the monotonic clock.

        Raises:
            SensorError: the camera is gone.
        """
        if self._pipeline is None:
            raise SensorError(f"{self.traits.description}: read before open")
        taken = self._newest.take(timeout_s)
        if taken is None:
            self._look_why()
            return None
        channel, frame = taken
        stamp_s, now_s = frame.getTimestamp().total_seconds(), time.monotonic()
        data, number = np.array(frame.getFrame()), int(frame.getSequenceNum())
        return channel, Frame(data=data, sequence=number, captured_s=min(stamp_s, now_s))

    def _look_why(self) -> None:
        if not self._pipeline.isRunning() or all(queue.isClosed() for queue in self._queues.values()):
            raise SensorError(f"{self.traits.description}: unplugged", gone=True)

    def close(self) -> None:
        """Stop the streams and let the camera go."""
        pipeline, connected = self._pipeline, self._connected
        self._pipeline = self._connected = None
        self._cameras, self._queues, self._newest = {}, {}, Newest()
        if pipeline is not None:
            pipeline.stop()
        if connected is not None:
            connected.close()


def _load() -> Any:
    try:
        import depthai
    except ImportError as error:
        raise SensorError("an OAK camera needs DepthAI 3: pip install 'mars-edge[depthai]'") from error
    return depthai
