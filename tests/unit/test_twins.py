"""Which file is the float32 twin of an artifact: decided by where both come from, never by a name alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from mars_edge.artifact import verify, write_sealed
from mars_runtime import twins
from mars_runtime.engines import native, read_manifest
from mars_runtime.models import FOLDER, bundled_models
from mars_runtime.twins import twin_of
from tests.fake_engine import RIG, manifest

Write = Callable[..., Path]
RUN = {"checkpoint": "ab" * 32}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Seals an .onnx of an empty graph, int8 unless it is told otherwise: a twin is never executed here."""

    def written(name: str, /, **changes: Any) -> Path:
        proto = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
        said = {"precision": "int8", "provenance": RUN, **changes}
        onnx.helper.set_model_props(proto, {"manifest": manifest(**said).to_json()})
        write_sealed(tmp_path / name, proto.SerializeToString())
        return tmp_path / name

    return written


def found(path: Path) -> Path | None:
    return twin_of(path, read_manifest(verify(path)))


@pytest.mark.parametrize("name", ["face.onnx", "face.int8.onnx"])
def test_a_float32_artifact_of_the_same_run_is_the_twin(name: str, write: Write) -> None:
    twin = write("face.fp32.onnx", precision="fp32")
    assert found(write(name)) == twin


def test_a_half_precision_artifact_has_the_same_twin(write: Write) -> None:
    twin = write("face.v2.fp32.onnx", precision="fp32")
    assert found(write("face.v2.fp16.onnx", precision="fp16")) == twin
    assert found(write("face.v2.onnx")) == twin


def test_a_twin_is_found_from_the_working_directory(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = write("face.fp32.onnx", precision="fp32")
    path = write("face.onnx")
    monkeypatch.chdir(path.parent)
    assert found(Path("face.onnx")) == twin


def test_without_a_file_of_that_name_there_is_no_twin(write: Write) -> None:
    write("other.fp32.onnx", precision="fp32")
    assert found(write("face.onnx")) is None


def test_a_float32_artifact_has_no_twin_and_least_of_all_itself(write: Write) -> None:
    twin = write("face.fp32.onnx", precision="fp32")
    assert found(twin) is None
    assert found(write("face.onnx", precision="fp32")) is None


UNRELATED = {
    "of another checkpoint": {"provenance": {"checkpoint": "cd" * 32}},
    "without a checkpoint": {"provenance": {}},
    "of fewer experts": {"experts": 3},
    "with experts merged": {"provenance": RUN | {"experts": {"how": "merge"}}},
    "of another name": {"name": "other"},
    "for another target": {"target": "onnx-tensorrt"},
    "of other labels": {"labels": ("bona_fide", "attack")},
    "of other inputs": {"modalities": RIG[:2]},
    "in int8 itself": {"precision": "int8"},
}


@pytest.mark.parametrize("changes", UNRELATED.values(), ids=UNRELATED)
def test_a_file_of_the_right_name_is_no_twin(changes: dict[str, Any], write: Write) -> None:
    write("face.fp32.onnx", **{"precision": "fp32", **changes})
    assert found(write("face.onnx")) is None


def test_two_artifacts_of_an_earlier_version_are_not_taken_for_twins(write: Write) -> None:
    write("face.fp32.onnx", precision="fp32", provenance={"seed": 0})
    assert found(write("face.onnx", provenance={"seed": 0})) is None


def test_a_damaged_file_is_passed_over_and_a_folder_is(write: Write) -> None:
    twin = write("face.fp32.onnx", precision="fp32")
    path = write("face.onnx")
    twin.write_bytes(twin.read_bytes()[:-1])
    assert found(path) is None
    twin.unlink()
    twin.mkdir()
    assert found(path) is None


def test_behind_an_unrelated_file_the_bundled_twin_is_found(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    monkeypatch.setattr("mars_runtime.models.FOLDER", bundled)
    write("mine.fp32.onnx", precision="fp32", provenance={"checkpoint": "cd" * 32})
    twin = write("bundled/fake.fp32.onnx", precision="fp32")
    assert found(write("mine.onnx")) == twin


def test_a_name_in_a_manifest_reaches_no_file_outside_the_bundled_ones(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    monkeypatch.setattr("mars_runtime.models.FOLDER", bundled)
    write("away.fp32.onnx", precision="fp32", name="../away")
    (tmp_path / "elsewhere").mkdir()
    assert found(write("elsewhere/mine.onnx", name="../away")) is None


def test_only_files_of_the_twin_s_name_are_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("face.onnx")
    read: list[str] = []

    def reading(place: Path) -> Any:
        read.append(place.name)
        return verify(place)

    twin = write("face.fp32.onnx", precision="fp32")
    for i in range(20):
        os.link(twin, path.with_name(f"face{i}.fp32.onnx"))
    said = read_manifest(verify(path))
    monkeypatch.setattr(twins, "verify", reading)
    assert twin_of(path, said) == twin
    assert read == ["face.fp32.onnx"]


TWINS = [name for name in bundled_models() if ".fp32." in name]


@pytest.mark.skipif(native.absence() is not None, reason="no native engine is built here")
@pytest.mark.parametrize("twin", TWINS)
def test_every_bundled_float32_model_is_the_twin_of_a_bundled_one(twin: str) -> None:
    assert found(FOLDER / twin.replace(".fp32.", ".")) == FOLDER / twin
