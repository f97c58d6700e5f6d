"""The command diff, as a user types it, and the comparison below it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mars_edge import cli
from mars_edge.artifact import verify, verify_bytes, write_sealed
from mars_edge.manifest import Golden, Manifest, MethodCost, Tensor
from mars_edge.modality import Modality
from mars_runtime.comparison import Comparison, Side, compare, shared_subsets, table_changes
from mars_runtime.engines import Inference, engine_status
from mars_runtime.models import find_model
from mars_runtime.text import WIDTH
from mars_runtime.trial import agreement, inputs_for
from tests.fake_engine import RIG, manifest, point

Write = Callable[..., Path]
FACE = ("face_antispoof.pte", "face_antispoof.onnx")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Seals an .onnx whose graph no engine accepts, with the manifest of `tests.fake_engine`."""

    def written(name: str, **changes: Any) -> Path:
        proto = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
        onnx.helper.set_model_props(proto, {"manifest": manifest(**changes).to_json()})
        write_sealed(tmp_path / name, proto.SerializeToString())
        return tmp_path / name

    return written


def compared(a: Manifest, b: Manifest) -> Comparison:
    sealed = verify_bytes(_sealed_bytes(), "x")
    return compare(Side(name="a", sealed=sealed, manifest=a), Side(name="b", sealed=sealed, manifest=b))


def _sealed_bytes() -> bytes:
    from mars_edge.artifact import seal_onnx

    return seal_onnx(onnx.helper.make_model(onnx.helper.make_graph([], "e", [], [])).SerializeToString())


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert cli.main(["diff", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    (line,) = printed(capsys, *arguments, "--json")
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def section(lines: list[str], title: str) -> list[str]:
    rest = lines[lines.index(title) + 1 :]
    return rest[: rest.index("")] if "" in rest else rest


def require(*engines: str) -> None:
    for status in engine_status():
        if status.name in engines and not status.available:
            pytest.skip(f"{status.name}: {status.detail}")


def test_a_lost_certificate_is_named_before_everything_else(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a = write("a.onnx", operating_points={"rgb": point(), "ir": point(), "depth": point(certified=False)})
    worse = point(certified=False, value=0.2, high=0.3, target=0.1)
    b = write("b.onnx", operating_points={"rgb": point(), "ir": worse, "depth": point()}, experts=8)
    lines = printed(capsys, a, b, "--no-latency")
    assert lines[:3] == [
        "fake -> fake",
        "  LOST        certificate of ir; B: ACER may be 30.00 %, at most 10.00 % is allowed",
        "  gained      certificate of depth",
    ]
    rows = section(lines, "measured, B - A in points")
    assert [row.split()[0] for row in rows] == ["present", "ir", "rgb", "depth"]
    assert rows[1].split() == [
        "ir",
        "ACER",
        "1.00",
        "20.00",
        "+19.00",
        "worse,",
        "within",
        "the",
        "intervals",
        "0.500",
        "A",
        "only",
    ]


def test_a_certificate_is_lost_with_its_sensor(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, write("a.onnx"), write("b.onnx", modalities=RIG[:2]), "--no-latency")
    assert lines[1] == "  LOST        certificate of ir; B has no ir"
    assert "  LOST        certificate of rgb; B did not measure it" not in lines


def test_a_certified_subset_that_b_did_not_measure_is_lost(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write("a.onnx"), write("b.onnx", operating_points={"ir": point()})
    found = document(capsys, a, b, "--no-latency")
    assert found["certificates"]["kept"] == ["ir"]
    assert "rgb+depth+ir" in found["certificates"]["lost"]
    assert "  LOST        certificate of rgb; B did not measure it" in printed(capsys, a, b, "--no-latency")


@pytest.mark.parametrize(
    ("metric", "old", "new", "points", "overlap", "better"),
    [
        ("acer", (0.10, 0.08, 0.12), (0.05, 0.04, 0.06), -5.0, False, True),
        ("acer", (0.10, 0.08, 0.12), (0.13, 0.11, 0.15), 3.0, True, False),
        ("accuracy", (0.80, 0.70, 0.90), (0.95, 0.91, 0.99), 15.0, False, True),
        ("miou", (0.80, 0.70, 0.90), (0.75, 0.60, 0.80), -5.0, True, False),
        ("acer", (0.10, 0.08, 0.12), (0.10, 0.10, 0.10), 0.0, True, None),
    ],
)
def test_a_difference_is_in_points_and_knows_which_way_is_better(
    metric: str, old: Any, new: Any, points: float, overlap: bool, better: bool | None
) -> None:
    a, b = (
        manifest(operating_points={"rgb": point(metric=metric, value=value, low=low, high=high)})
        for value, low, high in (old, new)
    )
    (change,) = compared(a, b).subsets
    assert change.points == pytest.approx(points)
    assert (change.overlap, change.is_better) == (overlap, better)
    (back,) = compared(b, a).subsets
    assert back.points == pytest.approx(-points)
    assert back.is_better == (None if better is None else not better)


def test_values_of_two_metrics_are_shown_and_not_subtracted() -> None:
    (change,) = compared(
        manifest(operating_points={"rgb": point()}), manifest(operating_points={"rgb": point(metric="accuracy")})
    ).subsets
    assert (change.points, change.overlap, change.is_better) == (None, None, None)


def test_subsets_are_the_same_in_whatever_order_the_sensors_are_fused() -> None:
    turned = manifest(RIG[::-1], operating_points={"ir+rgb": point(value=0.02), "ir": point()})
    found = compared(manifest(operating_points={"rgb+ir": point()}), turned)
    assert [(change.label, change.points) for change in found.subsets] == [
        ("rgb+ir", pytest.approx(1.0)),
        ("ir", None),
    ]
    assert [change.path for change in found.changes] == ["modality_order"]
    assert shared_subsets(manifest(operating_points={"rgb+ir": point(), "depth": point()}), turned) == {
        "rgb+ir": ("rgb", "ir")
    }


def test_what_differs_in_the_manifest_is_named_by_its_path(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"model": {"experts": 4, "kind": "conv"}, "export": {"rate": 0.1}}
    a = write("a.onnx", provenance={"recipe": recipe, "seed": 0, "versions": {"numpy": "2.4.6"}})
    changed = {"model": {"experts": 4, "kind": "mlp"}, "prune": {"to": 8}}
    deep = Modality(name="depth", kind="image", size=(112, 112), dtype="uint16", range=(200, 1500))
    b = write(
        "b.onnx",
        modalities=(RIG[0], deep, RIG[2]),
        precision="int8",
        target="onnx-cpu",
        provenance={"recipe": changed, "seed": 1, "versions": {"numpy": "2.4.6"}},
    )
    assert section(printed(capsys, a, b, "--no-latency"), "manifest") == [
        "  precision: fp32 -> int8",
        "  target: null -> onnx-cpu",
        "  modality.depth.range: 200, 1200 -> 200, 1500",
        "  provenance.recipe.model.kind: conv -> mlp",
        "  provenance.seed: 0 -> 1",
        "  only in A: provenance.recipe.export",
        "  only in B: provenance.recipe.prune",
    ]
    assert {"path": "provenance.seed", "A": 0, "B": 1} in document(capsys, a, b, "--no-latency")["changes"]


def test_every_difference_of_two_tables_is_found_and_nothing_else() -> None:
    a = {"same": 1, "deep": {"same": [1], "other": {"x": 1, "gone": None}}, "kind": {"a": 1}, "empty": {}}
    b = {"deep": {"same": [1], "other": {"x": 2, "new": {}}}, "kind": 5, "same": 1, "empty": {}}
    assert [(change.path, dict(change.values)) for change in table_changes(a, b)] == [
        ("deep.other.x", {"A": 1, "B": 2}),
        ("deep.other.gone", {"A": None}),
        ("deep.other.new", {"B": {}}),
        ("kind", {"A": {"a": 1}, "B": 5}),
    ]
    assert table_changes(a, a) == ()


def test_another_golden_input_is_one_short_line(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write(f"{value}.onnx", golden=golden(value)) for value in (1, 2))
    (line,) = section(printed(capsys, a, b, "--no-latency"), "manifest")
    assert line.startswith("  golden_input_digest: ")
    assert len(line) < 60


def golden(value: int) -> Golden:
    inputs = {m.name: Tensor.of(np.full(m.shape, value, np.uint8)) for m in RIG}
    return Golden(inputs=inputs, logits={"rgb": (0.0, 1.0)}, tolerance=0.1)


def test_costs_are_compared_per_subset_and_per_method(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    methods = manifest().methods
    old = {method: MethodCost(macs=100, weight_bytes=1000, activation_bytes=10) for method in methods}
    new = old | {"encode_rgb": MethodCost(macs=50, weight_bytes=250)}
    a, b = write("a.onnx", costs=old), write("b.onnx", costs=new)
    lines = printed(capsys, a, b, "--no-latency")
    rgb, depth, *_ = section(lines, "cost of one decision, everything new")[1:]
    # encode, route, two of the experts, head
    assert " ".join(rgb.split()) == "rgb 500 450 0.900 5.00 kB 4.25 kB 0.850 10 B - -"
    assert depth.split() == [
        "depth",
        "500",
        "500",
        "1.000",
        "5.00",
        "kB",
        "5.00",
        "kB",
        "1.000",
        "10",
        "B",
        "10",
        "B",
        "1.000",
    ]
    assert [line.split()[0] for line in section(lines, "methods")] == ["method", "encode_rgb"]
    found = document(capsys, a, b, "--no-latency")
    assert found["subset_costs"][0]["b"] == {"macs": 450, "weight_bytes": 4250, "activation_bytes": None}
    same = printed(capsys, a, a, "--no-latency")
    assert section(same, "methods") == ["  the same methods and costs"]


def test_methods_that_came_and_went_are_listed(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write("a.onnx"), write("b.onnx", experts=3)
    assert section(printed(capsys, a, b, "--no-latency"), "methods") == ["  removed     expert_3"]
    assert document(capsys, b, a, "--no-latency")["methods"] == {"added": ["expert_3"], "removed": []}


def test_a_file_beside_itself_differs_in_nothing(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a = write("a.onnx", parity={"engine": "x", "subsets": {"rgb": {"max_steps": 1.00000001}}}, golden=golden(3))
    lines = printed(capsys, a, a, "--no-latency")
    assert "  size        B / A 1.000; the same file, byte for byte" in lines
    assert section(lines, "manifest") == ["  no difference"]
    assert section(lines, "parity reports") == ["  no difference"]
    assert all("equal" in row for row in section(lines, "measured, B - A in points")[1:])


def test_parity_reports_are_compared_by_their_worst(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (
        write(f"{i}.onnx", parity={"engine": "x", "subsets": {"rgb": {"max_steps": 0.5}, "ir": {"max_steps": steps}}})
        for i, steps in enumerate((1.0, 2.0))
    )
    assert section(printed(capsys, a, b, "--no-latency"), "parity reports") == ["  most steps off: 1.0, ir -> 2.0, ir"]


def test_other_labels_are_no_traceback_and_no_comparison(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    words = tuple(f"class {i}" for i in range(60))
    a = write("a.onnx")
    b = write("b.onnx", labels=words, positive_label=None, costs={})
    lines = printed(capsys, a, b)
    first, *_ = section(lines, "measured, B - A in points")
    assert first.startswith("  not comparable: they differ in labels: attack, bona_fide in A, class 0, class 1")
    assert not any("LOST" in line for line in lines)
    assert max(map(len, lines)) <= WIDTH


def test_other_sensors_are_no_traceback_and_no_comparison(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a = write("a.onnx", modalities=RIG[:1])
    b = write("b.onnx", modalities=RIG[1:])
    lines = printed(capsys, a, b)
    assert section(lines, "measured, B - A in points") == [
        "  not comparable: they share no modality: rgb in A, depth, ir in B"
    ]
    assert section(lines, "time of one decision here, everything new") == [
        "  not measured: they have no subset of modalities in common"
    ]
    assert section(lines, "methods")[0] == "  added       encode_depth, encode_ir"


def test_a_file_that_does_not_run_here_is_compared_without_times(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    require("onnxruntime")
    found = document(capsys, write("a.onnx"), write("b.onnx"))
    assert list(found["latency"]) == ["not_measured"]
    assert found["latency"]["not_measured"]
    assert found["certificates"]["lost"] == []


def test_an_engine_that_is_not_here_is_the_reason(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mars_runtime.engines import opening
    from mars_runtime.engines.protocol import ONNX

    monkeypatch.setitem(opening._ABSENCE, ONNX, lambda: "not installed: onnxruntime")
    assert document(capsys, write("a.onnx"), write("b.onnx"))["latency"] == {
        "not_measured": "no engine for .onnx files is here (onnxruntime: not installed: onnxruntime)"
    }


def test_a_damaged_file_ends_with_4_and_a_missing_one_with_2(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    whole, broken = write("a.onnx"), write("b.onnx")
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    for arguments in ((whole, broken), (broken, whole)):
        assert cli.main(["diff", *map(str, arguments)]) == 4
        assert capsys.readouterr() == (
            "",
            f"mars-edge: {broken} is damaged: its SHA-256 is not the one in its digest property\n",
        )
    assert cli.main(["diff", str(whole), "nope.pte"]) == 2
    assert capsys.readouterr().err.startswith("mars-edge: no model file nope.pte; bundled models: ")
    assert cli.main(["diff", str(whole)]) == 2
    assert capsys.readouterr().err == "mars-edge: diff: the following arguments are required: B\n"


def test_too_few_rounds_are_refused(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diff", str(write("a.onnx")), str(write("b.onnx")), "--rounds", "4"]) == 2
    assert capsys.readouterr().err == "mars-edge: diff: --rounds is 4; an interval needs at least 5\n"


def test_both_formats_of_one_run_answer_alike_and_are_timed_on_every_subset(capsys: pytest.CaptureFixture[str]) -> None:
    require("executorch-native", "onnxruntime")
    found = document(capsys, *FACE, "--rounds", 5, "--quiet")
    latency = found["latency"]
    assert latency["engines"] == ["executorch-native", "onnxruntime"]
    assert latency["inputs"] == "golden sample of A"
    assert len(latency["latency"]) == 7
    for label, times in latency["latency"].items():
        assert 0.0 < times["low"] <= times["ratio"] <= times["high"]
        assert times["ratio"] == pytest.approx(times["b_ms"] / times["a_ms"])
        assert latency["agreement"][label]["same_label"] == 1.0
    assert found["a"]["sha256"] == verify(find_model(FACE[0])).digest


def test_the_times_say_on_what_machine_and_stderr_says_what_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    require("onnxruntime")
    arguments = ["diff", FACE[1], FACE[1], "--rounds", "5", "--threads", "1"]
    assert cli.main(arguments) == 0
    output = capsys.readouterr()
    assert output.err == "mars-edge: timing 7 subsets in 5 rounds\n"
    lines = section(output.out.splitlines(), "time of one decision here, everything new")
    assert lines[0].startswith("  machine     ")
    assert "onnxruntime and onnxruntime, 1 thread each" in " ".join(lines)
    assert lines[-1].endswith("same label, equal logits")
    assert cli.main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_both_get_the_same_input_where_both_take_its_shape() -> None:
    small = tuple(Modality(name=m.name, kind="image", size=(8, 8), channels=m.channels) for m in RIG[:2])
    a, b = manifest(golden=golden(7)), manifest((*small, RIG[2]))
    for_a, for_b, said = inputs_for(a, b)
    assert np.array_equal(for_a["ir"], for_b["ir"])
    assert float(for_b["ir"].max()) == pytest.approx(7 / 255)
    assert for_b["rgb"].shape == (3, 8, 8)
    assert said == "golden sample of A, seeded noise"
    noise, again, said = inputs_for(b, b)
    assert said == "seeded noise"
    assert all(np.array_equal(noise[name], again[name]) for name in noise)
    assert inputs_for(b, a)[2] == "seeded noise, golden sample of B"


def test_answers_agree_by_label_or_by_the_share_of_pixels() -> None:
    def answer(logits: Any, *experts: int) -> Inference:
        gates = tuple((index, 0.5) for index in experts)
        return Inference(logits=np.array(logits, np.float32), experts=gates, features={}, latency_ms={})

    found = agreement(answer([0.0, 1.0], 1, 2), answer([0.5, 0.75], 2, 1))
    assert (found.same_label, found.largest_difference, found.same_experts) == (1.0, 0.5, True)
    found = agreement(answer([[[0, 1], [0, 1]], [[1, 0], [1, 0]]], 1), answer([[[0, 0], [0, 1]], [[1, 1], [1, 0]]], 3))
    assert (found.same_label, found.largest_difference, found.same_experts) == (0.75, 1.0, False)
