"""Drivers in a process of their own: nothing they do stalls the caller, nothing of them is left behind."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mars_edge.errors import SensorError
from mars_runtime.capture import Capture, Doorbell
from mars_runtime.facts import FactFinder
from mars_runtime.sensors.driver import Frame, SourceEndedError, Traits
from mars_runtime.sensors.isolated import IsolatedDriver

ENDLESS_S = 3600.0


class Script:
    """Opens and reads as told: "" for ever well, else what goes wrong at the third frame or in the open."""

    def __init__(self, fault: str = "", shape: tuple[int, ...] = (4, 6), dtype: str = "u2", identity: str = "") -> None:
        self.fault = fault
        self.shape = shape
        self.dtype = dtype
        self.count = 0
        self.traits = Traits(description="script", rate_hz=10.0, identity=identity)

    def open(self) -> None:
        self.act("open")
        self.traits = Traits(description="script", rate_hz=20.0, identity=self.traits.identity)

    def read(self, timeout_s: float) -> Frame | None:
        self.count += 1
        if self.count >= 3:
            self.act("read")
        data = np.full(self.shape, self.count, self.dtype)
        flags = frozenset({"overflow"}) if self.count == 2 else frozenset[str]()
        return Frame(data=data, sequence=self.count, captured_s=0.5 * self.count, flags=flags)

    def act(self, verb: str) -> None:
        if self.fault == f"hang in {verb}":
            time.sleep(ENDLESS_S)
        if self.fault == f"hang in {verb} with the interpreter locked":
            ctypes.PyDLL(None).sleep(int(ENDLESS_S))
        if self.fault == f"crash in {verb}":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.fault == f"fail in {verb}":
            raise SensorError("it failed", gone=True)
        if self.fault == f"bug in {verb}":
            raise ZeroDivisionError("a bug")
        if self.fault == f"end in {verb}":
            raise SourceEndedError("at its end")

    def close(self) -> None:
        if self.fault == "hang in close":
            time.sleep(ENDLESS_S)


def isolated(*arguments: object, **limits: float) -> IsolatedDriver:
    return IsolatedDriver(functools.partial(Script, *arguments), **limits)  # type: ignore[arg-type]


@pytest.fixture
def made() -> Iterator[Callable[..., IsolatedDriver]]:
    drivers: list[IsolatedDriver] = []

    def make(*arguments: object, **limits: float) -> IsolatedDriver:
        drivers.append(isolated(*arguments, **limits))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.close()


def read(driver: IsolatedDriver) -> Frame:
    until_s = time.monotonic() + 20.0
    while time.monotonic() < until_s:
        frame = driver.read(0.5)
        if frame is not None:
            return frame
    raise AssertionError("no frame")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def dies(pid: int, within_s: float = 5.0) -> bool:
    until_s = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < until_s:
        time.sleep(0.01)
    return not alive(pid)


def test_frames_and_traits_come_through_as_the_driver_gave_them(made: Callable[..., IsolatedDriver]) -> None:
    driver = made("", (4, 6), "u2")
    assert driver.traits.rate_hz == 10.0
    driver.open()
    assert driver.traits.rate_hz == 20.0
    first, second = read(driver), read(driver)
    assert np.array_equal(first.data, np.full((4, 6), 1, "u2")) and first.data.dtype == np.uint16
    assert (first.sequence, first.captured_s, first.flags) == (1, 0.5, frozenset())
    assert (second.sequence, second.captured_s, second.flags) == (2, 1.0, {"overflow"})
    first.data[:] = 7
    assert second.data.min() == second.data.max() == 2


@pytest.mark.parametrize(("shape", "dtype"), [((0, 3), "f4"), ((), "f8"), ((700, 900, 3), "u1"), ((5,), ">i2")])
def test_every_shape_and_type_fits_the_shared_memory(
    made: Callable[..., IsolatedDriver], shape: tuple[int, ...], dtype: str
) -> None:
    driver = made("", shape, dtype)
    driver.open()
    data = read(driver).data
    assert (data.shape, data.dtype) == (shape, np.dtype(dtype))
    assert np.array_equal(data, np.full(shape, 1, dtype))


@pytest.mark.parametrize("how", ["hang in read", "hang in read with the interpreter locked"])
def test_a_read_that_never_returns_is_silence_and_ends_with_close(
    made: Callable[..., IsolatedDriver], how: str
) -> None:
    driver = made(how)
    driver.open()
    read(driver), read(driver)
    pid = driver.process_id
    begin_s = time.monotonic()
    assert driver.read(0.1) is None
    assert driver.read(0.1) is None
    assert 0.2 <= time.monotonic() - begin_s < 1.0
    driver.close()
    assert pid is not None and not alive(pid)
    assert time.monotonic() - begin_s < 3.0


def test_an_open_that_never_returns_is_ended_after_its_bound(made: Callable[..., IsolatedDriver]) -> None:
    driver = made("hang in open", open_timeout_s=0.3)
    with pytest.raises(SensorError) as error:
        driver.open()
    assert str(error.value) == "script: did not open within 0.3 s"
    assert driver.process_id is None


def test_a_close_that_never_returns_is_ended(made: Callable[..., IsolatedDriver]) -> None:
    driver = made("hang in close")
    driver.open()
    pid = driver.process_id
    begin_s = time.monotonic()
    driver.close()
    assert time.monotonic() - begin_s < 3.0
    assert pid is not None and not alive(pid)


@pytest.mark.parametrize(
    ("fault", "message", "gone"),
    [
        ("fail in read", "it failed", True),
        ("bug in read", "script: ZeroDivisionError: a bug", False),
        ("crash in read", "script: its process ended (killed by SIGSEGV)", True),
    ],
)
def test_what_goes_wrong_in_the_child_is_a_sensor_error_here(
    made: Callable[..., IsolatedDriver], fault: str, message: str, gone: bool
) -> None:
    driver = made(fault)
    driver.open()
    read(driver), read(driver)
    with pytest.raises(SensorError) as error:
        read(driver)
    assert (str(error.value), error.value.gone) == (message, gone)
    driver.close()
    driver.open()
    assert read(driver).sequence == 1


def test_the_end_of_a_source_comes_through_and_lasts(made: Callable[..., IsolatedDriver]) -> None:
    driver = made("end in read")
    driver.open()
    read(driver), read(driver)
    with pytest.raises(SourceEndedError, match="at its end"):
        read(driver)
    driver.close()
    driver.open()
    assert driver.process_id is None
    with pytest.raises(SourceEndedError, match="at its end"):
        driver.read(0.1)


def test_another_device_at_the_same_place_is_refused(made: Callable[..., IsolatedDriver]) -> None:
    driver = made("", (4, 6), "u2", "camera A")
    driver.open()
    driver._make = functools.partial(Script, identity="camera B")
    with pytest.raises(SensorError) as error:
        driver.open()
    assert str(error.value) == "script: is another device now (camera B); waiting for camera A"
    driver._make = functools.partial(Script, identity="camera A")
    driver.open()


def test_a_check_spares_the_process(made: Callable[..., IsolatedDriver]) -> None:
    def refuse() -> None:
        raise SensorError("not plugged in", gone=True)

    driver = made()
    driver._check = refuse
    with pytest.raises(SensorError, match="not plugged in"):
        driver.open()
    assert driver.process_id is None


def test_twenty_lives_and_deaths_leave_no_descriptor_thread_or_process(made: Callable[..., IsolatedDriver]) -> None:
    def held() -> tuple[int, int, int]:
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), len(children)

    faults = ["", "hang in read", "crash in read", "hang in open"]
    before = held()
    for round_ in range(5):
        for fault in faults:
            driver = made(fault, (40, 60), "u2", f"{round_}", open_timeout_s=0.05)
            try:
                driver.open()
                for _ in range(3):
                    driver.read(0.02)
            except SensorError:
                pass
            driver.close()
    assert held() == before


def test_the_child_of_a_parent_that_is_killed_dies_even_with_the_interpreter_locked(tmp_path: Path) -> None:
    script = (
        "import functools, time\n"
        "from tests.unit.test_isolated import Script, IsolatedDriver, read\n"
        "driver = IsolatedDriver(functools.partial(Script, 'hang in read with the interpreter locked'))\n"
        "driver.open(); read(driver); read(driver); driver.read(0.1)\n"
        "print(driver.process_id, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert dies(pid)


@pytest.mark.parametrize("fault", ["hang in open", "hang in read"])
def test_a_hung_driver_does_not_delay_the_end_of_its_capture(fault: str) -> None:
    driver = isolated(fault)
    capture = Capture("depth", driver, Doorbell(), finder=FactFinder("colour"), lost_after_s=lambda traits: 60.0)
    capture.start()
    until_s = time.monotonic() + 20.0
    while driver.process_id is None and time.monotonic() < until_s:
        time.sleep(0.01)
    time.sleep(0.5)
    begin_s = time.monotonic()
    capture.request_stop()
    assert capture.join(2.0)
    assert time.monotonic() - begin_s < 2.0
    assert driver.process_id is None


def test_a_capture_restarts_a_driver_that_hangs() -> None:
    driver = isolated("hang in read")
    capture = Capture("depth", driver, Doorbell(), finder=FactFinder("colour"), lost_after_s=lambda traits: 0.2)
    capture.start()
    until_s = time.monotonic() + 30.0
    while capture.received < 6 and time.monotonic() < until_s:
        time.sleep(0.02)
    capture.request_stop()
    assert capture.join(2.0)
    assert capture.received >= 6  # two frames per life
