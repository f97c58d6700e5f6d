"""The device's own way from pictures to tensors gives the bits of `mars_edge.preprocess`, or stands aside."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import hatch_build
from contract.encoding import read_array
from contract.generate import TOLERANCE
from hatch_build import PREPROCESS, PREPROCESS_OUTPUT, NativeBuildError, NativeEngineHook, build_preprocess
from mars_edge.errors import UsageError
from mars_edge.modality import Modality, SampleType
from mars_runtime import preprocessing, track
from mars_runtime.preprocessing import has_library, preprocess

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="apt-get install g++")


def sources(repository: Path, root: Path) -> Path:
    """A checkout with nothing but the sources of the library."""
    for source in hatch_build.PREPROCESS_SOURCES:
        (root / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / source, root / source)
    return root


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of these sources, whatever the checkout's own was built from."""
    return build_preprocess(sources(repository, tmp_path_factory.mktemp("checkout")), {}) / PREPROCESS


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where the library is looked for; nothing is there."""
    monkeypatch.setattr(preprocessing, "LIBRARY", tmp_path / PREPROCESS)
    preprocessing._library.cache_clear()
    yield tmp_path / PREPROCESS
    preprocessing._library.cache_clear()


@pytest.fixture
def library(built: Path, place: Path) -> ctypes.CDLL:
    """The library in its place."""
    shutil.copy(built, place)
    loaded = preprocessing._library()
    assert loaded is not None
    return loaded


def camera(size: tuple[int, int], channels: int, dtype: SampleType, limits: tuple[float, float]) -> Modality:
    return Modality(name="cam", kind="image", channels=channels, size=size, dtype=dtype, range=limits)


def picture(shape: tuple[int, ...], dtype: SampleType, seed: int, holes: float = 0.0) -> NDArray[Any]:
    """Noise; among floats also the largest, the smallest and a negative zero."""
    generator = np.random.default_rng(seed)
    if dtype == "float32":
        values = generator.normal(0, 2, shape).astype(np.float32)
        odd = np.array([-0.0, 1e-44, -1e-44, 3e38, -3e38], np.float32)
        return np.where(generator.random(shape) < 0.1, generator.choice(odd, shape), values)
    values = generator.integers(1, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return np.where(generator.random(shape) < holes, 0, values).astype(dtype)


def same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


LAYOUTS = {
    "whole": lambda made: made,
    "a part": lambda made: np.pad(made, [(1, 2), (3, 1), (0, 0)])[1:-2, 3:-1],
    "from below": lambda made: made[::-1],
    "mirrored": lambda made: made[:, ::-1],
    "other channel order": lambda made: made[:, :, ::-1],
    "every other row": lambda made: np.repeat(made, 2, axis=0)[::2],
    "by columns": np.asfortranarray,
    "not aligned": lambda made: np.frombuffer(b"-" + made.tobytes(), np.uint8)[1:].view(made.dtype).reshape(made.shape),
    "flat": lambda made: made[:, :, 0] if made.shape[2] == 1 else made,
}


def random_case(seed: int) -> tuple[Modality, NDArray[Any]]:
    generator = np.random.default_rng(seed)
    size = (int(generator.integers(1, 30)), int(generator.integers(1, 30)))
    ratios = generator.choice([1.0, 1.001, 1.1, 1.5, 2.0, 3.0, 4.3, 5.7, 7.0, 11.3], 2)
    shape = (*(int(np.ceil(side * ratio)) for side, ratio in zip(size, ratios, strict=True)),)
    dtype: SampleType = ("uint8", "uint16", "float32")[seed % 3]
    limits = ((0, 255), (0, 65535), (-1, 1), (0.1, 0.7), (100, 101), (-3.3, 20000))[int(generator.integers(6))]
    channels = int(generator.integers(1, 6))
    holes = float(generator.choice([0.0, 0.02, 0.5, 0.9, 1.0]))
    layout = LAYOUTS[str(generator.choice(list(LAYOUTS)))]
    made: NDArray[Any] = layout(picture((*shape, channels), dtype, seed, holes))  # type: ignore[no-untyped-call]
    return camera(size, channels, dtype, limits), made


@needs_compiler
def test_every_bit_is_that_of_the_one_definition(library: ctypes.CDLL) -> None:
    native = 0
    for seed in range(900):
        modality, raw = random_case(seed)
        before = raw.copy()
        assert same_bits(preprocess(modality, raw), modality.preprocess(raw)), f"seed {seed}: {modality} {raw.shape}"
        assert np.array_equal(raw, before)
        native += preprocessing._may_shrink(modality, raw) and preprocessing._shrunk(library, modality, raw) is not None
    assert native > 500, "most cases never reached the library"


SENSORS = {
    "rgb": (camera((112, 112), 3, "uint8", (0, 255)), picture((480, 640, 3), "uint8", 0)),
    "ir": (camera((112, 112), 1, "uint8", (0, 255)), picture((480, 640), "uint8", 1)),
    "depth": (camera((112, 112), 1, "uint16", (0, 4500)), picture((480, 640), "uint16", 2, holes=0.1)),
    "depth without holes": (camera((112, 112), 1, "uint16", (0, 4500)), picture((480, 640), "uint16", 3)),
    "thermal": (camera((96, 128), 1, "float32", (-1, 1)), picture((511, 640), "float32", 4)),
    # So many pixels that OpenCV deals the rows out to its threads.
    "large": (camera((400, 500), 4, "uint8", (0, 255)), picture((480, 640, 4), "uint8", 5)),
    "flat": (camera((112, 112), 3, "uint8", (0, 255)), np.full((480, 640, 3), 127, np.uint8)),
}


@needs_compiler
@pytest.mark.parametrize("sensor", SENSORS)
def test_pictures_of_real_size_go_through_the_library_unchanged(sensor: str, library: ctypes.CDLL) -> None:
    modality, raw = SENSORS[sensor]
    tensor = preprocessing._shrunk(library, modality, raw)
    assert tensor is not None
    threads = cv2.getNumThreads()
    try:
        for count in (1, 2):
            cv2.setNumThreads(count)
            assert same_bits(tensor, modality.preprocess(raw))
    finally:
        cv2.setNumThreads(threads)


@pytest.fixture
def no_intel_library() -> Iterator[None]:
    """The vectors are OpenCV's own arithmetic (contract/preprocess_cases.py)."""
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    yield
    cv2.ipp.setUseIPP(before)


@needs_compiler
def test_the_contract_vectors_hold(library: ctypes.CDLL, no_intel_library: None, repository: Path) -> None:
    cases = json.loads((repository / "contract/vectors/preprocess.json").read_text("utf-8"))
    pictures = [case for case in cases if case["modality"]["kind"] == "image" and isinstance(case["raw"], dict)]
    for case in pictures:
        modality, raw = Modality.from_dict(case["modality"]), read_array(case["raw"])
        if "refused" in case:
            with pytest.raises(UsageError):
                preprocess(modality, raw)
            continue
        assert same_bits(preprocess(modality, raw), modality.preprocess(raw)), case["name"]
        assert np.allclose(preprocess(modality, raw), read_array(case["tensor"]), rtol=0, atol=TOLERANCE), case["name"]
    assert len(pictures) > 40


@needs_compiler
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (30, 40), (60, 82)])
def test_a_value_that_is_not_finite_is_refused_in_the_same_words(
    library: ctypes.CDLL, value: float, at: tuple[int, int]
) -> None:
    raw = np.zeros((61, 83), np.float32)
    raw[at] = value
    with pytest.raises(UsageError) as caught:
        preprocess(camera((10, 10), 1, "float32", (0, 1)), raw)
    assert str(caught.value) == "cam: 1 of 5063 values are not finite"


@needs_compiler
@pytest.mark.parametrize(
    ("size", "shape", "channels"),
    [
        ((12, 16), (24, 32), 3),  # whole numbers along both axes
        ((12, 16), (36, 16), 1),
        ((12, 16), (12, 16), 3),  # as it is
        ((12, 16), (11, 40), 3),  # grows
        ((12, 16), (25, 33), 5),  # more channels than the library takes
    ],
)
def test_what_opencv_does_in_another_way_is_left_to_it(
    library: ctypes.CDLL, size: tuple[int, int], shape: tuple[int, int], channels: int
) -> None:
    modality, raw = camera(size, channels, "uint8", (0, 255)), picture((*shape, channels), "uint8", 0)
    assert not preprocessing._may_shrink(modality, raw) or preprocessing._shrunk(library, modality, raw) is None
    assert same_bits(preprocess(modality, raw), modality.preprocess(raw))


@needs_compiler
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_no_byte_beyond_the_picture_is_read(library: ctypes.CDLL, channels: int, dtype: SampleType) -> None:
    made = picture((67, 61, channels), dtype, 0)
    pages = mmap.mmap(-1, (2 + made.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
    end = len(pages) - mmap.PAGESIZE
    memory = np.frombuffer(pages, np.uint8)
    raw = memory[end - made.nbytes : end].view(made.dtype).reshape(made.shape)
    raw[:] = made
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # The process ends at once if the page after the last pixel is touched.
    assert protect(memory.ctypes.data + end, mmap.PAGESIZE, 0) == 0
    modality = camera((16, 9), channels, dtype, (0, 200))
    assert same_bits(preprocess(modality, raw), modality.preprocess(made))
    assert protect(memory.ctypes.data + end, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


UNDER_SANITIZERS = """
import pathlib, sys
from mars_runtime import preprocessing
from tests.unit.test_preprocessing import random_case, same_bits
preprocessing.LIBRARY = pathlib.Path(sys.argv[1])
assert preprocessing.has_library()
for modality, raw in map(random_case, range(900)):
    assert same_bits(preprocessing.preprocess(modality, raw), modality.preprocess(raw))
"""


@needs_compiler
def test_compiled_with_sanitizers_nothing_is_read_or_written_out_of_place(repository: Path, tmp_path: Path) -> None:
    names = ("libasan.so", "libubsan.so")
    found = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    if not all(Path(library).is_absolute() for library in found):
        pytest.skip("g++ has no sanitizers: apt-get install libgcc-12-dev, or the compiler's version of it")
    library = tmp_path / PREPROCESS
    checked = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    source = repository / hatch_build.PREPROCESS_SOURCES[0]
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", *checked, "-o", str(library)]
    subprocess.run([*command, str(source)], check=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    arguments = [sys.executable, "-c", UNDER_SANITIZERS, str(library)]
    done = subprocess.run(arguments, env=environment, cwd=repository, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_library_the_one_definition_is_used(place: Path) -> None:
    assert not has_library()
    modality, raw = SENSORS["rgb"]
    assert same_bits(preprocess(modality, raw), modality.preprocess(raw))


def test_a_damaged_library_is_not_used(place: Path) -> None:
    place.write_bytes(b"\x7fELF, once")
    assert not has_library()


@needs_compiler
def test_a_library_of_another_interface_is_not_used(place: Path) -> None:
    source = place.with_suffix(".c")
    for text in ("int unrelated(void) { return 1; }", "int mars_preprocess_abi(void) { return 99; }"):
        source.write_text(text + "\nint mars_shrink(const void* a, void* b) { return a == b; }\n")
        subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", "-o", str(place), str(source)], check=True)
        assert not has_library()
        preprocessing._library.cache_clear()


@needs_compiler
def test_a_library_that_rounds_otherwise_than_this_opencv_is_not_used(
    repository: Path, tmp_path: Path, place: Path
) -> None:
    root = sources(repository, tmp_path / "checkout")
    source = root / hatch_build.PREPROCESS_SOURCES[0]
    once, twice = "return __builtin_fmaf(value, weight, sum);", "return sum + value * weight;"
    text = source.read_text("utf-8")
    assert once in text
    assert twice in text
    # Only the sums along y, which are those of single floats: one rounding becomes two, or two become one.
    source.write_text(text.replace(once, "@").replace(twice, once, 1).replace("@", twice), "utf-8")
    shutil.copy(build_preprocess(root, {}) / PREPROCESS, place)
    assert not has_library()


def test_a_sensors_track_preprocesses_this_way() -> None:
    assert vars(track)["preprocess"] is preprocess


def test_no_compiler_no_wish_and_another_processor_are_one_line_each(repository: Path, tmp_path: Path) -> None:
    root = sources(repository, tmp_path)
    for environment, reason in (
        ({"CXX": "no-such-g++"}, r"^the C\+\+ compiler no-such-g\+\+ is not installed$"),
        ({"MARS_EDGE_NATIVE": "0"}, r"^it was left out of the build \(MARS_EDGE_NATIVE=0\)$"),
        ({"MARS_EDGE_TARGET": "riscv64"}, r"^no build for \w+ riscv64$"),
    ):
        with pytest.raises(NativeBuildError, match=reason):
            build_preprocess(root, environment)
    assert not (root / PREPROCESS_OUTPUT).exists()


@needs_compiler
def test_the_library_is_kept_until_a_source_changes(repository: Path, tmp_path: Path) -> None:
    root = sources(repository, tmp_path)
    output = build_preprocess(root, {})
    assert build_preprocess(root, {"CXX": "no-such-g++"}) == output
    with (root / hatch_build.PREPROCESS_SOURCES[0]).open("a") as source:
        source.write("not C++\n")
    with pytest.raises(NativeBuildError, match=r"^the C\+\+ compiler failed: .*error: "):
        build_preprocess(root, {})


class Listener:
    """What hatchling calls the application: it shows warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, text: str) -> None:
        self.warnings.append(text)


@needs_compiler
@pytest.mark.parametrize("wanted", [True, False])
def test_a_wheel_with_the_library_alone_is_one_for_this_processor(
    wanted: bool, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = sources(repository, tmp_path)
    for source in hatch_build.SOURCES:
        (root / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / source, root / source)
    # A folder without an executorch: the engine cannot be built, the other library can.
    monkeypatch.setenv("MARS_EDGE_EXECUTORCH", str(tmp_path))
    monkeypatch.setenv("MARS_EDGE_NATIVE", "1" if wanted else "0")
    app = Listener()
    hook = NativeEngineHook(str(root), {}, None, None, str(root), "wheel", app)  # type: ignore[arg-type]
    build_data: dict[str, Any] = {"artifacts": [], "pure_python": True}
    hook.initialize("standard", build_data)
    assert build_data["pure_python"] is not wanted
    assert ("tag" in build_data) is wanted
    assert (root / PREPROCESS_OUTPUT / PREPROCESS).is_file() is wanted
    assert len(app.warnings) == (1 if wanted else 2)
