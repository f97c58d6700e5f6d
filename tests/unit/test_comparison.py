"""The table of a comparison: what is bold, what is said of rows without runs, and which differences are claimed."""

from __future__ import annotations

import pytest

from mars_edge.errors import UsageError
from mars_training.comparison import TableRow, as_dict, as_markdown, comparisons
from mars_training.statistics import Key, holm, paired_test

KEYS: list[Key] = [(seed, 0) for seed in range(6)]


def row(name: str, *errors: float, privileged: bool = False, failed: dict[Key, str] | None = None) -> TableRow:
    """A row whose runs have these errors on audio, and half of them on the mean."""
    runs = zip(KEYS, errors, strict=False)
    return TableRow(
        name=name,
        errors={key: {"audio": e, "mean": e / 2} for key, e in runs},
        wanted=len(KEYS),
        failed=failed or {},
        metric="accuracy",
        privileged=privileged,
    )


A = row("A", 0.20, 0.22, 0.21, 0.19, 0.20, 0.23)
B = row("B", 0.30, 0.31, 0.33, 0.28, 0.30, 0.34)
C = row("C", 0.21, 0.20, 0.22, 0.20, 0.19, 0.24)
ORACLE = row("O", 0.10, 0.11, 0.10, 0.12, 0.10, 0.11, privileged=True)


def test_the_least_mean_is_bold_but_never_a_privileged_one() -> None:
    lines = as_markdown([A, B, ORACLE], []).splitlines()
    assert lines[0] == "| 100 - accuracy % | runs | audio | mean |"
    assert lines[2] == "| A | 6 | **20.83 ± 1.47** | **10.42 ± 0.74** |"
    assert "**" not in lines[3] and "**" not in lines[4] and lines[4].startswith("| O † |")


def test_every_p_is_adjusted_for_all_comparisons_of_the_table() -> None:
    pairs = [("B", "A"), ("C", "A"), ("B", "C")]
    found = comparisons([A, B, C], pairs)
    by_name = {r.name: r.column("mean") for r in (A, B, C)}
    alone = [test.p for pair in pairs if (test := paired_test(by_name[pair[0]], by_name[pair[1]]))]
    assert [found[pair].p for pair in pairs] == alone
    assert [found[pair].p_holm for pair in pairs] == holm(alone)
    text = as_markdown([A, B, C], pairs)
    assert "adjusted for all 3 of them" in text
    verdicts = [line.rsplit(" | ", 1)[1].strip(" |") for line in text.splitlines() if line[:5] in ("| B -", "| C -")]
    assert verdicts == ["higher error", "no difference shown", "higher error"]


def test_a_row_without_runs_says_why_and_how_many_there_are_of_the_others() -> None:
    part = row("part", 0.5, 0.4, failed={(2, 0): "NaN", (3, 0): "NaN", (4, 0): "killed"})
    none, broken = row("none"), row("broken", failed={(0, 0): "NaN"})
    text = as_markdown([A, part, none, broken], [("part", "A"), ("none", "A")])
    lines = text.splitlines()
    assert lines[3].startswith("| part | 2 of 6 | 45.00 ± 7.07 |")
    assert lines[4:6] == ["| none | 0 of 6 | not run | not run |", "| broken | 0 of 6 | failed | failed |"]
    assert "- Failed: part, (seed, fold) (2, 0), (3, 0): NaN\n- Failed: part, (seed, fold) (4, 0): killed" in text
    assert "| part - A | 2 |" in text and "none - A" not in text


def test_a_table_without_any_run_is_a_table() -> None:
    lines = as_markdown([row("x")], []).splitlines()
    assert lines[1:3] == ["|---|---|---|", "| x | 0 of 6 | not run |"]


def test_rows_of_other_subsets_are_refused() -> None:
    other = TableRow(name="other", errors={(0, 0): {"image": 0.1, "mean": 0.1}}, wanted=1)
    with pytest.raises(UsageError) as error:
        as_markdown([A, other], [])
    assert str(error.value) == "row 'other' was measured on image, row 'A' on audio; they cannot be compared"


def test_a_name_cannot_break_the_table() -> None:
    assert as_markdown([row("a|b", 0.1)], []).splitlines()[2].startswith("| a\\|b | 1 of 6 |")


def test_the_dictionary_holds_the_numbers_of_the_text() -> None:
    table = as_dict([A, B], [("B", "A")])
    assert table["rows"][0]["error"]["audio"]["mean"] == pytest.approx(20.8333, abs=1e-3)
    assert table["comparisons"][0]["verdict"] == "higher error"
    assert table["comparisons"][0]["wilcoxon"] == pytest.approx(2 / 2**6)
