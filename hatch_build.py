"""Builds the native ExecuTorch engine into the wheel, from the libraries in the pinned executorch wheel.

A `.pte` then runs without torch and without the executorch package. Only the wheel's headers and five shared
libraries are used; nothing it declares as a dependency is fetched or installed. A library of its own shrinks pictures,
for every engine; it needs the compiler alone.

Environment:
    MARS_EDGE_NATIVE=0        build without both; =require makes a failed native build fail the build
    MARS_EDGE_EXECUTORCH=PATH an executorch wheel, or a folder that holds `executorch/`, instead of a download
    MARS_EDGE_TARGET=aarch64  the machine to build for, with CXX and STRIP naming the cross tools
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

EXECUTORCH_VERSION = "1.5.1"
LIBRARIES = (
    "executorch",
    "executorch_threadpool",
    "executorch_backend_xnnpack",
    "executorch_kernels_optimized",
    "executorch_kernels_quantized",
)
OUTPUT = Path("runtime/mars_runtime/engines/_native")
_NATIVE = Path("runtime/native")
COMPILED = tuple(_NATIVE / name for name in ("mars_executorch.cpp", "inference.cpp", "gates.cpp"))
# Times of single operators, for `mars-edge profile --ops`: a library of its own, which no decision loads.
TRACED = (_NATIVE / "mars_trace.cpp",)
_HEADERS = tuple(_NATIVE / name for name in ("mars_executorch.h", "gates.h", "mars_trace.h"))
SOURCES = (*COMPILED, *TRACED, *_HEADERS, Path("hatch_build.py"))
ENGINE = "libmars_executorch.so"
TRACE = "libmars_trace.so"
PREPROCESS_OUTPUT = Path("runtime/mars_runtime/_native")
PREPROCESS_SOURCES = tuple(_NATIVE / name for name in ("mars_preprocess.cpp", "mars_preprocess.h"))
PREPROCESS = "libmars_preprocess.so"
# The interpreter tag only picks a file: the libraries inside do not depend on Python.
WHEEL_PYTHON = "3.11"
# Our copies get their own file names inside the ELF too. Under the original names the dynamic linker
# would hand our engine the libraries of an installed executorch package (or the other way round), and
# executorch.kernels.quantized then registers its operators twice, which ends the process.
ORIGINAL_PREFIX = b"libexecutorch"
PRIVATE_PREFIX = b"libmarsedgeet"


class NativeBuildError(Exception):
    """A native library cannot be built here; the message is one line for people."""


def target_machine(environment: Mapping[str, str]) -> str:
    """The processor the engine is built for, as in wheel tags: x86_64 or aarch64."""
    return environment.get("MARS_EDGE_TARGET", platform.machine())


def build_native(root: Path, environment: Mapping[str, str]) -> Path:
    """The folder that holds the finished engine; nothing is rebuilt when sources and target are unchanged.

    Raises:
        NativeBuildError: no compiler, no executorch wheel, or a compiler error.
    """
    output = root / OUTPUT
    stamp = _stamp(root, environment)
    _need_wanted(environment)
    if _is_current(output, ENGINE, stamp):
        return output
    compiler = _compiler(environment)
    with tempfile.TemporaryDirectory(prefix="mars-edge-native-") as scratch:
        staged = Path(scratch) / "staged"
        staged.mkdir()
        package = _unpack(environment, Path(scratch))
        _copy_libraries(package, staged, environment)
        for library, sources in ((ENGINE, COMPILED), (TRACE, TRACED)):
            _compile(compiler, [root / source for source in sources], package, staged / library)
        _copy_licence(package, staged)
        _finish(staged, stamp, output)
    return output


def build_preprocess(root: Path, environment: Mapping[str, str]) -> Path:
    """The folder that holds the library that shrinks pictures; not rebuilt when its sources and target are unchanged.

    Raises:
        NativeBuildError: no compiler, or a compiler error.
    """
    output = root / PREPROCESS_OUTPUT
    stamp = {"machine": target_machine(environment), "sources_sha256": _digest(root, PREPROCESS_SOURCES)}
    _need_wanted(environment)
    if _is_current(output, PREPROCESS, stamp):
        return output
    compiler = _compiler(environment)
    with tempfile.TemporaryDirectory(prefix="mars-edge-native-") as scratch:
        staged = Path(scratch) / "staged"
        staged.mkdir()
        # -O3: its loops are left to the compiler to vectorise.
        _run([*compiler, *_FLAGS, "-O3", str(root / PREPROCESS_SOURCES[0]), "-o", str(staged / PREPROCESS)])
        _finish(staged, stamp, output)
    return output


def _need_wanted(environment: Mapping[str, str]) -> None:
    if environment.get("MARS_EDGE_NATIVE") == "0":
        raise NativeBuildError("it was left out of the build (MARS_EDGE_NATIVE=0)")


def _compiler(environment: Mapping[str, str]) -> list[str]:
    if platform.system() != "Linux" or target_machine(environment) not in ("x86_64", "aarch64"):
        raise NativeBuildError(f"no build for {platform.system()} {target_machine(environment)}")
    compiler = shlex.split(environment.get("CXX", "g++"))
    if shutil.which(compiler[0]) is None:
        raise NativeBuildError(f"the C++ compiler {compiler[0]} is not installed")
    return compiler


def _finish(staged: Path, stamp: Mapping[str, str], output: Path) -> None:
    (staged / "build.json").write_text(json.dumps(stamp, indent=1) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(staged, output)


def record_absence(root: Path, reason: str) -> Path:
    """Leaves the reason beside the engines, where `mars-edge info --engines` reads it."""
    output = root / OUTPUT
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    (output / "unavailable.txt").write_text(reason + "\n")
    return output


def _stamp(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    return {
        "executorch": EXECUTORCH_VERSION,
        "machine": target_machine(environment),
        "sources_sha256": _digest(root, SOURCES),
    }


def _digest(root: Path, sources: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update((root / source).read_bytes())
    return digest.hexdigest()


def _is_current(output: Path, library: str, stamp: dict[str, str]) -> bool:
    path = output / "build.json"
    return path.is_file() and (output / library).is_file() and json.loads(path.read_text()) == stamp


def _unpack(environment: Mapping[str, str], scratch: Path) -> Path:
    """The `executorch` folder of the wheel, with `include/` and `lib/`."""
    given = environment.get("MARS_EDGE_EXECUTORCH")
    source = Path(given) if given else _download(environment, scratch)
    if source.is_dir():
        package = source if source.name == "executorch" else source / "executorch"
    else:
        with zipfile.ZipFile(source) as wheel:
            wanted = [
                name
                for name in wheel.namelist()
                if name.startswith(("executorch/include/", "executorch/lib/")) or "/licenses/" in name
            ]
            wheel.extractall(scratch / "wheel", wanted)
        package = scratch / "wheel" / "executorch"
    if not (package / "include/executorch/runtime/executor/program.h").is_file():
        raise NativeBuildError(f"{source} holds no executorch/include: give an executorch {EXECUTORCH_VERSION} wheel")
    return package


def _download(environment: Mapping[str, str], scratch: Path) -> Path:
    machine = target_machine(environment)
    folder = scratch / "download"
    arguments = [
        "download", f"executorch=={EXECUTORCH_VERSION}", "--no-deps", "--only-binary=:all:", "--quiet",
        "--python-version", WHEEL_PYTHON, "--implementation", "cp",
        "--platform", f"manylinux_2_28_{machine}", "--dest", str(folder),
    ]  # fmt: skip
    result = subprocess.run([*_pip(), *arguments], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("executorch-*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        raise NativeBuildError(
            f"executorch {EXECUTORCH_VERSION} for {machine} cannot be downloaded: {_last_line(result.stderr)}"
        )
    return wheels[0]


def _pip() -> list[str]:
    probe = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if probe.returncode == 0:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")
    if found is None:
        raise NativeBuildError("pip is needed to download the executorch wheel, and there is none")
    return [found]


def _copy_libraries(package: Path, staged: Path, environment: Mapping[str, str]) -> None:
    for library in LIBRARIES:
        source = package / "lib" / f"lib{library}.so"
        if not source.is_file():
            raise NativeBuildError(f"the executorch wheel lacks lib/{source.name}")
        target = staged / source.name.replace(ORIGINAL_PREFIX.decode(), PRIVATE_PREFIX.decode())
        target.write_bytes(private_names(source.read_bytes()))
        _strip(target, environment)


def private_names(library: bytes) -> bytes:
    """The library with SONAME and NEEDED entries of the executorch family renamed; same length, nothing moves."""
    pattern = re.compile(rb"(?<=\0)" + ORIGINAL_PREFIX + rb"((?:_[a-z]+)*\.so\0)")
    renamed, count = pattern.subn(PRIVATE_PREFIX + rb"\1", library)
    if count == 0 or len(renamed) != len(library):
        raise NativeBuildError("the library carries no executorch SONAME")
    return renamed


def _strip(library: Path, environment: Mapping[str, str]) -> None:
    strip = environment.get("STRIP", "strip")
    if shutil.which(strip):
        subprocess.run([strip, "--strip-unneeded", str(library)], check=True)


# Contracted to one rounding, a gated sum would have other bits on aarch64 than on x86-64.
_FLAGS = (
    "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-s", "-fvisibility=hidden", "-Wall", "-Wextra",
)  # fmt: skip


def _compile(compiler: list[str], sources: Sequence[Path], package: Path, library: Path) -> None:
    include, staged = package / "include", library.parent
    command = [
        *compiler, *_FLAGS, "-O2",
        "-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_USE_THREADPOOL",
        "-isystem", str(include), "-isystem", str(include / "executorch/runtime/core/portable_type/c10"),
        *map(str, sources), "-o", str(library), "-pthread",
        f"-L{staged}", "-Wl,--no-as-needed",
        *(f"-l:{path.name}" for path in sorted(staged.glob(f"{PRIVATE_PREFIX.decode()}*.so"))),
        "-Wl,-rpath,$ORIGIN",
    ]  # fmt: skip
    _run(command)


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise NativeBuildError(f"the C++ compiler failed: {_first_error(result.stderr)}")


def _copy_licence(package: Path, staged: Path) -> None:
    found = sorted(package.parent.glob("executorch-*.dist-info/licenses/LICENSE"))
    if not found:
        raise NativeBuildError("the executorch wheel carries no licence text")
    notice = (
        f"The libraries {PRIVATE_PREFIX.decode()}*.so are those of executorch {EXECUTORCH_VERSION}, stripped and\n"
        "renamed, under the licence below.\n\n"
    )
    (staged / "LICENSE.executorch").write_text(notice + found[0].read_text(encoding="utf-8"))


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _first_error(text: str) -> str:
    errors = [line for line in text.splitlines() if "error" in line]
    return errors[0] if errors else _last_line(text)


class NativeEngineHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs before wheels and editable installs; a missing native library is a warning, not a failure."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the libraries (or the reason the engine is missing) to the wheel and sets its platform tag."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        reason = self._failure(build_native, "its native ExecuTorch engine")
        if reason is not None:
            record_absence(root, reason)
        slow = self._failure(build_preprocess, "its library for pictures, which OpenCV then shrinks")
        if slow is not None:
            shutil.rmtree(root / PREPROCESS_OUTPUT, ignore_errors=True)
        if reason is None or slow is None:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{target_machine(os.environ)}"
        build_data["artifacts"] += [f"{OUTPUT.as_posix()}/*", f"{PREPROCESS_OUTPUT.as_posix()}/*"]

    def _failure(self, build: Callable[[Path, Mapping[str, str]], Path], what: str) -> str | None:
        """Why `build` failed, after a warning; None when it did not."""
        try:
            build(Path(self.root), os.environ)
        except NativeBuildError as error:
            if os.environ.get("MARS_EDGE_NATIVE") == "require":
                raise
            self.app.display_warning(f"mars-edge is built without {what}: {error}")
            return str(error)
        return None
