"""The array of one sample as a message that viewers show, and back without loss.

Pictures are `foxglove.RawImage` (Protobuf): 8-bit grey and colour, 16-bit (depth keeps its millimetres), float. Every
other array is JSON with its bytes. Sound is that too, as the overlapping windows the model is given, and beside it
`foxglove.RawAudio` with only what is new in each window, for listening.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_runtime.recording.plain import array_from_plain, array_to_plain

RAW_IMAGE = "foxglove.RawImage"
RAW_AUDIO = "foxglove.RawAudio"
ARRAY = "mars_edge.Array"
# Foxglove's names by element type and channels (https://docs.foxglove.dev/docs/sdk/schemas/raw-image).
_ENCODINGS = {
    ("|u1", 1): "mono8",
    ("|u1", 3): "rgb8",
    ("<u2", 1): "16UC1",
    ("<f4", 1): "32FC1",
}
_DTYPES = {encoding: (np.dtype(dtype), channels) for (dtype, channels), encoding in _ENCODINGS.items()}
ARRAY_SCHEMA = {
    "title": ARRAY,
    "type": "object",
    "required": ["dtype", "shape", "data"],
    "properties": {
        "dtype": {"type": "string", "description": "NumPy's name, little-endian"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "string", "contentEncoding": "base64"},
    },
}


def schema_of(data: NDArray[Any]) -> str:
    """`RAW_IMAGE` for a picture that viewers know, else `ARRAY`."""
    return ARRAY if _encoding(data) is None else RAW_IMAGE


def _encoding(data: NDArray[Any]) -> str | None:
    if data.ndim not in (2, 3) or 0 in data.shape:
        return None
    channels = 1 if data.ndim == 2 else data.shape[2]
    return _ENCODINGS.get((data.dtype.newbyteorder("<").str, channels))


def encode(data: NDArray[Any], at_ns: int, name: str) -> bytes:
    """The message of `schema_of(data)`; `at_ns` is UTC."""
    encoding = _encoding(data)
    if encoding is None:
        return json.dumps(array_to_plain(data), separators=(",", ":")).encode()
    kept = np.ascontiguousarray(data)
    kept = kept.astype(kept.dtype.newbyteorder("<"), copy=False)
    image = _raw_image()(
        frame_id=name,
        width=kept.shape[1],
        height=kept.shape[0],
        encoding=encoding,
        step=kept.strides[0],
        data=kept.tobytes(),
    )
    image.timestamp.FromNanoseconds(at_ns)
    content: bytes = image.SerializeToString()
    return content


def decode(schema: str, content: bytes, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """The array of a message; `shape` tells (H, W) from (H, W, 1).

    Raises:
        UsageError: a schema or an encoding we did not write, or content that does not fit it.
    """
    try:
        data = _decode(schema, content)
        return data if shape is None else data.reshape(shape)
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"the recording holds a {schema} that cannot be decoded ({error})") from error


def _decode(schema: str, content: bytes) -> NDArray[Any]:
    if schema == ARRAY:
        return array_from_plain(json.loads(content))
    if schema != RAW_IMAGE:
        raise ValueError(f"schema {schema!r}")
    image = _raw_image()()
    image.MergeFromString(content)
    if image.encoding not in _DTYPES:
        raise ValueError(f"encoding {image.encoding!r}; known: {', '.join(_DTYPES)}")
    dtype, channels = _DTYPES[image.encoding]
    sides = (image.height, image.width) if channels == 1 else (image.height, image.width, channels)
    return np.frombuffer(image.data, dtype).reshape(sides).copy()


def encode_sound(signal: NDArray[np.float32], rate_hz: float, at_ns: int) -> bytes:
    """Mono samples in -1..1 as 16-bit `RAW_AUDIO`, for listening only."""
    from foxglove_schemas_protobuf.RawAudio_pb2 import RawAudio

    pcm = np.rint(np.clip(signal, -1.0, 1.0) * 32767.0).astype("<i2")
    audio = RawAudio(data=pcm.tobytes(), format="pcm-s16", sample_rate=round(rate_hz), number_of_channels=1)
    audio.timestamp.FromNanoseconds(at_ns)
    content: bytes = audio.SerializeToString()
    return content


def protobuf_schema(name: str) -> bytes:
    """The file descriptor set that MCAP wants of `RAW_IMAGE` or `RAW_AUDIO`."""
    from foxglove_schemas_protobuf.RawAudio_pb2 import RawAudio
    from mcap_protobuf.schema import build_file_descriptor_set

    kind = {RAW_IMAGE: _raw_image(), RAW_AUDIO: RawAudio}[name]
    content: bytes = build_file_descriptor_set(kind).SerializeToString()
    return content


def _raw_image() -> Any:
    from foxglove_schemas_protobuf.RawImage_pb2 import RawImage

    return RawImage
