"""The sensors of this machine: cameras, microphones and depth cameras, whether each works, and what `--sensor` takes.

Libraries that look for devices may hang, crash or print; each looks in a process of its own: `python -m
mars_runtime.inventory KIND` prints what it found as JSON.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mars_edge.errors import MarsEdgeError, SensorError, UsageError
from mars_edge.modality import Modality
from mars_runtime.interpreter import environment
from mars_runtime.sensors.camera_node import camera_nodes, usb_speed_mbps
from mars_runtime.sensors.simulated import World
from mars_runtime.sensors.source import SensorSpec, make_driver

_LOOK_S = 15.0
_FIRST_SAMPLE_S = 5.0
# linux/videodev2.h: VIDIOC_QUERYCAP, VIDIOC_ENUM_FMT, and by capability the type of buffers to ask for.
_QUERYCAP, _CAPABILITY = 0x80685600, struct.Struct("<16s32s32sIII3I")
_ENUM_FMT, _FORMAT = 0xC0405602, struct.Struct("<III32sI4I")
_CAN_CAPTURE = {0x00000001: 1, 0x00001000: 9}
_MOST_FORMATS = 64
_SYSFS = Path("/sys/class/video4linux")


@dataclass(frozen=True, kw_only=True)
class Device:
    """One sensor.

    Attributes:
        kind: camera | microphone | realsense | depthai | orbbec.
        source: what `--sensor NAME=` takes.
        detail: formats, rates, link.
        state: "listed" until it is probed, then "works" or why it does not.
    """

    kind: str
    source: str
    name: str
    detail: str = ""
    state: str = "listed"


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What was found, and what could not be looked for and why."""

    devices: tuple[Device, ...]
    notes: tuple[str, ...]


def look(*, probe: bool) -> Inventory:
    """Every device; with `probe` each is opened, one after the other, and has to give a sample."""
    children = _Children()
    with ThreadPoolExecutor(max_workers=len(LOOKERS)) as workers:
        try:
            found = list(workers.map(partial(_look_for, children=children), LOOKERS))
        except BaseException:
            # Ctrl-C: the threads end with the processes they wait for.
            children.end()
            raise
    devices = [device for devices, _ in found for device in devices]
    notes = tuple(note for _, note in found if note)
    return Inventory(devices=tuple(probed(device) if probe else device for device in devices), notes=notes)


class _Children:
    """Processes that are killed together; one that starts after the end is killed at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: list[subprocess.Popen[bytes]] = []
        self._ended = False

    def add(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._started.append(process)
            if self._ended:
                process.kill()

    def end(self) -> None:
        with self._lock:
            self._ended = True
            for process in self._started:
                process.kill()


def _look_for(
    kind: str,
    *,
    module: str = "mars_runtime.inventory",
    limit_s: float = _LOOK_S,
    children: _Children | None = None,
) -> tuple[list[Device], str]:
    command = [sys.executable, "-P", "-m", module, kind]
    try:
        # Some kits write their log into the working folder.
        with (
            tempfile.TemporaryDirectory() as folder,
            subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment(),
            ) as process,
        ):
            (children or _Children()).add(process)
            try:
                said, _ = process.communicate(timeout=limit_s)
            finally:
                process.kill()
    except subprocess.TimeoutExpired:
        return [], f"{kind}: its library does not answer within {limit_s:g} s"
    lines = said.splitlines()
    if process.returncode != 0 or not lines:
        return [], f"{kind}: its library crashed (exit code {process.returncode})"
    answer = json.loads(lines[-1])
    return [Device(**entry) for entry in answer["devices"]], answer["note"]


def probed(device: Device) -> Device:
    """The device with what became of opening it; takes at most about 15 s."""
    try:
        seen = _first_sample(device)
    except MarsEdgeError as error:
        return replace(device, state=str(error))
    return replace(device, state="works", detail=", ".join(part for part in (device.detail, seen) if part))


def _first_sample(device: Device) -> str:
    if device.kind == "microphone":
        modality = Modality(name="sensor", kind="audio", rate_hz=16000.0, window_s=0.1)
    else:
        modality = Modality(name="sensor", kind="image", size=(480, 640), channels=3, dtype="uint8", range=(0, 255))
    driver = make_driver(SensorSpec(name="sensor", source=device.source), modality, World(0, 15.0))
    try:
        driver.open()
        until_s = time.monotonic() + _FIRST_SAMPLE_S
        while time.monotonic() < until_s:
            frame = driver.read(0.2)
            if frame is not None:
                shape = " x ".join(map(str, frame.data.shape))
                return f"gives {shape} {frame.data.dtype}"
    finally:
        driver.close()
    raise SensorError(f"opens, but gave no sample within {_FIRST_SAMPLE_S:g} s")


def cameras(sysfs: Path = _SYSFS, nodes: Sequence[Path] | None = None) -> list[Device]:
    """Every V4L2 node that can capture pictures; a node that may not be opened is listed with the reason."""
    found = [_camera(node, sysfs) for node in (camera_nodes() if nodes is None else nodes)]
    return [device for device in found if device is not None]


def _camera(node: Path, sysfs: Path) -> Device | None:
    name = node.name
    with contextlib.suppress(OSError):
        name = (sysfs / node.name / "name").read_text(errors="replace").strip()
    speed_mbps = usb_speed_mbps(node, sysfs)
    link = "" if speed_mbps is None else f"USB {speed_mbps:g} Mbit/s"
    try:
        formats = _formats(node)
    except OSError as error:
        reason = "no permission" if error.errno in (errno.EACCES, errno.EPERM) else os.strerror(error.errno or 0)
        return Device(kind="camera", source=str(node), name=name, detail=", ".join(filter(None, (link, reason))))
    if formats is None:
        return None
    return Device(kind="camera", source=str(node), name=name, detail=", ".join(filter(None, (" ".join(formats), link))))


def _formats(node: Path) -> list[str] | None:
    """Pixel formats as four-letter codes; None for a node that captures no pictures.

    Raises:
        OSError: the node cannot be opened or is no V4L2 device.
    """
    descriptor = os.open(node, os.O_RDWR | os.O_NONBLOCK)
    try:
        capability = _CAPABILITY.unpack(fcntl.ioctl(descriptor, _QUERYCAP, bytes(_CAPABILITY.size)))
        kinds = [kind for bit, kind in _CAN_CAPTURE.items() if capability[5] & bit]
        return _codes(descriptor, kinds[0]) if kinds else None
    finally:
        os.close(descriptor)


def _codes(descriptor: int, kind: int) -> list[str]:
    codes: list[str] = []
    for index in range(_MOST_FORMATS):
        try:
            answer = fcntl.ioctl(descriptor, _ENUM_FMT, _FORMAT.pack(index, kind, 0, b"", 0, 0, 0, 0, 0))
        except OSError:
            # EINVAL: there is no further format.
            break
        codes.append(_FORMAT.unpack(answer)[4].to_bytes(4, "little").decode("ascii", "replace").rstrip())
    return codes


def microphones() -> list[Device]:
    """Every input of PortAudio.

    Raises:
        SensorError: the package or library is missing, PortAudio does not start, or why it finds none.
    """
    from mars_runtime.sensors.microphone import inputs, load_portaudio
    from mars_runtime.sensors.sound_system import why_no_input

    portaudio = load_portaudio()
    apis = [api["name"] for api in portaudio.query_hostapis()]
    found = inputs(portaudio)
    if not found:
        raise SensorError(f"no sound input: {why_no_input()}")
    names = [device["name"] for device in found]
    return [
        Device(
            kind="microphone",
            # A name stays when another microphone is plugged in; a number moves.
            source=f"audio:{device['name'] if names.count(device['name']) == 1 else device['index']}",
            name=device["name"],
            detail=f"{apis[device['hostapi']]}, {device['default_samplerate']:g} Hz",
        )
        for device in found
    ]


def realsenses() -> list[Device]:
    """Every RealSense camera.

    Raises:
        SensorError: the package is missing.
    """
    library = _kit("pyrealsense2", "realsense")
    info = library.camera_info
    return [
        Device(
            kind="realsense",
            source=f"realsense:{device.get_info(info.serial_number)}/depth",
            name=device.get_info(info.name),
            detail=f"USB {_told(device, info.usb_type_descriptor)}",
        )
        for device in library.context().query_devices()
    ]


def _told(device: Any, what: Any) -> str:
    return str(device.get_info(what)) if device.supports(what) else "of unknown speed"


def oaks() -> list[Device]:
    """Every OAK camera; not yet seen with a camera.

    Raises:
        SensorError: the package is missing.
    """
    library = _kit("depthai", "depthai")
    return [
        Device(
            kind="depthai",
            source=f"depthai:{info.deviceId}/rgb",
            name=f"OAK {info.name}".strip(),
            detail=str(info.state).rpartition("X_LINK_")[2].lower(),
        )
        for info in library.Device.getAllAvailableDevices()
    ]


def orbbecs() -> list[Device]:
    """Every Orbbec camera; not yet seen with a camera.

    Raises:
        SensorError: the package is missing.
    """
    found = _kit("pyorbbecsdk", "orbbec").Context().query_devices()
    return [
        Device(
            kind="orbbec",
            source=f"orbbec:{found.get_device_serial_number_by_index(index)}/depth",
            name=found.get_device_name_by_index(index),
            detail=str(found.get_device_connection_type_by_index(index)),
        )
        for index in range(found.get_count())
    ]


def _kit(module: str, extra: str) -> Any:
    if importlib.util.find_spec(module) is None:
        raise SensorError(f"not looked for: pip install 'mars-edge[{extra}]'")
    return importlib.import_module(module)


LOOKERS: dict[str, Callable[[], list[Device]]] = {
    "camera": cameras,
    "microphone": microphones,
    "realsense": realsenses,
    "depthai": oaks,
    "orbbec": orbbecs,
}


def main(argv: Sequence[str]) -> None:
    """One looker's answer as the last line of stdout."""
    try:
        answer = {"devices": [asdict(device) for device in LOOKERS[argv[0]]()], "note": ""}
    except (SensorError, UsageError) as error:
        answer = {"devices": [], "note": f"{argv[0]}: {error}"}
    except Exception as error:  # noqa: BLE001 - whatever a vendor's library raises is told, not hidden
        answer = {"devices": [], "note": f"{argv[0]}: {type(error).__name__}: {' '.join(str(error).split())}"}
    print(f"\n{json.dumps(answer)}", flush=True)
    # A vendor's threads must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
