"""The report says what the manifest says, in both forms, and nothing in a manifest can break out of its cell.

Axes: none.
"""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mars_edge import subsets
from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest, MethodCost, OperatingPoint, SubsetCost
from mars_edge.metrics import Rate
from mars_export import parity, parity_report, pieces
from tests.helpers.tiny_mars import NAMES, SOURCE, model, recipe, split
from tests.helpers.torch_engine import TorchEngine, manifest_of


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    deployed = pieces.float_pieces(model().deployed)
    draft = manifest_of(deployed, SOURCE, recipe())
    engine = TorchEngine(deployed, draft)
    report = parity.check(engine, deployed, split(12, 9), pieces=engine).to_dict()
    coverage = {method: {"share": 0.95, "left": ["aten.mean.dim"]} for method in draft.methods}
    labels = [subsets.label(s, NAMES) for s in subsets.all_subsets(NAMES)]
    rate = Rate(value=0.25, low=0.1, high=0.5, errors=3, n=12)
    return replace(
        draft,
        parity={**report, "coverage": coverage},
        operating_points={label: point(rate, certified=label != "rgb") for label in labels[:-1]},
        costs={method: MethodCost(macs=1234567, weight_bytes=890, activation_bytes=None) for method in draft.methods},
        subset_costs={label: SubsetCost(macs=7654321, weight_bytes=98, activation_bytes=76) for label in labels},
        provenance={**draft.provenance, "note": "simulated", "seed": 7, "versions": {"torch": "2.13.0"}},
    )


def point(rate: Rate, *, certified: bool) -> OperatingPoint:
    return OperatingPoint(
        threshold=0.5, metric="acer", value=0.2, low=0.1, high=0.3, n=12, certified=certified, bpcer=rate,
        apcer={"print": rate},
    )  # fmt: skip


class Page(HTMLParser):
    """The tables of a page and every attribute in it; fails on a tag that is left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: list[list[list[str]]] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def markdown_tables(text: str) -> list[list[list[str]]]:
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[_cells(line) for line in (block[0], *block[2:])] for block in blocks]


def _cells(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line)[1:-1]
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells]


def test_both_forms_hold_the_same_tables(manifest: Manifest) -> None:
    page = Page(parity_report.html_page(manifest))
    assert page.tables == markdown_tables(parity_report.markdown(manifest))
    assert all(len(row) == len(table[0]) for table in page.tables for row in table)
    heads = [table[0][0] for table in page.tables]
    assert heads == ["what", "bound", "subset", "method", "label", "subset", "subset", "method"]


def test_every_subset_method_bound_and_cost_is_there(manifest: Manifest) -> None:
    facts, bounds, rows, methods, worst, points, costs, _ = Page(parity_report.html_page(manifest)).tables
    report = manifest.parity
    assert report is not None
    assert [row[0] for row in rows[1:]] == list(report["subsets"])
    assert all(row[1] == "12" and row[2] == "100.00 %" for row in rows[1:])
    assert [row[0] for row in methods[1:]] == list(manifest.methods)
    assert {row[5] for row in methods[1:]} == {"95.00 %"}
    chosen = [row[4] for row in methods[1:] if row[0].startswith("expert_")]
    assert chosen == [str(times) for times in report["experts_chosen"]]
    assert [row[4] for row in bounds[1:]] == ["yes"] * 5
    assert [row[0] for row in worst[1:]] == list(manifest.labels)
    assert points[1][6] == "no: abstains" and points[2][6] == "yes"
    assert costs[1][1:] == ["7,654,321", "98", "76"]
    known = dict(facts[1:])  # type: ignore[arg-type]
    assert known["data"] == "simulated" and known["versions"] == "torch 2.13.0" and known["engine"] == "torch"
    assert known["machine"].startswith(f"{report['machine']['processor']}, ")


def test_a_bound_that_was_missed_is_marked_with_where(manifest: Manifest) -> None:
    report: Any = manifest.parity
    for key, value, shown in (("max_steps", 2.5, "2.50"), ("label_agreement", 0.8, "80.00 %")):
        rows = {**report["subsets"], "depth": {**report["subsets"]["depth"], key: value}}
        missed = replace(manifest, parity={**report, "subsets": rows})
        bounds = Page(parity_report.html_page(missed)).tables[1]
        (row,) = [row for row in bounds if row[4] == "no"]
        assert row[2:4] == [shown, "depth"]


def test_what_was_not_measured_is_said(manifest: Manifest) -> None:
    report: Any = manifest.parity
    gaps = {**report, "unmeasured": ["rgb+ir"], "experts_chosen": [1, 0, 5, 0]}
    text = parity_report.markdown(replace(manifest, parity=gaps))
    assert "No sample has the subset rgb+ir: nothing is known of it." in text
    assert "No sample chose expert 1, 3: compared on its own only." in text
    assert "No operating point was set for rgb+depth+ir: the runtime abstains there." in text
    assert "No time was measured" in text


def test_names_cannot_break_out_of_the_page_or_the_table(manifest: Manifest) -> None:
    evil = "</td><script src=//x>alert(1)</script>|`**&amp;"
    named = replace(manifest, name=evil, labels=(evil, "live"))
    page = Page(parity_report.html_page(named))
    assert "script" not in page.tags
    assert evil in page.tables[0][1][1] and page.tables[4][1][0] == evil
    assert markdown_tables(parity_report.markdown(named)) == page.tables


def test_the_page_needs_no_other_file(manifest: Manifest) -> None:
    text = parity_report.html_page(manifest)
    assert {name for name, _ in Page(text).attributes} <= {"lang", "charset", "name", "content", "class"}
    assert "http" not in text and "url(" not in text and "@import" not in text


def test_a_report_of_an_earlier_version_is_shown_as_far_as_it_goes(manifest: Manifest) -> None:
    report: Any = manifest.parity
    kept = ("label_agreement", "max_steps", "over_one_step", "routing_flips")
    rows = {label: {key: row[key] for key in kept} for label, row in report["subsets"].items()}
    early = {"engine": "torch", "samples": 12, "subsets": rows, "methods": {}, "experts_chosen": [1, 1, 1, 1]}
    bare = replace(manifest, parity=early, operating_points={}, costs={}, subset_costs={}, provenance={})
    tables = Page(parity_report.html_page(bare)).tables
    assert [table[0][0] for table in tables] == ["what", "subset", "method"]
    assert tables[1][1][4] == "-" and tables[2][1][1] == "-"
    assert tables == markdown_tables(parity_report.markdown(bare))


@pytest.mark.parametrize("suffix", [".html", ".md"])
def test_the_form_is_that_of_the_suffix_and_nothing_is_left_beside_it(
    manifest: Manifest, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"report{suffix}"
    path.write_text("older")
    parity_report.write(path, manifest)
    text = path.read_text(encoding="utf-8")
    assert text == (parity_report.html_page if suffix == ".html" else parity_report.markdown)(manifest)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_written_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    for path, bad, message in (
        (tmp_path / "report.pdf", manifest, f"report {tmp_path}/report.pdf has the suffix '.pdf'; allowed: .html, .md"),
        (tmp_path / "no" / "a.md", manifest, f"no folder {tmp_path}/no to write a.md into"),
        (
            tmp_path / "a.md",
            replace(manifest, parity=None),
            "tiny holds no parity report: it was not written by mars-edge export",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            parity_report.write(path, bad)
        assert str(caught.value) == message
    assert not list(tmp_path.iterdir())
