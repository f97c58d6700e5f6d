"""One stream of a RealSense camera, or of a recording of one, through librealsense (pyrealsense2)."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mars_edge.errors import SensorError
from mars_runtime.sensors.device_clock import DeviceClock
from mars_runtime.sensors.driver import Frame, SourceEndedError, Traits

# channel: (stream, format, does the wire carry noise of the sensor itself)
CHANNELS = {
    "depth": ("depth", "z16", True),
    "rgb": ("color", "rgb8", False),
    "ir": ("infrared", "y8", True),
}
RECORDINGS = (".db3", ".bag")
_TYPICAL_WIDTH = 640
_MILLIMETRE = 0.001


class RealSense:
    """A live stream by serial number, or a recording (`.db3`, older libraries `.bag`) in its own time.

    Colour, depth and infrared leave as rgb8, z16 and y8. Depth and infrared come from one sensor, which only one
    process can hold: take one of them as a V4L2 node instead.
    """

    def __init__(self, device: str, channel: str, *, rate_hz: float) -> None:
        self._device = device
        self._channel = channel
        self._wanted_hz = rate_hz
        self._library: Any = None
        self._opened: Any = None
        self._sensor: Any = None
        self._queue: Any = None
        self._playback: Any = None
        self._clock = DeviceClock()
        self._ended = False
        raw = CHANNELS[channel][2]
        finite = device.endswith(RECORDINGS)
        self.traits = Traits(description=f"RealSense {device} {channel}", rate_hz=rate_hz, raw=raw, finite=finite)

    def open(self) -> None:
        """Find the device, pick the profile nearest to the wanted rate, start it.

        Raises:
            SensorError: no such device (`.gone`), no such stream, busy, or the library is not installed.
        """
        self.close()
        self._library = _load()
        try:
            self._opened = self._found()
            sensor, profile = self._chosen()
            # The newest frame only: a late reader must not get old pictures.
            self._queue = self._library.frame_queue(1)
            sensor.open(profile)
            sensor.start(self._queue)
        except RuntimeError as error:
            self.close()
            raise SensorError(f"{self.traits.description}: {_in_words(error)}") from error
        self._sensor = sensor
        self._describe(sensor, profile.as_video_stream_profile())

    def _found(self) -> Any:
        context = self._library.context()
        if self.traits.finite:
            return self._recorded(context)
        serial_of = self._library.camera_info.serial_number
        devices = {device.get_info(serial_of): device for device in context.query_devices()}
        if not self._device and len(devices) == 1:
            return next(iter(devices.values()))
        if self._device not in devices:
            there = ", ".join(devices) or "none"
            raise SensorError(f"{self.traits.description}: no such camera; connected: {there}", gone=True)
        return devices[self._device]

    def _recorded(self, context: Any) -> Any:
        if not Path(self._device).is_file():
            raise SensorError(f"{self._device}: no such file", gone=True)
        device = context.load_device(self._device)
        self._playback = device.as_playback()
        self._playback.set_real_time(True)
        return device

    def _chosen(self) -> tuple[Any, Any]:
        stream_name, format_name, _ = CHANNELS[self._channel]
        stream = getattr(self._library.stream, stream_name)
        wanted = getattr(self._library.format, format_name)
        candidates = [
            (sensor, profile)
            for sensor in self._opened.query_sensors()
            for profile in sensor.get_stream_profiles()
            if profile.stream_type() == stream and profile.format() == wanted
        ]
        if not candidates:
            raise SensorError(
                f"{self.traits.description}: has no {self._channel} stream ({stream_name}, {format_name})"
            )
        return min(candidates, key=lambda candidate: self._distance(candidate[1]))

    def _distance(self, profile: Any) -> tuple[float, bool, int]:
        width = profile.as_video_stream_profile().width()
        return abs(profile.fps() - self._wanted_hz), not profile.is_default(), abs(width - _TYPICAL_WIDTH)

    def _describe(self, sensor: Any, profile: Any) -> None:
        info = self._library.camera_info
        facts = [f"{profile.width()} x {profile.height()}", f"{profile.fps()} Hz"]
        if self._opened.supports(info.usb_type_descriptor):
            facts.append(f"USB {self._opened.get_info(info.usb_type_descriptor)}")
        if self._channel == "depth" and sensor.supports(self._library.option.depth_units):
            units_m = sensor.get_option(self._library.option.depth_units)
            if abs(units_m - _MILLIMETRE) > 1e-9:
                facts.append(f"{1000.0 * units_m:g} mm per step")
        name = f"{self._opened.get_info(info.name)} {self._opened.get_info(info.serial_number)}"
        self.traits = replace(
            self.traits,
            description=f"{name} {self._channel} ({', '.join(facts)})",
            rate_hz=float(profile.fps()),
            identity="" if self.traits.finite else name,
        )

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame with the camera's frame number and, where its clock can be mapped, its time.

        Raises:
            SourceEndedError: the recording is at its end.
            SensorError: the camera was unplugged (`.gone`).
        """
        if self._queue is None:
            raise SensorError(f"{self.traits.description}: read before open")
        if self._ended:
            raise SourceEndedError(f"{self.traits.description}: at its end")
        good, frame = self._queue.try_wait_for_frame(max(1, round(1000.0 * timeout_s)))
        if not good:
            self._look_why()
            return None
        data = np.array(np.asanyarray(frame.get_data()))
        return Frame(data=data, sequence=int(frame.get_frame_number()), captured_s=self._captured_s(frame))

    def _look_why(self) -> None:
        if self._playback is not None:
            if self._playback.current_status() == self._library.playback_status.stopped:
                self._ended = True
                raise SourceEndedError(f"{self.traits.description}: at its end")
        elif not self._opened.is_connected():
            raise SensorError(f"{self.traits.description}: unplugged", gone=True)

    def _captured_s(self, frame: Any) -> float | None:
        if self.traits.finite:
            return None
        stamp_s, now_s = float(frame.get_timestamp()) / 1000.0, time.monotonic()
        if frame.get_frame_timestamp_domain() == self._library.timestamp_domain.hardware_clock:
            return self._clock.monotonic_s(stamp_s, now_s)
        return min(now_s, stamp_s - (time.time() - now_s))

    def close(self) -> None:
        """Stop the stream; a recording that has ended stays ended."""
        sensor, self._sensor = self._sensor, None
        if sensor is not None:
            try:
                sensor.stop()
                sensor.close()
            except RuntimeError:
                # Unplugged: there is nothing left to stop.
                pass
        self._queue = self._playback = self._opened = None


def _load() -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        raise SensorError("a RealSense camera needs librealsense: pip install 'mars-edge[realsense]'") from error
    return pyrealsense2


def _in_words(error: RuntimeError) -> str:
    text = " ".join(str(error).split())
    if "errno=16" in text or "busy" in text.lower():
        hint = "depth and ir share one sensor: take one as its node, v4l2:/dev/videoN?format=Z16 or GREY"
        return f"busy: another program or sensor uses it; {hint} ({text})"
    if "errno=13" in text or "denied" in text.lower():
        return f"permission denied: install librealsense's udev rules ({text})"
    return text
