"""Every reason why a machine has no sound input, on made-up file systems; the socket and its listener are real."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mars_runtime.sensors import sound_system
from mars_runtime.sensors.sound_system import why_no_input

NO_CARD = "this machine has no sound card"


@pytest.fixture(autouse=True)
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.fixture
def listening(tmp_path: Path) -> socket.socket:
    (tmp_path / "xdg/pulse").mkdir(parents=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "xdg/pulse/native"))
    return server


def why(root: Path, **environment: str) -> str:
    return why_no_input(root, {"XDG_RUNTIME_DIR": str(root / "xdg"), **environment})


def test_neither_card_nor_server_are_told_apart_from_a_card_without_input(tmp_path: Path) -> None:
    assert why(tmp_path) == f"{NO_CARD}, and no PulseAudio or PipeWire server runs for this user"
    (tmp_path / "proc/asound/card0/pcm3p").mkdir(parents=True)
    assert why(tmp_path) == ("the sound cards have no input, and no PulseAudio or PipeWire server runs for this user")


def test_a_socket_that_nobody_listens_at_is_no_server(tmp_path: Path, listening: socket.socket) -> None:
    assert "no PulseAudio or PipeWire server runs" in why(tmp_path)
    listening.listen(1)
    assert "server runs for this user" not in why(tmp_path)
    listening.close()
    assert "no PulseAudio or PipeWire server runs" in why(tmp_path)


@pytest.mark.parametrize("folder", ["lib/x86_64-linux-gnu/alsa-lib", "lib64/alsa-lib"])
@pytest.mark.parametrize("plugin", sound_system._PLUGINS)
def test_a_server_without_a_way_to_it_names_the_package(
    tmp_path: Path, listening: socket.socket, folder: str, plugin: str
) -> None:
    listening.listen(2)
    found = f"{NO_CARD}, and ALSA has no way to the sound server that runs: apt install libasound2-plugins"
    assert why(tmp_path) == found
    (tmp_path / "usr" / folder).mkdir(parents=True)
    (tmp_path / "usr" / folder / plugin).touch()
    assert why(tmp_path) == (
        f"{NO_CARD}, and the sound server that runs offers none; `pactl list short sources` lists its own"
    )
    listening.close()


def test_a_server_is_looked_for_where_the_environment_says(tmp_path: Path, listening: socket.socket) -> None:
    listening.listen(2)
    place = tmp_path / "xdg/pulse/native"
    for named in (f"unix:{place}", str(place)):
        assert "ALSA has no way" in why(tmp_path, PULSE_SERVER=named, XDG_RUNTIME_DIR="/nowhere")
    assert "no PulseAudio" in why(tmp_path, PULSE_SERVER=f"unix:{tmp_path}/none")
    assert "ALSA has no way" in why(tmp_path, PULSE_SERVER="tcp:sound.local")
    listening.close()


def test_a_card_that_may_not_be_used_names_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc/asound/card0/pcm0c").mkdir(parents=True)
    assert why(tmp_path) == "the sound cards have no nodes in /dev/snd; a container must be given them"
    (tmp_path / "dev/snd").mkdir(parents=True)
    (tmp_path / "dev/snd/pcmC0D0c").touch()
    assert why(tmp_path) == (
        "a sound card with an input is there, but PortAudio finds none: another program may hold it"
    )
    # Root may open everything.
    access: Callable[..., bool] = lambda path, mode: False  # noqa: E731
    monkeypatch.setattr(os, "access", access)
    group = (tmp_path / "dev/snd/pcmC0D0c").group()
    assert why(tmp_path) == f"permission denied on /dev/snd/pcmC0D0c: add the user to group {group}"


def test_this_machine_is_described_in_one_line() -> None:
    found = why_no_input()
    assert found
    assert "\n" not in found
