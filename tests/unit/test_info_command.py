"""The commands info and verify, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from mars_edge import cli
from mars_edge.artifact import verify, write_sealed
from mars_runtime.engines import native
from tests.fake_engine import manifest, point


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sealed .onnx with a manifest and an empty graph: these commands never execute it."""
    said = manifest(operating_points={"rgb": point(), "depth": point(certified=False)}, provenance={"seed": 3})
    proto = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.helper.set_model_props(proto, {"manifest": said.to_json()})
    path = tmp_path / "fake.onnx"
    write_sealed(path, proto.SerializeToString())
    return path


def test_info_prints_digest_and_manifest(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fake: classification into attack, bona_fide"
    assert f"sha256      {verify(model).digest}" in lines
    assert "modality    rgb: image (3, 112, 112), 15 Hz" in lines
    assert "subset      rgb: acer 0.0100 (95 % 0.0000 to 0.0200, n 100), threshold 0.5" in lines
    assert lines.index("provenance  seed: 3") > 0
    assert any(line.startswith("subset      depth:") and line.endswith("not certified: abstains") for line in lines)


def test_info_json_holds_the_whole_manifest(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(model), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"]["sha256"] == verify(model).digest
    assert document["manifest"]["labels"] == ["attack", "bona_fide"]


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
