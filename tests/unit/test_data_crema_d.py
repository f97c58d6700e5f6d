"""CREMA-D in its true layout: mark, CRLF, frames by number, a clip that is only a video, and who is on which side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mars_edge.errors import UsageError
from mars_training.data import crema_d
from mars_training.data.load import describe, load_split
from mars_training.recipe import DataRecipe, Recipe, SplitName
from tests.helpers import benchmark_trees
from tests.helpers.benchmark_trees import CREMA_ACTORS, CREMA_VIDEO_CLIP

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
DATA = DataRecipe(reader="crema_d", size=24)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: a test that changes files makes a tree of its own."""
    return benchmark_trees.crema_d(tmp_path_factory.mktemp("crema_d"))


def test_the_first_row_survives_its_byte_order_mark_and_the_last_one_its_missing_newline(tree: Path) -> None:
    assert (tree / "train.csv").read_bytes().startswith(b"\xef\xbb\xbf1001_DFA_NEU_XX,NEU\r\n")
    assert crema_d.read_clips(tree / "train.csv")[0] == crema_d.Clip(name="1001_DFA_NEU_XX", label=0)
    last = crema_d.read_clips(tree / "test.csv")[-1]
    assert (last.name, last.actor, crema_d.LABELS[last.label]) == ("1010_DFA_SAD_XX", "1010", "sad")


def test_the_official_splits_share_no_clip_and_validation_is_held_out_of_training(tree: Path) -> None:
    names = {split: {clip.name for clip in crema_d.find_clips(DATA, split, tree)} for split in SPLITS}
    assert [len(names[split]) for split in SPLITS] == [44, 6, 10]
    assert len(set.union(*names.values())) == 60
    assert names["test"] == {clip.name for clip in crema_d.read_clips(tree / "test.csv")}
    assert names["validation"] == {clip.name for clip in crema_d.find_clips(DATA, "validation", tree)}


@pytest.mark.parametrize("fold", range(5))
def test_a_speaker_disjoint_fold_has_no_actor_in_two_splits(tree: Path, fold: int) -> None:
    recipe = DataRecipe(reader="crema_d", protocol="speaker_disjoint", fold=fold)
    clips = {split: crema_d.find_clips(recipe, split, tree) for split in SPLITS}
    actors = {split: {clip.actor for clip in found} for split, found in clips.items()}
    assert [len(actors[split]) for split in SPLITS] == [7, 1, 2]
    assert len(set.union(*actors.values())) == len(CREMA_ACTORS)
    assert sum(map(len, clips.values())) == 60, "both lists are used"


def test_over_the_folds_every_actor_tests_once() -> None:
    actors = [str(1000 + i) for i in range(91)]
    tested = [name for fold in range(5) for name in crema_d.split_actors(actors, fold, "test", seed=0)]
    assert sorted(tested) == actors
    sizes = [len(crema_d.split_actors(actors, 0, split, seed=0)) for split in SPLITS]
    assert sizes == [63, 9, 19]


def test_the_middle_frame_is_the_middle_by_number_not_by_name(tree: Path) -> None:
    where = tree / "Image-01-FPS" / "1002_DFA_HAP_XX"
    assert sorted(p.name for p in where.iterdir())[1] == "10.jpg", "the trap this test is about"
    assert crema_d.find_picture(tree, "1002_DFA_HAP_XX") == where / "2.jpg"


def test_a_clip_without_frames_gives_the_middle_frame_of_its_video(tree: Path) -> None:
    split = crema_d.read(DATA, "train", tree)
    assert split.raw is not None and not (tree / "Image-01-FPS" / CREMA_VIDEO_CLIP).exists()
    frame = split.raw["visual"][0]
    assert frame.shape == (36, 48, 3)
    assert np.abs(frame.astype(float) - 40).max() <= 5, "frame 4 of 9; each is 10 brighter than the one before"


def test_sound_and_frame_are_of_the_same_clip(tree: Path) -> None:
    split = crema_d.read(DATA, "test", tree)
    batch = split.batch(torch.arange(len(split)))
    assert batch["audio"].shape[1:] == crema_d.AUDIO.shape and batch["visual"].shape[1:] == (3, 24, 24)
    for at, label in enumerate(split.class_labels.tolist()):
        assert float(batch["visual"][at].mean()) * 255 == pytest.approx(30 * label + 2, abs=2)
        peak = int(batch["audio"][at, 0, :, :10].mean(dim=1).argmax())
        top = 2595 * np.log10(1 + 8000 / 700)
        expected = 2595 * np.log10(1 + (300 + 500 * label) / 700) / top * (crema_d.AUDIO.mel_bands + 1) - 1
        assert abs(peak - expected) <= 1
    assert split.group_labels.tolist() == [str(actor) for actor in CREMA_ACTORS]


def test_the_source_says_who_is_on_both_sides() -> None:
    assert describe(DATA).note == "CREMA-D, published split: every speaker is in training and in test"
    disjoint = DataRecipe(reader="crema_d", protocol="speaker_disjoint", fold=2)
    assert describe(disjoint).note == "CREMA-D, no speaker is in two splits (fold 2)"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fold": 1}, "fold is 1; allowed: 0 with the official protocol"),
        ({"fold": 5, "protocol": "speaker_disjoint"}, "fold is 5; allowed: 0 to 4"),
    ],
)
def test_a_fold_that_does_not_exist_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        describe(DataRecipe(reader="crema_d", **fields))  # type: ignore[arg-type]
    assert str(error.value) == message


def test_a_limit_is_spread_over_the_emotions(tree: Path) -> None:
    recipe = Recipe(name="x", data=DataRecipe(reader="crema_d", size=24, limit=12))
    labels = load_split(recipe, "train", folder=tree).class_labels
    assert torch.bincount(labels).tolist() == [2] * 6


def test_broken_lists_and_missing_clips_are_named(tmp_path: Path) -> None:
    folder = benchmark_trees.crema_d(tmp_path)
    clip = "1001_DFA_HAP_XX"
    with (folder / "test.csv").open("a") as file:
        file.write("\n1001_DFA_BAD_XX,BAD\n")
    with pytest.raises(UsageError) as error:
        crema_d.read(DATA, "test", folder)
    listed = folder / "test.csv"
    assert str(error.value) == f"{listed}, line 11: emotion 'BAD'; allowed: NEU, HAP, SAD, FEA, DIS, ANG"
    listed.write_text(f"{clip},HAP")
    for frame in (folder / "Image-01-FPS" / clip).iterdir():
        frame.unlink()
    with pytest.raises(UsageError) as error:
        crema_d.read(DATA, "test", folder)
    where, video = folder / "Image-01-FPS" / clip, folder / "VideoFlash" / f"{clip}.flv"
    assert str(error.value) == f"clip {clip} has no picture: neither {where}/*.jpg nor {video} is there"
    sound = folder / "AudioWAV" / f"{clip}.wav"
    sound.unlink()
    with pytest.raises(UsageError) as error:
        crema_d.read(DATA, "test", folder)
    assert str(error.value) == f"{listed} needs {sound}, which is not there"
