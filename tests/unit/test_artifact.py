"""Sealed files: what was written is accepted, everything else is refused."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path

import onnx
import pytest

from mars_edge.artifact import onnx_manifest, seal, seal_onnx, verify, verify_bytes, write_sealed
from mars_edge.errors import ModelFileError, UsageError

PROGRAM = b"\x1c\0\0\0ET12" + random.Random(0).randbytes(4000)


def model_bytes() -> bytes:
    graph = onnx.helper.make_graph([], "empty", [], [])
    model = onnx.helper.make_model(graph, producer_name="tests")
    onnx.helper.set_model_props(model, {"manifest": '{"näme": 1}', "other": "x" * 300})
    serialised: bytes = model.SerializeToString()
    return serialised


SEALED = {"pte": seal(PROGRAM), "onnx": seal_onnx(model_bytes())}
PAYLOAD = {"pte": PROGRAM, "onnx": model_bytes()}
FORMATS = sorted(SEALED)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_sealed_file_is_accepted_and_gives_back_its_payload(kind: str) -> None:
    sealed = verify_bytes(SEALED[kind], "m")
    assert sealed.format == kind
    assert bytes(sealed.payload) == PAYLOAD[kind]
    assert len(sealed.digest) == 64


@pytest.mark.parametrize("kind", FORMATS)
def test_every_single_bit_of_every_byte_counts(kind: str) -> None:
    data = bytearray(SEALED[kind])
    for position in range(len(data)):
        bit = 1 << (position % 8)
        data[position] ^= bit
        with pytest.raises(ModelFileError):
            verify_bytes(bytes(data), "m")
        data[position] ^= bit
    assert verify_bytes(bytes(data), "m").format == kind


@pytest.mark.parametrize("kind", FORMATS)
def test_every_value_of_every_byte_of_the_seal_counts(kind: str) -> None:
    data = bytearray(SEALED[kind])
    for position in range(len(PAYLOAD[kind]), len(data)):
        original = data[position]
        for value in set(range(256)) - {original}:
            data[position] = value
            with pytest.raises(ModelFileError):
                verify_bytes(bytes(data), "m")
        data[position] = original


@pytest.mark.parametrize("kind", FORMATS)
def test_every_truncation_is_refused(kind: str) -> None:
    for length in range(len(SEALED[kind])):
        with pytest.raises(ModelFileError):
            verify_bytes(SEALED[kind][:length], "m")


@pytest.mark.parametrize("kind", FORMATS)
def test_appended_bytes_are_refused(kind: str) -> None:
    for extra in (b"\0", b"\n", b"x" * 100, SEALED[kind][-90:]):
        with pytest.raises(ModelFileError):
            verify_bytes(SEALED[kind] + extra, "m")


def test_random_bytes_are_refused() -> None:
    source = random.Random(1)
    for _ in range(300):
        with pytest.raises(ModelFileError):
            verify_bytes(source.randbytes(source.randrange(400)), "m")


def test_a_trailer_with_a_wrong_length_is_refused_though_its_digest_is_right() -> None:
    body = PROGRAM + struct.pack("<8sBQ", b"MARSEDGE", 1, len(PROGRAM) - 1)
    message = r"^m has a trailer this mars-edge cannot read \(version 1, length 4007\)$"
    with pytest.raises(ModelFileError, match=message):
        verify_bytes(body + hashlib.sha256(body).digest(), "m")


def test_a_sealed_onnx_is_still_a_valid_model_with_both_properties() -> None:
    model = onnx.load_from_string(SEALED["onnx"])
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["digest"] == verify_bytes(SEALED["onnx"], "m").digest
    assert properties["manifest"] == onnx_manifest(verify_bytes(SEALED["onnx"], "m")) == '{"näme": 1}'


def test_a_model_without_a_manifest_says_so() -> None:
    bare = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])).SerializeToString()
    with pytest.raises(ModelFileError, match="no manifest property"):
        onnx_manifest(verify_bytes(seal_onnx(bare), "m"))


@pytest.mark.parametrize("kind", FORMATS)
def test_sealing_twice_is_refused(kind: str) -> None:
    with pytest.raises(ModelFileError, match="is sealed already"):
        (seal if kind == "pte" else seal_onnx)(SEALED[kind])


def test_only_an_executorch_program_is_sealed_as_pte() -> None:
    with pytest.raises(ModelFileError, match=r"^not an ExecuTorch program: bytes 4 to 8"):
        seal(b"\0\0\0\0PK12" + bytes(100))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_written_file_verifies_and_leaves_no_temporary_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{kind}"
    written = write_sealed(path, PAYLOAD[kind])
    assert verify(path) == written
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    write_sealed(path, PROGRAM)
    with pytest.raises(ModelFileError):
        write_sealed(path, b"nothing")
    assert verify(path).payload == PROGRAM


def test_another_suffix_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.bin: artifacts end in \.pte or \.onnx$"):
        write_sealed(tmp_path / "model.bin", PROGRAM)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^no model file .*nope\.pte$"):
        verify(tmp_path / "nope.pte")


def test_an_unsealed_program_is_told_apart_from_garbage() -> None:
    with pytest.raises(ModelFileError, match="without the mars-edge trailer"):
        verify_bytes(PROGRAM, "m")
    with pytest.raises(ModelFileError, match=r"^m is not a mars-edge model: 3 bytes"):
        verify_bytes(b"abc", "m")


def test_a_folder_is_a_wrong_request_and_no_damaged_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        verify(tmp_path)
    assert str(caught.value) == f"{tmp_path} is a folder; name a model file"
