"""Readers and augmentation: traps of the files as they are, and that splits share nothing."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.augment import augment, move
from mars_training.data import digits, files, rig
from mars_training.data.load import load_split
from mars_training.data.split import Batch, Split, preprocess_all
from mars_training.recipe import AugmentRecipe, DataRecipe, Recipe

HEADER = "Block 1,Block 2,Block 3"


def batch(inputs: dict[str, torch.Tensor]) -> Batch:
    """A batch of these inputs with nothing missing."""
    size = len(next(iter(inputs.values())))
    return Batch(
        inputs=inputs,
        labels=torch.zeros(size, dtype=torch.long),
        present=torch.ones(size, len(inputs), dtype=torch.bool),
    )


def write_wav(path: Path, samples: NDArray[np.int16], *, rate_hz: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny tree in the true layout: 6 speakers x 10 digits x 2 takes; written digits with a stray header."""
    generator = np.random.default_rng(0)
    for digit in range(10):
        for speaker in ("george", "jackson", "lucas", "nicolas", "theo", "yweweler"):
            for take in range(2):
                where = tmp_path / "free-spoken-digit-dataset" / "recordings" / f"{digit}_{speaker}_{take}.wav"
                write_wav(where, generator.integers(-900, 900, 2400).astype(np.int16))
    (tmp_path / "optdigits").mkdir()
    for name, rows in (("optdigits.tra", 60), ("optdigits.tes", 30)):
        lines = [",".join(map(str, [*generator.integers(0, 17, 64), i % 10])) for i in range(rows)]
        (tmp_path / "optdigits" / name).write_text("\n".join([HEADER, *lines]))
    return tmp_path


def test_a_header_line_is_skipped_and_a_last_line_without_newline_is_kept(folder: Path) -> None:
    images, labels = digits.read_optdigits(folder / "optdigits" / "optdigits.tra")
    assert images.shape == (60, 8, 8) and labels.tolist() == [i % 10 for i in range(60)]


def test_a_file_without_a_header_keeps_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.tra"
    path.write_text(",".join(["16"] * 64 + ["3"]) + "\n" + ",".join(["0"] * 64 + ["4"]) + "\n")
    images, labels = digits.read_optdigits(path)
    assert labels.tolist() == [3, 4]
    assert images.min() == 0 and images.max() == 255


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.tra"
    path.write_text(HEADER + "\n" + ",".join(["1"] * 65) + "\n1,2,3\n")
    with pytest.raises(UsageError) as error:
        digits.read_optdigits(path)
    assert str(error.value) == f"{path}: data row 2 is not 64 pixels and a label"


def test_a_wav_at_another_rate_is_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.zeros(10, dtype=np.int16), rate_hz=16000)
    with pytest.raises(UsageError) as error:
        files.read_wav(tmp_path / "a.wav", rate_hz=8000)
    assert str(error.value) == f"{tmp_path / 'a.wav'} has 1 channels, 16 bits, 16000 Hz; expected 1, 16 and 8000"


def test_wav_samples_are_scaled_to_minus_one_to_one(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.array([-32768, 0, 16384], dtype=np.int16))
    assert files.read_wav(tmp_path / "a.wav", rate_hz=8000).tolist() == [-1.0, 0.0, 0.5]


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_no_speaker_is_on_two_sides_of_a_fold(fold: int) -> None:
    sides = [set(digits.split_speakers(fold, split)) for split in ("train", "validation", "test")]
    assert [len(side) for side in sides] == [3, 1, 2]
    assert len(set.union(*sides)) == 6


def test_pairs_share_the_label_and_use_every_partner_before_repeating_one() -> None:
    first, second = np.array([0, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    left, right = digits.pair_within_class(first, second, 2, np.random.default_rng(0))
    assert np.array_equal(first[left], second[right])
    assert sorted(left.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.bincount(right, minlength=5)[[1, 2]].tolist() == [3, 3]


def test_digits_are_read_paired_and_repeatable(folder: Path) -> None:
    recipe = Recipe(name="d", data=DataRecipe(reader="digits", fold=1, pairings=3))
    one, again = (load_split(recipe, "train", folder=folder) for _ in range(2))
    assert len(one) == 3 * 10 * 2 * 3
    assert torch.equal(one.inputs["image"], again.inputs["image"])
    assert tuple(one.inputs["audio"].shape[1:]) == digits.AUDIO.shape
    assert set(one.group_labels.tolist()) == set(digits.split_speakers(1, "train"))


def test_real_recordings_have_the_protocol_sizes(shared_data: Path) -> None:
    images, _ = digits.read_optdigits(shared_data / "optdigits" / "optdigits.tra")
    tested, _ = digits.read_optdigits(shared_data / "optdigits" / "optdigits.tes")
    assert (len(digits.find_recordings(shared_data)), len(images), len(tested)) == (3000, 3823, 1797)


def test_digits_without_a_folder_say_which_option_is_missing() -> None:
    with pytest.raises(UsageError) as error:
        load_split(Recipe(name="d", data=DataRecipe(reader="digits")), "train")
    assert str(error.value) == "recipe 'd' reads files: give their folder with --data DIR"


def test_the_rig_is_rendered_once_and_then_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARS_EDGE_CACHE", str(tmp_path))
    recipe = DataRecipe(reader="rig", validation=4)
    monkeypatch.setattr(rig.os, "sched_getaffinity", lambda pid: {0})
    first = rig.read(recipe, "validation")
    monkeypatch.setattr(rig, "_render", lambda *_: pytest.fail("rendered twice"))
    again = rig.read(recipe, "validation")
    assert all(torch.equal(first.inputs[name], again.inputs[name]) for name in first.inputs)
    assert first.labels.tolist() == [1, 0, 1, 0]
    assert first.group_labels.tolist()[0] == "bona_fide"
    assert [p.suffix for p in tmp_path.iterdir()] == [".npz"]


def test_training_sees_what_the_device_preprocesses() -> None:
    modality = Modality(name="ir", kind="image", size=(4, 4), dtype="uint8", range=(0, 255))
    raw = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    stored = preprocess_all(modality, raw)
    exact = np.stack([modality.preprocess(sample) for sample in raw])
    assert np.abs(stored.float().numpy() - exact).max() <= 1.0 / 4096


def test_a_split_whose_modalities_differ_in_length_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        Split(
            inputs={"a": torch.zeros(3, 1)},
            labels=torch.zeros(4, dtype=torch.long),
            groups=torch.zeros(4, dtype=torch.long),
            group_names=("x",),
        )
    assert str(error.value) == "split of 4 labels is inconsistent or empty: a has 3"


def test_move_shifts_and_mirrors_like_a_loop_over_pixels() -> None:
    x = torch.rand(3, 2, 5, 6)
    flipped, down, right = torch.tensor([False, True, True]), torch.tensor([1, 0, -2]), torch.tensor([0, -1, 3])
    found = move(x, flipped, down, right)
    for b in range(3):
        mirrored = x[b].flip(-1) if flipped[b] else x[b]
        for row in range(5):
            for column in range(6):
                at = min(max(row - int(down[b]), 0), 4), min(max(column - int(right[b]), 0), 5)
                assert torch.equal(found[b, :, row, column], mirrored[:, at[0], at[1]])


def test_geometry_is_the_same_for_all_images_of_a_sample_and_light_touches_the_named_ones_only() -> None:
    modalities = [Modality(name=n, kind="image", size=(8, 8), dtype="uint8", range=(0, 255)) for n in ("rgb", "depth")]
    x = torch.rand(16, 1, 8, 8)
    torch.manual_seed(0)
    geometry = AugmentRecipe(flip=True, shift_px=2)
    moved = augment(batch({"rgb": x, "depth": x}), modalities, geometry).inputs
    assert torch.equal(moved["rgb"], moved["depth"]) and not torch.equal(moved["rgb"], x)
    lit = augment(batch({"rgb": x, "depth": x}), modalities, AugmentRecipe(brightness=0.2, photometric=("rgb",))).inputs
    assert torch.equal(lit["depth"], x) and not torch.equal(lit["rgb"], x)
    assert float(lit["rgb"].min()) >= 0.0 and float(lit["rgb"].max()) <= 1.0


def test_no_augmentation_by_default() -> None:
    x = {"ir": torch.rand(4, 1, 8, 8)}
    modality = Modality(name="ir", kind="image", size=(8, 8), dtype="uint8", range=(0, 255))
    assert torch.equal(augment(batch(x), [modality], AugmentRecipe()).inputs["ir"], x["ir"])
