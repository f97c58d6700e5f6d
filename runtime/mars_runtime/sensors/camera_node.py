"""A camera's node in /dev: whether it can be used, why not, and which camera stands behind it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from mars_edge.errors import SensorError

# linux/videodev2.h: VIDIOC_QUERYCAP and struct v4l2_capability, whose device_caps lie at byte 88.
_QUERYCAP = 0x80685600
_CAPABILITY_BYTES = 104
_DEVICE_CAPS_AT = 88
_CAN_CAPTURE = 0x00000001 | 0x00001000
_SYSFS = Path("/sys/class/video4linux")


def camera_nodes(devices: Path = Path("/dev")) -> list[Path]:
    """Every /dev/videoN, by number."""
    nodes = [node for node in devices.glob("video*") if node.name.removeprefix("video").isdigit()]
    return sorted(nodes, key=lambda node: int(node.name.removeprefix("video")))


def require_node(node: Path) -> None:
    """Refuse a node that is not there or not ours to open.

    Raises:
        SensorError: `.gone` where there is none; else says which group may use it.
    """
    if not node.exists():
        raise SensorError(f"{node}: no such device", gone=True)
    if not os.access(node, os.R_OK | os.W_OK):
        raise SensorError(f"permission denied on {node}: add the user to group {_group(node)}")


def _group(node: Path) -> str:
    try:
        return node.group()
    except (KeyError, OSError):
        return "video"


def why_not(node: Path) -> SensorError:
    """The likeliest reason why a node that is there could not be opened or did not stream."""
    try:
        descriptor = os.open(node, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        return _refused(node, error)
    try:
        capabilities = fcntl.ioctl(descriptor, _QUERYCAP, bytes(_CAPABILITY_BYTES))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return SensorError(f"{node}: is no V4L2 device")
        return _refused(node, error)
    finally:
        os.close(descriptor)
    (caps,) = struct.unpack_from("<I", capabilities, _DEVICE_CAPS_AT)
    if not caps & _CAN_CAPTURE:
        return SensorError(f"{node}: gives no pictures (a metadata or output node); try the camera's other nodes")
    users = users_of(node)
    if users:
        return SensorError(f"{node}: busy, used by {', '.join(users)}")
    return SensorError(f"{node}: opens, but OpenCV can make it send no pictures")


def _refused(node: Path, error: OSError) -> SensorError:
    if error.errno == errno.EBUSY:
        users = users_of(node)
        return SensorError(f"{node}: busy" + (f", used by {', '.join(users)}" if users else ""))
    if error.errno in (errno.ENODEV, errno.ENXIO, errno.ENOENT):
        return SensorError(f"{node}: unplugged", gone=True)
    if error.errno in (errno.EACCES, errno.EPERM):
        return SensorError(f"permission denied on {node}: add the user to group {_group(node)}")
    return SensorError(f"{node}: {os.strerror(error.errno or 0)}")


def users_of(node: Path, processes: Path = Path("/proc")) -> list[str]:
    """Other processes that hold the node open, as "NAME (process N)"; only those this user may look into."""
    others = [entry for entry in processes.glob("[0-9]*") if entry.name != str(os.getpid())]
    return [f"{_name(entry)} (process {entry.name})" for entry in others if _holds(entry, node)]


def _holds(process: Path, node: Path) -> bool:
    try:
        return any(descriptor.readlink() == node for descriptor in (process / "fd").iterdir())
    except OSError:
        return False


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "a process"


def camera_identity(node: Path, sysfs: Path = _SYSFS) -> str:
    """Name, USB ids, serial number and which of the camera's nodes this is; empty where the kernel tells nothing.

    Stays the same in another port and under another number, as long as the camera has a serial number.
    """
    entry = sysfs / node.name
    device = (entry / "device").resolve()
    found = [_read(entry / "name"), _read(entry / "index")]
    # The node belongs to a USB interface; ids are on the device above it.
    found += [_read(device.parent / key) for key in ("idVendor", "idProduct", "serial")]
    return " ".join(value for value in found if value)


def usb_speed_mbps(node: Path, sysfs: Path = _SYSFS) -> float | None:
    """Negotiated speed of the camera's USB link, 480 for USB 2; None for anything not on USB."""
    text = _read((sysfs / node.name / "device").resolve().parent / "speed")
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
