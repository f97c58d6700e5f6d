"""The commands info and verify, as a user types them."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from mars_edge import cli, subsets
from mars_edge.artifact import verify, write_sealed
from mars_edge.defence import text_table
from mars_edge.manifest import Manifest, MethodCost, Policy, SubsetCost, subset_cost
from mars_edge.metrics import rate
from mars_edge.modality import Modality
from mars_runtime.commands.info import main as info_main
from mars_runtime.description import hesitation, subset_costs
from mars_runtime.engines import native
from mars_runtime.text import WIDTH, amount, heading, table
from mars_runtime.toml_writer import as_toml
from mars_training.recipe import load_recipe
from tests.fake_engine import manifest, point

Write = Callable[..., Path]
PARITY = {
    "engine": "executorch-native",
    "samples": 500,
    "subsets": {
        "rgb": {"label_agreement": 0.996, "max_steps": 1.0, "routing_flips": 0.0},
        "rgb+ir": {"label_agreement": 1.0, "max_steps": 2.0, "routing_flips": 0.012},
    },
    "methods": {"route": 0.5, "expert_0": 0.25, "expert_1": 1.75, "expert_2": 0.0, "expert_3": 0.0},
    "coverage": {"route": {"share": 0.9473, "left": ["aten.mean.dim"]}, "head": {"share": 1.0, "left": []}},
    "experts_chosen": [1, 2, 3, 4],
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Seals an .onnx with the manifest of `tests.fake_engine` and an empty graph: info never executes it."""

    def written(name: str = "fake.onnx", **changes: Any) -> Path:
        proto = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
        onnx.helper.set_model_props(proto, {"manifest": manifest(**changes).to_json()})
        write_sealed(tmp_path / name, proto.SerializeToString())
        return tmp_path / name

    return written


@pytest.fixture
def model(write: Write) -> Path:
    return write(operating_points={"rgb": point(), "depth": point(certified=False)}, provenance={"seed": 3})


def lines_of(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    assert cli.main(["info", str(path), *options]) == 0
    return capsys.readouterr().out.splitlines()


def section(lines: list[str], title: str) -> list[str]:
    """The lines below `title`, to the next empty one."""
    rest = lines[lines.index(title) + 1 :]
    return rest[: rest.index("")] if "" in rest else rest


def costs_of(said: Manifest) -> dict[str, MethodCost]:
    """A different cost of every method but for the experts, which are alike."""
    return {
        method: MethodCost(macs=5000, weight_bytes=50, activation_bytes=500)
        if method.startswith("expert_")
        else MethodCost(macs=1000 * i + 1000, weight_bytes=10 * i, activation_bytes=100 * i)
        for i, method in enumerate(said.methods)
    }


def test_info_prints_digest_and_manifest(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(model, capsys)
    assert lines[0] == "fake: classification into 2 labels"
    assert lines[1] == "  labels      attack, bona_fide; bona_fide is accepted"
    assert f"  sha256      {verify(model).digest}" in lines
    assert "  experts     2 of 4 run per decision" in lines
    assert section(lines, "inputs")[1] == "  rgb       image  3 x 112 x 112  15  uint8   0 to 255     2"
    assert section(lines, "decisions, by what is present") == [
        "  present  ACER %  95 % interval    n  threshold  temperature  and then it",
        "  rgb        1.00   0.00 to 2.00  100     0.5000        1.000  decides",
        "  depth      1.00   0.00 to 2.00  100     0.5000        1.000  abstains",
        "  depth abstains: not certified, for a reason that is not recorded",
    ]
    assert "  seed        3" in section(lines, "provenance")


def test_info_names_the_parameters_and_the_checkpoint(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(parameters=1_012_618, provenance={"checkpoint": "ab12", "seed": 0})
    lines = lines_of(path, capsys)
    assert "  parameters  1,012,618" in lines
    assert section(lines, "provenance")[3] == "  checkpoint  ab12"
    assert json.loads(lines_of(path, capsys, "--json")[0])["manifest"]["parameters"] == 1_012_618


def test_what_an_older_file_does_not_hold_reads_not_recorded(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(model, capsys)
    assert "  target      not recorded" in lines
    assert section(lines, "cost of one decision, everything new") == ["  not recorded"]
    assert section(lines, "parity with the model it came from") == ["  not recorded"]
    assert {"  data        not recorded", "  recipe      not recorded", "  versions    not recorded"} < set(lines)
    assert {"  parameters  not recorded", "  checkpoint  not recorded"} < set(lines)
    assert "methods" not in lines
    assert "attacks" not in lines


def test_info_json_holds_the_whole_manifest_and_what_follows_from_it(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    attacks = point(apcer={"print": rate(3, 100)}, bpcer=rate(0, 100))
    points = {"rgb": point(certified=False, high=0.2, target=0.1), "rgb+ir": attacks}
    said = manifest(operating_points=points)
    path = write(operating_points=points, costs=costs_of(said))
    (text,) = lines_of(path, capsys, "--json")
    document = json.loads(text)
    assert document["file"] == {"format": "onnx", "size_bytes": path.stat().st_size, "sha256": verify(path).digest}
    assert Manifest.from_json(json.dumps(document["manifest"])) == manifest(
        operating_points=points, costs=costs_of(said)
    )
    assert list(document["computed"]["subset_costs"]) == ["rgb", "rgb+ir"]
    assert document["computed"]["does_not_decide"] == {
        "rgb": "abstains: ACER may be 20.00 %, at most 10.00 % is allowed"
    }
    assert document["computed"]["species"][0]["species"] == "print"
    assert {entry["before"] for entry in document["computed"]["downgrades"]} == {"rgb+ir"}


def test_costs_follow_from_the_methods_unless_they_are_recorded() -> None:
    said = manifest()
    recorded = {"rgb": SubsetCost(macs=7, weight_bytes=8)}
    made = subset_costs(manifest(costs=costs_of(said), subset_costs=recorded))
    assert made["rgb"] == recorded["rgb"]
    assert list(made) == list(said.operating_points)
    assert made["rgb+depth"] == subset_cost(manifest(costs=costs_of(said)), ("rgb", "depth"))
    assert subset_costs(manifest(subset_costs=recorded)) == recorded
    assert subset_costs(said) == {}


def test_a_subset_costs_its_share_of_the_most(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    said = manifest()
    lines = section(lines_of(write(costs=costs_of(said)), capsys), "cost of one decision, everything new")
    assert lines[0] == "  present         MACs  of the most  weights read  peak memory"
    # MACs: encode_rgb 1000, route 4000, two experts of 5000, head 9000; with depth and ir 2000 and 3000 more.
    assert lines[1] == "  rgb           24.0 k         0.83         210 B        800 B"
    assert lines[-1] == "  rgb+depth+ir  29.0 k         1.00         240 B        800 B"


def test_experts_of_equal_cost_share_a_line_with_the_worst_of_them(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = section(lines_of(write(costs=costs_of(manifest()), parity=PARITY), capsys), "methods")
    assert [line for line in lines if "expert" in line] == [
        "  expert_0 .. 3, each  5.00 k     50 B        500 B                -           1.75"
    ]


def test_an_expert_that_costs_something_else_has_its_own_line(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    costs = costs_of(manifest()) | {"expert_2": MethodCost(macs=1, weight_bytes=1)}
    lines = section(lines_of(write(costs=costs), capsys), "methods")
    assert [line.split("  ")[1] for line in lines if "expert" in line] == [
        "expert_0 .. 1, each",
        "expert_2",
        "expert_3",
    ]


def test_the_parity_section_names_the_worst_and_where_it_was(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    lines = section(lines_of(write(parity={**PARITY, "threads": 2}), capsys), "parity with the model it came from")
    assert lines == [
        "  engine      executorch-native, 500 samples",
        "  agreement   equal labels in at least 99.60 % of them (rgb)",
        "  worst       a logit is off by 2.00 output steps (rgb+ir)",
        "  routing     other experts ran in at most 1.20 % of them (rgb+ir)",
        "  delegate    at least 94.7 % of a method's operators (route)",
        "  portable    left to the portable kernels: aten.mean.dim",
        "  other       threads: 2",
    ]


@pytest.mark.parametrize(
    "parity", [{}, {"subsets": 5, "coverage": [1], "methods": "no"}, {"coverage": {"head": {"left": 3, "share": "x"}}}]
)
def test_a_report_of_another_shape_is_no_traceback(
    write: Write, parity: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lines_of(write(parity=parity), capsys)[0] == "fake: classification into 2 labels"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"high": 0.25, "target": 0.1}, "ACER may be 25.00 %, at most 10.00 % is allowed"),
        (
            {"metric": "accuracy", "value": 0.8, "low": 0.7, "high": 0.9, "target": 0.75},
            "accuracy may be 70.00 %, at least 75.00 % is needed",
        ),
        # The bound it has is met: another one, which is not in the point, is not.
        ({"high": 0.05, "target": 0.1}, "not certified, for a reason that is not recorded"),
        (
            {"metric": "miou", "value": 0.8, "low": 0.79, "high": 0.9, "target": 0.75},
            "not certified, for a reason that is not recorded",
        ),
        ({}, "not certified, for a reason that is not recorded"),
    ],
)
def test_a_subset_says_by_what_it_misses_its_certificate(changes: dict[str, Any], reason: str) -> None:
    said = manifest(operating_points={"rgb": point(certified=False, **changes)})
    assert hesitation(said, "rgb") == ("abstains", reason)
    assert hesitation(manifest(), "rgb") is None


def test_what_the_exporter_says_of_a_certificate_goes_before_what_follows_from_its_bound(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {
        "temperature": {"value": 1.5, "note": None},
        "before": {"ece": 0.12, "nll": 1.0},
        "after": {"ece": 0.03, "nll": 0.9},
        "shortfalls": ["BPCER may be 0.5", "20 test samples, 100 are needed"],
    }
    points = {"rgb": point(certified=False, high=0.2, target=0.1), "ir": point()}
    path = write(operating_points=points, provenance={"calibration": {"rgb": entry, "ir": {**entry, "after": 5}}})
    lines = lines_of(path, capsys)
    reason = section(lines, "decisions, by what is present")[-1]
    assert reason == "  rgb abstains: BPCER may be 0.5; 20 test samples, 100 are needed"
    assert section(lines, "calibration on test") == [
        "  present  calibration error before %  after the temperature %",
        "  rgb                           12.00                     3.00",
    ]


def test_what_the_policy_forbids_does_not_decide() -> None:
    assert hesitation(manifest(policy=Policy(require=("depth|ir",))), "rgb") == ("abstains", "requires depth|ir")
    closed = Policy(on_missing="fail_closed")
    assert hesitation(manifest(policy=closed), "rgb+ir") == ("rejects", "depth missing")
    # A plain classification has no label that stands for a rejection.
    assert hesitation(manifest(policy=closed, positive_label=None), "rgb+ir") == ("abstains", "depth missing")


def test_no_line_is_wider_than_100_columns(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["colour_left", "colour_right", "time_of_flight", "near_infrared", "polarisation"]
    modalities = tuple(Modality(name=n, kind="image", size=(480, 640), dtype="uint16", range=(0, 65535)) for n in names)
    weak = point(certified=False, high=0.2, target=0.1, n=123456)
    points = {subsets.label(s, names): weak for s in subsets.all_subsets(names)}
    said = manifest(modalities, operating_points=points)
    large = {method: MethodCost(macs=10**12, weight_bytes=10**11, activation_bytes=10**11) for method in said.methods}
    path = write(modalities=modalities, operating_points=points, costs=large, provenance={"note": "words " * 60})
    lines = lines_of(path, capsys)
    assert max(map(len, lines)) <= WIDTH
    assert "  colour_left+colour_right+time_of_flight+near_infrared+polarisation" in lines


def test_a_detector_of_attacks_shows_the_table_of_its_defender(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    apcer = {"print": rate(3, 100), "a mask of silicone with a long name": rate(40, 100)}
    points = {"rgb+ir": point(apcer=apcer), "ir": point(apcer={"print": rate(1, 100)})}
    lines = lines_of(write(operating_points=points), capsys)
    expected = text_table(manifest(operating_points=points)).splitlines()
    assert lines[lines.index("attacks") + 1 :][: len(expected)] == expected
    assert max(map(len, lines)) <= WIDTH


def test_a_terminal_is_not_obeyed_by_what_a_file_says(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;title\x07\x1b[2J"
    path = write(
        provenance={"note": evil, "more": {evil: [evil]}, "versions": {evil: evil}},
        parity={"engine": evil, evil: evil, "subsets": {evil: {"max_steps": 1}}},
        operating_points={"rgb": point(apcer={evil: rate(1, 10)}, metric=evil)},
        target=evil,
    )
    assert cli.main(["info", str(path)]) == 0
    printed = capsys.readouterr().out
    assert all(c == "\n" or c.isprintable() for c in printed)
    assert "\\x1b]0;title\\x07\\x1b[2J" in printed
    assert cli.main(["diff", str(path), str(write("b.onnx")), "--no-latency"]) == 0
    assert all(c == "\n" or c.isprintable() for c in capsys.readouterr().out)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_titles_are_bold_on_a_terminal_alone_and_never_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert heading("x", _Terminal()) == "\x1b[1mx\x1b[0m"
    assert heading("x", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert heading("x", _Terminal()) == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert heading("x", _Terminal()) == "x"


def test_amounts_keep_three_digits() -> None:
    written = [amount(v, "B") for v in (0, 999, 1000, 9994, 9996, 99_949, 99_951, 999_499, 999_500, 1_207_865, 2.5e12)]
    assert written == [
        "0 B", "999 B", "1.00 kB", "9.99 kB", "10.0 kB", "99.9 kB", "100 kB", "999 kB", "1.00 MB", "1.21 MB", "2500 GB",
    ]  # fmt: skip
    assert amount(None) == "-"
    assert amount(12) == "12"


def test_a_table_leaves_out_a_column_of_nothing() -> None:
    assert table(("a", "b", "c"), [("1", "-", "2"), ("3", "-", "-")], align="<>>") == ["  a  c", "  1  2", "  3  -"]


def test_the_recipe_comes_out_as_the_toml_that_gives_it_back(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {
        "name": 'a "quoted"\\name\x7f\n',
        "rate": 1e-05,
        "on": True,
        "empty": {},
        "deep": {"er": {"list": [1, 2.5, "x"], "nested": [[1], []]}, "dotted.key": {"ü": 3}},
        "tables": [{"a": 1}, {"b c": [False]}],
    }
    path = write(provenance={"recipe": recipe})
    assert tomllib.loads("\n".join(lines_of(path, capsys, "--recipe"))) == recipe
    assert tomllib.loads(as_toml({"kept": 1, "left": None})) == {"kept": 1}


def test_a_file_without_its_recipe_says_so(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(model), "--recipe"]) == 2
    assert capsys.readouterr() == ("", f"mars-edge: {model} does not hold the recipe it was trained by\n")
    assert cli.main(["info", str(model), "--recipe", "--json"]) == 2
    assert capsys.readouterr().err == "mars-edge: --recipe prints TOML; give it without --json and --engines\n"


def test_the_bundled_model_gives_back_a_recipe_that_trains(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert info_main(["face_antispoof.onnx", "--recipe"]) == 0
    (tmp_path / "again.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_recipe(tmp_path / "again.toml").name == "face_antispoof"


def test_info_engines_lists_all_three(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--engines", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == ["executorch-native", "executorch-python", "onnxruntime"]


def test_info_engines_repeats_why_the_native_engine_was_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unavailable.txt").write_text("the C++ compiler g++ is not installed\n")
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    assert cli.main(["info", "--engines"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "executorch-native   no   not built: the C++ compiler g++ is not installed"


def test_info_without_anything_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == "mars-edge: give either a model file or --engines\n"


def test_verify_accepts_a_whole_file(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(model)]) == 0
    expected = f"{model}: whole, onnx, {model.stat().st_size} bytes, sha256 {verify(model).digest}\n"
    assert capsys.readouterr().out == expected


def test_verify_ends_with_4_on_one_flipped_bit(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    assert cli.main(["verify", str(model)]) == 4
    printed = capsys.readouterr()
    assert printed.err == f"mars-edge: {model} is damaged: its SHA-256 is not the one in its digest property\n"
    assert printed.out == ""


def test_a_missing_file_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "nope.pte"]) == 2
    assert capsys.readouterr().err.startswith("mars-edge: no model file nope.pte; bundled models: ")
