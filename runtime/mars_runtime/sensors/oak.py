"""One stream of an OAK camera through DepthAI 3; written against its interface and not yet run on a camera."""

from __future__ import annotations

import datetime
import time
from dataclasses import replace
from typing import Any

import numpy as np

from mars_edge.errors import SensorError
from mars_runtime.sensors.driver import Frame, Traits

# channel: (socket, picture type, uncompressed); depth is computed from both grey cameras on the device.
CHANNELS = {"rgb": ("CAM_A", "RGB888i", False), "left": ("CAM_B", "GRAY8", True), "right": ("CAM_C", "GRAY8", True)}
DEPTH = "depth"
CHANNEL_NAMES = (*CHANNELS, DEPTH)
_SIZE = (640, 400)


class Oak:
    """A live stream by device id; depth is uint16 in mm, `left` and `right` are the grey cameras.

    DepthAI starts threads of its own, and boots the camera when it opens: run it isolated. One process holds the whole
    camera, so one camera gives one stream here.
    """

    def __init__(self, device: str, channel: str, *, rate_hz: float) -> None:
        self._device = device
        self._channel = channel
        self._library: Any = None
        self._connected: Any = None
        self._pipeline: Any = None
        self._queue: Any = None
        raw = channel != DEPTH and CHANNELS[channel][2]
        self.traits = Traits(description=f"OAK {device} {channel}", rate_hz=rate_hz, raw=raw)

    def open(self) -> None:
        """Boot the camera and start the one stream.

        Raises:
            SensorError: no such camera (`.gone`), it does not boot, or the library is not installed.
        """
        self.close()
        self._library = dai = _load()
        info = self._found()
        try:
            self._connected = dai.Device(info)
            self._pipeline = dai.Pipeline(self._connected)
            self._queue = self._output().createOutputQueue(maxSize=1, blocking=False)
            self._pipeline.start()
        except RuntimeError as error:
            self.close()
            raise SensorError(f"{self.traits.description}: {' '.join(str(error).split())}") from error
        speed = str(self._connected.getUsbSpeed()).rpartition(".")[2]
        self.traits = replace(
            self.traits,
            description=f"OAK {info.deviceId} {self._channel} ({_SIZE[0]} x {_SIZE[1]}, USB {speed})",
            identity=info.deviceId,
        )

    def _found(self) -> Any:
        devices = {info.deviceId: info for info in self._library.Device.getAllAvailableDevices()}
        if not self._device and len(devices) == 1:
            return next(iter(devices.values()))
        if self._device not in devices:
            there = ", ".join(devices) or "none"
            raise SensorError(f"{self.traits.description}: no such camera; connected: {there}", gone=True)
        return devices[self._device]

    def _output(self) -> Any:
        dai, rate_hz = self._library, self.traits.rate_hz
        if self._channel == DEPTH:
            return self._pipeline.create(dai.node.StereoDepth).build(True, size=_SIZE, fps=rate_hz).depth
        socket, kind, _ = CHANNELS[self._channel]
        camera = self._pipeline.create(dai.node.Camera).build(getattr(dai.CameraBoardSocket, socket))
        return camera.requestOutput(_SIZE, type=getattr(dai.ImgFrame.Type, kind), fps=rate_hz)

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame with its number and its time, which DepthAI keeps in step with the monotonic clock.

        Raises:
            SensorError: the camera is gone.
        """
        if self._queue is None:
            raise SensorError(f"{self.traits.description}: read before open")
        try:
            frame = self._queue.get(datetime.timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise SensorError(f"{self.traits.description}: {' '.join(str(error).split())}", gone=True) from error
        if frame is None:
            if not self._pipeline.isRunning():
                raise SensorError(f"{self.traits.description}: unplugged", gone=True)
            return None
        stamp_s, now_s = frame.getTimestamp().total_seconds(), time.monotonic()
        return Frame(
            data=np.array(frame.getFrame()), sequence=int(frame.getSequenceNum()), captured_s=min(stamp_s, now_s)
        )

    def close(self) -> None:
        """Stop the stream and let the camera go."""
        pipeline, connected = self._pipeline, self._connected
        self._pipeline = self._connected = self._queue = None
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
