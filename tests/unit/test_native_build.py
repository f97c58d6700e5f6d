"""The build of the native engine: what it refuses, what it renames, what it leaves behind."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import hatch_build
from hatch_build import OUTPUT, NativeBuildError, build_native, private_names, record_absence


@pytest.fixture
def root(tmp_path: Path, repository: Path) -> Path:
    """A checkout with nothing but the sources of the native engine."""
    for source in hatch_build.SOURCES:
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / source, tmp_path / source)
    return tmp_path


def test_private_names_change_no_length_and_only_the_libraries_own_names() -> None:
    table = b"\0libexecutorch.so\0libexecutorch_threadpool.so\0libqnn_executorch_backend.so\0libm.so.6\0"
    renamed = private_names(table)
    assert renamed == table.replace(b"\0libexecutorch", b"\0libmarsedgeet")
    assert len(renamed) == len(table)


def test_a_library_without_an_executorch_name_is_refused() -> None:
    with pytest.raises(NativeBuildError, match=r"^the library carries no executorch SONAME$"):
        private_names(b"\0libm.so.6\0")


def test_no_compiler_is_one_line(root: Path) -> None:
    with pytest.raises(NativeBuildError, match=r"^the C\+\+ compiler no-such-g\+\+ is not installed$"):
        build_native(root, {"CXX": "no-such-g++ -m64"})


def test_a_folder_without_headers_is_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NativeBuildError, match=r"holds no executorch/include: give an executorch 1\.5\.1 wheel$"):
        build_native(root, {"MARS_EDGE_EXECUTORCH": str(tmp_path), "CXX": sys.executable})


def test_another_processor_is_one_line(root: Path) -> None:
    with pytest.raises(NativeBuildError, match=r"^no build for \w+ riscv64$"):
        build_native(root, {"MARS_EDGE_TARGET": "riscv64"})


def test_a_failed_build_leaves_its_reason_and_nothing_else(root: Path) -> None:
    (root / OUTPUT).mkdir(parents=True)
    (root / OUTPUT / "libmars_executorch.so").write_bytes(b"of an older build")
    with pytest.raises(NativeBuildError) as caught:
        build_native(root, {"MARS_EDGE_NATIVE": "0"})
    record_absence(root, str(caught.value))
    assert [path.name for path in (root / OUTPUT).iterdir()] == ["unavailable.txt"]
    reason = (root / OUTPUT / "unavailable.txt").read_text()
    assert reason == "it was left out of the build (MARS_EDGE_NATIVE=0)\n"


def test_a_build_is_kept_until_a_source_changes(root: Path) -> None:
    output = root / OUTPUT
    output.mkdir(parents=True)
    (output / "libmars_executorch.so").write_bytes(b"built")
    (output / "build.json").write_text(json.dumps(hatch_build._stamp(root, {})))
    assert build_native(root, {"CXX": "no-such-g++"}) == output
    with pytest.raises(NativeBuildError, match=r"^it was left out of the build \(MARS_EDGE_NATIVE=0\)$"):
        build_native(root, {"MARS_EDGE_NATIVE": "0"})
    with (root / hatch_build.SOURCES[0]).open("a") as source:
        source.write("// changed\n")
    with pytest.raises(NativeBuildError):
        build_native(root, {"CXX": "no-such-g++"})


def test_the_engine_builds_from_an_installed_executorch(root: Path) -> None:
    executorch = pytest.importorskip("executorch", reason="the executorch package is not installed")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    package = Path(next(iter(executorch.__path__)))
    output = build_native(root, {"MARS_EDGE_EXECUTORCH": str(package)})
    names = {path.name for path in output.iterdir()}
    assert {"libmars_executorch.so", "libmarsedgeet.so", "LICENSE.executorch", "build.json"} <= names
    assert sum(path.stat().st_size for path in output.iterdir()) < 20_000_000
