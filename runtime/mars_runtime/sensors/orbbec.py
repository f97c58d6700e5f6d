"""One stream of an Orbbec camera through its SDK 2; written against its interface and not yet run on a camera."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from mars_edge.errors import SensorError
from mars_runtime.sensors.driver import Frame, Traits

# channel: (sensor, format, element type, values per pixel, uncompressed)
CHANNELS: dict[str, tuple[str, str, str, int, bool]] = {
    "depth": ("DEPTH_SENSOR", "Y16", "<u2", 1, True),
    "rgb": ("COLOR_SENSOR", "RGB", "u1", 3, False),
    "ir": ("IR_SENSOR", "Y8", "u1", 1, True),
}


class Orbbec:
    """A live stream by serial number; depth is uint16 in the camera's steps, 1 mm by default."""

    def __init__(self, device: str, channel: str, *, rate_hz: float) -> None:
        self._device = device
        self._channel = channel
        self._library: Any = None
        self._pipeline: Any = None
        self.traits = Traits(description=f"Orbbec {device} {channel}", rate_hz=rate_hz, raw=CHANNELS[channel][4])

    def open(self) -> None:
        """Find the camera and start the one stream.

        Raises:
            SensorError: no such camera (`.gone`), no such stream at this rate, or the library is not installed.
        """
        self.close()
        self._library = ob = _load()
        sensor, pixel_format, _, _, _ = CHANNELS[self._channel]
        # Otherwise its context starts a folder of log files in the working directory.
        ob.Context.set_logger_level(ob.OBLogLevel.NONE)
        try:
            device = self._found(ob.Context().query_devices())
            pipeline = ob.Pipeline(device)
            profiles = pipeline.get_stream_profile_list(getattr(ob.OBSensorType, sensor))
            rate = round(self.traits.rate_hz)
            profile = profiles.get_video_stream_profile(0, 0, getattr(ob.OBFormat, pixel_format), rate)
            config = ob.Config()
            config.enable_stream(profile)
            pipeline.start(config)
        except ob.OBError as error:
            raise SensorError(f"{self.traits.description}: {' '.join(str(error).split())}") from error
        self._pipeline = pipeline
        info = device.get_device_info()
        name = f"{info.get_name()} {info.get_serial_number()}"
        size = f"{profile.get_width()} x {profile.get_height()}, {profile.get_fps()} Hz"
        self.traits = replace(
            self.traits,
            description=f"{name} {self._channel} ({size}, {info.get_connection_type()})",
            rate_hz=float(profile.get_fps()),
            identity=name,
        )

    def _found(self, devices: Any) -> Any:
        serials = [devices.get_device_serial_number_by_index(index) for index in range(devices.get_count())]
        if not self._device and len(serials) == 1:
            return devices.get_device_by_index(0)
        if self._device not in serials:
            there = ", ".join(serials) or "none"
            raise SensorError(f"{self.traits.description}: no such camera; connected: {there}", gone=True)
        return devices.get_device_by_serial_number(self._device)

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame with its number and the time it reached this machine.

        Raises:
            SensorError: the stream failed.
        """
        if self._pipeline is None:
            raise SensorError(f"{self.traits.description}: read before open")
        _, _, element, values, _ = CHANNELS[self._channel]
        try:
            frames = self._pipeline.wait_for_frames(max(1, round(1000.0 * timeout_s)))
            frame = None if frames is None else self._own(frames)
        except self._library.OBError as error:
            raise SensorError(f"{self.traits.description}: {' '.join(str(error).split())}") from error
        if frame is None:
            return None
        shape = (frame.get_height(), frame.get_width()) + ((values,) if values > 1 else ())
        now_s = time.monotonic()
        captured_s = frame.get_system_timestamp_us() / 1e6 - (time.time() - now_s)
        data = np.array(frame.get_data()).reshape(-1).view(element).reshape(shape)
        return Frame(data=data, sequence=int(frame.get_index()), captured_s=min(captured_s, now_s))

    def _own(self, frames: Any) -> Any:
        return {"depth": frames.get_depth_frame, "rgb": frames.get_color_frame, "ir": frames.get_ir_frame}[
            self._channel
        ]()

    def close(self) -> None:
        """Stop the stream."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.stop()


def _load() -> Any:
    try:
        import pyorbbecsdk
    except ImportError as error:
        raise SensorError("an Orbbec camera needs its SDK: pip install 'mars-edge[orbbec]'") from error
    return pyorbbecsdk
