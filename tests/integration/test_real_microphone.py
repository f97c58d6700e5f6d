"""A real PortAudio capture of a PulseAudio monitor, its server frozen, killed and restored: no hardware, no fakes.

Needs Debian's pulseaudio, pulseaudio-utils, libasound2-plugins and libportaudio2.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mars_edge.cli import main
from mars_edge.errors import SensorError
from mars_edge.modality import Modality
from mars_runtime.sensors.driver import Driver, Frame
from mars_runtime.sensors.simulated import World
from mars_runtime.sensors.source import make_driver, parse_flag
from tests.helpers.watched_sensor import Watched, footprint

pytestmark = [pytest.mark.hardware, pytest.mark.timeout(3600)]

VOICE = Modality(name="voice", kind="audio", rate_hz=16000, window_s=0.5)
# No whole number of periods in a hop: two windows of a perfect tone would be equal, which is what "frozen" means.
TONE_HZ = 443
ROUNDS = 50
# Sound that had left the server before it stopped still comes: one block of PortAudio's 0.1 s buffer, and a hop.
BUFFERED_S = 0.15


class PulseServer:
    """A private PulseAudio daemon that plays a tone into a null sink; its monitor is the default source."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "native"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "start.pa").write_text(
            f"load-module module-native-protocol-unix socket={self.socket} auth-anonymous=1\n"
            "load-module module-null-sink sink_name=null rate=48000 channels=1\n"
            f"load-module module-sine sink=null frequency={TONE_HZ} rate=48000\n"
            "set-default-source null.monitor\n"
        )

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        command = ["pulseaudio", "-n", "-F", str(self._folder / "start.pa"), "--daemonize=no", "--exit-idle-time=-1"]
        environment = {**os.environ, "HOME": str(self._folder), "XDG_RUNTIME_DIR": str(self._folder)}
        self._process = subprocess.Popen(
            [*command, "--use-pid-file=no", "--disable-shm=yes"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until_s = time.monotonic() + 20.0
        while not self.socket.exists():
            assert time.monotonic() < until_s, "pulseaudio does not start"
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PulseServer]:
    if shutil.which("pulseaudio") is None:
        pytest.skip("needs pulseaudio: apt install pulseaudio")
    if shutil.which("pactl") is None:
        pytest.skip("needs pactl: apt install pulseaudio-utils")
    if not list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        pytest.skip("needs ALSA's plug-in for PulseAudio: apt install libasound2-plugins")
    if ctypes.util.find_library("portaudio") is None:
        pytest.skip("needs PortAudio: apt install libportaudio2")
    server = PulseServer(tmp_path)
    monkeypatch.setenv("PULSE_SERVER", f"unix:{server.socket}")
    # PulseAudio's client library would start a server of its own.
    (tmp_path / "client.conf").write_text("autospawn = no\n")
    monkeypatch.setenv("PULSE_CLIENTCONFIG", str(tmp_path / "client.conf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    server.start()
    yield server
    server.stop()


def microphone() -> Driver:
    return make_driver(parse_flag("voice=audio:pulse"), VOICE, World(0, 15.0))


def next_frame(driver: Driver, limit_s: float = 20.0) -> Frame:
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s:
        frame = driver.read(0.1)
        if frame is not None:
            return frame
    raise AssertionError(f"no frame within {limit_s:g} s")


def test_the_tone_that_is_played_is_heard_at_its_pitch_and_level_with_device_times(server: PulseServer) -> None:
    driver = microphone()
    driver.open()
    # A PulseAudio monitor begins with silence from before it was opened.
    for _ in range(20):
        next_frame(driver)
    begin_s, frames = time.monotonic(), [next_frame(driver) for _ in range(40)]
    rate_hz = 40 / (time.monotonic() - begin_s)
    driver.close()
    data = frames[-1].data
    assert VOICE.window_s is not None
    spectrum = np.abs(np.fft.rfft(data * np.hanning(data.size)))
    assert abs(spectrum.argmax() / VOICE.window_s - TONE_HZ) <= 2.0
    # A sine that keeps its level; PulseAudio plays this one at half of full scale.
    assert data.std() == pytest.approx(0.5 / np.sqrt(2.0), rel=0.05)
    assert 0.8 * driver.traits.rate_hz < rate_hz < 1.2 * driver.traits.rate_hz
    stamped = [frame.captured_s for frame in frames]
    assert all(stamp_s is not None and 0.0 <= time.monotonic() - stamp_s < 20.0 for stamp_s in stamped)
    assert stamped == sorted(stamped, key=lambda stamp_s: stamp_s or 0.0)


def test_no_server_and_no_such_device_are_named(server: PulseServer) -> None:
    with pytest.raises(SensorError) as error:
        make_driver(parse_flag("voice=audio:nobody"), VOICE, World(0, 15.0)).open()
    expected = "microphone nobody: No input device matching 'nobody': `mars-edge devices` lists those there are"
    assert str(error.value) == expected
    server.stop()
    with pytest.raises(SensorError, match=r"^microphone pulse: ") as error:
        microphone().open()
    assert "\n" not in str(error.value)


def test_devices_lists_it_and_doctor_measures_it(server: PulseServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    found = {entry["source"]: entry for entry in json.loads(capsys.readouterr().out)["devices"]}
    assert found["audio:pulse"]["state"] == "works"
    assert main(["doctor", "--json", "--sensor", "voice=audio:pulse", "--seconds", "3"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["sensors"]
    assert report["measured"]["kind"] == "audio"
    # A sine of half of full scale.
    assert report["measured"]["loudness_dbfs"] == pytest.approx(20.0 * np.log10(0.5 / np.sqrt(2.0)), abs=0.5)


def test_a_muted_microphone_is_named(server: PulseServer, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["pactl", "set-sink-mute", "null", "1"], check=True, capture_output=True)
    assert main(["doctor", "--json", "--sensor", "voice=audio:pulse", "--seconds", "3"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["sensors"]
    assert (report["verdict"], [finding["cause"] for finding in report["findings"]][-1]) == ("broken", "muted")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_fifty_outages_of_the_sound_server_are_masked_in_time_and_survived_without_a_leak(
    server: PulseServer, how: str
) -> None:
    masked_s, since_fault_s, back_s, before = [], [], [], None
    with Watched(microphone(), VOICE) as watched:
        watched.until(lambda found: found.status != "missing", 30.0)
        for cycle in range(ROUNDS):
            if cycle == 2:
                before = footprint()
            time.sleep(0.1 * (cycle % 5))
            watched.step()
            fault_s = time.monotonic()
            if how == "frozen":
                server.send(signal.SIGSTOP)
            else:
                server.stop()
            at_s, _ = watched.until(lambda found: found.status == "missing", 5.0)
            assert watched.sample_s is not None
            masked_s.append(at_s - watched.sample_s)
            since_fault_s.append(at_s - fault_s)
            # Past "lost", so that what hangs has been ended and opened anew.
            watched.until(lambda found: (found.age_s or 0.0) > 2.0, 10.0)
            begin_s = time.monotonic()
            if how == "frozen":
                server.send(signal.SIGCONT)
            else:
                server.start()
            at_s, _ = watched.until(lambda found: found.status != "missing", 60.0)
            back_s.append(at_s - begin_s)
        after, limit_s = footprint(), watched.limits.stale_after_s
    gone = footprint()
    print(
        f"\n{how}: {ROUNDS} outages; after the last sample masked in {1000 * max(masked_s):.0f} ms at most "
        f"(limit {1000 * limit_s:.0f}), after the fault in {1000 * max(since_fault_s):.0f} ms at most; "
        f"back {np.median(back_s):.1f} s (median), {max(back_s):.1f} s (most) after the server; {before} -> {after}"
    )
    assert before is not None
    assert max(masked_s) <= limit_s + 0.1
    assert max(since_fault_s) <= limit_s + 0.1 + BUFFERED_S
    assert (after.threads, after.children) == (before.threads, before.children)
    assert after.descriptors <= before.descriptors
    assert after.resident_mib <= before.resident_mib + 8.0
    # What is left is the sound server.
    assert (gone.threads, gone.children) == (1, 1)
