"""What is measured on a sample, against plain references, and what a healthy sensor must never show."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mars_runtime.facts import FactFinder, flat_share, noise
from mars_runtime.health import SampleSeen
from mars_runtime.sensors.driver import Frame, Traits

RAW = Traits(description="raw camera", rate_hz=15.0, raw=True)
COMPRESSED = Traits(description="network camera", rate_hz=15.0)
STILL = Traits(description="still", rate_hz=15.0, static=True)
FILE = Traits(description="film", rate_hz=15.0, finite=True)
MICROPHONE = Traits(description="microphone", rate_hz=10.0, raw=True)


def seen(kind: Any, data: NDArray[Any], traits: Traits = RAW) -> SampleSeen:
    return FactFinder(kind).facts(Frame(data=data), traits, 0.0)


def scene(size: int = 240, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth coloured patches: texture in every block, no noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(30, 220, (24, 24, channels)).astype(np.float32)
    picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture, 0, 255).astype(np.uint8)


def noisy(picture: NDArray[np.uint8], sigma: float, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng([seed, 9])
    return np.clip(picture + rng.normal(0.0, sigma, picture.shape), 0, 255).round().astype(np.uint8)


def test_a_black_picture_is_dark_and_a_white_one_saturated() -> None:
    assert seen("colour", np.zeros((64, 64, 3), np.uint8)).dark == 1.0
    assert seen("colour", np.full((64, 64, 3), 250, np.uint8)).saturated == 1.0
    assert seen("colour", np.full((64, 64, 3), 25, np.uint8)).dark == 1.0
    assert seen("colour", np.full((64, 64, 3), 26, np.uint8)).dark == 0.0


def test_shares_are_those_of_all_pixels_though_few_are_looked_at() -> None:
    rng = np.random.default_rng(1)
    picture = rng.permutation(np.repeat(np.array([5, 128, 255], np.uint8), (40_000, 60_000, 20_000)))
    facts = seen("infrared", picture.reshape(300, 400))
    assert facts.dark == pytest.approx(40 / 120, abs=0.03)
    assert facts.saturated == pytest.approx(20 / 120, abs=0.03)


def test_depth_is_never_dark_and_its_holes_are_counted() -> None:
    depth = np.full((120, 160), 900, np.uint16)
    depth[:, :40] = 0
    facts = seen("depth", depth)
    assert facts.invalid_depth == 0.25
    assert facts.dark == 0.0
    assert facts.flat is None
    assert facts.still is None


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0, 6.0, 12.0])
def test_noise_is_the_standard_deviation_that_was_added(sigma: float) -> None:
    measured = noise(noisy(scene(), sigma, seed=2))
    assert measured is not None
    # Rounding to whole steps adds a twelfth of a step squared; the bicubic scene itself a little.
    expected = np.hypot(sigma, np.sqrt(1 / 12)) / 255.0
    assert measured == pytest.approx(expected, rel=0.15, abs=0.4 / 255.0)


def test_edges_are_not_taken_for_noise() -> None:
    stripes = np.zeros((240, 320), np.uint8)
    stripes[:, ::16] = 255
    boxes = np.kron(np.random.default_rng(3).integers(0, 256, (15, 20)), np.ones((16, 16), np.int64)).astype(np.uint8)
    assert noise(stripes) == 0.0
    measured = noise(boxes)
    assert measured is not None
    assert measured < 0.03


def test_noise_of_sixteen_bit_pictures_is_a_share_of_their_range() -> None:
    depth = (2000 + np.random.default_rng(4).normal(0, 50, (240, 320))).astype(np.uint16)
    assert noise(depth) == pytest.approx(50 / 65535, rel=0.1)


def test_a_picture_too_small_to_be_judged_gives_no_fact() -> None:
    assert noise(np.zeros((2, 2), np.uint8)) is None
    assert flat_share(np.zeros((9, 9), np.uint8)) is None


def test_blocks_without_texture_are_counted_one_by_one() -> None:
    picture = scene()
    for covered in range(6):
        assert flat_share(picture) == pytest.approx(covered / 5)
        picture[covered * 48 : (covered + 1) * 48] = 40


@pytest.mark.parametrize("sigma", [0.0, 2.0, 5.0])
def test_noise_is_not_taken_for_texture(sigma: float) -> None:
    plain = np.full((240, 240, 3), 60, np.uint8)
    assert flat_share(noisy(plain, sigma, seed=5)) == 1.0


def test_a_standing_compressed_picture_does_not_differ_and_a_clean_still_scene_does() -> None:
    finder, picture = FactFinder("colour"), scene()
    facts = [finder.facts(Frame(data=picture), COMPRESSED, n / 15) for n in range(5)]
    assert [fact.still for fact in facts] == [None, 0.0, 0.0, 0.0, 0.0]
    assert not any(fact.repeated for fact in facts)
    finder = FactFinder("colour")
    facts = [finder.facts(Frame(data=noisy(picture, 1.0, n)), COMPRESSED, n / 15) for n in range(30)]
    assert min(fact.still or 1.0 for fact in facts) > 0.001


def test_a_slow_drift_is_measured_against_the_picture_held_and_not_against_the_one_before() -> None:
    finder = FactFinder("infrared")
    grey = np.full((240, 240), 100, np.uint8)
    differences = []
    for count in range(8):
        # 2 % of the looked-at pixels change by one step each time: never enough from one picture to the next.
        grey = grey.copy()
        grey[count * 4 : (count + 1) * 4] += 4
        differences.append(finder.facts(Frame(data=grey), COMPRESSED, count / 15).still)
    assert max(d for d in differences if d is not None) > 0.001


@pytest.mark.parametrize("traits", [RAW, STILL, FILE], ids=["raw", "still", "file"])
def test_only_a_live_compressed_source_is_compared_with_a_held_picture(traits: Traits) -> None:
    finder = FactFinder("colour")
    assert [finder.facts(Frame(data=scene()), traits, n / 15).still for n in range(3)] == [None, None, None]


def test_a_raw_sensor_repeats_by_payload_or_by_number() -> None:
    def repeats(traits: Traits, *frames: Frame) -> list[bool]:
        finder = FactFinder("colour")
        return [finder.facts(frame, traits, 0.0).repeated for frame in frames]

    first, second = scene(seed=1), scene(seed=2)
    assert repeats(RAW, Frame(data=first), Frame(data=first.copy()), Frame(data=second)) == [False, True, False]
    assert repeats(COMPRESSED, Frame(data=first), Frame(data=first.copy())) == [False, False]
    assert repeats(COMPRESSED, Frame(data=first, sequence=4), Frame(data=second, sequence=4)) == [False, True]
    assert repeats(STILL, Frame(data=first), Frame(data=first)) == [False, False]


@pytest.mark.parametrize("seed", range(3))
def test_a_raw_still_scene_never_repeats_however_little_noise_it_has(seed: int) -> None:
    finder, picture = FactFinder("colour"), scene(seed=seed)
    assert not any(finder.facts(Frame(data=noisy(picture, 0.4, n)), RAW, n / 15).repeated for n in range(50))


@pytest.mark.parametrize(("level", "kind"), [(0, np.uint8), (255, np.uint8), (0, np.uint16)])
def test_total_darkness_or_glare_is_no_repetition_though_its_pictures_are_equal(level: int, kind: Any) -> None:
    def repeats(lit: int) -> bool:
        picture = np.full((100, 100), level, kind)
        picture.ravel()[:lit] = 77
        finder = FactFinder("infrared" if kind == np.uint8 else "depth")
        return [finder.facts(Frame(data=picture.copy()), RAW, n / 15).repeated for n in range(2)][1]

    # Hot pixels are in every picture; a picture with more than those has noise, so it cannot be the same twice.
    assert not repeats(0)
    assert not repeats(99)
    assert repeats(100)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_with_a_number_that_is_none_is_unusable(value: float) -> None:
    data = np.zeros((20, 6), np.float32)
    assert seen("other", data).usable
    data[7, 3] = value
    assert not seen("other", data).usable


def windows(signal: NDArray[np.float32]) -> list[SampleSeen]:
    """One second of sound every tenth of a second."""
    finder = FactFinder("audio", rate_hz=16000.0)
    starts = range(0, signal.size - 16000 + 1, 1600)
    frames = [Frame(data=signal[start : start + 16000]) for start in starts]
    return [finder.facts(frame, MICROPHONE, n / 10) for n, frame in enumerate(frames)]


def test_loudness_is_the_root_mean_square_of_the_newest_sound() -> None:
    rng = np.random.default_rng(6)
    quiet, loud = 0.001 * rng.standard_normal(24_000), 0.1 * rng.standard_normal(1600)
    found = windows(np.concatenate([quiet, loud]).astype(np.float32))
    assert [round(fact.loudness_dbfs or 0.0) for fact in found[-2:]] == [-60, -20]


def test_a_clipped_share_is_that_of_samples_at_full_scale() -> None:
    sine = np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
    fine, clipped = windows((0.9 * sine).astype(np.float32)), windows(np.clip(3 * sine, -1, 1).astype(np.float32))
    assert fine[-1].clipped == 0.0
    assert clipped[-1].clipped == pytest.approx(1 - 2 * np.arcsin(1 / 3) / np.pi, abs=0.02)


def test_exact_zeros_add_up_over_windows_and_one_sound_ends_them() -> None:
    signal = (0.01 * np.random.default_rng(7).standard_normal(48_000)).astype(np.float32)
    signal[24_000:40_000] = 0.0
    found = {round(1.0 + n / 10, 1): fact.zeros_s for n, fact in enumerate(windows(signal))}
    assert found[1.5] == 0.0
    assert found[1.6] == pytest.approx(0.1)
    assert found[2.5] == pytest.approx(1.0)
    assert found[2.6] == 0.0


def test_a_sound_file_may_hold_digital_silence() -> None:
    finder = FactFinder("audio")
    assert finder.facts(Frame(data=np.zeros(16_000, np.float32)), FILE, 0.0).zeros_s is None
