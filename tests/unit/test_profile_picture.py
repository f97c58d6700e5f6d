"""Pictures of a profile: nothing lies outside the card, both kinds show the same, and odd reports still draw."""

from __future__ import annotations

import copy
import itertools
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mars_edge.errors import UsageError
from mars_runtime.profiling.drawing import COLOURS, SERIES, Box, Drawing, Text, text_width, to_png, to_svg
from mars_runtime.profiling.drawing import Path as Line
from mars_runtime.profiling.picture import draw, stages_of, ticks, write
from mars_runtime.profiling.rows import histogram

SVG = "{http://www.w3.org/2000/svg}"


def row(subset: str, total_ms: float, **changes: Any) -> dict[str, Any]:
    def stage(ms: float) -> dict[str, Any]:
        return {
            "n": 400, "min_ms": 0.9 * ms, "p50_ms": ms, "p90_ms": 1.2 * ms, "p95_ms": 1.3 * ms, "p99_ms": 1.5 * ms,
            "max_ms": 2.0 * ms,
        }  # fmt: skip

    times = np.random.default_rng(0).lognormal(np.log(total_ms), 0.1, 400)
    shares = {"preprocess": 0.3, "encode.rgb": 0.4, "fuse": 0.1, "experts": 0.1, "loop": 0.1}
    return {
        "subset": subset,
        "certified": True,
        "quality": {"metric": "acer", "value": 0.0087, "low": 0.0, "high": 0.01, "n": 100},
        "stages": {
            "capture_wait": stage(0.01),
            **{name: stage(share * total_ms) for name, share in shares.items()},
            "total": stage(total_ms),
            "outside_engine": stage(0.4 * total_ms),
            "age": stage(1.1 * total_ms),
        },
        "histogram": histogram(times),
        **changes,
    }


def report(**changes: Any) -> dict[str, Any]:
    return {
        "t_utc": "2026-01-02T03:04:05Z",
        "artifact": {"file": "face.pte", "precision": "int8"},
        "device": {"board": "Some Board", "cores": 4, "governor": "ondemand"},
        "settings": {"engine": "executorch-native", "threads": 2, "mode": "standard"},
        "rows": [row("rgb", 1.0), row("rgb+depth+ir", 2.5)],
        "sustained": None,
        **changes,
    }


SUSTAINED = {
    "first_minute_p50_ms": 2.5,
    "last_minute_p50_ms": 3.0,
    "curve": [{"t_s": 2.5 + 5.0 * i, "p50_ms": 2.5 + 0.01 * i, "p90_ms": 3.0 + 0.02 * i} for i in range(40)],
}
LONG_TAIL = report(rows=[row("rgb", 1.0), row("all", 2.0)])
LONG_TAIL["rows"][1]["stages"]["total"]["p99_ms"] = 900.0
ODD = {
    "usual": report(),
    "sustained": report(sustained=SUSTAINED),
    "a long tail": LONG_TAIL,
    "one subset": report(rows=[row("rgb", 0.01)]),
    "many subsets": report(rows=[row(f"s{i}", 0.5 + i) for i in range(15)]),
    "slow": report(rows=[row("rgb", 4000.0)]),
    "nothing known": report(
        device={},
        rows=[row("rgb", 1.0, quality=None, certified=None)],
        settings={"engine": "x", "threads": None, "mode": "quick"},
    ),
    "all times equal": report(rows=[row("rgb", 1.0, histogram=histogram(np.full(50, 1.0)))]),
    "markup in names": report(artifact={"file": "a<b>&\"c.pte", "precision": "int8"}),
    "letters of other scripts": report(artifact={"file": "模型.pte", "precision": "int8"}),
}  # fmt: skip


def extents(drawing: Drawing) -> list[tuple[float, float, float, float]]:
    found = []
    for shape in drawing.shapes:
        if isinstance(shape, Box):
            found.append((shape.x, shape.y, shape.x + shape.width, shape.y + shape.height))
        elif isinstance(shape, Text):
            width = text_width(shape.text, shape.size)
            left = shape.x - {"start": 0.0, "middle": 0.5, "end": 1.0}[shape.anchor] * width
            found.append((left, shape.y - shape.size, left + width, shape.y))
        else:
            xs, ys = zip(*shape.points, strict=True)
            found.append((min(xs), min(ys), max(xs), max(ys)))
    return found


@pytest.mark.parametrize("name", sorted(ODD))
def test_everything_drawn_lies_on_the_card(name: str) -> None:
    drawing = draw(ODD[name])
    for left, top, right, bottom in extents(drawing):
        assert left >= 0.0, name
        assert top >= 0.0, name
        assert right <= drawing.width, name
        assert bottom <= drawing.height, name


@pytest.mark.parametrize("name", sorted(ODD))
def test_an_svg_is_well_formed_and_needs_nothing_from_outside(name: str) -> None:
    text = to_svg(draw(ODD[name]))
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "nan" not in text
    assert "inf" not in text.lower().replace("information", "")


def test_a_row_s_bars_follow_each_other_and_are_as_long_as_its_stages() -> None:
    made = report()
    boxes = [s for s in draw(made).shapes if isinstance(s, Box) and " ms" in s.title and " to " not in s.title]
    wide = boxes[-len(stages_of(made["rows"][-1])) :]
    for before, after in itertools.pairwise(wide):
        assert after.x == pytest.approx(before.x + before.width)
    widths = np.array([box.width for box in wide])
    medians = np.array(list(stages_of(made["rows"][-1]).values()))
    assert widths / widths.sum() == pytest.approx(medians / medians.sum())


def test_no_time_is_stacked_twice() -> None:
    assert list(stages_of(row("rgb", 1.0))) == ["preprocess", "encode.rgb", "fuse", "experts", "loop"]
    assert sum(stages_of(row("rgb", 1.0)).values()) == pytest.approx(1.0)


def test_a_far_tail_is_told_in_words_and_does_not_shrink_the_stages() -> None:
    texts = [s.text for s in draw(LONG_TAIL).shapes if isinstance(s, Text)]
    assert any("p99 900" in text for text in texts)

    def bars(made: dict[str, Any]) -> float:
        return sum(s.width for s in draw(made).shapes if isinstance(s, Box) and s.title.startswith("preprocess"))

    calm = copy.deepcopy(LONG_TAIL)
    calm["rows"][1]["stages"]["total"]["p99_ms"] = 5.0
    assert bars(LONG_TAIL) == pytest.approx(bars(calm))


def test_a_quantile_beyond_the_last_bin_has_an_arrow_and_no_line() -> None:
    def dashed(made: dict[str, Any]) -> int:
        return sum(isinstance(s, Line) and s.dashed for s in draw(made).shapes)

    calm = copy.deepcopy(LONG_TAIL)
    calm["rows"][-1]["stages"]["total"] |= {f"{name}_ms": 2.0 for name in ("p50", "p90", "p99")}
    assert dashed(calm) == 3
    assert not any("->" in s.text for s in draw(calm).shapes if isinstance(s, Text))
    assert calm["rows"][-1]["histogram"]["edges_ms"][-1] < 900.0
    calm["rows"][-1]["stages"]["total"]["p99_ms"] = 900.0
    assert dashed(calm) == 2
    assert [s.text for s in draw(calm).shapes if isinstance(s, Text) and "->" in s.text] == ["p99 900 ms ->"]


def test_a_name_of_terminal_codes_and_broken_bytes_is_shown_by_its_escapes(tmp_path: Path) -> None:
    odd = report(artifact={"file": "a\x1b[2J\udcff\x00<b>.pte", "precision": "int8"})
    odd["rows"][1]["subset"] = "rgb\x1b[31m"
    odd["rows"][1]["quality"]["metric"] = "\x07metric"
    text = to_svg(draw(odd))
    assert all(c.isprintable() or c == "\n" for c in text)
    title = ElementTree.fromstring(text).findtext(f"{SVG}title")
    assert title == "Latency of a\\x1b[2J\\udcff\\x00<b>.pte"
    write(odd, tmp_path / "a.svg")
    write(odd, tmp_path / "a.png")


def test_the_curve_of_a_sustained_run_is_drawn_only_where_there_is_one() -> None:
    def long_lines(made: dict[str, Any]) -> int:
        return sum(isinstance(s, Line) and len(s.points) > 2 for s in draw(made).shapes)

    assert long_lines(report(sustained=SUSTAINED)) == 2
    assert long_lines(report()) == 0
    assert long_lines(report(sustained={**SUSTAINED, "curve": SUSTAINED["curve"][:1]})) == 0  # type: ignore[index]


@pytest.mark.parametrize("most", [1e-4, 0.3, 1.0, 2.5, 7.0, 99.9, 100.0, 12345.0])
def test_an_axis_has_few_round_marks_and_ends_just_beyond_the_largest_value(most: float) -> None:
    marks = ticks(most)
    assert marks[0] == 0.0
    assert 4 <= len(marks) <= 8
    assert marks[-2] < most <= marks[-1] * (1 + 1e-9)
    assert float(f"{marks[1]:.1e}"[0]) in (1.0, 2.0, 5.0)


def test_an_svg_follows_the_viewer_s_mode_by_roles() -> None:
    text = to_svg(draw(report()))
    assert "@media (prefers-color-scheme: dark)" in text
    for _, dark in COLOURS.values():
        assert dark in text
    # Ink is named by its role, so that it turns with the card.
    assert 'fill="#1f2328" class="f-ink"' in text
    assert "var(" not in text


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255.0 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_and_series_can_be_seen_in_both_modes() -> None:
    for mode in (0, 1):
        card = COLOURS["card"][mode]
        assert contrast(COLOURS["ink"][mode], card) >= 7.0
        assert contrast(COLOURS["muted"][mode], card) >= 4.5
        for colour in SERIES:
            assert contrast(colour, card) >= 1.9, colour


def test_a_png_shows_the_same_drawing_twice_as_large() -> None:
    drawing = draw(report(sustained=SUSTAINED))
    image = cv2.imdecode(np.frombuffer(to_png(drawing), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (2 * drawing.height, 2 * drawing.width, 3)
    box = max((s for s in drawing.shapes if isinstance(s, Box)), key=lambda s: s.width * s.height)
    at = image[round(2 * (box.y + box.height / 2)), round(2 * (box.x + 0.25 * box.width))]
    wanted = [int(box.colour[i : i + 2], 16) for i in (5, 3, 1)]
    assert np.abs(at.astype(int) - wanted).max() <= 2
    assert tuple(image[2, 2]) == (255, 255, 255)


@pytest.mark.parametrize(("name", "head"), [("a.svg", b"<svg"), ("a.png", b"\x89PNG")])
def test_the_suffix_says_the_kind(tmp_path: Path, name: str, head: bytes) -> None:
    write(report(), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(head)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.pdf", "a.PNG", "a"])
def test_a_picture_of_another_kind_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(UsageError) as refusal:
        write(report(), path)
    assert str(refusal.value) == f"picture {path}: ends in {path.suffix!r}; allowed: .svg, .png"
    assert list(tmp_path.iterdir()) == []
