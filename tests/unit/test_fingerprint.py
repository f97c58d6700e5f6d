"""A learned fingerprint: what it finds in made-up sensors, what it does to limits, and its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_runtime.capture import Sample
from mars_runtime.fingerprint import FEWEST_SAMPLES, Fingerprint, apply, learn, load, overrides, save
from mars_runtime.health import Health, SampleSeen, step, summary
from mars_runtime.limits import Limits, kind_of, limits_of, with_overrides
from mars_runtime.sensors.driver import Frame, Traits

PERIOD_S = 1 / 15
RAW = Traits(description="camera", rate_hz=15.0, raw=True)
COMPRESSED = Traits(description="stream", rate_hz=15.0)
COLOUR = Modality(name="rgb", kind="image", channels=3, size=(112, 112), dtype="uint8", range=(0.0, 255.0))
INFRARED = Modality(name="ir", kind="image", channels=1, size=(112, 112), dtype="uint8", range=(0.0, 255.0))
DEPTH = Modality(name="depth", kind="image", channels=1, size=(112, 112), dtype="uint16", range=(300.0, 800.0))
SOUND = Modality(name="audio", kind="audio", rate_hz=16000.0, window_s=1.0)
MICROPHONE = Traits(description="microphone", rate_hz=10.0, raw=True)


def given(pictures: list[NDArray[Any]], *, jitter_s: float = 0.0, period_s: float = PERIOD_S) -> list[Sample]:
    rng = np.random.default_rng(1)
    late_s = rng.uniform(0.0, jitter_s, len(pictures)) if jitter_s else np.zeros(len(pictures))
    return [
        Sample(frame=Frame(data=data), at_s=10.0 + n * period_s + float(late_s[n])) for n, data in enumerate(pictures)
    ]


def grey(count: int, *, sigma: float = 2.0, levels: tuple[int, ...] = (120,)) -> list[NDArray[np.uint8]]:
    """A flat scene with noise, its brightness going round `levels`."""
    rng = np.random.default_rng(2)
    scenes = [rng.normal(levels[n % len(levels)], sigma, (112, 112)) for n in range(count)]
    return [np.clip(scene, 0, 255).round().astype(np.uint8) for scene in scenes]


def test_it_finds_period_jitter_and_noise() -> None:
    found = learn(given(grey(300, sigma=3.0), jitter_s=0.02), INFRARED, RAW)
    assert found.period_s == pytest.approx(PERIOD_S, rel=0.05)
    assert found.jitter_s == pytest.approx(0.02, abs=0.006)
    assert found.noise_floor == pytest.approx(3.0 / 255, rel=0.1)
    assert (found.samples, found.kind, found.strobe_frames) == (300, "infrared", 1)
    assert found.seconds == pytest.approx(299 * PERIOD_S, abs=0.03)


@pytest.mark.parametrize("levels", [(180, 20), (180, 20, 20), (150, 90, 20, 20), (40, 48)])
def test_it_finds_how_many_frames_a_strobe_has(levels: tuple[int, ...]) -> None:
    assert learn(given(grey(120, levels=levels)), INFRARED, RAW).strobe_frames == len(levels)


def test_a_scene_that_moves_and_brightens_is_no_strobe() -> None:
    rng = np.random.default_rng(3)
    walk = np.cumsum(rng.normal(0.0, 2.0, 300)) + 40 * np.sin(np.arange(300) / 20)
    pictures = [np.clip(rng.normal(120 + level, 2.0, (112, 112)), 0, 255).astype(np.uint8) for level in walk]
    assert learn(given(pictures), INFRARED, RAW).strobe_frames == 1


def test_darkness_is_learned_from_the_lit_frames_of_a_strobe() -> None:
    lit, unlit = (
        learn(given(grey(120, levels=(180, 5))), INFRARED, RAW),
        learn(given(grey(120, levels=(5,))), INFRARED, RAW),
    )
    assert lit.dark_level == 0.0
    assert unlit.dark_level == 1.0


def test_holes_of_a_depth_camera_and_the_level_of_a_room_are_learned() -> None:
    rng = np.random.default_rng(4)
    walls = [rng.normal(600.0, 1.0, (112, 112)).astype(np.uint16) for _ in range(60)]
    for wall in walls:
        wall[:67] = 0
    found = learn(given(walls), DEPTH, RAW)
    assert found.zero_depth_share == pytest.approx(0.6, abs=0.05)
    assert found.dark_level is None
    room = (10 ** (-66 / 20) * rng.standard_normal(16_000 + 60 * 1600)).astype(np.float32)
    windows = [room[n * 1600 : n * 1600 + 16_000] for n in range(60)]
    sound = learn(given(windows, period_s=0.1), SOUND, MICROPHONE)
    assert sound.quiet_dbfs == pytest.approx(-66.0, abs=0.5)
    assert overrides(sound)["silent_dbfs"] == pytest.approx(-72.0, abs=0.5)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (
            given(grey(FEWEST_SAMPLES - 1)),
            f"a fingerprint needs at least {FEWEST_SAMPLES} samples, {FEWEST_SAMPLES - 1} came",
        ),
        (
            given(grey(1) * 60),
            "59 of 60 samples repeat the one before or are not finite, as of a sick sensor",
        ),
    ],
)
def test_a_sensor_that_is_not_well_is_not_learned_from(samples: list[Sample], message: str) -> None:
    with pytest.raises(UsageError) as error:
        learn(samples, INFRARED, RAW)
    assert str(error.value) == message


def lived(limits: Limits, facts: list[dict[str, Any]], times_s: list[float]) -> set[tuple[str, str | None]]:
    state = Health(started_s=times_s[0])
    said: set[tuple[str, str | None]] = set()
    for at_s, fact in zip(times_s, facts, strict=True):
        state = step(state, [SampleSeen(at_s=at_s, **fact)], at_s, limits)
        found = summary(state, at_s)
        said.add((found.status, found.reason))
    return said


def test_noise_four_times_what_was_learned_is_a_fault_that_the_default_limits_do_not_see() -> None:
    found = learn(given(grey(120, sigma=2.0)), INFRARED, RAW)
    usual = limits_of(kind_of(INFRARED), RAW)
    learned = apply(usual, found)
    times_s = [n * PERIOD_S for n in range(60)]
    for sigma, status in ((7.0, ("ok", None)), (10.0, ("degraded", "noise"))):
        facts = [{"noise": sigma / 255}] * 60
        assert (status in lived(learned, facts, times_s)) and lived(usual, facts, times_s) == {("ok", None)}


def test_arrivals_that_are_late_in_health_are_not_stale_once_learned() -> None:
    times_s = [n * PERIOD_S + (0.25 if n % 40 == 39 else 0.0) for n in range(400)]
    pictures = grey(400)
    samples = [Sample(frame=Frame(data=data), at_s=at_s) for data, at_s in zip(pictures, times_s, strict=True)]
    found = learn(samples, INFRARED, RAW)
    usual = limits_of(kind_of(INFRARED), RAW)
    quiet: list[dict[str, Any]] = [{}] * 400
    assert ("missing", "recovering") in lived(usual, quiet, times_s)
    assert lived(apply(usual, found), quiet, times_s) == {("ok", None)}


def test_a_depth_camera_that_learned_near_things_does_not_take_far_ones_for_noise() -> None:
    rng = np.random.default_rng(5)
    found = learn(given([rng.normal(500.0, 0.5, (112, 112)).round().astype(np.uint16) for _ in range(60)]), DEPTH, RAW)
    assert found.noise_floor is not None and found.noise_floor < 0.002
    usual = limits_of(kind_of(DEPTH), RAW)
    assert apply(usual, found).noise_most == usual.noise_most == pytest.approx(0.016)


def test_a_well_sensor_keeps_the_limits_of_the_table() -> None:
    found = learn(given(grey(200)), INFRARED, RAW)
    usual = limits_of(kind_of(INFRARED), RAW)
    assert found.noise_floor is not None
    assert apply(usual, found) == replace(usual, noise_floor=found.noise_floor)


def test_limits_move_only_away_from_a_false_alarm() -> None:
    usual = Limits(period_s=PERIOD_S)
    calm = Fingerprint(kind="depth", samples=99, seconds=9.0, period_s=PERIOD_S, jitter_s=0.001, zero_depth_share=0.1)
    assert apply(usual, calm) == usual
    holes = replace(calm, zero_depth_share=0.95)
    assert 0.95 < apply(usual, holes).invalid_depth_share < 1.0
    # A sensor that is always like that cannot be judged by this.
    assert apply(usual, replace(calm, zero_depth_share=1.0)).invalid_depth_share > 1.0


def test_overrides_are_what_a_user_could_write() -> None:
    found = learn(given(grey(120, levels=(150, 20, 20)), jitter_s=0.5), INFRARED, RAW)
    usual = limits_of(kind_of(INFRARED), RAW)
    assert with_overrides(usual, overrides(found), "learned") == apply(usual, found)
    assert {"strobe_frames", "stale_s", "lost_s"} <= set(overrides(found))


def test_a_saved_fingerprint_is_read_back_as_it_was(tmp_path: Path) -> None:
    found = learn(given(grey(60)), INFRARED, RAW)
    path = tmp_path / "ir.json"
    path.write_text("old")
    save(found, path)
    assert load(path) == found
    assert [each.name for each in tmp_path.iterdir()] == ["ir.json"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ir.json"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save(learn(given(grey(60)), INFRARED, RAW), path)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["ir.json"]


def _file(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "f.json"
    save(learn(given(grey(60)), INFRARED, RAW), path)
    table = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in table.items() if value != "gone"}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version is 2; this mars-edge reads 1"),
        ({"kind": "radar"}, "kind is 'radar', expected one of colour, infrared, depth, audio, other"),
        ({"samples": 2.5}, "samples is 2.5, expected a whole number from 1"),
        ({"period_s": 0}, "period_s is 0, expected a number of at least 0"),
        ({"noise_floor": "loud"}, "noise_floor is 'loud', expected a number of at least 0 or null"),
        ({"noise_floor": float("nan")}, "noise_floor is nan, expected a number of at least 0 or null"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = _file(tmp_path, **changes)
    with pytest.raises(UsageError) as error:
        load(path)
    assert str(error.value) == f"fingerprint {path}: {message}"


def test_missing_and_unknown_keys_and_files_are_refused(tmp_path: Path) -> None:
    for changes, what in (({"jitter_s": "gone"}, "missing key 'jitter_s'"), ({"colour": 1}, "unknown key 'colour'")):
        path = _file(tmp_path, **changes)
        with pytest.raises(UsageError, match=f"^fingerprint {path}: {what}; its keys: kind, samples, "):
            load(path)
    with pytest.raises(UsageError, match=r"No such file or directory$"):
        load(tmp_path / "nothing.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(UsageError, match=r"text\.json: not JSON: "):
        load(tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UsageError, match=r"list\.json: is a list, expected an object$"):
        load(tmp_path / "list.json")
