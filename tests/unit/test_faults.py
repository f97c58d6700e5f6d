"""The fault injector: what each fault does to samples and to their timing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mars_edge.errors import SensorError, UsageError
from mars_edge.faults import (
    CONTENT_FAULTS,
    DELAY_S,
    FALSE_MATCH_MM,
    FALSE_MATCH_SHARE,
    FAULTS,
    INTERMITTENT_PHASE_S,
    MOMENT_FAULTS,
    SKEW_S,
    SLOW_DIVISOR,
    SWAP_SPACING_S,
    TIMING_FAULTS,
    Fault,
    IntermittentPhases,
    corrupt,
    corrupt_series,
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


def test_a_covered_depth_camera_measures_nothing_but_a_few_dots_that_differ_in_every_frame() -> None:
    wall = np.full((120, 160), 900, np.uint16)
    generator = np.random.default_rng(4)
    first, second = (corrupt("cover", wall, generator) for _ in range(2))
    for shown in (first, second):
        assert np.mean(shown > 0) == pytest.approx(FALSE_MATCH_SHARE, abs=0.006)
        dots = shown[shown > 0]
        assert FALSE_MATCH_MM[0] <= dots.min() and dots.max() <= FALSE_MATCH_MM[1]
        # Evenly spread in disparity, so half of them are nearer than twice the shortest distance.
        assert np.median(dots) == pytest.approx(2 * FALSE_MATCH_MM[0], rel=0.15)
    assert not np.array_equal(first > 0, second > 0)


def test_a_film_on_the_lens_leaves_the_light_and_takes_the_picture() -> None:
    generator = np.random.default_rng(5)
    picture = np.full((64, 64, 3), (3, 120, 254), np.uint8)
    picture[:32] //= 2
    shown = corrupt("scatter", picture, generator)
    assert shown.mean(axis=(0, 1)) == pytest.approx(picture.mean(axis=(0, 1)), abs=1.0)
    assert shown.std(axis=(0, 1)).max() < 1.0
    depth = corrupt("scatter", np.full((64, 64), 900, np.uint16), generator)
    assert depth.min() > 0 and depth.mean() == pytest.approx(0.12 * 65535, rel=0.01)
    assert depth.std() / depth.mean() == pytest.approx(0.025, rel=0.1)


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
        return Frame(data=np.full((8, 8), self.count, np.uint8), sequence=self.count, captured_s=self.now_s)

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


def test_there_are_the_thirteen_faults_of_the_design_and_unplugging_and_a_film_on_the_lens() -> None:
    assert set(FAULTS) == {
        *("off", "stuck", "garbage", "wrong", "slow", "delayed", "intermittent"),
        *("black", "saturate", "cover", "blur", "swap", "skew"),
        *("unplug", "scatter"),
    }
    assert len(FAULTS) == len(set(FAULTS))


def test_a_swapped_sensor_shows_true_samples_of_earlier_moments_under_the_numbers_of_now() -> None:
    counter = Counter()
    driver = FaultyDriver(counter, [parse_fault("x=swap@3.05s", ["x"])], stream_s=lambda: counter.now_s - 50.0, seed=1)
    frames = [driver.read(0.1) for _ in range(80)]
    shown = [int(frame.data[0, 0]) for frame in frames if frame is not None]
    assert shown[:30] == list(range(1, 31))
    spacing = round(SWAP_SPACING_S * 10)
    assert all((value - 1) % spacing == 0 and value <= number for number, value in enumerate(shown[30:], start=31))
    assert all(a != b for a, b in itertools.pairwise(shown[30:]))
    assert [frame.sequence for frame in frames if frame is not None] == list(range(1, 81))


def test_a_skewed_sensor_comes_on_time_with_picture_and_stamp_of_an_earlier_moment() -> None:
    counter = Counter()
    driver = FaultyDriver(counter, [parse_fault("x=skew@1.05s", ["x"])], stream_s=lambda: counter.now_s - 50.0, seed=1)
    frames = [driver.read(0.1) for _ in range(40)]
    late = []
    for number, frame in enumerate(frames, start=1):
        assert frame is not None
        assert frame.captured_s is not None
        assert frame.sequence == number
        assert frame.captured_s == pytest.approx(50.0 + 0.1 * int(frame.data[0, 0]))
        late.append(50.0 + 0.1 * number - frame.captured_s)
    assert late[:10] == pytest.approx([0.0] * 10, abs=1e-9)
    # One frame per 0.1 s: the youngest that is at least SKEW_S old.
    assert late[10:] == pytest.approx([0.2] * 30)
    assert SKEW_S <= 0.2


def test_faults_set_while_a_driver_runs_hold_from_the_next_read_on() -> None:
    counter = Counter()
    driver = FaultyDriver(counter, [], stream_s=lambda: counter.now_s - 50.0, seed=1)
    assert driver.read(0.1) is not None
    driver.set_faults([Fault(sensor="x", kind="off")])
    assert driver.read(0.1) is None
    assert "x=off@0s" in driver.traits.description
    driver.set_faults([])
    frame = driver.read(0.1)
    assert frame is not None
    assert frame.sequence == 3


def test_a_second_delay_does_not_hand_out_what_the_first_one_kept() -> None:
    counter = Counter()
    delays = [parse_fault(text, ["x"]) for text in ("x=delayed@1.05s+1s", "x=delayed@3.05s+1s")]
    driver = FaultyDriver(counter, delays, stream_s=lambda: counter.now_s - 50.0, seed=1)
    frames = [driver.read(0.1) for _ in range(40)]
    shown = [0 if frame is None else int(frame.data[0, 0]) for frame in frames]
    assert [number - value for number, value in enumerate(shown[30:], start=31) if value] == [5] * 5


@pytest.mark.parametrize("kind", FAULTS)
def test_a_series_is_broken_as_a_live_sensor_is(kind: str) -> None:
    samples = [np.full((8, 8), number, np.uint8) for number in range(1, 61)]
    series = corrupt_series(kind, samples, rate_hz=10.0, seed=1, start=10)
    assert len(series) == 60
    assert all(
        given is not None and np.array_equal(given, own) for given, own in zip(series[:10], samples, strict=False)
    )
    if kind not in ("unplug",):
        live = FaultyDriver(
            counter := Counter(), [parse_fault(f"x={kind}@1.05s", ["x"])], stream_s=lambda: counter.now_s - 50.0, seed=1
        )
        frames = [live.read(0.1) for _ in range(60)]
        for given, frame in zip(series, frames, strict=True):
            assert (given is None) == (frame is None)
            if kind != "intermittent" and given is not None and frame is not None:
                assert np.array_equal(given, frame.data)
    changed = [given is None or not np.array_equal(given, own) for given, own in zip(series, samples, strict=True)]
    # A constant picture is its own blur and its own mirror image.
    assert any(changed[10:]) or kind in ("blur", "wrong")
    again = corrupt_series(kind, samples, rate_hz=10.0, seed=1, start=10)
    assert all(
        (a is None) == (b is None) and (a is None or np.array_equal(a, b)) for a, b in zip(series, again, strict=True)
    )  # type: ignore[arg-type]


def test_a_series_with_an_unknown_fault_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        corrupt_series("rust", [], rate_hz=10.0, seed=0)
    assert str(error.value) == f"unknown fault 'rust'; faults: {', '.join(FAULTS)}"


def test_the_families_do_not_overlap() -> None:
    assert set(TIMING_FAULTS) | set(CONTENT_FAULTS) | set(MOMENT_FAULTS) == set(FAULTS)
    assert len(TIMING_FAULTS) + len(CONTENT_FAULTS) + len(MOMENT_FAULTS) == len(FAULTS)
