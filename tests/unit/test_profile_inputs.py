"""Samples that a profile decides on: every kind is valid, equal seeds give equal ones, files are those of `predict`."""

from __future__ import annotations

import wave
from pathlib import Path

import cv2
import numpy as np
import pytest

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_runtime.profiling.inputs import from_files, generated
from tests.fake_engine import manifest

KINDS = (
    Modality(name="rgb", kind="image", channels=3, size=(32, 40), dtype="uint8", range=(0, 255)),
    Modality(name="depth", kind="image", size=(16, 16), dtype="uint16", range=(300, 4000)),
    Modality(name="stack", kind="image", channels=6, size=(8, 8), dtype="float32", range=(-1, 1)),
    Modality(name="voice", kind="audio", rate_hz=8000, window_s=0.5, mel_bands=16),
    Modality(name="motion", kind="sequence", channels=6, length=50, dtype="float32", range=(-20, 20)),
    Modality(name="gas", kind="vector", length=5, dtype="uint16", range=(0, 1000)),
    Modality(name="words", kind="text", length=7, vocabulary=100),
)
MODEL = manifest(KINDS)
SMALL = {"picture": (60, 80)}


@pytest.mark.parametrize("modality", KINDS, ids=lambda modality: modality.kind + "-" + modality.name)
def test_a_generated_sample_of_every_kind_passes_the_real_preprocessing(modality: Modality) -> None:
    given = generated(MODEL, **SMALL)[modality.name]
    for frame in given.frames:
        tensor = modality.preprocess(frame.data)
        assert tensor.shape == modality.shape
        assert np.isfinite(tensor).all()
    first, second = (modality.preprocess(frame.data) for frame in given.frames[:2])
    assert not np.array_equal(first, second)


def test_equal_seeds_give_equal_samples_and_other_seeds_others() -> None:
    once, again, other = (generated(MODEL, seed=seed, **SMALL) for seed in (0, 0, 1))
    assert {name: given.digest for name, given in once.items()} == {name: given.digest for name, given in again.items()}
    assert all(once[name].digest != other[name].digest for name in once)


def test_a_generated_picture_is_that_of_a_healthy_sensor() -> None:
    given = generated(MODEL, **SMALL)
    assert all(seen.dark < 0.1 and seen.saturated < 0.1 for seen in given["rgb"].facts)
    assert given["rgb"].frames[0].data.shape == (60, 80, 3)
    holes = [seen.invalid_depth for seen in generated(MODEL)["depth"].facts]
    assert 0.0 < max(holes) < 0.2


def test_what_was_decided_on_is_described_with_shape_and_type() -> None:
    given = generated(MODEL, **SMALL)
    assert given["rgb"].description == "generated, seed 0, 60 x 80 x 3 uint8"
    assert given["voice"].description == "generated, seed 0, 4000 float32"
    assert given["words"].description.endswith(" characters")


def test_files_are_read_as_predict_reads_them(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "rgb.png"), picture[:, :, ::-1])
    with wave.open(str(tmp_path / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.zeros(4000, "<i2").tobytes())
    (tmp_path / "words.txt").write_text("a door opens")
    paths = {"rgb": tmp_path / "rgb.png", "voice": tmp_path / "voice.wav", "words": tmp_path / "words.txt"}
    given = from_files(MODEL, paths)
    np.testing.assert_array_equal(given["rgb"].frames[0].data, picture)
    assert given["rgb"].description == "file rgb.png, 20 x 30 x 3 uint8"
    assert given["voice"].frames[0].data.shape == (4000,)
    assert given["words"].frames[0].data == "a door opens"


def test_a_file_of_another_form_is_refused_in_one_line(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(UsageError, match=r"image has shape \(8, 8\), expected \(H, W, 3\)$"):
        from_files(MODEL, {"rgb": tmp_path / "grey.png"})
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UsageError, match=r"^profile: --words .*words\.txt: not readable as UTF-8 text$"):
        from_files(MODEL, {"words": tmp_path / "words.txt"})
