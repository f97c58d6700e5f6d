"""Numbers on the command line: what is taken, and what is refused in one line."""

from __future__ import annotations

import pytest

from mars_edge.errors import UsageError
from mars_edge.options import OneLineParser, positive


def parsed(text: str, **bounds: float | bool) -> float:
    parser = OneLineParser(prog="mars-edge test")
    parser.add_argument("--rate", type=positive(float, **bounds))  # type: ignore[arg-type]
    value: float = parser.parse_args([f"--rate={text}"]).rate
    return value


@pytest.mark.parametrize(
    ("text", "bounds", "value"),
    [
        ("1e-300", {}, 1e-300),
        ("0", {"zero": True}, 0.0),
        ("0.001", {"least": 0.001}, 0.001),
        ("1000", {"least": 0.001, "most": 1000}, 1000.0),
    ],
)
def test_a_number_within_its_bounds_is_taken(text: str, bounds: dict[str, float], value: float) -> None:
    assert parsed(text, **bounds) == value


@pytest.mark.parametrize(
    ("text", "bounds", "message"),
    [
        ("0", {}, "0 is not above 0"),
        ("-1", {"zero": True}, "-1 is below 0"),
        ("1e-300", {"least": 0.001}, "1e-300 is below 0.001"),
        ("0", {"least": 0.001}, "0 is not above 0"),
        ("1001", {"most": 1000}, "1001 is above 1000"),
        ("nan", {"least": 0.001}, "nan is no finite number"),
        ("inf", {"least": 0.001}, "inf is no finite number"),
        ("fast", {}, "invalid number value: 'fast'"),
    ],
)
def test_a_number_outside_its_bounds_is_refused_with_the_bound(
    text: str, bounds: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        parsed(text, **bounds)
    assert str(refusal.value) == f"test: argument --rate: {message}"


def test_a_whole_number_of_any_length_is_refused_in_one_line() -> None:
    parser = OneLineParser(prog="mars-edge test")
    parser.add_argument("--runs", type=positive(int, most=1000))
    with pytest.raises(UsageError, match=r"^test: argument --runs: 9{400} is above 1000$"):
        parser.parse_args(["--runs", "9" * 400])
