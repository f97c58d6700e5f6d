"""The declaration of one modality: shapes follow from it, and nothing wrong or unused gets in."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import numpy as np
import pytest

from mars_edge.errors import UsageError
from mars_edge.modality import Modality

IMAGE: dict[str, Any] = {"name": "depth", "kind": "image", "size": [112, 96]}
AUDIO: dict[str, Any] = {"name": "voice", "kind": "audio", "rate_hz": 16000, "window_s": 1.0}
SEQUENCE: dict[str, Any] = {"name": "inertial", "kind": "sequence", "channels": 6, "length": 180}
VECTOR: dict[str, Any] = {"name": "climate", "kind": "vector", "length": 5}
TEXT: dict[str, Any] = {"name": "title", "kind": "text", "length": 12, "vocabulary": 500}
TABLES = [IMAGE, AUDIO, SEQUENCE, VECTOR, TEXT]


def sample_of(modality: Modality) -> np.ndarray[Any, Any] | str:
    """Some raw sample this modality accepts, not of the size the network wants."""
    if modality.kind == "text":
        return "Three words only"
    rng = np.random.default_rng(0)
    if modality.kind == "image":
        return rng.random((50, 70, modality.channels)).astype(modality.dtype)
    shape = {"audio": (1234,), "sequence": (37, modality.channels), "vector": (modality.length or 0,)}
    return rng.random(shape[modality.kind]).astype(np.float32)


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t["kind"])
def test_the_declared_shape_is_the_shape_that_comes_out(table: dict[str, Any]) -> None:
    modality = Modality.from_dict(table)
    tensor = modality.preprocess(sample_of(modality))
    assert tensor.shape == modality.shape
    assert tensor.dtype == np.float32


def test_shapes_are_channels_first_without_a_batch_axis() -> None:
    assert Modality.from_dict({**IMAGE, "channels": 3}).shape == (3, 112, 96)
    assert Modality.from_dict(SEQUENCE).shape == (6, 180)
    assert Modality.from_dict(VECTOR).shape == (5,)
    assert Modality.from_dict(TEXT).shape == (2, 12)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
@pytest.mark.parametrize("window_s", [0.032, 0.0479, 0.5, 1.0])
def test_audio_frames_are_all_that_fit_wholly_and_no_more(rate_hz: float, window_s: float) -> None:
    modality = Modality.from_dict({**AUDIO, "rate_hz": rate_hz, "window_s": window_s, "mel_bands": 13})
    window, frame, hop = modality.window_samples, modality.frame_samples, modality.hop_samples
    count = len([start for start in range(0, window, hop) if start + frame <= window])
    assert modality.shape == (1, 13, count)
    assert count >= 1


@pytest.mark.parametrize(
    "table",
    [
        *TABLES,
        {**IMAGE, "channels": 16, "dtype": "uint16", "range": [0, 4500], "rate_hz": 30},
        {**AUDIO, "mel_bands": 64, "frame_s": 0.025},
        {**SEQUENCE, "range": [-2, 2], "rate_hz": 50.0},
    ],
)
def test_a_declaration_survives_json_and_says_no_more_than_needed(table: dict[str, Any]) -> None:
    modality = Modality.from_dict(table)
    written = modality.to_dict()
    assert Modality.from_dict(json.loads(json.dumps(written))) == modality
    assert written == table


def test_the_toml_tables_of_the_documentation_are_accepted() -> None:
    text = """
        [modality.depth]
        kind = "image"
        size = [64, 64]
        channels = 16
        range = [0, 4500]
        [modality.inertial]
        kind = "sequence"
        channels = 6
        length = 180
        rate_hz = 50
        [modality.voice]
        kind = "audio"
        rate_hz = 16000
        window_s = 1.0
    """
    tables = tomllib.loads(text)["modality"]
    shapes = {name: Modality.from_dict({"name": name, **table}).shape for name, table in tables.items()}
    assert shapes == {"depth": (16, 64, 64), "inertial": (6, 180), "voice": (1, 40, 61)}


NAME = "modality name {!r} is not a lower-case identifier, e.g. depth"
KNOWN = "name, kind, channels, size, dtype, range, rate_hz, window_s, mel_bands, frame_s, length, vocabulary"
WRONG: list[tuple[dict[str, Any], str]] = [
    *(({**IMAGE, "name": n}, NAME.format(n)) for n in ("Depth", "", "a-b", "a+b", "1st", "é", "none", "_x", 5, None)),
    ({**IMAGE, "kind": "picture"}, "unknown kind 'picture'; allowed: image, audio, sequence, vector, text"),
    ({**IMAGE, "kind": ["image"]}, "unknown kind ('image',); allowed: image, audio, sequence, vector, text"),
    ({**IMAGE, "dtype": "float64"}, "unknown dtype 'float64'; allowed: uint8, uint16, float32"),
    ({**IMAGE, "dtype": {}}, "unknown dtype {}; allowed: uint8, uint16, float32"),
    *(
        ({**IMAGE, "range": given}, f"range {shown} must be two finite numbers, low < high")
        for given, shown in [
            ([0, 0], "(0, 0)"),
            ([1, 0], "(1, 0)"),
            ([0], "(0,)"),
            ([0, 1, 2], "(0, 1, 2)"),
            ([0, float("inf")], "(0, inf)"),
            ([float("nan"), 1], "(nan, 1)"),
            (["0", "1"], "('0', '1')"),
            ([False, True], "(False, True)"),
            ([0, 1e-40], "(0, 1e-40)"),
            ("01", "'01'"),
            (5, "5"),
            (None, "None"),
        ]
    ),
    *(
        ({**IMAGE, "rate_hz": value}, f"rate_hz {value!r} must be a finite number above 0")
        for value in (0, -1.0, float("inf"), float("nan"), "15", True, None, 10**400)
    ),
    *(
        ({**IMAGE, "channels": value}, f"channels {value!r} must be a whole number from 1 to 16")
        for value in (0, 17, 3.0, "3", True, None)
    ),
    *(
        ({**IMAGE, "size": given}, f"size {shown} must be [height, width] in pixels")
        for given, shown in [
            (None, "None"),
            ([112], "(112,)"),
            ([112, 112, 3], "(112, 112, 3)"),
            ([0, 112], "(0, 112)"),
            ([112.0, 112], "(112.0, 112)"),
            ([10**12, 1], "(1000000000000, 1)"),
            (112, "112"),
            ("ab", "'ab'"),
        ]
    ),
    *(
        ({**AUDIO, "window_s": value}, f"window_s {value!r} must be at least frame_s (0.032 s)")
        for value in (None, 0.031, 0, "1", float("nan"), float("inf"))
    ),
    *(
        ({**AUDIO, "frame_s": value}, f"frame_s {value!r} must be a finite number above 0")
        for value in (0, -0.1, "x", float("nan"))
    ),
    *(
        ({**AUDIO, "mel_bands": value}, f"mel_bands {value!r} must be a whole number from 1")
        for value in (0, 40.0, None)
    ),
    ({**AUDIO, "rate_hz": 10}, "frame_s 0.032 at 10 Hz is under 2 samples"),
    *(({**SEQUENCE, "length": v}, f"length {v!r} must be a whole number from 1") for v in (None, 0, 1.5)),
    *(({**SEQUENCE, "channels": v}, f"channels {v!r} must be a whole number from 1") for v in (None, 0, 1.5)),
    *(({**VECTOR, "length": v}, f"length {v!r} must be a whole number from 1") for v in (None, 0, "5", [5])),
    *(({**TEXT, "length": v}, f"length {v!r} must be a whole number from 1") for v in (None, 0, 1.5)),
    *(
        ({**TEXT, "vocabulary": v}, f"vocabulary {v!r} must be a whole number from 2 to 16777216")
        for v in (None, 1, 2**24 + 1, 10.0, True, "9")
    ),
    (
        {**TEXT, "range": [0, 2]},
        "range has no meaning for kind text; its keys: name, kind, rate_hz, length, vocabulary",
    ),
    (
        {**VECTOR, "vocabulary": 5},
        "vocabulary has no meaning for kind vector; its keys: name, kind, rate_hz, length, dtype, range",
    ),
    (
        {**IMAGE, "length": 5},
        "length has no meaning for kind image; its keys: name, kind, rate_hz, channels, size, dtype, range",
    ),
    (
        {**AUDIO, "channels": 2},
        "channels has no meaning for kind audio; its keys: name, kind, rate_hz, window_s, mel_bands, frame_s",
    ),
    (
        {**SEQUENCE, "size": [3, 3]},
        "size has no meaning for kind sequence; its keys: name, kind, rate_hz, channels, length, dtype, range",
    ),
    (
        {**VECTOR, "channels": 3},
        "channels has no meaning for kind vector; its keys: name, kind, rate_hz, length, dtype, range",
    ),
]


@pytest.mark.parametrize(("table", "message"), WRONG)
def test_a_wrong_value_is_refused_with_its_value_and_what_is_allowed(table: dict[str, Any], message: str) -> None:
    where = "" if message.startswith("modality name") else f"modality {table['name']!r}: "
    if table.get("length") == [5]:
        message = message.replace("[5]", "(5,)")
    with pytest.raises(UsageError) as caught:
        Modality.from_dict(table)
    assert str(caught.value) == where + message


def test_an_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        Modality.from_dict({**IMAGE, "widht": 3})
    assert str(caught.value) == f"unknown modality key 'widht'; known keys: {KNOWN}"


@pytest.mark.parametrize("key", ["name", "kind"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        Modality.from_dict({k: v for k, v in IMAGE.items() if k != key})
    assert str(caught.value) == f"modality table lacks {key!r}; it needs name and kind"
