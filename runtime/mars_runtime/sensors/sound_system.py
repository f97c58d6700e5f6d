"""Why there is no sound input on this machine: no card, no permission, no sound server, or no way to it.

PortAudio only says that there is none. On Linux it asks ALSA, which knows the cards and, by a plug-in, a sound server.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_PLUGINS = ("libasound_module_pcm_pulse.so", "libasound_module_pcm_pipewire.so")
_CONNECT_S = 0.5


def why_no_input(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> str:
    """The cause in words, with what to do where something can be done; looks only, opens no sound device.

    Args:
        root: the folder that holds proc, dev, usr and run.
        environment: where PULSE_SERVER and XDG_RUNTIME_DIR are looked up.
    """
    if sys.platform != "linux":
        return "PortAudio finds none"
    captures = sorted((root / "proc/asound").glob("card*/pcm*c"))
    if captures:
        return _unusable_card(root)
    cards = list((root / "proc/asound").glob("card[0-9]*"))
    lacking = "the sound cards have no input" if cards else "this machine has no sound card"
    if not _server_runs(root, environment):
        return f"{lacking}, and no PulseAudio or PipeWire server runs for this user"
    if not _has_plugin(root / "usr"):
        return f"{lacking}, and ALSA has no way to the sound server that runs: apt install libasound2-plugins"
    return f"{lacking}, and the sound server that runs offers none; `pactl list short sources` lists its own"


def _has_plugin(usr: Path) -> bool:
    folders = [*usr.glob("lib*/alsa-lib"), *usr.glob("lib*/*/alsa-lib")]
    return any((folder / plugin).exists() for folder in folders for plugin in _PLUGINS)


def _unusable_card(root: Path) -> str:
    nodes = sorted((root / "dev/snd").glob("pcm*c"))
    if not nodes:
        return "the sound cards have no nodes in /dev/snd; a container must be given them"
    denied = [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if denied:
        return f"permission denied on /dev/snd/{denied[0].name}: add the user to group {_group(denied[0])}"
    return "a sound card with an input is there, but PortAudio finds none: another program may hold it"


def _group(node: Path) -> str:
    try:
        return node.group()
    except (KeyError, OSError):
        return "audio"


def _server_runs(root: Path, environment: Mapping[str, str]) -> bool:
    """Whether somebody listens where PulseAudio's clients look first; PipeWire listens there too."""
    named = environment.get("PULSE_SERVER", "")
    if named and not named.startswith(("unix:", "/")):
        # On another machine: what is wrong there cannot be seen from here.
        return True
    runtime = environment.get("XDG_RUNTIME_DIR") or root / f"run/user/{os.getuid()}"
    return _listens(Path(named.removeprefix("unix:")) if named else Path(runtime) / "pulse/native")


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.settimeout(_CONNECT_S)
        probe.connect(str(path))
        return True
    return False
