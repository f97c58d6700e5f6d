"""The C++ programs of runtime/native, built once per test session and machine, and what they answer."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
_EMULATOR = ("qemu-aarch64-static", "-cpu", "cortex-a76", "-L", "/usr/aarch64-linux-gnu")


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Where the programs are and what runs them."""

    folder: Path
    emulator: tuple[str, ...] = ()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One call of `mars_runner`."""
        command = [*self.emulator, str(self.folder / "mars_runner"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def decide(self, model: Path, samples: Mapping[str, NDArray[np.float32]], folder: Path) -> list[dict[str, Any]]:
        """The lines for the samples (frames first) of the modalities that are there."""
        flags = []
        for name, values in samples.items():
            (folder / f"{name}.f32").write_bytes(values.astype("<f4").tobytes())
            flags += ["--sample", f"{name}={folder / name}.f32"]
        result = self.run("--model", str(model), "--threads", "1", *flags)
        assert (result.returncode, result.stderr) == (0, "")
        return [json.loads(line) for line in result.stdout.splitlines()]

    def ask(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What `mars_checks` answers, in order: `answer`, or `refused` and `code`."""
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        command = [*self.emulator, str(self.folder / "mars_checks")]
        result = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")
        answers = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(answers) == len(requests)
        return answers


def programs(machine: str = "") -> Programs:
    """The programs for this machine, or for `aarch64` under the emulator; skips where a tool is missing."""
    machine = machine or platform.machine()
    tools = ["cmake", "g++"] if machine == platform.machine() else ["cmake", "aarch64-linux-gnu-g++", _EMULATOR[0]]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed: apt-get install cmake g++-aarch64-linux-gnu qemu-user-static")
    if not Path("/usr/include/nlohmann/json.hpp").is_file():
        pytest.skip("apt-get install nlohmann-json3-dev")
    return _build(machine)


@cache
def _build(machine: str) -> Programs:
    folder = Path(mkdtemp(prefix=f"mars-edge-native-{machine}-"))
    emulator = () if machine == platform.machine() else _EMULATOR
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHON": sys.executable}
    found = importlib.util.find_spec("executorch")
    if not emulator and found is not None and found.submodule_search_locations:
        environment["MARS_EDGE_EXECUTORCH"] = next(iter(found.submodule_search_locations))
    script = ROOT / "runtime/native/build.sh"
    result = subprocess.run(
        ["/bin/bash", str(script), machine, str(folder)], capture_output=True, text=True, env=environment, check=False
    )
    if "pip download" not in result.stderr and "No matching distribution" in result.stderr:
        pytest.skip(f"no executorch wheel for {machine} to build with: {result.stderr.splitlines()[-1]}")
    assert result.returncode == 0, result.stderr
    return Programs(folder=folder, emulator=emulator)
