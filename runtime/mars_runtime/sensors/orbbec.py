"""The streams of an Orbbec camera through its SDK 2; written against its interface and not yet run on a camera."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mars_edge.errors import SensorError
from mars_runtime.sensors.bundle import Newest
from mars_runtime.sensors.driver import Frame, Traits

# channel: (sensor, format, element type, values per pixel, uncompressed)
CHANNELS: dict[str, tuple[str, str, str, int, bool]] = {
    "depth": ("DEPTH_SENSOR", "Y16", "<u2", 1, True),
    "rgb": ("COLOR_SENSOR", "RGB", "u1", 3, False),
    "ir": ("IR_SENSOR", "Y8", "u1", 1, True),
}


class Orbbec:
    """A live camera by serial number; depth is uint16 in the camera's steps, 1 mm by default.

    One pipeline carries all channels, each with a profile of its own.

    Args:
        rates_hz: wanted, by channel.
    """

    def __init__(self, device: str, rates_hz: Mapping[str, float]) -> None:
        self._device = device
        self._rates_hz = rates_hz
        self._library: Any = None
        self._pipeline: Any = None
        self._newest = Newest()
        name = f"Orbbec {device}".rstrip()
        self.traits = Traits(description=name, rate_hz=max(rates_hz.values()))
        self.channels = {
            channel: Traits(description=f"{name} {channel}", rate_hz=rate, raw=CHANNELS[channel][4])
            for channel, rate in rates_hz.items()
        }
        self.refused: dict[str, str] = {}

    def open(self) -> None:
        """Find the camera and start all channels; an open one has no more to give and is left alone.

        Raises:
            SensorError: no such camera (`.gone`), no channel has a stream at its rate, or the library is not installed.
        """
        if self._pipeline is not None:
            return
        self._library = ob = _load()
        # Otherwise its context starts a folder of log files in the working directory.
        ob.Context.set_logger_level(ob.OBLogLevel.NONE)
        try:
            device = self._found(ob.Context().query_devices())
            pipeline = ob.Pipeline(device)
            profiles = self._chosen(pipeline)
            pipeline.start(self._config(profiles))
        except ob.OBError as error:
            raise SensorError(f"{self.traits.description}: {' '.join(str(error).split())}") from error
        self._pipeline = pipeline
        self._describe(device.get_device_info(), profiles)

    def _found(self, devices: Any) -> Any:
        serials = [devices.get_device_serial_number_by_index(index) for index in range(devices.get_count())]
        if not self._device and len(serials) == 1:
            return devices.get_device_by_index(0)
        if self._device not in serials:
            there = ", ".join(serials) or "none"
            raise SensorError(f"{self.traits.description}: no such camera; connected: {there}", gone=True)
        return devices.get_device_by_serial_number(self._device)

    def _chosen(self, pipeline: Any) -> dict[str, Any]:
        """By channel, its profile; a channel that has none at its rate is refused."""
        ob, chosen = self._library, {}
        self.refused = {}
        for channel, rate_hz in self._rates_hz.items():
            sensor, pixels, _, _, _ = CHANNELS[channel]
            try:
                profiles = pipeline.get_stream_profile_list(getattr(ob.OBSensorType, sensor))
                chosen[channel] = profiles.get_video_stream_profile(0, 0, getattr(ob.OBFormat, pixels), round(rate_hz))
            except ob.OBError as error:
                self.refused[channel] = f"{self.channels[channel].description}: {' '.join(str(error).split())}"
        if not chosen:
            raise SensorError(next(iter(self.refused.values())))
        return chosen

    def _config(self, profiles: Mapping[str, Any]) -> Any:
        config = self._library.Config()
        for profile in profiles.values():
            config.enable_stream(profile)
        # A set with what there is: no channel waits for another.
        config.set_frame_aggregate_output_mode(self._library.OBFrameAggregateOutputMode.ANY_SITUATION)
        return config

    def _describe(self, info: Any, profiles: Mapping[str, Any]) -> None:
        name = f"{info.get_name()} {info.get_serial_number()}"
        self.traits = replace(self.traits, description=name, identity=name)
        for channel, profile in profiles.items():
            size = f"{profile.get_width()} x {profile.get_height()}, {profile.get_fps()} Hz"
            self.channels[channel] = replace(
                self.channels[channel],
                description=f"{name} {channel} ({size}, {info.get_connection_type()})",
                rate_hz=float(profile.get_fps()),
                identity=name,
            )

    def read_any(self, timeout_s: float) -> tuple[str, Frame] | None:
        """The next frame with its number and the time it reached this machine.

        Raises:
            SensorError: the streams failed.
        """
        if self._pipeline is None:
            raise SensorError(f"{self.traits.description}: read before open")
        taken = self._newest.take(0.0)
        if taken is None:
            self._receive(timeout_s)
            taken = self._newest.take(0.0)
        if taken is None:
            return None
        channel, frame = taken
        _, _, element, values, _ = CHANNELS[channel]
        shape = (frame.get_height(), frame.get_width()) + ((values,) if values > 1 else ())
        now_s = time.monotonic()
        captured_s = frame.get_system_timestamp_us() / 1e6 - (time.time() - now_s)
        data = np.array(frame.get_data()).reshape(-1).view(element).reshape(shape)
        return channel, Frame(data=data, sequence=int(frame.get_index()), captured_s=min(captured_s, now_s))

    def _receive(self, timeout_s: float) -> None:
        try:
            frames = self._pipeline.wait_for_frames(max(1, round(1000.0 * timeout_s)))
        except self._library.OBError as error:
            raise SensorError(f"{self.traits.description}: {' '.join(str(error).split())}") from error
        if frames is None:
            return
        own = {"depth": frames.get_depth_frame, "rgb": frames.get_color_frame, "ir": frames.get_ir_frame}
        for channel in self._rates_hz:
            frame = own[channel]()
            if frame is not None:
                self._newest.put(channel, frame)

    def close(self) -> None:
        """Stop the streams."""
        pipeline, self._pipeline = self._pipeline, None
        self._newest = Newest()
        if pipeline is not None:
            pipeline.stop()


def _load() -> Any:
    try:
        import pyorbbecsdk
    except ImportError as error:
        raise SensorError("an Orbbec camera needs its SDK: pip install 'mars-edge[orbbec]'") from error
    return pyorbbecsdk
