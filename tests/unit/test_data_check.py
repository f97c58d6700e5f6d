"""`mars-edge data check`: every problem is told, every leak is found, and it all fits one screen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mars_edge import cli
from mars_edge.errors import UsageError
from mars_training.commands import data as command
from mars_training.data.check import DECODED, READERS, check, recognise
from mars_training.data.contents import compare
from mars_training.data.listing import Entry
from tests.helpers import benchmark_trees, own_table

BENCHMARKS = [benchmark_trees.casia_surf, benchmark_trees.crema_d, benchmark_trees.food101]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny table with texts of its own in every row, so that nothing leaks."""
    made = own_table.write(tmp_path / "mine")
    lines = own_table.read_csv(made)
    unique = [line if line.endswith(",") else f"{line} of {line.split(',')[0]}" for line in lines[1:]]
    own_table.write_csv(made, [lines[0], *unique])
    return made


def found(folder: Path, reader: Any = "table", **options: Any) -> list[str]:
    """Level and text of every finding, without the folder's name."""
    report = check(folder, reader, **options)
    return [f"{f.level}: {f.text}".replace(f"{folder}/", "") for f in report.findings]


def examples(folder: Path, part: str, reader: Any = "table") -> list[str]:
    """What the one finding with `part` in its text is about."""
    (finding,) = [f for f in check(folder, reader).findings if part in f.text]
    return [line.replace(f"{folder}/", "") for line in finding.examples]


def screen(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[str]]:
    """The exit code and the lines on stdout, which always fit one screen."""
    code = cli.main(["data", "check", str(folder), "--quiet", *options])
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    return code, lines


def test_a_sound_table_has_no_finding_and_exit_code_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = screen(folder, capsys)
    assert code == 0
    assert lines[0] == "table: classification, 3 classes; own data: my_sensors"
    assert f"in {folder}".startswith(lines[1].removesuffix(" ..."))
    assert lines[3] == "modality  kind      network sees  decoded samples hold"
    assert lines[10:] == [
        "split       rows  groups  decoded  no depth  no inertial  no scene  no voice  no note",
        "train         18       2       18         2            -         -         2        2",
        "validation     9       1        9         1            -         -         1        1",
        "test           9       1        9         1            -         -         1        1",
        "",
        "class  train  validation  test",
        "idle       6           3     3",
        "walk       6           3     3",
        "fall       6           3     3",
        "",
        "usable: 0 problems, 0 warnings",
    ]
    shown = [line.split()[0] for line in lines[4:9]]
    assert shown == list(own_table.MODALITIES)
    assert "12 x 14 x 2 uint16" in lines[4] and "0.38 to 0.40 s at 8000 Hz; window 0.5 s" in lines[7]


def test_all_problems_are_told_and_the_exit_code_is_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_table.replace_cell(folder, 0, "label", "run")
    own_table.replace_cell(folder, 1, "split", "dev")
    for at in range(2, 9):
        if at != 7:
            (folder / f"depth/train{at}.npy").unlink()
    (folder / "scene/validation0.npy").write_bytes(b"x")
    own_table.write_wav(folder / "voice/test1.wav", np.ones(900), rate_hz=16000)
    assert found(folder) == [
        "problem: 2 rows are wrong and not counted above",
        "problem: train: 6 files are not there",
        "problem: validation: scene: 1 of 9 decoded samples cannot be used",
        "problem: test: voice: 1 of 8 decoded samples cannot be used",
    ]
    assert examples(folder, "wrong and") == [
        "samples.csv line 2: row 'train0': label is 'run'; dataset.toml has: idle, walk, fall",
        "samples.csv line 3: row 'train1': split is 'dev'; allowed: train, validation, test",
    ]
    assert examples(folder, "not there")[0] == "row 'train2': depth: no file depth/train2.npy"
    assert examples(folder, "test: voice") == [
        "row 'test1': voice/test1.wav: has 1 channels, 16 bits, 16000 Hz; modality 'voice' takes 1 channel, 16 bits, "
        "8000 Hz"
    ]
    code, lines = screen(folder, capsys)
    assert code == 2 and lines[-1].startswith("NOT USABLE: 4 problems, 0 warnings")
    at = lines.index("problem: train: 6 files are not there")
    assert lines[at + 6] == "    ... and 1 more" and lines[at + 1].startswith("    row 'train2'")


def test_a_check_changes_nothing(folder: Path) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    check(folder, "table")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_person_on_two_sides_is_named(folder: Path) -> None:
    own_table.replace_cell(folder, 20, "group", "anna")
    assert found(folder) == ["warning: leak: 1 of 2 groups in validation are in train too"]
    assert examples(folder, "leak") == ["anna"]


def test_without_groups_it_says_that_persons_cannot_be_told(folder: Path) -> None:
    rows = [line.split(",") for line in own_table.read_csv(folder)]
    own_table.write_csv(folder, [",".join(row[:3] + row[4:]) for row in rows])
    assert found(folder) == ["warning: no column group says whose 36 of 36 rows are: a person may be on two sides"]


def test_a_copy_under_another_name_on_the_other_side_is_found(folder: Path) -> None:
    shutil.copy(folder / "scene/train3.npy", folder / "scene/test4.npy")
    assert found(folder) == ["warning: leak: test holds what train holds: scene 1 of 9"]
    assert examples(folder, "leak") == ["row 'test4' has the scene of row 'train3'"]


def test_a_file_that_two_rows_name_is_found_without_a_copy(folder: Path) -> None:
    own_table.replace_cell(folder, 1, "scene", "scene/train0.npy")
    own_table.replace_cell(folder, 2, "scene", "scene/train0.npy")
    assert found(folder) == ["warning: train: files that equal another row's: scene 2 of 18"]


def test_a_copied_row_is_found_and_worse_with_another_label(folder: Path) -> None:
    lines = own_table.read_csv(folder)
    copies = [lines[1].replace("train0,train", "again,train"), lines[2].replace("train1,train,walk", "else,train,fall")]
    own_table.write_csv(folder, [*lines, *copies])
    assert found(folder) == [
        "warning: train: 1 row is a copy of another",
        "warning: train: 1 row is a copy of another, with another label",
    ]
    assert examples(folder, "another label") == ["row 'else' is row 'train1'"]


def test_equal_files_are_those_that_every_pair_compared_byte_by_byte_gives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = [bytes([value]) * size for value in (0, 1) for size in (10, 70_000)]
    contents.append(contents[3][:-1] + b"x")  # differs from another in its last byte alone
    paths = [tmp_path / f"{at}.bin" for at in range(30)]
    for path in paths:
        path.write_bytes(contents[int(rng.integers(len(contents)))])
    entries = [Entry(id=p.stem, label="x", group=None, files={"a": p}) for p in paths]
    told = compare(entries)
    for one in entries:
        for two in entries:
            equal = paths[int(one.id)].read_bytes() == paths[int(two.id)].read_bytes()
            assert (told.of(one, "a") == told.of(two, "a")) == equal
    assert told.unread == 0


def test_what_was_not_compared_is_counted(tmp_path: Path) -> None:
    entries = []
    for at in range(10):
        path = tmp_path / str(at)
        path.write_bytes(bytes([at]) * (5 if at < 8 else 7))
        entries.append(Entry(id=str(at), label="x", group=None, files={"a": path}))
    told = compare(entries, most=6)
    assert (told.opened, told.unread) == (6, 4)


def test_a_modality_or_class_that_training_never_sees_is_told(folder: Path) -> None:
    lines = own_table.read_csv(folder)
    rows = [line.split(",") for line in lines]
    for row in rows[1:]:
        row[7] = "" if row[1] == "train" else row[7]
    own_table.write_csv(folder, [",".join(row) for row in rows if row[:3][1:] != ["train", "fall"]])
    assert found(folder) == [
        "problem: train: no row has voice",
        "warning: train: 1 of 3 classes have no row",
        "warning: train: 0 of 12 rows are complete; MARS learns its routing from these",
    ]


def test_missing_splits_are_a_problem_but_for_the_test(folder: Path) -> None:
    own_table.write_csv(folder, [line for line in own_table.read_csv(folder) if ",test," not in line])
    assert found(folder) == ["warning: no test rows; mark some, whole groups, with split = test"]
    own_table.write_csv(folder, [line for line in own_table.read_csv(folder) if ",validation," not in line])
    assert found(folder)[0] == "problem: no validation rows; mark some, whole groups, with split = validation"


def test_a_live_table_needs_both_classes_in_every_split(folder: Path) -> None:
    text = (folder / "dataset.toml").read_text().replace('"idle", "walk", "fall"]', '"idle", "walk"]')
    (folder / "dataset.toml").write_text('positive_label = "walk"\n' + text)
    lines = [line for line in own_table.read_csv(folder) if ",fall," not in line and ",validation,walk," not in line]
    own_table.write_csv(folder, lines)
    assert found(folder) == [
        "problem: validation: no row is 'walk'; error rates need both classes",
        "warning: group names attack species, so nothing says whose 21 of 21 rows are: a person may be on two sides",
    ]


def test_values_that_the_range_cuts_off_or_wastes_are_told(folder: Path) -> None:
    text = (folder / "dataset.toml").read_text()
    text = text.replace("range = [0, 4500]", "range = [0, 60000]").replace("range = [-20, 20]", "range = [0, 5]")
    (folder / "dataset.toml").write_text(text.replace("window_s = 0.5", "window_s = 0.39"))
    levels = found(folder)
    assert levels[0] == "warning: depth: the values 0 to 3899 fill little of range 0 to 60000"
    assert levels[1].startswith("warning: inertial: ")
    assert levels[1].endswith(" % of the values are outside range 0 to 5 and clipped")
    assert levels[2].startswith("warning: voice: ") and levels[2].endswith(
        "longer than window_s: their start is cut off"
    )


def test_only_so_many_rows_are_decoded_and_it_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "scene/train17.npy").write_bytes(b"x")
    code, lines = screen(folder, capsys, "--decode", "2")
    assert code == 0
    assert lines[-1] == (
        "usable as far as looked: 0 problems, 0 warnings; 6 of 36 rows were decoded, --decode N decodes more"
    )
    assert screen(folder, capsys, "--decode", "99")[0] == 2


def test_without_being_asked_every_row_is_decoded_and_one_cut_or_infinite_file_makes_the_data_unusable(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_table.more_rows(folder, split="train", count=50)
    assert screen(folder, capsys)[1][-1].startswith("usable: ")
    whole = folder / "scene/more41.npy"
    kept = whole.read_bytes()
    whole.write_bytes(kept[:-3])
    assert found(folder)[0] == "problem: train: scene: 1 of 68 decoded samples cannot be used"
    code, lines = screen(folder, capsys)
    assert code == 2 and lines[-1].startswith("NOT USABLE: 1 problem, ")
    whole.write_bytes(kept)
    values = np.load(folder / "inertial/more7.npy")
    values[1, 1] = np.nan
    np.save(folder / "inertial/more7.npy", values)
    assert examples(folder, "cannot be used") == [
        f"row 'more7': inertial/more7.npy: 1 of {values.size} values are not finite"
    ]


def test_by_default_two_thousand_rows_of_a_split_are_decoded(capsys: pytest.CaptureFixture[str]) -> None:
    assert DECODED == 2_000
    with pytest.raises(SystemExit):
        command.main(["check", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "of splits of more than 2,000 rows those of so many" in text and "(default: 2,000)" in text


def test_pixels_are_counted_per_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = np.full((16, 20), 7, np.uint8)
    folder = own_table.segmentation(tmp_path / "roads", values={"r2": bad})
    report = check(folder, "table")
    assert dict(report.splits["train"].classes) == {"road": 0.5, "grass": 0.5}
    assert report.splits["train"].ignored == 1 / 16
    assert report.findings[0].text == "validation: 1 label map is broken, of 1 read"
    code, lines = screen(folder, capsys)
    assert code == 2 and "train: 2 label maps, 6.2 % ignored; road 50 %, grass 50 %" in lines


def test_a_label_map_of_another_size_than_its_images_is_told(tmp_path: Path) -> None:
    folder = own_table.segmentation(tmp_path / "roads", values={"r0": np.zeros((8, 10), np.uint8)})
    assert examples(folder, "not of the size") == ["row 'r0': map (8, 10), images [(16, 20)]"]


@pytest.mark.parametrize("tree", BENCHMARKS, ids=lambda tree: tree.__name__)
def test_a_benchmark_is_recognised_and_fits_one_screen(
    tmp_path: Path, tree: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tree(tmp_path)
    assert recognise(folder) == tree.__name__
    code, lines = screen(folder, capsys)
    assert code == 0 and lines[0].startswith(f"{tree.__name__}: ")


def test_mcubes_is_recognised_and_its_materials_counted(tmp_path: Path) -> None:
    folder = benchmark_trees.mcubes(tmp_path)
    assert recognise(folder) == "mcubes"
    report = check(folder, "mcubes", decode=0)
    shares = report.splits["test"].classes
    assert {name for name, share in shares.items() if share} == {"road_marking", "plastic"}
    assert report.usable and report.splits["train"].groups == 2


def test_the_published_crema_d_split_leaks_every_speaker(tmp_path: Path) -> None:
    folder = benchmark_trees.crema_d(tmp_path)
    expected = 'warning: leak: 10 of 10 speakers in test are in train too (protocol = "speaker_disjoint" shares none)'
    assert expected in found(folder, "crema_d", decode=0)
    assert examples(folder, "speakers in test are in train", "crema_d") == [
        str(a) for a in benchmark_trees.CREMA_ACTORS
    ]


def test_casia_subjects_are_read_from_the_paths_that_name_them(tmp_path: Path) -> None:
    lines = found(benchmark_trees.casia_surf(tmp_path), "casia_surf", decode=0)
    assert "warning: leak: 1 of 1 subjects in test are in validation too" in lines
    assert "warning: nothing says whose 8 of 21 rows are: a person may be on two sides" in lines


def test_a_benchmark_with_files_and_a_list_missing_tells_both(tmp_path: Path) -> None:
    folder = benchmark_trees.crema_d(tmp_path)
    (folder / "AudioWAV/1002_DFA_SAD_XX.wav").unlink()
    shutil.rmtree(folder / "Image-01-FPS/1003_DFA_SAD_XX")
    problems = [line for line in found(folder, "crema_d", decode=0) if line.startswith("problem")]
    assert problems == ["problem: train: 2 files are not there"]
    shutil.rmtree(folder / "AudioWAV")
    (folder / "test.csv").unlink()
    assert found(folder, "crema_d") == [
        "problem: train+validation+test: no file test.csv; give the folder of the data set with --data DIR"
    ]


def test_real_digits_share_no_speaker(shared_data: Path) -> None:
    report = check(shared_data, "digits", decode=1)
    assert report.usable and [s.groups for s in report.splits.values()] == [3, 1, 2]
    assert not [f for f in report.findings if "leak" in f.text]


def test_a_folder_is_recognised_by_what_lies_in_it_or_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        recognise(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} holds no data set of a known layout; looked for: dataset.toml (table), "
        "train_list.txt (casia_surf), AudioWAV (crema_d), texts/train_titles.csv (food101), list_folder (mcubes), "
        "free-spoken-digit-dataset (digits)"
    )
    (tmp_path / "samples.csv").touch()
    assert recognise(tmp_path) == "table"
    (tmp_path / "AudioWAV").mkdir()
    with pytest.raises(UsageError) as error:
        recognise(tmp_path)
    assert str(error.value) == f"{tmp_path} looks like table and crema_d; say which with --reader"
    with pytest.raises(UsageError) as error:
        recognise(tmp_path / "nix")
    assert str(error.value) == f"{tmp_path / 'nix'} is not a folder"


def test_a_declaration_that_cannot_be_read_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "dataset.toml").write_text("name = ")
    assert cli.main(["data", "check", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"mars-edge: table declaration {folder}/dataset.toml is not TOML: ")
    assert err.count("\n") == 1


def test_json_is_one_object_with_every_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for at in range(18):
        (folder / f"scene/train{at}.npy").unlink()
    assert cli.main(["data", "check", str(folder), "--json"]) == 2
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["usable"] is False and report["reader"] == "table"
    assert len(report["findings"][0]["examples"]) == 18
    assert report["splits"]["validation"]["lacking"]["depth"] == 1
    assert report["decoded"]["depth"]["dtypes"] == ["uint16"]
    assert err.splitlines()[0] == "comparing the files of 36 rows ..."


def test_many_findings_still_fit_one_screen_and_say_how_many_are_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = (folder / "dataset.toml").read_text()
    lines = own_table.read_csv(folder)
    names = [f"m{at}" for at in range(12)]
    extra = "".join(f'[modality.{name}]\nkind = "vector"\nlength = 3\n' for name in names)
    (folder / "dataset.toml").write_text(toml + extra)
    for name in names:
        (folder / f"{name}.npy").write_bytes(b"x")
    rows = [lines[0] + "".join(f",{name}" for name in names)]
    rows += [line + "".join(f",{name}.npy" for name in names) for line in lines[1:]]
    own_table.write_csv(folder, rows)
    code, shown = screen(folder, capsys)
    assert code == 2 and shown[-2].endswith(" more lines; --json has everything")


def test_help_names_the_exit_codes_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["check", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Exit code 0: it can be used, perhaps with warnings; 2: something is missing or broken." in text
    assert "example: mars-edge data check my_sensors" in text
    assert set(READERS) == {"casia_surf", "crema_d", "food101", "mcubes", "digits", "table"}
