"""The build of the native engine: what it refuses, what it renames, what it leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hatch_build
from hatch_build import OUTPUT, NativeBuildError, build_native, private_names, record_absence
from mars_runtime.engines import native


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


@pytest.fixture
def folder_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder where the native engine is looked for."""
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    native._library.cache_clear()
    yield tmp_path
    native._library.cache_clear()


def test_a_library_of_another_interface_is_a_reason_and_no_crash(folder_of_the_engine: Path) -> None:
    source = folder_of_the_engine / "other.c"
    source.write_text("int unrelated(void) { return 1; }\n")
    library = folder_of_the_engine / "libmars_executorch.so"
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("apt-get install g++")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    assert native.absence() == "the native engine has interface none, this mars-edge needs 3: reinstall it"


@pytest.mark.parametrize("record", [None, "", "{}", "[]", "not json"])
def test_a_damaged_build_record_does_not_hide_the_engine(record: str | None, folder_of_the_engine: Path) -> None:
    if record is not None:
        (folder_of_the_engine / "build.json").write_text(record)
    assert native.version() == "of unknown version"
