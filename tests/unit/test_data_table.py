"""Own data as a table: every kind, missing cells, and each mistake a user makes named in one line."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mars_edge.errors import UsageError
from mars_training.data import arrays, table
from mars_training.data.columns import Decoded
from mars_training.data.split import Data, Split
from mars_training.recipe import DataRecipe, EncoderRecipe, ModelRecipe, Recipe, SamplingRecipe, ScheduleRecipe
from mars_training.train import train
from tests.helpers import own_table

RECIPE = DataRecipe(reader="table")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return own_table.write(tmp_path / "mine")


def refusal(folder: Path, split: Any = "train") -> str:
    """The one line that reading the split ends in, without the folder's name."""
    with pytest.raises(UsageError) as error:
        table.read(RECIPE, split, folder)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(f"{folder}/", "").replace(str(folder), "DIR")


def replace_toml(folder: Path, old: str, new: str) -> None:
    text = (folder / "dataset.toml").read_text(encoding="utf-8")
    assert old in text
    (folder / "dataset.toml").write_text(text.replace(old, new), encoding="utf-8")


def test_every_kind_becomes_the_tensor_its_modality_declares(folder: Path) -> None:
    source = table.describe(RECIPE, folder)
    split = table.read(RECIPE, "train", folder)
    assert source.names == own_table.MODALITIES and source.labels == own_table.LABELS
    assert source.note == "own data: my_sensors" and source.positive_label is None
    assert {name: tuple(x[torch.arange(2)].shape[1:]) for name, x in split.inputs.items()} == {
        m.name: m.shape for m in source.modalities
    }
    assert split.class_labels.tolist() == [at % 3 for at in range(18)]
    assert split.group_labels.tolist() == ["anna", "bo"] * 9


def test_a_row_holds_what_the_device_would_preprocess_from_its_file(folder: Path) -> None:
    source, split = table.describe(RECIPE, folder), table.read(RECIPE, "train", folder)
    depth = np.load(folder / "depth/train3.npy").transpose(1, 2, 0)
    inertial = np.load(folder / "inertial/train3.npy").astype(np.float32)
    for modality, raw in zip(source.modalities, (depth, inertial), strict=False):
        stored = split.inputs[modality.name][torch.tensor([3])][0].float().numpy()
        assert np.abs(stored - modality.preprocess(raw)).max() <= 1.0 / 4096
        assert split.raw is not None and np.array_equal(split.raw[modality.name][3], raw)


def test_numbers_in_csv_and_npy_are_the_same_sequence(folder: Path) -> None:
    rows = np.random.default_rng(0).normal(0.0, 3.0, (25, 6)).round(4)
    own_table.save(folder / "one.npy", rows)
    (folder / "two.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    own_table.replace_cell(folder, 0, "inertial", "one.npy")
    own_table.replace_cell(folder, 1, "inertial", "two.csv")
    read = table.read(RECIPE, "train", folder).inputs["inertial"][torch.tensor([0, 1])]
    assert torch.equal(read[0], read[1]) and read.unique().numel() > 10


def test_an_empty_cell_is_a_missing_modality_and_its_row_is_zeros(folder: Path) -> None:
    split = table.read(RECIPE, "train", folder)
    assert split.present is not None
    for row, present in enumerate(split.present.tolist()):
        lacking = {4: {"note"}, 7: {"depth", "voice"}}.get(row % 9, set())
        assert {m for m, there in zip(own_table.MODALITIES, present, strict=True) if not there} == lacking
        for name in lacking:
            assert not split.inputs[name][torch.tensor([row])].any()


def test_a_split_that_lacks_nothing_says_so_with_none(folder: Path) -> None:
    lines = own_table.read_csv(folder)
    own_table.write_csv(folder, [line for line in lines if ",," not in line and not line.endswith(",")])
    assert table.read(RECIPE, "test", folder).present is None


def test_raw_samples_of_a_missing_cell_are_not_invented(folder: Path) -> None:
    raw = table.read(RECIPE, "train", folder).raw
    assert raw is not None
    with pytest.raises(IndexError, match="row 'train7' has no depth"):
        raw["depth"][7]


def test_rows_that_lack_modalities_train_to_finite_losses(folder: Path, tmp_path: Path) -> None:
    data = Data(
        source=table.describe(RECIPE, folder),
        train=table.read(RECIPE, "train", folder),
        validation=table.read(RECIPE, "validation", folder),
    )
    assert data.train.present is not None and data.validation.present is not None
    kinds = {"depth": "conv", "inertial": "sequence", "scene": "vector", "voice": "conv", "note": "text_mean"}
    encoders = {
        name: EncoderRecipe(kind=kind, channels=(4,), strides=(2,) if kind != "vector" else (1,), pool=True)
        for name, kind in kinds.items()
    }
    model = ModelRecipe(
        encoders=encoders, experts=4, active_experts=2, width=8, expert_channels=(8,),
        fusion_kernel=1, fusion_stride=1, expert_kernel=1, expert_stride=1,
    )  # fmt: skip
    schedule = ScheduleRecipe(epochs=1, batch_size=6)
    recipe = Recipe(name="own", data=RECIPE, model=model, sampling=SamplingRecipe(start=1), schedule=schedule)
    result = train(recipe, data, tmp_path / "run", seed=0)
    assert {"loss", "task", "balance", "imitate", "noise"} <= set(result.last.terms)
    assert all(math.isfinite(value) for value in result.last.terms.values())
    assert len(result.last.scores) == 31 and all(math.isfinite(score.value) for score in result.last.scores)


@pytest.mark.parametrize(
    ("newline", "start", "end"),
    [("\r\n", "\ufeff", "\r\n"), ("\n", "\ufeff", ""), ("\r\n", "", ""), ("\n", "", "\n\n")],
)
def test_byte_order_marks_either_newline_and_a_last_line_without_one_change_nothing(
    folder: Path, newline: str, start: str, end: str
) -> None:
    before = table.read(RECIPE, "test", folder)
    own_table.write_csv(folder, own_table.read_csv(folder), newline=newline, start=start, end=end)
    after = table.read(RECIPE, "test", folder)
    assert len(after) == 9 and torch.equal(before.class_labels, after.class_labels)
    assert all(torch.equal(before.batch(torch.arange(9))[n], after.batch(torch.arange(9))[n]) for n in before.inputs)


def test_a_quoted_text_keeps_its_commas_quotes_and_line_breaks(folder: Path) -> None:
    own_table.replace_cell(folder, 0, "note", '"one, ""two""\nthree"')
    split = table.read(RECIPE, "train", folder)
    assert split.raw is not None and split.raw["note"][0] == 'one, "two"\nthree'


def test_a_text_cell_that_ends_in_txt_is_a_file(folder: Path) -> None:
    (folder / "a.txt").write_text("\ufefffrom a file\n", encoding="utf-8")
    own_table.replace_cell(folder, 0, "note", "a.txt")
    split = table.read(RECIPE, "train", folder)
    assert split.raw is not None and split.raw["note"][0] == "from a file"


def test_the_order_of_columns_does_not_matter(folder: Path) -> None:
    before = table.read(RECIPE, "test", folder)
    rows = [line.split(",") for line in own_table.read_csv(folder)]
    own_table.write_csv(folder, [",".join(reversed(row)) for row in rows])
    after = table.read(RECIPE, "test", folder)
    assert list(after.inputs) == list(own_table.MODALITIES)
    assert all(torch.equal(before.batch(torch.arange(9))[n], after.batch(torch.arange(9))[n]) for n in before.inputs)


def test_a_limit_takes_rows_of_every_class(folder: Path) -> None:
    split = table.read(DataRecipe(reader="table", limit=6), "train", folder)
    assert torch.bincount(split.class_labels).tolist() == [2, 2, 2]


CELLS = [
    ("id", "train1", "samples.csv line 3: id 'train1' is that of line 2 too; every row needs its own"),
    ("id", "", "samples.csv line 2: id is empty; every row needs its own"),
    ("split", "val", "samples.csv line 2: row 'train0': split is 'val'; allowed: train, validation, test"),
    ("label", "run", "samples.csv line 2: row 'train0': label is 'run'; dataset.toml has: idle, walk, fall"),
    ("group", "", "samples.csv line 2: row 'train0': group is empty; name one, or leave the column out"),
    ("depth", "../a.npy", "samples.csv line 2: row 'train0': depth is '../a.npy'; it must be a path inside the folder, "
     "without '..'"),
    ("depth", "/a.npy", "samples.csv line 2: row 'train0': depth is '/a.npy'; it must be a path inside the folder, "
     "without '..'"),
    ("depth", "a.tif", "samples.csv line 2: row 'train0': depth is 'a.tif'; allowed are files named .png, .jpg, .jpeg, "
     ".npy"),
    ("voice", "a.mp3", "samples.csv line 2: row 'train0': voice is 'a.mp3'; allowed are files named .wav"),
    ("depth", "depth/nix.npy", "row 'train0': depth: no file depth/nix.npy"),
    ("note", "nix.txt", "row 'train0': note: no file nix.txt"),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value", "message"), CELLS, ids=[f"{c}={v}" for c, v, _ in CELLS])
def test_a_wrong_cell_is_named_with_its_row(folder: Path, column: str, value: str, message: str) -> None:
    if value == "train1":
        lines = own_table.read_csv(folder)
        own_table.write_csv(folder, [lines[0], lines[2], *lines[2:]])
    else:
        own_table.replace_cell(folder, 0, column, value)
    assert refusal(folder) == message


def test_of_several_mistakes_the_first_is_told_and_the_others_counted(folder: Path) -> None:
    own_table.replace_cell(folder, 2, "label", "run")
    own_table.replace_cell(folder, 30, "split", "dev")
    assert refusal(folder) == (
        "samples.csv line 4: row 'train2': label is 'run'; dataset.toml has: idle, walk, fall "
        "(and 1 more: `mars-edge data check DIR` lists all)"
    )


def test_a_row_without_any_modality_is_refused(folder: Path) -> None:
    for name in own_table.MODALITIES:
        own_table.replace_cell(folder, 0, name, "")
    assert refusal(folder) == (
        "samples.csv line 2: row 'train0': all modalities are empty; "
        "a row needs one of depth, inertial, scene, voice, note"
    )


def test_a_cell_with_a_comma_and_no_quotes_is_explained(folder: Path) -> None:
    own_table.replace_cell(folder, 0, "note", "one, two")
    assert refusal(folder).startswith(
        "samples.csv line 2: has 10 cells, the header has 9; a cell with a comma needs quotes: 'train0,train,idle,anna,"
    )


HEADERS = [
    (",group", ",person", "samples.csv: unknown column 'person'; known: id, split, label, group, depth, inertial, "
     "scene, voice, note (a modality needs its table in dataset.toml)"),
    (",voice", ",sound", "samples.csv: lacks the column 'voice' of dataset.toml's [modality.voice]; the header is "
     "'id,split,label,group,depth,inertial,scene,sound,note'"),
    ("id,", "Id,", "samples.csv: lacks the column 'id'; the header is "
     "'Id,split,label,group,depth,inertial,scene,voice,note'"),
    (",group", ",depth", "samples.csv: has the column 'depth' twice"),
    (",", ";", "samples.csv: the header is one cell, 'id;split;label;group;depth;inertial;scene;voice;note'; columns "
     "are separated by commas"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), HEADERS, ids=[new for _, new, _ in HEADERS])
def test_a_wrong_header_is_explained(folder: Path, old: str, new: str, message: str) -> None:
    lines = own_table.read_csv(folder)
    own_table.write_csv(folder, [lines[0].replace(old, new), *lines[1:]])
    assert refusal(folder) == message


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", "samples.csv has no train rows; training needs some"),
        (
            "validation",
            "samples.csv has no validation rows; the epoch is selected on them: mark some rows, whole groups, with "
            "split = validation",
        ),
        ("test", "samples.csv has no test rows; mark some rows, whole groups, with split = test"),
    ],
)
def test_a_split_without_rows_says_what_to_add(folder: Path, split: str, message: str) -> None:
    own_table.write_csv(folder, [line for line in own_table.read_csv(folder) if f",{split}," not in line])
    assert refusal(folder, split) == message


def test_a_folder_without_the_two_files_says_which(folder: Path) -> None:
    (folder / "samples.csv").unlink()
    assert refusal(folder) == "no samples.csv in DIR; it needs one row per sample"
    (folder / "dataset.toml").unlink()
    assert refusal(folder) == "no table declaration at dataset.toml"


DECLARATIONS = [
    ("labels = [", 'classes = [', "unknown key 'classes' in dataset.toml; known keys: name, labels, modality, task, "
     "positive_label, note"),
    ('"walk", "fall"', '"walk", "walk"', "dataset.toml: labels is ['idle', 'walk', 'walk']; it must be two or more "
     "different names"),
    ('task = "classification"', 'task = "regression"', "dataset.toml.task is 'regression'; allowed: classification, "
     "segmentation"),
    ('task = "classification"', 'positive_label = "walk"', "dataset.toml: positive_label is 'walk'; it needs two "
     "labels and must be one: ['idle', 'walk', 'fall']"),
    ("[modality.voice]", "[modality.Voice]", "dataset.toml: [modality.Voice]: modality name 'Voice' is not a "
     "lower-case identifier, e.g. depth"),
    ("[modality.voice]", "[modality.group]", "dataset.toml: [modality.group]: the name is taken by a column of "
     "samples.csv; choose another"),
    ("rate_hz = 8000", "", "dataset.toml: [modality.voice]: lacks rate_hz, the sampling rate of the .wav files, "
     "e.g. 16000"),
    ('kind = "vector"', 'kind = "vector"\nname = "x"', "dataset.toml: [modality.scene]: has a key name; the table's "
     "own name is the modality's"),
    ('kind = "vector"', 'kind = "vector"\nchannels_first = true', "dataset.toml: [modality.scene]: channels_first is "
     "True; allowed: true or false, for kind image"),
    ("length = 5", "length = 5\nsize = 3", "dataset.toml: [modality.scene]: modality 'scene': size has no meaning for "
     "kind vector; its keys: name, kind, rate_hz, length, dtype, range"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), DECLARATIONS, ids=[new for _, new, _ in DECLARATIONS])
def test_a_wrong_declaration_is_named(folder: Path, old: str, new: str, message: str) -> None:
    replace_toml(folder, old, new)
    replaced = refusal(folder).replace("dataset.toml has", "dataset.toml")
    assert replaced == message


def test_an_image_without_a_type_takes_the_one_its_range_implies(folder: Path) -> None:
    for given, dtype, limits in (
        ("", "uint8", (0.0, 255.0)),
        ("range = [0, 255]", "uint8", (0, 255)),
        ("range = [0, 4500]", "uint16", (0, 4500)),
        ("range = [0, 1]", "float32", (0, 1)),
        ("range = [-1, 40]", "float32", (-1, 40)),
        ("range = [0, 70000]", "float32", (0, 70000)),
        ('dtype = "uint16"', "uint16", (0.0, 65535.0)),
        ('dtype = "float32"', "float32", (0.0, 1.0)),
    ):
        text = own_table.TOML.replace("range = [0, 4500]", given)
        (folder / "dataset.toml").write_text(text)
        modality = table.describe(RECIPE, folder).modalities[0]
        assert (modality.dtype, modality.range) == (dtype, limits), given


NUMBERS = np.zeros((4, 6), dtype=np.float32)
FILES: list[tuple[str, str, Any, str]] = [
    ("depth", "a.npy", np.zeros((2, 4, 4), np.uint8), "a.npy: is (2, 4, 4) uint8; modality 'depth' takes "
     "(2, H, W) uint16"),
    ("depth", "a.npy", np.zeros((3, 4, 4), np.uint16), "a.npy: is (3, 4, 4) uint16; modality 'depth' takes "
     "(2, H, W) uint16"),
    ("depth", "a.png", b"", "a.png: not a readable picture"),
    ("depth", "a.png", b"\x89PNG", "a.png: not a readable picture"),
    ("inertial", "a.npy", NUMBERS[:, :5], "a.npy: is (4, 5) float32; modality 'inertial' takes (T, 6) float32"),
    ("inertial", "a.npy", NUMBERS[:0], "a.npy: is (0, 6) float32; modality 'inertial' takes (T, 6) float32"),
    ("inertial", "a.npy", NUMBERS.astype(np.int64), "a.npy: is (4, 6) int64; modality 'inertial' takes (T, 6) float32"),
    ("inertial", "a.npy", NUMBERS + np.inf, "a.npy: 24 of 24 values are not finite"),
    ("inertial", "a.csv", b"1,2,3,4,5,6\n1,2,3\n", "a.csv: rows have 3 to 6 numbers; all must have as many"),
    ("inertial", "a.csv", b"1,2,3,4,5,6\n1,2,x,4,5,6\n", "a.csv: line 2 is not all numbers: '1,2,x,4,5,6'"),
    ("inertial", "a.csv", b"1,2,x,4,5,6\n", "a.csv: line 1 is not all numbers: '1,2,x,4,5,6'"),
    ("inertial", "a.csv", b"a,b,c,d,e,f\n", "a.csv: holds no numbers"),
    ("inertial", "a.csv", b"1,2,3,4,5,nan\n", "a.csv: 1 of 6 values are not finite"),
    ("scene", "a.csv", b"1\n2\n3\n4\n5\n", "a.csv: has 5 rows; a vector is one row of 5 numbers"),
    ("scene", "a.npy", np.zeros(4), "a.npy: is (4,) float32; modality 'scene' takes (5,) float32"),
    ("scene", "a.npy", np.array([0, 9.5, 0, 0, -1]), "a.npy: values reach from -1 to 9.5, outside the default range "
     "0 to 1; set range in [modality.scene], values outside it are then clipped"),
    ("voice", "a.wav", b"RIFF", "a.wav: not a readable .wav file (it ends early)"),
    ("note", "a.txt", b" \n", "a.txt: holds no text; leave the cell empty where a row has none"),
]  # fmt: skip


@pytest.mark.parametrize(("column", "name", "content", "message"), FILES, ids=[f"{f[1]}:{f[3][:40]}" for f in FILES])
def test_a_file_that_contradicts_its_modality_is_named_with_its_row(
    folder: Path, column: str, name: str, content: Any, message: str
) -> None:
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        own_table.save(folder / name, content)
    own_table.replace_cell(folder, 0, column, name)
    assert refusal(folder) == f"row 'train0': {message}"


def test_an_array_of_objects_or_a_damaged_one_is_refused_unread(folder: Path) -> None:
    whole = own_table.save(folder / "a.npy", np.zeros(100)).read_bytes()
    own_table.replace_cell(folder, 0, "scene", "a.npy")
    for content in (b"", b"no", whole[:60], whole[:500], b"PK\x03\x04"):
        (folder / "a.npy").write_bytes(content)
        assert refusal(folder).startswith("row 'train0': a.npy is not an .npy file of numbers: ")
    np.save(folder / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert refusal(folder).startswith("row 'train0': a.npy is not an .npy file of numbers: ")


def test_headers_of_arrays_are_parsed_by_one_thread_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_table.save(tmp_path / "a.npy", np.arange(6.0))
    inside, load = threading.Semaphore(1), np.load

    def watched(*args: Any, **options: Any) -> Any:
        assert inside.acquire(blocking=False)
        time.sleep(0.002)
        inside.release()
        return load(*args, **options)

    monkeypatch.setattr(arrays.np, "load", watched)
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(a, np.arange(6.0)) for a in pool.map(arrays.load_array, [path] * 32))


@pytest.mark.parametrize(("rate_hz", "channels"), [(16000, 1), (8000, 2)])
def test_a_wav_of_another_rate_or_in_stereo_is_refused(folder: Path, rate_hz: int, channels: int) -> None:
    own_table.write_wav(folder / "a.wav", np.zeros(900), rate_hz=rate_hz, channels=channels)
    own_table.replace_cell(folder, 0, "voice", "a.wav")
    assert refusal(folder) == (
        f"row 'train0': a.wav: has {channels} channels, 16 bits, {rate_hz} Hz; "
        "modality 'voice' takes 1 channel, 16 bits, 8000 Hz"
    )


def test_values_outside_a_range_are_clipped_only_where_the_range_was_declared(folder: Path) -> None:
    own_table.save(folder / "a.npy", np.array([0, 9.5, 0, 0, -1]))
    own_table.replace_cell(folder, 0, "scene", "a.npy")
    replace_toml(folder, "length = 5", "length = 5\nrange = [0, 1]")
    row = table.read(RECIPE, "train", folder).inputs["scene"][torch.tensor([0])][0]
    assert row.tolist() == [0, 1, 0, 0, 0]


def test_pictures_keep_their_bits_and_come_in_red_green_blue(tmp_path: Path) -> None:
    folder = own_table.segmentation(tmp_path / "roads")
    red = np.zeros((16, 20, 3), dtype=np.uint8)
    red[:, :, 2] = 200
    own_table.save(folder / "rgb/0.png", red)
    split = table.read(RECIPE, "train", folder)
    assert split.raw is not None and split.raw["rgb"][0][0, 0].tolist() == [200, 0, 0]
    replace_toml(folder, '[modality.nir]\nkind = "image"', '[modality.nir]\nkind = "image"\ndtype = "uint16"')
    for at in range(2):
        own_table.save(folder / f"nir/{at}.png", np.full((16, 20), 40000, np.uint16))
        own_table.replace_cell(folder, at, "nir", f"nir/{at}.png")
    split = table.read(RECIPE, "train", folder)
    assert split.raw is not None and int(split.raw["nir"][1].max()) == 40000


def test_label_maps_take_the_images_size_and_keep_the_ignored(tmp_path: Path) -> None:
    folder = own_table.segmentation(tmp_path / "roads")
    assert table.describe(RECIPE, folder).task == "segmentation"
    split = table.read(RECIPE, "train", folder)
    labels = split.training_batch(torch.tensor([1])).labels
    assert tuple(labels.shape) == (1, 8, 10) and set(labels.unique().tolist()) <= {0, 1, 255}
    assert labels[0, 4].tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((16, 20), 2, np.uint8), "gt/0.png: has the label 2; allowed: 0 to 1, and 255 for no class"),
        (
            np.zeros((16, 20, 3), np.uint8),
            "gt/0.png has shape (16, 20, 3) and type uint8; expected (H, W) and uint8",
        ),
    ],
)
def test_a_label_map_of_unknown_numbers_or_colours_is_refused(tmp_path: Path, values: Any, message: str) -> None:
    folder = own_table.segmentation(tmp_path / "roads", values={"r0": values})
    assert refusal(folder) == f"row 'r0': {message}"


def test_segmentation_needs_images_of_one_size(tmp_path: Path) -> None:
    folder = own_table.segmentation(tmp_path / "roads")
    replace_toml(folder, "size = [8, 10]\nchannels = 3", "size = [8, 8]\nchannels = 3")
    assert refusal(folder) == (
        "dataset.toml: segmentation needs image modalities of one size; there is: rgb (8, 8), nir (8, 10)"
    )


def test_without_a_group_column_the_label_is_the_species_of_a_live_task(folder: Path) -> None:
    replace_toml(folder, '"idle", "walk", "fall"', '"idle", "walk"')
    replace_toml(folder, "task =", 'positive_label = "walk"\ntask =')
    rows = [line.split(",") for line in own_table.read_csv(folder)]
    own_table.write_csv(folder, [",".join(row[:3] + row[4:]) for row in rows if row[2] != "fall"])
    split = table.read(RECIPE, "train", folder)
    assert split.group_labels.tolist() == ["idle", "walk"] * 6


def test_a_column_too_large_for_memory_is_read_on_demand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = table.read(RECIPE, "train", folder)
    monkeypatch.setattr(table, "columns", lambda m, raw, present: _on_demand(m, raw, present))
    lazy = table.read(RECIPE, "train", folder)
    rows = torch.tensor([7, 0, 13])
    for name, x in lazy.batch(rows).items():
        assert isinstance(lazy.inputs[name], Decoded)
        assert float((x - whole.batch(rows)[name]).abs().max()) <= 1.0 / 4096


def _on_demand(modalities: Any, raw: Any, present: Any) -> Any:
    from mars_training.data.columns import columns

    return columns(modalities, raw, present, most_bytes=0)


def test_only_the_files_of_the_split_that_is_read_must_be_there(folder: Path) -> None:
    (folder / "depth/test0.npy").unlink()
    assert isinstance(table.read(RECIPE, "train", folder), Split)
    assert refusal(folder, "test") == "row 'test0': depth: no file depth/test0.npy"
