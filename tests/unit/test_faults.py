"""The fault injector: what each fault does to samples and to their timing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mars_edge.errors import SensorError, UsageError
from mars_edge.faults import (
    CONTENT_FAULTS,
    DELAY_S,
    FAULTS,
    INTERMITTENT_PHASE_S,
    SLOW_DIVISOR,
    Fault,
    IntermittentPhases,
    corrupt,
    parse_fault,
)
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.sensors.faulty import FaultyDriver

GENERATOR = np.random.default_rng(0)
SAMPLES = {
    "rgb": GENERATOR.integers(0, 256, (24, 32, 3), np.uint8),
    "depth": GENERATOR.integers(0, 2**16, (24, 32), np.uint16),
    "audio": GENERATOR.uniform(-1, 1, 800).astype(np.float32),
    "motion": GENERATOR.uniform(-1, 1, (50, 6)).astype(np.float32),
}


@pytest.mark.parametrize("kind", CONTENT_FAULTS)
@pytest.mark.parametrize("sample", SAMPLES.values(), ids=list(SAMPLES))
def test_a_content_fault_keeps_shape_and_type_and_leaves_its_input_alone(kind: str, sample: NDArray[Any]) -> None:
    copy = sample.copy()
    broken = corrupt(kind, sample, np.random.default_rng(1))
    assert broken.shape == sample.shape
    assert broken.dtype == sample.dtype
    assert np.array_equal(sample, copy)
    assert not np.array_equal(broken, sample)
    assert np.isfinite(broken.astype(np.float64)).all()


@pytest.mark.parametrize("kind", CONTENT_FAULTS)
def test_the_same_seed_gives_the_same_fault(kind: str) -> None:
    first, second = (corrupt(kind, SAMPLES["rgb"], np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)


def test_what_each_content_fault_shows() -> None:
    rgb, depth = SAMPLES["rgb"], SAMPLES["depth"]
    generator = np.random.default_rng(2)
    assert not corrupt("black", rgb, generator).any()
    assert (corrupt("saturate", rgb, generator) == 255).all()
    assert (corrupt("saturate", depth, generator) == 65535).all()
    assert np.unique(corrupt("garbage", rgb, generator)).size > 200
    assert corrupt("cover", rgb, generator).std() < 2.0
    assert corrupt("blur", rgb, generator).std() < 0.5 * rgb.std()
    assert np.array_equal(np.sort(corrupt("wrong", rgb, generator), axis=None), np.sort(rgb, axis=None))


def test_blur_is_the_plain_mean_of_its_neighbourhood() -> None:
    ramp = np.random.default_rng(3).uniform(0, 1, 16).astype(np.float32)
    width = 16 // 8
    expected = [ramp[max(0, i - width // 2) : i + width // 2 + 1].mean() for i in range(16)]
    assert np.allclose(corrupt("blur", ramp, np.random.default_rng(0)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("depth=off@3s+4s", Fault(sensor="depth", kind="off", start_s=3.0, length_s=4.0)),
        ("ir=black@500ms", Fault(sensor="ir", kind="black", start_s=0.5)),
        ("ir=stuck", Fault(sensor="ir", kind="stuck")),
        ("ir=slow+250ms", Fault(sensor="ir", kind="slow", length_s=0.25)),
        ("rgb=cover@1.5s+0.5s", Fault(sensor="rgb", kind="cover", start_s=1.5, length_s=0.5)),
    ],
)
def test_a_fault_reads_as_it_is_written(text: str, fault: Fault) -> None:
    parsed = parse_fault(text, ["rgb", "depth", "ir"])
    assert parsed == fault
    assert parse_fault(str(parsed), ["rgb", "depth", "ir"]) == fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth", "--inject 'depth' is not NAME=FAULT@START+LENGTH, e.g. depth=off@3s+4s"),
        ("depth=rust@3s", f"--inject 'depth=rust@3s': unknown fault 'rust'; faults: {', '.join(FAULTS)}"),
        ("lidar=off@3s", "--inject 'lidar=off@3s': unknown sensor 'lidar'; sensors: rgb, depth"),
        ("depth=off@3", "--inject 'depth=off@3': '3' is not a time such as 3s, 0.5s or 500ms"),
        ("depth=off@3s+x", "--inject 'depth=off@3s+x': 'x' is not a time such as 3s, 0.5s or 500ms"),
        ("depth=off@-3s", "--inject 'depth=off@-3s': '-3s' is not a time such as 3s, 0.5s or 500ms"),
    ],
)
def test_a_wrong_fault_is_one_line_that_says_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_fault(text, ["rgb", "depth"])
    assert str(error.value) == message


def test_a_fault_holds_from_its_start_up_to_its_end() -> None:
    fault = parse_fault("depth=off@3s+4s", ["depth"])
    assert [fault.active(t) for t in (0.0, 2.999, 3.0, 6.999, 7.0)] == [False, False, True, True, False]
    assert parse_fault("depth=off", ["depth"]).active(1e12)


def test_an_intermittent_connection_starts_down_and_alternates_within_its_bounds() -> None:
    phases = IntermittentPhases(4)
    times_s = np.arange(0.0, 60.0, 0.01)
    up = np.array([phases.up(float(t)) for t in times_s])
    assert not up[0]
    changes_s = times_s[1:][up[1:] != up[:-1]]
    lengths_s = np.diff(changes_s)
    assert lengths_s.min() >= INTERMITTENT_PHASE_S[0] - 0.011
    assert lengths_s.max() <= INTERMITTENT_PHASE_S[1] + 0.011
    assert 0.3 < up.mean() < 0.7
    again = IntermittentPhases(4)
    assert [again.up(float(t)) for t in times_s[::-100]] == list(up[::-100])


class Counter:
    """A driver whose frame number n holds the value n, one frame per tenth of a made-up second."""

    traits = Traits(description="counter", rate_hz=10.0, raw=True)

    def __init__(self) -> None:
        self.now_s = 50.0
        self.count = 0
        self.opens = 0

    def open(self) -> None:
        self.opens += 1

    def read(self, timeout_s: float) -> Frame | None:
        self.now_s += 0.1
        self.count += 1
        return Frame(data=np.full((8, 8), self.count, np.uint8), sequence=self.count)

    def close(self) -> None:
        pass


def readings(text: str, count: int = 40) -> list[int | None]:
    """What the wrapped counter hands out; the fault's times count from its first read."""
    counter = Counter()
    driver = FaultyDriver(counter, [parse_fault(text, ["x"])], stream_s=lambda: counter.now_s - 50.0, seed=1)
    driver.open()
    frames = [driver.read(0.1) for _ in range(count)]
    return [None if frame is None else int(frame.data[0, 0]) for frame in frames]


def test_timing_faults_do_what_their_names_say() -> None:
    plain: list[int | None] = list(range(1, 41))
    assert readings("x=off@1.05s+1s") == [*plain[:10], *[None] * 10, *plain[20:]]
    assert readings("x=stuck@1.05s+1s") == [*plain[:10], *[10] * 10, *plain[20:]]
    slow = readings("x=slow@1.05s")
    assert slow[10:] == [n if (n or 0) % SLOW_DIVISOR == 10 % SLOW_DIVISOR else None for n in plain[10:]]
    delayed = readings("x=delayed@1.05s")
    lag = round(DELAY_S * 10)
    assert delayed == [*plain[:10], *[None] * lag, *plain[10 : 40 - lag]]
    flickering = readings("x=intermittent@1.05s")
    assert flickering[:10] == plain[:10]
    assert None in flickering[10:]
    assert any(value is not None for value in flickering[15:])


def test_an_unplugged_sensor_is_gone_and_cannot_be_opened_until_it_is_back() -> None:
    counter = Counter()
    fault = parse_fault("x=unplug@1s+1s", ["x"])
    driver = FaultyDriver(counter, [fault], stream_s=lambda: counter.now_s - 50.0, seed=1)
    driver.open()
    counter.now_s = 51.5
    for use in (driver.open, lambda: driver.read(0.1)):
        with pytest.raises(SensorError, match=r"counter: unplugged \(injected\)") as error:
            use()
        assert error.value.gone
    counter.now_s = 52.5
    driver.open()
    assert driver.read(0.1) is not None
    assert counter.opens == 2


def test_a_sensor_unplugged_during_a_read_is_gone() -> None:
    counter = Counter()
    fault = parse_fault("x=unplug@0.05s", ["x"])
    driver = FaultyDriver(counter, [fault], stream_s=lambda: counter.now_s - 50.0, seed=1)
    with pytest.raises(SensorError) as error:
        driver.read(0.1)
    assert error.value.gone


def test_two_faults_on_one_sensor_both_hold() -> None:
    counter = Counter()
    faults = [parse_fault(text, ["x"]) for text in ("x=saturate@0s", "x=off@1.05s")]
    driver = FaultyDriver(counter, faults, stream_s=lambda: counter.now_s - 50.0, seed=1)
    frames = [driver.read(0.1) for _ in range(20)]
    assert all(frame is not None and (frame.data == 255).all() for frame in frames[:10])
    assert frames[10:] == [None] * 10
