"""The C++ runner against the Python engine: the same bits, the same refusals."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mars_edge.artifact import seal, verify
from mars_edge.modality import Modality
from mars_edge.subsets import all_subsets, label
from mars_runtime.engines import Engine, open_engine, read_manifest
from mars_runtime.engines.threads import default_threads
from mars_runtime.machine import usable_cores
from mars_runtime.models import find_model
from mars_runtime.policy import decide
from tests.helpers.native_programs import Programs, programs

FRAMES = 20
MODELS = ("face_antispoof.pte", "spoken_digits.pte")
ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "contract/vectors"
NATIVE = ROOT / "runtime/native"

pytestmark = [pytest.mark.hardware, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def here() -> Programs:
    return programs()


@pytest.fixture(scope="module")
def emulated() -> Programs:
    return programs("aarch64")


def samples_of(engine: Engine) -> dict[str, NDArray[np.float32]]:
    """Random tensors as preprocessing gives them, frames first."""
    random = np.random.default_rng(5)
    return {m.name: random.random((FRAMES, *m.shape), dtype=np.float32) for m in engine.manifest.modalities}


def compare(runner: Programs, name: str, folder: Path, gate_step: float) -> None:
    """Every subset of every frame: logits bit for bit, the experts in order, gates within `gate_step`."""
    engine = open_engine(name)
    manifest, samples = engine.manifest, samples_of(engine)
    for subset in all_subsets(manifest.names):
        lines = runner.decide(find_model(name), {n: samples[n] for n in subset}, folder)
        assert len(lines) == FRAMES
        for frame, line in enumerate(lines):
            expected = engine.infer({n: samples[n][frame] for n in subset}, {})
            assert np.array_equal(np.array(line["logits"], np.float32), expected.logits)
            assert [chosen["id"] for chosen in line["experts"]] == [index for index, _ in expected.experts]
            gates = zip(line["experts"], expected.experts, strict=True)
            assert all(abs(chosen["gate"] - gate) <= gate_step for chosen, (_, gate) in gates)
            assert (line["frame"], line["subset"]) == (frame, label(subset, manifest.names))
            outcome = decide(manifest, manifest.policy, subset, expected.logits)
            assert [line[key] for key in ("verdict", "label", "threshold", "reason")] == [
                outcome.verdict, outcome.label, outcome.threshold, outcome.reason,
            ]  # fmt: skip
            assert line["score"] == pytest.approx(outcome.score, abs=1e-12)
            ran = {f"encode.{n}" for n in subset} | {"fuse", "experts", "head", "total"}
            assert set(line["latency_ms"]) == ran and min(line["latency_ms"].values()) > 0.0
    engine.close()


@pytest.mark.parametrize("name", MODELS)
def test_every_subset_has_the_bits_and_the_verdict_of_the_python_engine(
    name: str, here: Programs, tmp_path: Path
) -> None:
    compare(here, name, tmp_path, gate_step=0.0)


@pytest.mark.parametrize("name", MODELS)
def test_aarch64_has_the_logits_of_this_machine_bit_for_bit(name: str, emulated: Programs, tmp_path: Path) -> None:
    # Gates: a float32 layer in the router rounds its last bit by processor, in Python as here.
    compare(emulated, name, tmp_path, gate_step=2.0**-23)


def enlarged(name: str) -> bytes:
    """The file with encoders that claim a hundred thousand times the work, in as many bytes."""
    program = bytes(verify(find_model(name)).payload)
    claim = re.compile(rb'"macs":(\d+),"weight_bytes":\d(\d{5})')
    changed, count = claim.subn(rb'"macs":\g<1>00000,"weight_bytes":1', program)
    assert count > 0 and len(changed) == len(program)
    return seal(changed)


@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
def test_without_a_number_the_runner_takes_as_many_threads_as_the_python_engine(
    is_large: bool, here: Programs, tmp_path: Path
) -> None:
    model, sample = tmp_path / "model.pte", tmp_path / "ir.f32"
    model.write_bytes(enlarged(MODELS[0]) if is_large else find_model(MODELS[0]).read_bytes())
    sample.write_bytes(np.zeros((1, 112, 112), np.float32).tobytes())
    result = here.run("--model", str(model), "--sample", f"ir={sample}")
    assert (result.returncode, result.stderr) == (0, "")
    wanted = default_threads(read_manifest(verify(model)), usable_cores())
    assert json.loads(result.stdout)["threads"] == wanted == (usable_cores() if is_large else 1)


def test_the_runner_has_the_threads_it_is_given(here: Programs, tmp_path: Path) -> None:
    sample = tmp_path / "image.f32"
    sample.write_bytes(np.zeros(64, np.float32).tobytes())
    for threads in (1, 3):
        given = here.run(
            "--model", str(find_model(MODELS[1])), "--sample", f"image={sample}", "--threads", str(threads)
        )
        assert json.loads(given.stdout)["threads"] == threads


def test_the_manifest_is_printed_as_it_is_in_the_file(here: Programs) -> None:
    result = here.run("--model", str(find_model(MODELS[1])), "--manifest")
    assert json.loads(result.stdout) == json.loads(open_engine(MODELS[1]).manifest.to_json())


def test_the_peak_memory_is_that_of_a_small_process(here: Programs, tmp_path: Path) -> None:
    path = tmp_path / "image.f32"
    path.write_bytes(np.zeros(64, np.float32).tobytes())
    result = here.run("--model", str(find_model(MODELS[1])), "--sample", f"image={path}", "--memory")
    # The program's pages and the model at least; far from an interpreter with torch.
    assert 2_000 < json.loads(result.stdout)["peak_kib"] < 100_000


def altered(change: Any) -> bytes:
    return bytes(change(bytearray(find_model(MODELS[1]).read_bytes())))


def flipped(data: bytearray) -> bytearray:
    data[1000] ^= 1
    return data


def later_version(data: bytearray) -> bytes:
    data[-41] = 2
    return bytes(data[:-32]) + hashlib.sha256(data[:-32]).digest()


BAD_FILES = {
    "is damaged: its SHA-256 is not the one in its trailer": lambda: altered(flipped),
    "has a trailer this mars-edge cannot read (version 2, length {length})": lambda: altered(later_version),
    "is an ExecuTorch program without the mars-edge trailer: truncated or foreign": lambda: altered(lambda d: d[:-7]),
    "is not a mars-edge model: 0 bytes without a .pte trailer": lambda: b"",
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_a_bad_model_file_ends_with_one_line_and_4(message: str, here: Programs, tmp_path: Path) -> None:
    data = BAD_FILES[message]()
    path = tmp_path / "model.pte"
    path.write_bytes(data)
    result = here.run("--model", str(path))
    said = message.replace("{length}", str(verify(find_model(MODELS[1])).payload_bytes))
    assert (result.returncode, result.stdout, result.stderr) == (4, "", f"mars_runner: {path} {said}\n")


def test_a_sealed_program_of_garbage_is_refused_not_run(here: Programs, tmp_path: Path) -> None:
    whole = verify(find_model(MODELS[1])).payload
    path = tmp_path / "model.pte"
    path.write_bytes(seal(bytes(whole[: len(whole) // 2])))
    result = here.run("--model", str(path))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (4, "", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no sample is given; this model has: audio, image"),
        (["--sample", "smell=x"], "--sample smell: unknown modality; this model has: audio, image"),
        (["--sample", "image"], "--sample is 'image', expected NAME=FILE"),
        (["--sample", "image=a", "--sample", "image=a"], "--sample image is given twice"),
        (["--sample", "image=/nowhere.f32"], "no sample file /nowhere.f32"),
        (["--threads", "0"], "--threads is '0', expected a whole number from 1"),
        (["--threads"], "--threads needs a value"),
        (["--fast"], "unknown argument '--fast'; mars_runner --help lists what there is"),
    ],
)
def test_a_wrong_request_ends_with_one_line_and_2(arguments: list[str], message: str, here: Programs) -> None:
    result = here.run("--model", str(find_model(MODELS[1])), *arguments)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"mars_runner: {message}\n")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(63, np.float32), " holds 252 bytes; a sample of image is float32 (1, 8, 8), 256 bytes"),
        (np.full(64, np.nan, np.float32), ": value 0 is not finite"),
        (np.array([0.0] * 63 + [np.inf], np.float32), ": value 63 is not finite"),
        (np.zeros(0, np.float32), " holds 0 bytes; a sample of image is float32 (1, 8, 8), 256 bytes"),
    ],
)
def test_a_wrong_sample_ends_with_one_line_and_2(
    values: NDArray[np.float32], message: str, here: Programs, tmp_path: Path
) -> None:
    path = tmp_path / "image.f32"
    path.write_bytes(values.tobytes())
    result = here.run("--model", str(find_model(MODELS[1])), "--sample", f"image={path}")
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"mars_runner: {path}{message}\n")


def test_a_missing_model_and_a_folder_end_with_2(here: Programs, tmp_path: Path) -> None:
    for path in (tmp_path / "none.pte", tmp_path):
        result = here.run("--model", str(path))
        assert (result.returncode, result.stderr) == (2, f"mars_runner: no model file {path}\n")


def test_help_names_every_flag(here: Programs) -> None:
    result = here.run("--help")
    assert result.returncode == 0 and "example: mars_runner --model" in result.stdout
    assert all(flag in result.stdout for flag in ("--sample", "--threads", "--repeat", "--memory", "--manifest"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("what", ["answers", "manifest", "help"])
def test_output_that_cannot_be_written_ends_with_one_line_and_1(what: str, here: Programs, tmp_path: Path) -> None:
    path = tmp_path / "image.f32"
    path.write_bytes(np.zeros(64, np.float32).tobytes())
    wanted = {"answers": ["--sample", f"image={path}"], "manifest": ["--manifest"], "help": ["--help"]}[what]
    command = [str(here.folder / "mars_runner"), "--model", str(find_model(MODELS[1])), *wanted]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "mars_runner: stdout: No space left on device\n")


# As the NDK's toolchain file: packages are looked for inside the sysroot alone.
SYSROOT_ONLY = """
set(CMAKE_FIND_ROOT_PATH /nonexistent/sysroot)
foreach(kind PACKAGE LIBRARY INCLUDE)
  set(CMAKE_FIND_ROOT_PATH_MODE_${kind} ONLY)
endforeach()
"""
TARGETS = (
    "executorch",
    "extension_data_loader",
    "extension_threadpool",
    "xnnpack_backend",
    "optimized_native_cpu_ops_lib",
)


def configure(folder: Path, targets: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """CMake on an install prefix of ExecuTorch that has `targets`, each a library of its name."""
    if shutil.which("cmake") is None or not Path("/usr/share/cmake/nlohmann_json").is_dir():
        pytest.skip("apt-get install cmake nlohmann-json3-dev")
    package = folder / "prefix/lib/cmake/ExecuTorch"
    package.mkdir(parents=True)
    lines = (
        f"add_library({name} STATIC IMPORTED)\n"
        f'set_target_properties({name} PROPERTIES IMPORTED_LOCATION "/prefix/lib{name}.a")\n'
        for name in targets
    )
    (package / "executorch-config.cmake").write_text("".join(lines), encoding="utf-8")
    (folder / "toolchain.cmake").write_text(SYSROOT_ONLY, encoding="utf-8")
    command = ["cmake", "-S", str(NATIVE), "-B", str(folder / "build"), f"-DEXECUTORCH_ROOT={folder / 'prefix'}"]
    command += [f"-DCMAKE_TOOLCHAIN_FILE={folder / 'toolchain.cmake'}"]
    command += ["-Dnlohmann_json_DIR=/usr/share/cmake/nlohmann_json"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("quantized", [(), ("quantized_ops_lib",)])
def test_a_source_build_outside_the_sysroot_is_found_and_linked_by_what_it_has(
    quantized: tuple[str, ...], tmp_path: Path
) -> None:
    result = configure(tmp_path, TARGETS + quantized)
    assert result.returncode == 0, result.stderr
    link = (tmp_path / "build/CMakeFiles/mars_runner.dir/link.txt").read_text(encoding="utf-8")
    assert re.findall(r"/prefix/lib(\w+)\.a", link) == [*TARGETS, *quantized]
    assert ("quantized_ops_lib" in link) == bool(quantized)


def test_a_source_build_that_lacks_a_library_is_refused_by_name(tmp_path: Path) -> None:
    result = configure(tmp_path, tuple(name for name in TARGETS if name != "xnnpack_backend"))
    assert result.returncode != 0
    assert "has no target xnnpack_backend" in " ".join(result.stderr.split())


def test_the_swift_manifest_leaves_out_what_cmake_leaves_out_of_the_library() -> None:
    guide = (ROOT / "docs/native-apps.md").read_text(encoding="utf-8")
    excluded = re.search(r"exclude: \[(.*?)\]", guide, re.DOTALL)
    library = re.search(r"add_library\(mars_edge STATIC(.*?)\)", (NATIVE / "CMakeLists.txt").read_text(), re.DOTALL)
    assert excluded is not None and library is not None
    left_out = set(re.findall(r'"([^"]+)"', excluded[1]))
    others = {path.name for path in NATIVE.iterdir() if path.suffix != ".h"} - set(library[1].split())
    assert left_out == others


def test_digests_are_those_of_hashlib_and_of_the_standard(here: Programs) -> None:
    # FIPS 180-4 examples: one block, two blocks; then every length around the padding's edges.
    standard = {
        b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": (
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
        ),
    }
    random = np.random.default_rng(2)
    for size in (*range(0, 130), 1000, 4096):
        data = random.bytes(size)
        standard[data] = hashlib.sha256(data).hexdigest()
    answers = here.ask([{"about": "sha256", "hex": data.hex()} for data in standard])
    assert [answer["answer"] for answer in answers] == list(standard.values())


def contract(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    assert cases
    return cases


def test_manifests_are_accepted_and_refused_as_the_contract_says(here: Programs) -> None:
    cases = contract("manifest")
    answers = here.ask([{"about": "manifest", "text": case["text"]} for case in cases])
    for case, answer in zip(cases, answers, strict=True):
        assert ("refused" in answer) == ("refused" in case), case["name"]
        assert answer.get("code", 4) == 4
        if "accepted" in case:
            assert answer["answer"] == case["accepted"]["name"]


def test_gates_are_the_contracts(here: Programs) -> None:
    cases = contract("gates")
    answers = here.ask([{"about": "gates", "logits": case["logits"], "k": case["k"]} for case in cases])
    for case, answer in zip(cases, answers, strict=True):
        assert [index for index, _ in answer["answer"]] == case["experts"]
        assert [np.float32(gate) for _, gate in answer["answer"]] == [np.float32(gate) for gate in case["gates"]]


def test_decisions_are_the_contracts(here: Programs) -> None:
    models = {case["name"]: json.loads(case["text"]) for case in contract("models")}
    # An app has no --unsafe and no latch.
    cases = [case for case in contract("policy") if not {"allow_uncertified", "held"} & set(case)]
    assert len(cases) > 200
    requests = [
        {
            "about": "decision",
            "text": json.dumps(models[case["manifest"]] | {"policy": case["policy"]}),
            "present": case["present"],
            "logits": None if case["logits"] is None else list(np.ravel(case["logits"])),
        }
        for case in cases
    ]
    for case, answer in zip(cases, here.ask(requests), strict=True):
        expected = {key: case["outcome"].get(key) for key in ("label", "threshold", "verdict", "reason")}
        assert {key: answer["answer"][key] for key in expected} == expected, case
        assert answer["answer"]["score"] == pytest.approx(case["outcome"]["score"], abs=1e-12)


def test_a_score_at_the_threshold_is_accepted(here: Programs) -> None:
    table = next(json.loads(case["text"]) for case in contract("models") if case["name"] == "live or spoof")
    point = table["operating_points"]["rgb+depth+ir"] | {"threshold": 0.5, "temperature": 1.0, "certified": True}
    table["operating_points"]["rgb+depth+ir"] = point
    request = {"about": "decision", "text": json.dumps(table), "present": ["rgb", "depth", "ir"]}
    even, below = here.ask([request | {"logits": logits} for logits in ([0.25, 0.25], [0.25, 0.2499])])
    assert (even["answer"]["score"], even["answer"]["verdict"]) == (0.5, "accept")
    assert below["answer"]["verdict"] == "reject"


def test_shapes_are_those_of_python_for_every_kind(here: Programs) -> None:
    modalities = [
        Modality(name="picture", kind="image", channels=3, size=(5, 7)),
        Modality(name="voice", kind="audio", rate_hz=16000, window_s=1.0),
        # 12.5 samples are rounded to the even 12.
        Modality(name="slow", kind="audio", rate_hz=25, window_s=0.5, frame_s=0.12),
        Modality(name="odd", kind="audio", rate_hz=11025, window_s=0.737, frame_s=0.025, mel_bands=13),
        Modality(name="motion", kind="sequence", channels=6, length=50),
        Modality(name="lidar", kind="vector", length=12),
        Modality(name="title", kind="text", length=9, vocabulary=100),
    ]
    table = json.loads(next(case["text"] for case in contract("models")))
    table["modalities"] = [modality.to_dict() for modality in modalities]
    names = [modality.name for modality in modalities]
    table |= {"feature_shapes": {name: [4] for name in names}, "operating_points": {}, "golden": None, "policy": {}}
    table |= {"costs": {}, "subset_costs": {}, "experts": 1, "active_experts": 1, "shared_expert": False}
    table["methods"] = [*(f"encode_{name}" for name in names), "route", "expert_0", "head"]
    (answer,) = here.ask([{"about": "shapes", "text": json.dumps(table)}])
    assert answer == {"answer": [list(modality.shape) for modality in modalities]}
