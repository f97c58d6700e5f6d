"""The Java class of runtime/native in a desktop JVM, against the Python engine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mars_edge.subsets import all_subsets, label
from mars_runtime.engines import Inference, open_engine
from mars_runtime.models import find_model
from mars_runtime.policy import decide

NAME = "face_antispoof.pte"

pytestmark = [pytest.mark.hardware, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def java(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that answers from Java."""
    missing = [tool for tool in ("javac", "cmake", "g++") if shutil.which(tool) is None]
    found = importlib.util.find_spec("executorch")
    if missing or found is None or not found.submodule_search_locations:
        pytest.skip("apt-get install default-jdk-headless cmake g++ nlohmann-json3-dev; pip install executorch")
    native, build = repository / "runtime/native", tmp_path_factory.mktemp("java")
    compiler = Path(str(shutil.which("javac"))).resolve()
    environment = {**os.environ, "JAVA_HOME": str(compiler.parents[1])}
    root = next(iter(found.submodule_search_locations))
    flags = ["-DCMAKE_BUILD_TYPE=Release", "-DMARS_EDGE_JNI=ON", "-DMARS_EDGE_RUNNER=OFF", f"-DEXECUTORCH_ROOT={root}"]
    sources = [native / "java/edge/mars/MarsModel.java", repository / "tests/helpers/NativeAnswers.java"]
    for command in (
        ["cmake", "-S", str(native), "-B", str(build), *flags],
        ["cmake", "--build", str(build)],
        ["javac", "-d", str(build / "classes"), *map(str, sources)],
    ):
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 0, result.stderr
    return ["java", "-Xcheck:jni", f"-Djava.library.path={build}", "-cp", str(build / "classes"), "NativeAnswers"]


def answers(java: list[str], *arguments: str) -> list[str]:
    result = subprocess.run([*java, *arguments], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def read(line: str, classes: int) -> tuple[NDArray[np.float32], list[tuple[int, float]], str]:
    words = line.split(" ", classes + 2)
    logits = np.array([float.fromhex(word) for word in words[:classes]], np.float32)
    chosen = [word.split(":") for word in words[classes : classes + 2]]
    return logits, [(int(index), float.fromhex(gate)) for index, gate in chosen], words[-1]


def same(line: str, expected: Inference, said: str) -> None:
    logits, experts, text = read(line, len(expected.logits))
    assert np.array_equal(logits, expected.logits)
    assert (experts, text) == (list(expected.experts), said)


def test_java_has_the_bits_and_verdicts_of_python_also_from_cached_features(java: list[str], tmp_path: Path) -> None:
    engine = open_engine(NAME)
    manifest, random = engine.manifest, np.random.default_rng(8)
    samples = {m.name: random.random(m.shape, dtype=np.float32) for m in manifest.modalities}
    for name, values in samples.items():
        (tmp_path / name).write_bytes(values.tobytes())
    for subset in all_subsets(manifest.names):
        files = [str(tmp_path / name) if name in subset else "-" for name in manifest.names]
        fresh, cached, *refusals = answers(java, str(find_model(NAME)), *files)
        expected = engine.infer({name: samples[name] for name in subset}, {})
        outcome = decide(manifest, manifest.policy, subset, expected.logits)
        said = f"{label(subset, manifest.names)} {outcome.verdict} {outcome.reason or 'null'}"
        same(fresh, expected, said)
        same(cached, expected, said)
        assert refusals == [
            "no modality is present; give at least one of: rgb+depth+ir",
            "samples needs 3 entries, one per modality",
            "sample of rgb has 3 values, expected 37632",
            "the model is closed",
        ]
    engine.close()


def test_java_is_told_of_a_bad_file(java: list[str], tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(find_model(NAME).read_bytes()[:-1])
    (line,) = answers(java, str(path), "-", "-", "-")
    assert line == f"4 {path} is an ExecuTorch program without the mars-edge trailer: truncated or foreign"
