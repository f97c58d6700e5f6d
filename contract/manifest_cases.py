"""Manifest documents, files that carry them, and which of both are refused."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mars_edge.artifact import onnx_manifest, seal, seal_onnx, verify_bytes
from mars_edge.errors import ModelFileError
from mars_edge.manifest import Golden, Manifest, OperatingPoint, Policy, Tensor
from mars_edge.metrics import rate
from mars_edge.modality import Modality

_MODALITIES = (
    Modality(name="rgb", kind="image", channels=3, size=(4, 4), dtype="uint8", range=(0.0, 255.0)),
    Modality(name="depth", kind="image", size=(4, 4), dtype="uint16", range=(300.0, 800.0)),
    Modality(name="ir", kind="image", size=(4, 4), dtype="uint8", range=(0.0, 255.0)),
)


def small_manifest(**more: Any) -> Manifest:
    """A live/spoof model of three sensors; one of its subsets is not certified and one has no operating point."""
    random = np.random.default_rng(900)
    inputs = {m.name: Tensor.of(random.integers(0, 256, m.shape).astype(np.uint8)) for m in _MODALITIES}
    point = OperatingPoint(
        threshold=0.6, metric="acer", value=0.01, low=0.0, high=0.02, n=100, certified=True, temperature=0.8,
        bpcer=rate(1, 50), apcer={"print": rate(2, 50)},
    )  # fmt: skip
    weak = OperatingPoint(threshold=0.5, metric="acer", value=0.2, low=0.1, high=0.3, n=100, certified=False)
    fields: dict[str, Any] = {
        "name": "small", "task": "classification", "labels": ("spoof", "live"), "positive_label": "live",
        "modalities": _MODALITIES, "experts": 3, "active_experts": 2, "shared_expert": True,
        "feature_shapes": {m.name: (2, 2, 2) for m in _MODALITIES}, "z_shape": (6, 2, 2), "precision": "int8",
        "methods": ("encode_rgb", "encode_depth", "encode_ir", "route", "expert_0", "expert_1", "expert_2",
                    "expert_shared", "head"),
        "operating_points": {"ir": point, "rgb+ir": point, "depth+ir": point, "rgb+depth+ir": point, "rgb": weak},
        "provenance": {"recipe": "contract", "note": {"depth": [1, 2.5, None, True, "é\n"]}},
        "logit_step": 0.05,
        "policy": Policy(require=("depth|ir",), masking_faults=("dark", "covered")),
        "golden": Golden(inputs=inputs, logits={"ir": (0.5, -0.5), "rgb+depth+ir": (1.0, 2.0)}, tolerance=0.05),
    }  # fmt: skip
    return Manifest(**(fields | more))


def manifest_cases() -> list[dict[str, Any]]:
    """Documents as text; each is accepted, or refused for the reason given."""
    return [{"name": name, "text": text, **_judged(text)} for name, text in _documents()]


def _judged(text: str) -> dict[str, Any]:
    try:
        manifest = Manifest.from_json(text)
    except ModelFileError as error:
        return {"refused": str(error)}
    shapes = {m.name: list(m.shape) for m in manifest.modalities}
    return {"accepted": {"name": manifest.name, "shapes": shapes, "methods": list(manifest.methods)}}


def _documents() -> Iterator[tuple[str, str]]:
    table = json.loads(small_manifest().to_json())
    yield "as written", json.dumps(table)
    yield "with spaces and escapes", json.dumps(table, indent=2, ensure_ascii=True)
    yield "of a classification without a positive label", small_manifest(positive_label=None).to_json()
    yield "of sound", _of_sound().to_json()
    yield "of a segmentation", _segmentation().to_json()
    for name, change in _CHANGES.items():
        changed = copy.deepcopy(table)
        change(changed)
        yield name, json.dumps(changed)
    text = json.dumps(table)
    yield (
        "a sensor by a name that objects inherit",
        text.replace('"ir"', '"constructor"')
        .replace("encode_ir", "encode_constructor")
        .replace('+ir"', '+constructor"')
        .replace("|ir", "|constructor"),
    )
    yield "a key twice", text.replace('"name": "small"', '"name": "small", "name": "other"', 1)
    yield "not a number", text.replace('"logit_step": 0.05', '"logit_step": NaN', 1)
    yield "a number too large", text.replace('"logit_step": 0.05', '"logit_step": 1e999', 1)
    yield "a whole number written as a fraction", text.replace('"experts": 3', '"experts": 3.0', 1)
    yield "a list", "[]"
    yield "nothing", ""
    yield "cut off", text[: len(text) // 2]
    yield "followed by something", text + " {}"
    yield "a trailing comma", text[:-1] + ",}"
    yield "a leading zero", text.replace('"experts": 3', '"experts": 03', 1)
    yield "a control character in a string", text.replace('"small"', '"sm\nall"', 1)


def _of_sound() -> Manifest:
    voice = Modality(name="voice", kind="audio", rate_hz=8000.0, window_s=0.5, mel_bands=20)
    return small_manifest(
        modalities=(voice,), labels=("yes", "no", "maybe"), positive_label=None, shared_expert=False, golden=None,
        methods=("encode_voice", "route", "expert_0", "expert_1", "expert_2", "head"), policy=Policy(),
        feature_shapes={"voice": (2, 2, 2)},
        operating_points={},
    )  # fmt: skip


def _segmentation() -> Manifest:
    return small_manifest(task="segmentation", positive_label=None, labels=("road", "car"), golden=None)


def _put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the entry at the path, whose last member is the value."""
    *keys, last, value = path

    def change(table: Any) -> None:
        for key in keys:
            table = table[key]
        table[last] = value

    return change


def _drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    *keys, last = path

    def change(table: Any) -> None:
        for key in keys:
            table = table[key]
        del table[last]

    return change


def _rename(where: str, old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(table: dict[str, Any]) -> None:
        table[where][new] = table[where].pop(old)

    return change


_CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "another schema version": _put("schema_version", 2),
    "no schema version": _drop("schema_version"),
    "an unknown key": _put("colour", 1),
    "an unknown key in the policy": _put("policy", "colour", 1),
    # In some languages every table has members of these names from the start.
    "an unknown key that objects inherit": _put("constructor", 1),
    "an unknown key in the policy that objects inherit": _put("policy", "toString", 1),
    "a modality with an unknown key that objects inherit": _put("modalities", 0, "valueOf", 1),
    "a modality of a kind that objects inherit": _put("modalities", 0, "kind", "constructor"),
    "a key that is missing": _drop("labels"),
    "a key with a default that is missing": _drop("shared_expert"),
    "a number for a name": _put("name", 3),
    "an empty name": _put("name", ""),
    "a name with a line feed": _put("name", "a\nb"),
    "a string for a list": _put("labels", "spoof"),
    "one label": _put("labels", ["live"]),
    "a label twice": _put("labels", ["live", "live"]),
    "a positive label that is none": _put("positive_label", "alive"),
    "no modality": _put("modalities", []),
    "a modality of an unknown kind": _put("modalities", 0, "kind", "smell"),
    "a modality with an unknown key": _put("modalities", 0, "colour", 1),
    "a modality with a key of another kind": _put("modalities", 0, "mel_bands", 3),
    "a modality called none": _put("modalities", 0, "name", "none"),
    "a modality without a size": _drop("modalities", 0, "size"),
    "a modality with a size of three": _put("modalities", 0, "size", [4, 4, 4]),
    "a modality with 17 channels": _put("modalities", 0, "channels", 17),
    "a modality with an empty range": _put("modalities", 0, "range", [5.0, 5.0]),
    "a modality at no rate": _put("modalities", 0, "rate_hz", 0),
    "a modality twice": _put("modalities", 1, "name", "rgb"),
    "true for a number": _put("experts", True),
    "no expert": _put("experts", 0),
    "more active experts than there are": _put("active_experts", 4),
    "a billion experts": _put("experts", 10**9),
    "a number beyond 64 bits": _put("experts", 2**63),
    "a method that is missing": _drop("methods", 0),
    "a method of another name": _put("methods", 0, "encode_voice"),
    "a feature of no modality": _put("feature_shapes", "voice", [2]),
    "a feature with an empty side": _put("feature_shapes", "rgb", [0, 2]),
    "an unknown precision": _put("precision", "int4"),
    "an unknown task": _put("task", "regression"),
    "an operating point of an unknown subset": _rename("operating_points", "rgb+ir", "ir+rgb"),
    "an operating point above its interval": _put("operating_points", "ir", "value", 0.5),
    "an operating point without a threshold": _drop("operating_points", "ir", "threshold"),
    "a temperature of 0": _put("operating_points", "ir", "temperature", 0.0),
    "fewer than no samples": _put("operating_points", "ir", "n", -1),
    "more errors than samples": _put("operating_points", "ir", "bpcer", "errors", 51),
    "a requirement of an unknown modality": _put("policy", "require", ["depth|smell"]),
    "an unknown mode for what is missing": _put("policy", "on_missing", "hope"),
    "a masking fault that is none": _put("policy", "masking_faults", ["stale"]),
    "a logit step of 0": _put("logit_step", 0),
    "no logit step": _put("logit_step", None),
    "a golden input of another shape": _put("golden", "inputs", "rgb", "shape", [3, 4, 5]),
    "a golden input that is missing": _drop("golden", "inputs", "rgb"),
    "a golden input that is no base64": _put("golden", "inputs", "rgb", "data", "!!"),
    "a golden input of fewer bytes": _put("golden", "inputs", "rgb", "data", "AAAA"),
    "golden logits of an unknown subset": _put("golden", "logits", {"voice": [0.0, 1.0]}),
    "golden logits that are too few": _put("golden", "logits", {"ir": [0.0]}),
    "no golden logits": _put("golden", "logits", {}),
    "golden pixels of a classification": _put("golden", "pixels", [[0, 0]]),
    "a negative tolerance": _put("golden", "tolerance", -0.1),
    "a cost of no method": _put("costs", {"encode_voice": {"macs": 1, "weight_bytes": 1}}),
    "a negative cost": _put("subset_costs", {"ir": {"macs": -1, "weight_bytes": 1}}),
    "a number of parameters": _put("parameters", 139_200_000),
    "a number of parameters that is missing, as in files of earlier versions": _drop("parameters"),
    "fewer than no parameters": _put("parameters", -1),
    "true for a number of parameters": _put("parameters", True),
}


def artifact_cases() -> list[dict[str, Any]]:
    """Files in base64; each has a format, a digest and, as .onnx, a manifest, or is refused for the reason given."""
    return [
        {"name": name, "data": base64.b64encode(data).decode("ascii"), **_verified(data)} for name, data in _files()
    ]


def _verified(data: bytes) -> dict[str, Any]:
    try:
        sealed = verify_bytes(data, "the file")
        table: dict[str, Any] = {"format": sealed.format, "digest": sealed.digest}
        return table | ({"manifest": onnx_manifest(sealed)} if sealed.format == "onnx" else {})
    except ModelFileError as error:
        return {"refused": str(error)}


def _files() -> Iterator[tuple[str, bytes]]:
    body = _field(1, b"\x08") + b"\x08\x0a" + _field(7, b"graph " * 30)
    whole = seal_onnx(body + _property("author", "é") + _property("manifest", '{"name": "small"}') + b"\x2d\0\0\0\0")
    flipped = bytearray(whole)
    flipped[20] ^= 0x10
    yield "an .onnx", whole
    yield (
        "an .onnx whose manifest is there twice: the last one counts",
        seal_onnx(body + _property("manifest", "first") + _property("manifest", "second")),
    )
    yield "an .onnx without a manifest", seal_onnx(body)
    yield "an .onnx with a bit flipped", bytes(flipped)
    yield "an .onnx cut short", whole[:-1]
    yield "an .onnx with a byte more", whole + b"\0"
    yield "an .onnx without a digest", body
    program = b"\x10\0\0\0ET12" + bytes(range(40))
    yield "a .pte", seal(program)
    yield "a .pte without its trailer", program
    yield "nothing", b""


def _field(number: int, content: bytes) -> bytes:
    length, coded = len(content), bytearray()
    while length > 0x7F:
        coded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *coded, length]) + content


def _property(key: str, text: str) -> bytes:
    return _field(14, _field(1, key.encode()) + _field(2, text.encode()))
