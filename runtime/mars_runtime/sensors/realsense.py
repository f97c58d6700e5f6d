"""The streams of a RealSense camera, or of a recording of one, through librealsense (pyrealsense2)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mars_edge.errors import SensorError
from mars_runtime.sensors.bundle import Newest
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


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A stream profile and the place of its sensor among the device's."""

    channel: str
    sensor: int
    profile: Any

    @property
    def size(self) -> tuple[int, int]:
        video = self.profile.as_video_stream_profile()
        return video.width(), video.height()


class RealSense:
    """A live camera by serial number, or a recording (`.db3`, older libraries `.bag`) in its own time.

    Colour, depth and infrared leave as rgb8, z16 and y8. Depth and infrared come from one sensor, which is opened once
    with the profiles of both.

    Args:
        rates_hz: wanted, by channel.
    """

    def __init__(self, device: str, rates_hz: Mapping[str, float]) -> None:
        self._device = device
        self._rates_hz = rates_hz
        self._library: Any = None
        self._opened: Any = None
        self._sensors: list[Any] = []
        self._started: dict[str, _Choice] = {}
        self._newest = Newest()
        self._playback: Any = None
        self._clocks = {channel: DeviceClock() for channel in rates_hz}
        self._ended = False
        finite = device.endswith(RECORDINGS)
        name = f"RealSense {device}".rstrip()
        self.traits = Traits(description=name, rate_hz=max(rates_hz.values()), finite=finite)
        self.channels = {
            channel: Traits(description=f"{name} {channel}", rate_hz=rate, raw=CHANNELS[channel][2], finite=finite)
            for channel, rate in rates_hz.items()
        }
        self.refused: dict[str, str] = {}

    def open(self) -> None:
        """Find the device; start for each channel the profile nearest to its wanted rate, all of a sensor at once.

        Raises:
            SensorError: no such device (`.gone`), no channel could be started, or the library is not installed.
        """
        self._library = _load()
        try:
            if self._opened is None:
                self._opened = self._found()
                self._sensors = list(self._opened.query_sensors())
            self._start(self._chosen())
        except RuntimeError as error:
            self.close()
            raise SensorError(f"{self.traits.description}: {_in_words(error)}") from error
        if not self._started:
            self.close()
            raise SensorError(next(iter(self.refused.values())))

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

    def _chosen(self) -> list[_Choice]:
        """A profile for every channel that is not started; the streams of one sensor take one size if they can."""
        self.refused = {}
        chosen: list[_Choice] = []
        for channel in self._rates_hz:
            if channel in self._started:
                continue
            sizes = {choice.sensor: choice.size for choice in chosen}
            candidates = self._candidates(channel)
            if candidates:
                chosen.append(min(candidates, key=lambda each: self._distance(each, sizes)))
            else:
                stream, pixels, _ = CHANNELS[channel]
                what = f"has no {channel} stream ({stream}, {pixels})"
                self.refused[channel] = f"{self.channels[channel].description}: {what}"
        return chosen

    def _candidates(self, channel: str) -> list[_Choice]:
        stream = getattr(self._library.stream, CHANNELS[channel][0])
        pixels = getattr(self._library.format, CHANNELS[channel][1])
        return [
            _Choice(channel=channel, sensor=index, profile=profile)
            for index, sensor in enumerate(self._sensors)
            for profile in sensor.get_stream_profiles()
            if profile.stream_type() == stream and profile.format() == pixels
        ]

    def _distance(self, choice: _Choice, sizes: Mapping[int, tuple[int, int]]) -> tuple[float, bool, bool, int]:
        away_hz = abs(choice.profile.fps() - self._rates_hz[choice.channel])
        another_size = sizes.get(choice.sensor, choice.size) != choice.size
        return away_hz, another_size, not choice.profile.is_default(), abs(choice.size[0] - _TYPICAL_WIDTH)

    def _start(self, chosen: list[_Choice]) -> None:
        for index in {choice.sensor: None for choice in chosen}:
            sensor, its = self._sensors[index], [choice for choice in chosen if choice.sensor == index]
            try:
                sensor.open([choice.profile for choice in its])
                sensor.start(self._arrival({choice.profile.stream_type(): choice.channel for choice in its}))
            except RuntimeError as error:
                # One sensor may be another program's; the others are worth having.
                for choice in its:
                    self.refused[choice.channel] = f"{self.channels[choice.channel].description}: {_in_words(error)}"
                continue
            for choice in its:
                self._started[choice.channel] = choice
                self._describe(choice.channel, sensor, choice.profile.as_video_stream_profile())

    def _arrival(self, channel_of: Mapping[Any, str]) -> Any:
        newest = self._newest

        def arrive(frame: Any) -> None:
            newest.put(channel_of[frame.get_profile().stream_type()], (frame, time.monotonic()))

        return arrive

    def _describe(self, channel: str, sensor: Any, profile: Any) -> None:
        info = self._library.camera_info
        facts = [f"{profile.width()} x {profile.height()}", f"{profile.fps()} Hz"]
        if self._opened.supports(info.usb_type_descriptor):
            facts.append(f"USB {self._opened.get_info(info.usb_type_descriptor)}")
        if channel == "depth" and sensor.supports(self._library.option.depth_units):
            units_m = sensor.get_option(self._library.option.depth_units)
            if abs(units_m - _MILLIMETRE) > 1e-9:
                facts.append(f"{1000.0 * units_m:g} mm per step")
        name = f"{self._opened.get_info(info.name)} {self._opened.get_info(info.serial_number)}"
        identity = "" if self.traits.finite else name
        self.traits = replace(self.traits, description=name, identity=identity)
        self.channels[channel] = replace(
            self.channels[channel],
            description=f"{name} {channel} ({', '.join(facts)})",
            rate_hz=float(profile.fps()),
            identity=identity,
        )

    def read_any(self, timeout_s: float) -> tuple[str, Frame] | None:
        """The next frame with the camera's frame number and, where its clock can be mapped, its time.

        Raises:
            SourceEndedError: the recording is at its end.
            SensorError: the camera was unplugged (`.gone`).
        """
        if not self._started:
            raise SensorError(f"{self.traits.description}: read before open")
        if self._ended:
            raise SourceEndedError(f"{self.traits.description}: at its end")
        taken = self._newest.take(timeout_s)
        if taken is None:
            self._look_why()
            return None
        channel, (frame, at_s) = taken
        data = np.array(np.asanyarray(frame.get_data()))
        captured_s = self._captured_s(channel, frame, at_s)
        return channel, Frame(data=data, sequence=int(frame.get_frame_number()), captured_s=captured_s)

    def _look_why(self) -> None:
        if self._playback is not None:
            if self._playback.current_status() == self._library.playback_status.stopped:
                self._ended = True
                raise SourceEndedError(f"{self.traits.description}: at its end")
        elif not self._opened.is_connected():
            raise SensorError(f"{self.traits.description}: unplugged", gone=True)

    def _captured_s(self, channel: str, frame: Any, at_s: float) -> float | None:
        if self.traits.finite:
            return None
        stamp_s = float(frame.get_timestamp()) / 1000.0
        if frame.get_frame_timestamp_domain() == self._library.timestamp_domain.hardware_clock:
            return self._clocks[channel].monotonic_s(stamp_s, at_s)
        return min(at_s, stamp_s - (time.time() - time.monotonic()))

    def close(self) -> None:
        """Stop the streams; a recording that has ended stays ended."""
        started, self._started = self._started, {}
        for index in {choice.sensor for choice in started.values()}:
            try:
                self._sensors[index].stop()
                self._sensors[index].close()
            except RuntimeError:
                # Unplugged: there is nothing left to stop.
                pass
        self._newest = Newest()
        self._sensors = []
        self._playback = self._opened = None


def _load() -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        raise SensorError("a RealSense camera needs librealsense: pip install 'mars-edge[realsense]'") from error
    return pyrealsense2


def _in_words(error: RuntimeError) -> str:
    text = " ".join(str(error).split())
    if "errno=16" in text or "busy" in text.lower():
        hint = "close it, and name the camera the same way in every source"
        return f"busy: another program, or a source that names the camera otherwise, uses it; {hint} ({text})"
    if "errno=13" in text or "denied" in text.lower():
        return f"permission denied: install librealsense's udev rules ({text})"
    return text
