"""The bundled models in every engine of this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mars_edge.artifact import verify
from mars_runtime.engines import open_engine, read_manifest
from mars_runtime.engines.binding import PythonRunner
from mars_runtime.engines.native import NativeRunner
from mars_runtime.engines.protocol import BINDING, NATIVE, ONNX
from mars_runtime.models import bundled_models, find_model
from tests.contract.conftest import require_engine

PROGRAMS = [name for name in bundled_models() if name.endswith(".pte")]
# Sums of floats round differently on another processor; integer ones do not.
INT8 = [name for name in PROGRAMS if ".fp32." not in name]
PAIRS = [name for name in PROGRAMS if f"{Path(name).stem}.onnx" in bundled_models()]


@pytest.mark.parametrize("name", PROGRAMS)
def test_native_and_official_binding_agree_bit_for_bit_on_every_method_of(name: str) -> None:
    require_engine(NATIVE)
    require_engine(BINDING)
    program = verify(find_model(name)).payload
    native, official = NativeRunner(program), PythonRunner(program)
    assert sorted(native.methods()) == sorted(official.methods())
    random = np.random.default_rng(0)
    for method in native.methods():
        for _ in range(3):
            specs = native.describe(method).inputs
            inputs = [random.random(spec.shape, dtype=np.float32) for spec in specs]
            pairs = zip(native.execute(method, inputs), official.execute(method, inputs), strict=True)
            assert all(np.array_equal(ours, theirs) for ours, theirs in pairs), method
    native.close()
    official.close()


@pytest.mark.parametrize("name", PAIRS)
def test_both_formats_pass_their_self_test_with_the_same_labels(name: str) -> None:
    require_engine(NATIVE)
    require_engine(ONNX)
    program, graph = open_engine(name), open_engine(f"{Path(name).stem}.onnx")
    assert program.manifest.golden is not None and graph.manifest.golden is not None
    assert program.manifest.labels == graph.manifest.labels
    program.close()
    graph.close()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_bundled_model_answers_without_torch_in_the_process(name: str) -> None:
    require_engine(NATIVE)
    script = (
        "import sys\nfrom mars_runtime.engines import open_engine\n"
        f"open_engine({name!r}).close()\n"
        "assert not {'torch', 'executorch', 'onnxruntime'} & set(sys.modules)\n"
    )
    path = {"PYTHONPATH": ":".join(entry for entry in sys.path if entry)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=path, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.hardware
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", INT8)
def test_aarch64_answers_bit_for_bit_as_this_machine(name: str, repository: Path, tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64-static") is None or shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("apt-get install g++-aarch64-linux-gnu qemu-user-static")
    script = repository / "runtime/deploy/aarch64_check.sh"
    environment = {"PYTHON": sys.executable, "PYTHONPATH": ":".join(entry for entry in sys.path if entry)}
    result = subprocess.run(
        ["/bin/bash", str(script), name, str(tmp_path)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", **environment},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "answers as on x86_64, logits bit-identical" in result.stdout
    streamed = {"face_antispoof.pte": "mars-edge run gave 20 decisions"}
    otherwise = "nothing streamed, the simulated rig has none of this model's sensors"
    assert result.stdout.endswith(f"aarch64: {streamed.get(name, otherwise)}\n")


@pytest.mark.parametrize("name", bundled_models())
def test_a_bundled_model_names_its_parameters_and_its_checkpoint(name: str) -> None:
    if name.endswith(".pte"):
        require_engine(NATIVE)
    manifest = read_manifest(verify(find_model(name)))
    # What a file stores: batch norms are folded away, delegates' programs and int8's scales and biases come on top.
    stored = sum(cost.weight_bytes for cost in manifest.costs.values()) / (4 if manifest.precision == "fp32" else 1)
    assert manifest.parameters is not None
    assert 0.99 < stored / manifest.parameters < (1.03 if manifest.precision == "fp32" else 1.4)
    assert len(manifest.provenance["checkpoint"]) == 64


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in INT8])
def test_a_bundled_float32_model_decides_as_well_as_its_int8_one_within_the_intervals(name: str) -> None:
    require_engine(NATIVE)
    manifests = [read_manifest(verify(find_model(n))) for n in (name, name.replace(".fp32.", "."))]
    assert [m.precision for m in manifests] == ["fp32", "int8"]
    assert manifests[0].parameters == manifests[1].parameters
    for label, point in manifests[0].operating_points.items():
        beside = manifests[1].operating_points[label]
        assert max(point.low, beside.low) <= min(point.high, beside.high)
