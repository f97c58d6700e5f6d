"""Grid files: strict, merged key by key, and refused in one line that names the row."""

from __future__ import annotations

from pathlib import Path

import pytest

from mars_edge.errors import UsageError
from mars_training.grid import load_grid, merge, slug

RECIPE = """
name = "base"
[data]
reader = "digits"
[model]
width = 8
[model.encoders.audio]
channels = [4]
strides = [4]
"""
HEAD = 'name = "g"\nrecipe = "base.toml"\n'
ROW = '[[row]]\nname = "MARS"\n'


def written(folder: Path, text: str) -> Path:
    (folder / "base.toml").write_text(RECIPE)
    (folder / "grid.toml").write_text(text)
    return folder / "grid.toml"


def test_a_row_changes_the_keys_it_names_and_no_other(tmp_path: Path) -> None:
    text = HEAD + ROW + '[[row]]\nname = "wide"\nmethod = "modality_dropout"\n[row.set.model]\nwidth = 16\n'
    plain, wide = load_grid(written(tmp_path, text)).rows
    there, here = plain.recipe.to_dict(), wide.recipe.to_dict()
    assert (there["model"].pop("width"), here["model"].pop("width")) == (8, 16)
    assert (there.pop("method"), here.pop("method")) == ("mars", "modality_dropout")
    assert there == here


def test_tables_merge_at_any_depth_and_lists_are_replaced() -> None:
    base = {"a": {"b": {"c": 1, "d": [1, 2]}}, "e": 3}
    assert merge(base, {"a": {"b": {"d": [5]}}, "f": 4}) == {"a": {"b": {"c": 1, "d": [5]}}, "e": 3, "f": 4}
    assert base == {"a": {"b": {"c": 1, "d": [1, 2]}}, "e": 3}


def test_a_row_may_have_a_recipe_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(RECIPE.replace("width = 8", "width = 32"))
    grid = load_grid(written(tmp_path, HEAD + ROW + '[[row]]\nname = "b"\nrecipe = "other.toml"\n'))
    assert [row.recipe.model.width for row in grid.rows] == [8, 32]


def test_cells_are_every_row_seed_and_fold_with_equal_data_together(tmp_path: Path) -> None:
    text = HEAD + "seeds = [3, 5]\nfolds = [0, 2]\n" + ROW + '[[row]]\nname = "b"\n'
    cells = load_grid(written(tmp_path, text)).cells()
    assert [(c.row.name, c.seed, c.recipe.data.fold) for c in cells] == [
        (name, seed, fold) for fold in (0, 2) for seed in (3, 5) for name in ("MARS", "b")
    ]
    assert cells[1].folder == Path("b/seed3-fold0")
    assert cells[1].label == "b, seed 3, fold 0"


def test_an_oracle_reads_the_runs_of_its_row_and_comes_after_them(tmp_path: Path) -> None:
    text = HEAD + "seeds = [0]\n" + '[[row]]\nname = "oracle"\noracle_of = "MARS"\n' + ROW + '[[row]]\nname = "b"\n'
    grid = load_grid(written(tmp_path, text))
    assert [(str(c.folder), str(c.source)) for c in grid.cells()] == [
        ("mars/seed0", "mars/seed0"),
        ("b/seed0", "b/seed0"),
        ("oracle/seed0", "mars/seed0"),
    ]
    assert grid.compare_with == "MARS"
    assert grid.pairs == [("b", "MARS"), ("oracle", "MARS")]


def test_a_row_can_be_paired_with_one_more(tmp_path: Path) -> None:
    text = HEAD + ROW + '[[row]]\nname = "b"\n[[row]]\nname = "c"\nalso_with = "b"\n'
    assert load_grid(written(tmp_path, text)).pairs == [("b", "MARS"), ("c", "MARS"), ("c", "b")]


def test_the_digest_is_of_what_the_grid_resolves_to(tmp_path: Path) -> None:
    one = load_grid(written(tmp_path, HEAD + ROW)).digest
    assert load_grid(written(tmp_path, "# a comment\n" + HEAD + "seeds = [0, 1, 2]\n" + ROW)).digest == one
    assert load_grid(written(tmp_path, HEAD + ROW + "[row.set.model]\nwidth = 9\n")).digest != one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "grid has no rows; give at least one [[row]]"),
        (HEAD + "row = 3", "grid has no rows; give at least one [[row]]"),
        (
            HEAD + "epochs = 3\n" + ROW,
            "unknown key 'epochs' in grid; known keys: name, recipe, row, seeds, folds, compare_with, split",
        ),
        (HEAD + 'split = "all"\n' + ROW, "grid.split is 'all'; allowed: validation, test"),
        (HEAD + 'seeds = ["a"]\n' + ROW, "grid.seeds is 'a'; it must be of type int"),
        (HEAD + "seeds = []\n" + ROW, "seeds is []; give at least one"),
        (HEAD + "seeds = [1, 1]\n" + ROW, "seeds is [1, 1]; each must be there once and at least 0"),
        (
            HEAD + ROW + "width = 3\n",
            "unknown key 'width' in row 'MARS'; known keys: name, method, recipe, oracle_of, also_with, set",
        ),
        (HEAD + "[[row]]\n", "row 1 lacks the key 'name'"),
        (HEAD + '[[row]]\nname = "--"\n', "row '--' has no letter or digit to name its folder by"),
        (HEAD + ROW + ROW, "rows 'MARS' and 'MARS' would share the folder 'mars'; rename one"),
        (
            HEAD + ROW + '[[row]]\nname = "mars!"\n',
            "rows 'MARS' and 'mars!' would share the folder 'mars'; rename one",
        ),
        (HEAD + 'compare_with = "x"\n' + ROW, "compare_with is 'x'; rows that train: 'MARS'"),
        (HEAD + ROW + 'also_with = "MARS"\n', "row 'MARS' is to be paired with itself; also_with names another row"),
        (
            HEAD + ROW + '[[row]]\nname = "o"\noracle_of = "x"\n',
            "row 'o' is the oracle of 'x'; rows that train: 'MARS'",
        ),
        (
            HEAD + ROW + '[[row]]\nname = "o"\noracle_of = "MARS"\nmethod = "mars"\n',
            "row 'o' is an oracle and trains nothing; it takes a name and oracle_of only",
        ),
        (
            HEAD + ROW + '[[row]]\nname = "d"\nmethod = "modality_dropout"\n[[row]]\nname = "o"\noracle_of = "d"\n',
            "row 'o' is the oracle of 'd', a modality_dropout row; only mars has a residual router",
        ),
        (
            HEAD + ROW + '[row.set]\nmethod = "mars"\n',
            "row 'MARS' sets the method in its recipe; write method = ... in the row",
        ),
        (
            HEAD + "folds = [0]\n" + ROW + "[row.set.data]\nfold = 1\n",
            "row 'MARS' sets data.fold; the grid's folds are [0]",
        ),
        (
            HEAD + "folds = [0]\n" + ROW + '[row.set.data]\nreader = "rig"\n',
            "folds is [0], but row 'MARS' reads 'rig', which has no folds",
        ),
        (
            HEAD + ROW + '[[row]]\nname = "b"\n[row.set.data]\npairings = 1\n',
            "data.pairings is 1 in row 'b' and 2 in row 'MARS'; rows must be tested on the same samples",
        ),
    ],
)
def test_a_wrong_grid_is_refused_with_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load_grid(written(tmp_path, text))
    assert str(error.value) == message


def test_a_change_that_no_recipe_knows_names_its_row(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^row 'MARS': unknown key 'widht' in recipe.model; known keys: encoders, "):
        load_grid(written(tmp_path, HEAD + ROW + "[row.set.model]\nwidht = 3\n"))


def test_a_grid_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load_grid(tmp_path / "none.toml")
    assert str(error.value) == f"no grid at {tmp_path / 'none.toml'}"


@pytest.mark.parametrize("name", ["digits", "rig"])
def test_a_shipped_grid_has_the_papers_ladder_each_step_paired_with_the_one_before(repository: Path, name: str) -> None:
    grid = load_grid(repository / "training" / "grids" / f"{name}.toml")
    assert grid.name == name
    assert {row.recipe.method for row in grid.rows} == {
        "mars", "moe", "modality_dropout", "hemis", "shaspec", "dmrnet", "simmlm", "flex_moe"
    }  # fmt: skip
    ladder = ["mixture of experts", "+ residual routing", "+ noise", "+ guided sampling = MARS"]
    assert set(zip(ladder[1:], ladder, strict=False)) <= set(grid.pairs)
    first = grid.rows[0].recipe
    for row in grid.rows:
        assert (row.recipe.data, row.recipe.schedule, row.recipe.augment) == (first.data, first.schedule, first.augment)


def test_a_slug_is_a_plain_folder_name() -> None:
    assert slug("+ guided sampling = MARS") == "guided-sampling-mars"
    assert slug("../MoE, 8/2") == "moe-8-2"
