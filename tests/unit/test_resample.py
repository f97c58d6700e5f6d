"""Sampling-rate conversion: exact, band-limited, and blind to how its input is cut."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal as reference

from mars_edge.errors import UsageError
from mars_runtime.sensors.resample import Resampler

PAIRS = [(48000, 16000), (44100, 16000), (16000, 44100), (8000, 16000), (44100, 48000), (16000, 16000)]


def tone(hz: float, rate_hz: int, seconds: float = 0.5) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.sin(2.0 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz).astype(np.float32)


def level_db(signal: np.ndarray[tuple[int], np.dtype[np.float32]]) -> float:
    middle = signal[signal.size // 4 : -signal.size // 4]
    return 20.0 * float(np.log10(np.sqrt(2.0 * np.mean(np.square(middle, dtype=np.float64))) + 1e-12))


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_the_output_does_not_depend_on_how_the_input_is_cut(from_hz: int, to_hz: int) -> None:
    generator = np.random.default_rng(0)
    sound = generator.normal(size=from_hz // 4).astype(np.float32)
    whole = Resampler(from_hz, to_hz).push(sound)
    cut = Resampler(from_hz, to_hz)
    parts, at = [], 0
    while at < sound.size:
        size = int(generator.choice([0, 1, 2, 17, 480, 1024]))
        parts.append(cut.push(sound[at : at + size]))
        at += size
    assert np.array_equal(np.concatenate(parts), whole)
    assert abs(whole.size - sound.size * to_hz / from_hz) < 1.0


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_a_tone_below_both_nyquist_rates_keeps_level_and_phase(from_hz: int, to_hz: int) -> None:
    for hz in (200.0, 0.4 * min(from_hz, to_hz)):
        resampler = Resampler(from_hz, to_hz)
        out = resampler.push(tone(hz, from_hz))
        late_s = 0.0 if from_hz == to_hz else resampler.delay_s
        ideal = np.sin(2.0 * np.pi * hz * (np.arange(out.size) / to_hz - late_s))
        middle = slice(out.size // 4, -out.size // 4)
        assert np.abs(out[middle] - ideal[middle]).max() < 3e-3


@pytest.mark.parametrize(("from_hz", "to_hz"), [(48000, 16000), (44100, 16000), (16000, 8000)])
def test_what_the_lower_rate_cannot_hold_is_removed_instead_of_folded_down(from_hz: int, to_hz: int) -> None:
    for share in (0.52, 0.6, 0.8):
        hz = share * to_hz
        if hz < 0.5 * from_hz:
            assert level_db(Resampler(from_hz, to_hz).push(tone(hz, from_hz))) < -60.0
    # Picking every n-th sample, as cheap drivers do, keeps the alias at full level.
    assert level_db(tone(0.6 * 16000, 48000)[::3]) > -1.0


def test_it_agrees_with_a_reference_implementation_in_the_pass_band() -> None:
    # Band-limited noise: what differs between two good filters is only near the edge of the band.
    noise = np.random.default_rng(1).normal(size=44100)
    noise = reference.sosfiltfilt(reference.butter(12, 5000, fs=44100, output="sos"), noise).astype(np.float32)
    resampler = Resampler(44100, 16000)
    ours = resampler.push(noise)
    shifted = reference.resample_poly(noise, 160, 441, window=("kaiser", 8.0))
    late = resampler.delay_s * 16000
    times = np.arange(ours.size) - late
    # A fine grid, since our delay is no whole number of output samples.
    fine = reference.resample(shifted, shifted.size * 64)
    expected = np.interp(times, np.arange(fine.size) / 64, fine)
    middle = slice(2000, 14000)
    assert np.abs(ours[middle] - expected[middle]).max() < 5e-3


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_a_constant_stays_a_constant(from_hz: int, to_hz: int) -> None:
    out = Resampler(from_hz, to_hz).push(np.full(from_hz // 2, 0.25, np.float32))
    assert np.abs(out[out.size // 2 :] - 0.25).max() < 1e-6


def test_rates_without_a_simple_ratio_are_refused() -> None:
    with pytest.raises(UsageError) as error:
        Resampler(44100, 15999)
    assert str(error.value) == "sound at 44100 Hz cannot be turned into 15999 Hz: 5333/14700 is no simple ratio"
