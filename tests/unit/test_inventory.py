"""What `mars-edge devices` finds: nothing without an error, and a library that hangs or crashes is named."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import types
from pathlib import Path

import pytest

from mars_edge.cli import main
from mars_edge.errors import SensorError
from mars_runtime import inventory
from mars_runtime.commands import devices
from mars_runtime.inventory import Device, Inventory, cameras, probed

CAMERA = Device(kind="camera", source="/dev/video0", name="Desk Camera", detail="MJPG YUYV")


def look_for(kind: str, limit_s: float = 15.0) -> tuple[list[Device], str]:
    return inventory._look_for(kind, module="tests.helpers.odd_looker", limit_s=limit_s)


def test_what_a_library_prints_and_writes_beside_its_devices_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert look_for("chats") == ([Device(kind="odd", source="odd:1", name="Odd One")], "")
    assert not list(tmp_path.iterdir())


def test_a_library_that_hangs_or_crashes_while_it_looks_is_named_and_the_others_are_listed() -> None:
    begin_s = time.monotonic()
    assert look_for("hangs", limit_s=0.5) == ([], "hangs: its library does not answer within 0.5 s")
    assert time.monotonic() - begin_s < 5.0
    assert look_for("crashes") == ([], "crashes: its library crashed (exit code -11)")


def test_a_kit_that_is_not_installed_is_a_note_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory.importlib.util, "find_spec", lambda name: None)
    for looker, extra in (
        (inventory.realsenses, "realsense"),
        (inventory.oaks, "depthai"),
        (inventory.orbbecs, "orbbec"),
    ):
        with pytest.raises(SensorError) as error:
            looker()
        assert str(error.value) == f"not looked for: pip install 'mars-edge[{extra}]'"


class Kernel:
    """Answers V4L2's questions as linux/videodev2.h lays them out."""

    def __init__(self, caps: int, formats: list[bytes]) -> None:
        self._caps = caps
        self._formats = formats
        self.asked_kinds: set[int] = set()

    def ioctl(self, descriptor: int, request: int, argument: bytes) -> bytes:
        # Bits 16 to 29 of a request are the size of what is exchanged.
        assert request >> 16 & 0x3FFF == len(argument)
        if request & 0xFF == 0:
            return bytes(88) + self._caps.to_bytes(4, "little") + bytes(12)
        index, kind = int.from_bytes(argument[:4], "little"), int.from_bytes(argument[4:8], "little")
        self.asked_kinds.add(kind)
        if index >= len(self._formats):
            raise OSError(errno.EINVAL, "no further format")
        return argument[:44] + self._formats[index] + argument[48:]


@pytest.mark.parametrize(("caps", "kind"), [(0x04200001, 1), (0x04201000, 9)])
def test_a_camera_is_listed_with_its_formats_and_its_usb_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caps: int, kind: int
) -> None:
    kernel = Kernel(caps, [b"MJPG", b"YUYV", b"Y16 "])
    monkeypatch.setattr(inventory.fcntl, "ioctl", kernel.ioctl)
    usb = tmp_path / "usb" / "1-1:1.0"
    usb.mkdir(parents=True)
    (tmp_path / "usb" / "speed").write_text("480\n")
    entry = tmp_path / "class" / "video3"
    entry.mkdir(parents=True)
    (entry / "name").write_text("Desk Camera\n")
    (entry / "device").symlink_to(usb)
    node = tmp_path / "video3"
    node.touch()
    assert cameras(tmp_path / "class", [node]) == [
        Device(kind="camera", source=str(node), name="Desk Camera", detail="MJPG YUYV Y16, USB 480 Mbit/s")
    ]
    assert kernel.asked_kinds == {kind}


def test_a_node_without_pictures_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory.fcntl, "ioctl", Kernel(0x04A00000, []).ioctl)
    node = tmp_path / "video1"
    node.touch()
    assert cameras(tmp_path, [node]) == []


def test_a_node_that_may_not_be_opened_is_listed_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert [device.detail for device in cameras(tmp_path, [tmp_path / "video1"])] == ["no permission"]


def test_a_device_that_cannot_be_opened_says_why_and_one_that_gives_a_sample_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Device(kind="camera", source="/dev/video97", name="Gone")
    assert probed(absent).state == "/dev/video97: no such device"
    simulated = Device(kind="camera", source="sim:rgb", name="Rig", detail="rendered")
    working = probed(simulated)
    assert (working.state, working.detail) == ("works", "rendered, gives 112 x 112 x 3 uint8")


def test_a_device_that_opens_but_stays_silent_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Silent:
        def open(self) -> None: ...

        def read(self, timeout_s: float) -> None:
            time.sleep(timeout_s)

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(inventory, "make_driver", lambda spec, modality, world: Silent())
    monkeypatch.setattr(inventory, "_FIRST_SAMPLE_S", 0.3)
    assert probed(CAMERA).state == "opens, but gave no sample within 0.3 s"
    assert closed


def test_microphones_are_named_where_a_name_is_enough_and_numbered_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def entry(index: int, name: str, inputs: int) -> dict[str, object]:
        rate_hz = 48000.0
        return {
            "index": index, "name": name, "hostapi": 0, "max_input_channels": inputs, "default_samplerate": rate_hz,
        }  # fmt: skip

    fake = types.SimpleNamespace(
        query_hostapis=lambda: [{"name": "ALSA"}],
        query_devices=lambda: [entry(0, "Speaker", 0), entry(1, "Twin", 1), entry(2, "Array", 4), entry(3, "Twin", 1)],
    )
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    assert inventory.microphones() == [
        Device(kind="microphone", source="audio:1", name="Twin", detail="ALSA, 48000 Hz"),
        Device(kind="microphone", source="audio:Array", name="Array", detail="ALSA, 48000 Hz"),
        Device(kind="microphone", source="audio:3", name="Twin", detail="ALSA, 48000 Hz"),
    ]


def test_a_machine_without_sensors_is_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Inventory(devices=(), notes=("microphone: PortAudio is missing",))
    monkeypatch.setattr(devices, "look", lambda *, probe: nothing)
    assert main(["devices"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "no camera and no microphone found\n"
    assert shown.err == "mars-edge: microphone: PortAudio is missing\n"
    assert main(["devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"devices": [], "notes": ["microphone: PortAudio is missing"]}


def test_every_device_is_one_line_with_what_the_sensor_flag_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = []

    def look(*, probe: bool) -> Inventory:
        probes.append(probe)
        return Inventory(devices=(CAMERA,), notes=())

    monkeypatch.setattr(devices, "look", look)
    assert main(["devices"]) == main(["devices", "--no-probe"]) == 0
    line = "  /dev/video0  camera  Desk Camera  MJPG YUYV  listed"
    assert [each.rstrip() for each in capsys.readouterr().out.splitlines()].count(line) == 2
    assert probes == [True, False]


def test_this_machine_can_be_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--no-probe", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"devices", "notes"}
    assert all(note.partition(":")[0] in inventory.LOOKERS for note in found["notes"])
