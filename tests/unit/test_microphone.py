"""The microphone's parts without a device: ring, lost sound, refusals; PortAudio itself is a hardware test."""

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mars_edge.errors import SensorError, UsageError
from mars_edge.modality import Modality
from mars_runtime.sensors import microphone
from mars_runtime.sensors.isolated import IsolatedDriver
from mars_runtime.sensors.microphone import Arrival, Microphone, Ring
from mars_runtime.sensors.simulated import World
from mars_runtime.sensors.source import make_driver, parse_flag

VOICE = Modality(name="voice", kind="audio", rate_hz=8000, window_s=0.5)


def samples(first: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.arange(first, first + count, dtype=np.float32)


def test_what_goes_into_a_ring_comes_out_once_and_in_order_however_it_is_cut() -> None:
    generator, ring, out, written = np.random.default_rng(0), Ring(1000), [], 0
    while written < 20_000:
        count = int(generator.integers(1, 300))
        ring.put(samples(written, count), None, overflowed=False)
        written += count
        while (taken := ring.take(97, 0.0)) is not None:
            out.append(taken[0])
    assert np.array_equal(np.concatenate(out), samples(0, 97 * len(out)))
    assert 0 <= ring.waiting < 97
    assert ring.overflows == 0


def test_a_reader_that_is_late_gets_the_newest_sound_and_is_told_once_that_some_was_lost() -> None:
    ring = Ring(100)
    ring.put(samples(0, 80), None, overflowed=False)
    ring.put(samples(80, 50), None, overflowed=False)
    first, second = ring.take(50, 0.0), ring.take(50, 0.0)
    assert first is not None
    assert second is not None
    assert np.array_equal(np.concatenate([first[0], second[0]]), samples(30, 100))
    assert (first[2], second[2]) == (True, False)
    assert ring.overflows == 1


def test_a_block_larger_than_the_ring_leaves_its_end() -> None:
    ring = Ring(100)
    ring.put(samples(0, 250), 7.0, overflowed=False)
    taken = ring.take(100, 0.0)
    assert taken is not None
    assert np.array_equal(taken[0], samples(150, 100))
    assert taken[1:] == (7.0, True)


def test_a_waiting_reader_is_woken_by_sound_and_gives_up_without() -> None:
    ring = Ring(100)
    assert ring.take(10, 0.01) is None
    thread = threading.Timer(0.05, lambda: ring.put(samples(0, 10), None, overflowed=False))
    thread.start()
    assert ring.take(10, 5.0) is not None
    thread.join()


def arrivals(blocks: list[tuple[int, float]]) -> list[bool]:
    arrival = Arrival(16000.0)
    return [arrival.lost(count, at_s) for count, at_s in blocks]


def test_lost_sound_is_told_once_even_where_nobody_reports_it() -> None:
    whole = [(160, 100.0 + 0.01 * index) for index in range(100)]
    after_a_gap = [(160, 101.5 + 0.01 * index) for index in range(100)]
    told = arrivals([*whole, *after_a_gap])
    assert told.index(True) == 100
    assert sum(told) == 1


def test_sound_is_stamped_by_counting_samples_as_of_the_least_delay() -> None:
    generator, arrival = np.random.default_rng(0), Arrival(16000.0)
    delays_s = np.concatenate([[0.02], generator.uniform(0.02, 0.2, 500)])
    errors_s = []
    for index, delay_s in enumerate(delays_s):
        assert not arrival.lost(160, 0.01 * (index + 1) + delay_s)
        assert arrival.newest_s is not None
        errors_s.append(arrival.newest_s - 0.01 * (index + 1))
    assert min(errors_s) >= 0.02 - 1e-9
    assert max(errors_s) < 0.03


def test_bursts_and_the_drift_of_a_cheap_clock_are_no_loss() -> None:
    # Ten blocks at once every 0.1 s, by a clock that is 500 ppm slow, for an hour.
    blocks = [(160, 0.1 * (index // 10) * 1.0005) for index in range(360_000)]
    assert not any(arrivals(blocks))


class Stream:
    """A PortAudio input that is opened and refused as a test says."""

    refuse: Callable[[int, int], bool] = staticmethod(lambda rate_hz, channels: False)
    opened: list[tuple[int, int]]

    def __init__(self, *, samplerate: int, channels: int, **options: Any) -> None:
        if type(self).refuse(samplerate, channels):
            raise RuntimeError("Error opening InputStream: Invalid\n sample rate")
        type(self).opened.append((samplerate, channels))
        self.active = True

    def start(self) -> None:
        pass

    def close(self, ignore_errors: bool = True) -> None:
        pass


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> type[Stream]:
    class Own(Stream):
        inputs = 2
        opened: list[tuple[int, int]] = []  # noqa: RUF012 - one list per test

    def query_devices(device: object = None, kind: str | None = None) -> Any:
        if kind is None:
            return [{"name": "Array: USB Audio", "max_input_channels": Own.inputs}]
        if not Own.inputs:
            raise RuntimeError("Error querying device -1")
        if device == "nobody":
            raise ValueError("No input device matching 'nobody'")
        return {"name": "Array: USB Audio", "default_samplerate": 44100.0, "max_input_channels": 2}

    fake = types.SimpleNamespace(
        InputStream=Own,
        PortAudioError=RuntimeError,
        query_devices=query_devices,
        _terminate=lambda: None,
        _initialize=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return Own


def test_a_microphone_runs_at_its_own_rate_and_gives_the_modalitys(portaudio: type[Stream]) -> None:
    driver = Microphone("", VOICE)
    driver.open()
    assert portaudio.opened == [(44100, 1)]
    assert driver.traits.identity == "Array: USB Audio"
    times = types.SimpleNamespace(currentTime=3.0, inputBufferAdcTime=2.99)
    fine = types.SimpleNamespace(input_overflow=False)
    tone = np.sin(2.0 * np.pi * 440.0 * np.arange(44100) / 44100.0).astype(np.float32)[:, None]
    for at in range(0, 44100, 441):
        driver._hear(tone[at : at + 441], 441, times, fine)
    frame = driver.read(0.0)
    assert frame is not None
    assert frame.data.shape == (VOICE.window_samples,)
    spectrum = np.abs(np.fft.rfft(frame.data * np.hanning(frame.data.size)))
    assert abs(int(spectrum.argmax()) * 2 - 440) <= 2
    assert frame.captured_s is not None
    assert 0.0 <= time.monotonic() - frame.captured_s < 5.0
    driver.close()


@pytest.mark.parametrize(
    ("refuse", "opened"),
    [
        (lambda rate_hz, channels: channels == 1, (44100, 2)),
        (lambda rate_hz, channels: rate_hz == 44100, (8000, 1)),
    ],
)
def test_a_device_that_refuses_mono_or_its_own_rate_is_asked_for_another(
    portaudio: type[Stream], refuse: Callable[[int, int], bool], opened: tuple[int, int]
) -> None:
    portaudio.refuse = staticmethod(refuse)
    driver = Microphone("2", VOICE)
    driver.open()
    assert portaudio.opened == [opened]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("2", "microphone 2: Error opening InputStream: Invalid sample rate"),
        (
            "nobody",
            "microphone nobody: No input device matching 'nobody': `mars-edge devices` lists those there are",
        ),
    ],
)
def test_a_device_that_cannot_be_opened_is_one_line(portaudio: type[Stream], device: str, message: str) -> None:
    portaudio.refuse = staticmethod(lambda rate_hz, channels: True)
    with pytest.raises(SensorError) as error:
        Microphone(device, VOICE).open()
    assert str(error.value) == message
    assert error.value.gone


@pytest.mark.parametrize("device", ["", "pulse"])
def test_a_machine_without_sound_input_says_why_it_has_none(
    portaudio: Any, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    portaudio.inputs = 0
    monkeypatch.setattr(microphone, "why_no_input", lambda: "this machine has no sound card")
    with pytest.raises(SensorError) as error:
        Microphone(device, VOICE).open()
    name = device or "(default)"
    assert str(error.value) == f"microphone {name}: no sound input: this machine has no sound card"
    assert error.value.gone


def test_a_stream_that_stopped_is_gone(portaudio: type[Stream]) -> None:
    driver = Microphone("", VOICE)
    driver.open()
    assert driver.read(0.0) is None
    driver._stream.active = False
    with pytest.raises(SensorError, match="the device or its sound server has gone") as error:
        driver.read(0.0)
    assert error.value.gone


def test_an_overflow_that_portaudio_reports_marks_the_next_frame_alone(portaudio: type[Stream]) -> None:
    driver = Microphone("", VOICE)
    driver.open()
    times = types.SimpleNamespace(currentTime=0.0, inputBufferAdcTime=0.0)
    flags = []
    for index in range(40):
        status = types.SimpleNamespace(input_overflow=index == 20)
        driver._hear(np.zeros((2205, 1), np.float32), 2205, times, status)
        frame = driver.read(0.0)
        flags.append(None if frame is None else frame.flags)
    assert flags[20] == frozenset({"overflow"})
    assert [index for index, each in enumerate(flags) if each] == [20]
    assert driver.overflows == 1


def test_a_missing_package_and_a_missing_library_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microphone.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(microphone.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UsageError) as error:
        make_driver(parse_flag("voice=audio:"), VOICE, World(0, 15.0))
    assert str(error.value) == "a microphone needs the PortAudio library: apt install libportaudio2"
    monkeypatch.setattr(microphone.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as error:
        make_driver(parse_flag("voice=audio:"), VOICE, World(0, 15.0))
    assert str(error.value) == "a microphone needs the package sounddevice: pip install 'mars-edge[audio]'"


def test_a_microphone_runs_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microphone, "require_portaudio", lambda: None)
    assert isinstance(make_driver(parse_flag("voice=audio:"), VOICE, World(0, 15.0)), IsolatedDriver)


def test_two_channels_are_heard_as_their_mean_and_each_hop_has_its_own_time(portaudio: type[Stream]) -> None:
    portaudio.refuse = staticmethod(lambda rate_hz, channels: rate_hz == 44100 or channels == 1)
    driver = Microphone("", VOICE)
    driver.open()
    fine = types.SimpleNamespace(input_overflow=False)
    left_only = np.tile(np.array([[0.5, 0.0]], np.float32), (VOICE.window_samples + 400, 1))
    driver._hear(left_only, len(left_only), None, fine)
    first, second = driver.read(0.0), driver.read(0.0)
    assert first is not None
    assert second is not None
    assert np.array_equal(first.data, np.full(VOICE.window_samples, 0.25, np.float32))
    assert first.captured_s is not None
    assert second.captured_s is not None
    assert second.captured_s - first.captured_s == pytest.approx(0.05, abs=1e-6)
