"""Artifacts that verify themselves: the trailer of a .pte and the digest property of an .onnx.

    .pte    program | b"MARSEDGE" | version, 1 byte | program length, 8 bytes little-endian | SHA-256, 32 bytes
    .onnx   model   | ModelProto field 14 (metadata_props): key "digest", value 64 hexadecimal characters

Both digests cover every byte before themselves, the digest ends the file, and its place is fixed from the end.
So no byte can change, go or be added unseen, and no parser sees a byte before the digest is right: ExecuTorch
ignores what follows its program, and a protobuf reader merges an appended field, so both runtimes load a sealed
file as it is. A digest finds damage, not malice: who rewrites the file can rewrite the digest.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mars_edge.errors import ModelFileError, UsageError
from mars_edge.files import write_whole

Format = Literal["pte", "onnx"]

_MAGIC = b"MARSEDGE"
_VERSION = 1
_HEAD = struct.Struct("<8sBQ")
_TRAILER_BYTES = _HEAD.size + 32
_DIGEST_KEY = "digest"
_MANIFEST_KEY = "manifest"
_METADATA_FIELD = 14
_HEX_BYTES = 64
_ONNX_HEAD = b"\x72\x4a\x0a\x06digest\x12\x40"
_ONNX_TAIL_BYTES = len(_ONNX_HEAD) + _HEX_BYTES


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A file whose digest was right when it was read.

    Attributes:
        format: which runtime the file is for.
        payload_bytes: length of the program or model, without trailer or digest property.
        digest: SHA-256 as 64 hexadecimal characters.
        data: the whole file as it was verified; load this, not the path, which may have changed since.
    """

    format: Format
    payload_bytes: int
    digest: str
    data: bytes

    @property
    def payload(self) -> memoryview:
        """The program or model without its seal; no copy."""
        return memoryview(self.data)[: self.payload_bytes]


def seal(program: bytes) -> bytes:
    """An ExecuTorch program with its trailer; `verify_bytes` accepts it.

    Raises:
        ModelFileError: the bytes are not an ExecuTorch program, or carry a trailer already.
    """
    if not _is_executorch(program):
        raise ModelFileError("not an ExecuTorch program: bytes 4 to 8 are not ET followed by two digits")
    if program[-_TRAILER_BYTES:].startswith(_MAGIC):
        raise ModelFileError("the program is sealed already")
    body = program + _HEAD.pack(_MAGIC, _VERSION, len(program))
    return body + hashlib.sha256(body).digest()


def seal_onnx(model: bytes) -> bytes:
    """A serialised ONNX model with its digest property appended; `verify_bytes` accepts it.

    Raises:
        ModelFileError: the bytes are not a protobuf message, or carry a digest already.
    """
    if _DIGEST_KEY in _metadata(model):
        raise ModelFileError("the model is sealed already")
    body = model + _ONNX_HEAD
    return body + hashlib.sha256(body).hexdigest().encode("ascii")


def write_sealed(path: Path, payload: bytes) -> Sealed:
    """Seals `payload` as the suffix of `path` says and puts it there in one step.

    Raises:
        UsageError: the suffix is neither .pte nor .onnx.
        ModelFileError: the payload is not what the suffix says.
    """
    sealers = {".pte": seal, ".onnx": seal_onnx}
    if path.suffix not in sealers:
        raise UsageError(f"{path}: artifacts end in .pte or .onnx")
    data = sealers[path.suffix](payload)
    write_whole(path, data)
    return verify_bytes(data, str(path))


def verify(path: Path) -> Sealed:
    """The file's content, proven whole.

    Raises:
        UsageError: there is no such file, or it is a folder.
        ModelFileError: it cannot be read, is no artifact, or a byte of it differs from what was written.
    """
    if not path.exists():
        raise UsageError(f"no model file {path}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a model file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error
    return verify_bytes(data, str(path))


def verify_bytes(data: bytes, name: str) -> Sealed:
    """`data` as an artifact called `name` in messages.

    Raises:
        ModelFileError: as for `verify`.
    """
    if len(data) >= _TRAILER_BYTES and data[-_TRAILER_BYTES:].startswith(_MAGIC):
        return _verify_pte(data, name)
    if len(data) >= _ONNX_TAIL_BYTES and data[-_ONNX_TAIL_BYTES:].startswith(_ONNX_HEAD):
        return _verify_onnx(data, name)
    if _is_executorch(data):
        raise ModelFileError(f"{name} is an ExecuTorch program without the mars-edge trailer: truncated or foreign")
    raise ModelFileError(f"{name} is not a mars-edge model: {len(data)} bytes without a .pte trailer or .onnx digest")


def onnx_manifest(sealed: Sealed) -> str:
    """The manifest document of a verified .onnx, found without loading the model.

    Raises:
        ModelFileError: the model has no manifest property.
    """
    try:
        return _metadata(sealed.payload)[_MANIFEST_KEY]
    except KeyError:
        raise ModelFileError("the .onnx model has no manifest property: not exported by mars-edge") from None


def _is_executorch(data: bytes) -> bool:
    return data[4:6] == b"ET" and data[6:8].isdigit() and len(data) > 8


def _verify_pte(data: bytes, name: str) -> Sealed:
    body = data[:-32]
    _, version, length = _HEAD.unpack(body[-_HEAD.size :])
    if hashlib.sha256(body).digest() != data[-32:]:
        raise ModelFileError(f"{name} is damaged: its SHA-256 is not the one in its trailer")
    if version != _VERSION or length != len(data) - _TRAILER_BYTES or not _is_executorch(data):
        raise ModelFileError(f"{name} has a trailer this mars-edge cannot read (version {version}, length {length})")
    return Sealed(format="pte", payload_bytes=length, digest=data[-32:].hex(), data=data)


def _verify_onnx(data: bytes, name: str) -> Sealed:
    body, digest = data[:-_HEX_BYTES], data[-_HEX_BYTES:]
    if hashlib.sha256(body).hexdigest().encode("ascii") != digest:
        raise ModelFileError(f"{name} is damaged: its SHA-256 is not the one in its digest property")
    return Sealed(format="onnx", payload_bytes=len(data) - _ONNX_TAIL_BYTES, digest=digest.decode("ascii"), data=data)


def _metadata(model: bytes | memoryview) -> dict[str, str]:
    """The metadata_props of a serialised ModelProto (https://protobuf.dev/programming-guides/encoding)."""
    entries: dict[str, str] = {}
    for number, value in _fields(memoryview(model)):
        if number == _METADATA_FIELD:
            entry = dict(_fields(value))
            key, text = (bytes(entry.get(part, b"")).decode("utf-8", errors="replace") for part in (1, 2))
            entries[key] = text
    return entries


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Field number and content of every field; the content of fixed-size and varint fields is empty."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind, length = key & 7, 0
        if kind == 0:
            _, position = _varint(message, position)
        elif kind == 2:
            length, position = _varint(message, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ModelFileError(f"not an ONNX model: protobuf wire type {kind} at byte {position}")
        if position + length > len(message):
            raise ModelFileError(f"not an ONNX model: a field of {length} bytes ends beyond the file")
        yield key >> 3, message[position : position + length] if kind == 2 else message[:0]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ModelFileError("not an ONNX model: a protobuf number does not end")
