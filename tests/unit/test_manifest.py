"""The manifest: read back as written, every violation named, and never anything but ModelFileError."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from typing import Any

import numpy as np
import pytest

from mars_edge import subsets
from mars_edge.errors import ModelFileError
from mars_edge.manifest import (
    SCHEMA_VERSION,
    Golden,
    Manifest,
    MethodCost,
    OperatingPoint,
    Policy,
    SubsetCost,
    Tensor,
    required_methods,
    subset_cost,
)
from mars_edge.metrics import rate
from mars_edge.modality import Modality

NAMES = ("rgb", "depth", "sound")
POINT = OperatingPoint(
    threshold=0.4,
    metric="acer",
    value=0.03,
    low=0.02,
    high=0.05,
    n=900,
    certified=True,
    target=0.1,
    bpcer=rate(3, 450),
    apcer={"print": rate(0, 20), "mask": rate(27, 430)},
)


def full_manifest() -> Manifest:
    """A manifest that uses every field."""
    rng = np.random.default_rng(0)
    modalities = (
        Modality(name="rgb", kind="image", channels=3, size=(4, 5), dtype="uint8", range=(0.0, 255.0)),
        Modality(name="depth", kind="image", size=(4, 5), dtype="uint16", range=(300.0, 800.0)),
        Modality(name="sound", kind="audio", rate_hz=8000, window_s=0.1, mel_bands=4),
    )
    labels = [subsets.label(s, NAMES) for s in subsets.all_subsets(NAMES)]
    return Manifest(
        name="two-cameras and a microphone",
        task="classification",
        labels=("spoof", "live", "größer"),
        positive_label="live",
        modalities=modalities,
        experts=3,
        active_experts=2,
        feature_shapes=dict.fromkeys(NAMES, (8, 2, 2)),
        z_shape=(16,),
        precision="int8",
        methods=(
            *("encode_rgb", "encode_depth", "encode_sound", "route"),
            *("expert_0", "expert_1", "expert_2", "expert_shared", "head"),
        ),
        operating_points=dict.fromkeys(labels, POINT),
        provenance={"recipe": "r.toml", "seeds": [1, 2], "nested": {"simulated": True, "loss": 0.25, "none": None}},
        shared_expert=True,
        logit_step=0.125,
        policy=Policy(require=("depth|rgb", "sound"), on_missing="abstain", masking_faults=("dark",)),
        golden=Golden(
            inputs={
                "rgb": Tensor.of(rng.integers(0, 256, (3, 4, 5)).astype(np.uint8)),
                "depth": Tensor.of(rng.random((1, 4, 5), dtype=np.float32)),
                "sound": Tensor.of(rng.random(modalities[2].shape)),
            },
            logits=dict.fromkeys(labels, (0.5, -1.25, 3.0)),
            tolerance=0.25,
        ),
        parity={"samples": 500, "worst_steps": 1},
        target="onnx-cpu",
        costs={
            **{f"encode_{name}": MethodCost(macs=100 + i, weight_bytes=10 + i) for i, name in enumerate(NAMES)},
            "route": MethodCost(macs=20, weight_bytes=5, activation_bytes=64),
            **{f"expert_{i}": MethodCost(macs=7 + i, weight_bytes=3 + i, activation_bytes=32) for i in range(3)},
            "expert_shared": MethodCost(macs=8, weight_bytes=4, activation_bytes=32),
            "head": MethodCost(macs=1, weight_bytes=1, activation_bytes=16),
        },
        subset_costs={"rgb+sound": SubsetCost(macs=249, weight_bytes=42, activation_bytes=None)},
        parameters=139_200_000,
    )


FULL = full_manifest()
TABLE: dict[str, Any] = json.loads(FULL.to_json())


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """A copy of the valid document with one entry replaced."""
    table = copy.deepcopy(TABLE)
    entry: Any = table
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = to
    return table


def refusal(table: Any) -> str:
    """The message this document is refused with."""
    with pytest.raises(ModelFileError) as caught:
        Manifest.from_json(json.dumps(table))
    return str(caught.value)


def test_a_manifest_is_read_back_equal_from_text_and_bytes() -> None:
    assert Manifest.from_json(FULL.to_json()) == FULL
    assert Manifest.from_json(FULL.to_json().encode()) == FULL
    assert Manifest.from_json(FULL.to_json()).to_json() == FULL.to_json()


def test_optional_entries_may_be_left_out() -> None:
    optional = {f.name for f in dataclasses.fields(Manifest) if f.default is not dataclasses.MISSING}
    optional |= {"policy", "costs", "subset_costs"}
    table = {key: value for key, value in TABLE.items() if key not in optional or key == "schema_version"}
    table["methods"] = [m for m in table["methods"] if m != "expert_shared"]
    manifest = Manifest.from_json(json.dumps(table))
    assert (manifest.golden, manifest.parity, manifest.logit_step, manifest.parameters) == (None, None, None, None)
    assert manifest.policy == Policy(require=(), on_missing="continue", masking_faults=())


def test_modalities_are_found_by_name_and_listed_in_fusion_order() -> None:
    assert FULL.names == NAMES
    assert FULL.modality("depth").shape == (1, 4, 5)
    with pytest.raises(KeyError):
        FULL.modality("radar")


def test_an_artifact_needs_one_encoder_per_modality_route_experts_and_head() -> None:
    assert required_methods(FULL) == FULL.methods


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_a_tensor_gives_back_its_values_as_float32(dtype: Any) -> None:
    values = (np.random.default_rng(0).random((2, 3, 4)) * 200).astype(dtype)
    expected = values / np.float32(255) if dtype is np.uint8 else values.astype(np.float32)
    restored = Tensor.of(values[:, ::-1]).array()
    assert restored.dtype == np.float32
    assert np.array_equal(restored, expected[:, ::-1])


TENSOR = ["golden", "inputs", "depth"]
MODALITY = "unknown modality key 'x'; known keys: " + ", ".join(f.name for f in dataclasses.fields(Modality))
POINT_KEYS = ", ".join(f.name for f in dataclasses.fields(OperatingPoint))
MANIFEST_KEYS = ", ".join(f.name for f in dataclasses.fields(Manifest))
VIOLATIONS: list[tuple[Any, str]] = [
    ([1], "manifest is a list, expected an object"),
    (5, "manifest is a int, expected an object"),
    (changed("schema_version", to=2), "manifest schema_version is 2; this mars-edge reads 1"),
    (changed("schema_version", to="1"), "manifest schema_version is '1'; this mars-edge reads 1"),
    (changed("schema_version", to=True), "manifest.schema_version is True, expected a whole number"),
    (changed("extra", to=1), f"manifest has the unknown key 'extra'; known keys: {MANIFEST_KEYS}"),
    (
        changed("operating_points", "rgb", "extra", to=1),
        f"manifest.operating_points.rgb has the unknown key 'extra'; known keys: {POINT_KEYS}",
    ),
    (changed("name", to=5), "manifest.name is 5, expected a string"),
    (changed("name", to=""), "manifest: name or label '' is empty or not printable"),
    (changed("name", to="a\x1b[2J"), "manifest: name or label 'a\\x1b[2J' is empty or not printable"),
    (changed("task", to="regression"), "manifest.task is 'regression', expected one of classification, segmentation"),
    (changed("labels", to="live"), "manifest.labels is 'live', expected a list"),
    (changed("labels", 1, to=None), "manifest.labels[1] is None, expected a string"),
    (changed("labels", to=["live"]), "manifest: 1 labels, at least 2 are needed"),
    (changed("labels", to=["a", "live", "a"]), "manifest: labels repeat: a, live, a"),
    (changed("labels", 0, to="\ud800"), "manifest: name or label '\\ud800' is empty or not printable"),
    (changed("positive_label", to="no"), "manifest: positive_label 'no' is no label"),
    (changed("modalities", to=[]), "manifest: no modality"),
    (changed("modalities", 1, to=3), "manifest.modalities[1] is 3, expected an object"),
    (changed("modalities", 1, "x", to=3), f"manifest.modalities[1]: {MODALITY}"),
    (
        changed("modalities", 0, "channels", to=99),
        "manifest.modalities[0]: modality 'rgb': channels 99 must be a whole number from 1 to 16",
    ),
    (changed("modalities", 1, to=TABLE["modalities"][0]), "manifest: modality names repeat: rgb, rgb, sound"),
    (changed("experts", to=2.0), "manifest.experts is 2.0, expected a whole number"),
    (changed("experts", to=2**63), "manifest.experts is 9223372036854775808, expected a whole number"),
    (changed("experts", to=10**9), "manifest: 9 methods, its modalities and experts need 1000000006"),
    (changed("active_experts", to=4), "manifest: active_experts 4 of 3 experts"),
    (changed("active_experts", to=0), "manifest: active_experts 0 of 3 experts"),
    (changed("feature_shapes", to={"rgb": [8]}), "manifest: feature_shapes must name exactly the modalities"),
    (changed("feature_shapes", to=[]), "manifest.feature_shapes is [], expected an object"),
    (
        changed("feature_shapes", "rgb", to=[8, 0]),
        "manifest: shape of rgb is (8, 0), expected whole numbers from 1",
    ),
    (changed("z_shape", to=[]), "manifest: shape of z_shape is (), expected whole numbers from 1"),
    (changed("z_shape", to=[1.5]), "manifest.z_shape[0] is 1.5, expected a whole number"),
    (changed("precision", to="int4"), "manifest.precision is 'int4', expected one of fp32, fp16, int8"),
    (changed("methods", to=["head"]), "manifest: 1 methods, its modalities and experts need 9"),
    (
        changed("methods", 0, to="encode_ir"),
        f"manifest: methods {('encode_ir', *FULL.methods[1:])} are not {FULL.methods}",
    ),
    (changed("shared_expert", to=1), "manifest.shared_expert is 1, expected true or false"),
    (changed("shared_expert", to=False), "manifest: 9 methods, its modalities and experts need 8"),
    (changed("logit_step", to=0.0), "manifest: logit_step is 0.0, expected above 0"),
    (changed("logit_step", to=10**400), f"manifest.logit_step is 1{'0' * 79}, expected a number"),
    (changed("logit_step", to=True), "manifest.logit_step is True, expected a number"),
    (
        changed("operating_points", "depth+rgb", to=TABLE["operating_points"]["rgb"]),
        "manifest: operating_points has the unknown subset 'depth+rgb'; its members in order: rgb+depth+sound",
    ),
    (
        changed("operating_points", "ir", to=TABLE["operating_points"]["rgb"]),
        "manifest: operating_points has the unknown subset 'ir'; its members in order: rgb+depth+sound",
    ),
    (
        changed("operating_points", "rgb", "value", to=0.5),
        "manifest: operating point acer is 0.5 in 0.02..0.05, expected 0 <= low <= value <= high <= 1",
    ),
    (changed("operating_points", "rgb", "n", to=-1), "manifest: operating point n is -1, expected at least 0"),
    (
        changed("operating_points", "rgb", "temperature", to=0),
        "manifest: operating point temperature is 0.0, expected above 0",
    ),
    (
        changed("operating_points", "rgb", "certified", to="yes"),
        "manifest.operating_points.rgb.certified is 'yes', expected true or false",
    ),
    (changed("policy", to=None), "manifest.policy is None, expected an object"),
    (
        changed("policy", "on_missing", to="guess"),
        "manifest.policy.on_missing is 'guess', expected one of continue, abstain, fail_closed",
    ),
    (
        changed("policy", "require", to=["depth|ir"]),
        "manifest: policy.require 'depth|ir' names an unknown modality",
    ),
    (changed("golden", "inputs", to={}), "manifest: golden.inputs must name exactly the modalities"),
    (
        changed(*TENSOR, to=TABLE["golden"]["inputs"]["rgb"]),
        "manifest: golden input depth has shape (3, 4, 5), expected (1, 4, 5)",
    ),
    (
        changed(*TENSOR, "shape", to=[1, 4, 6]),
        "manifest: tensor holds 80 bytes, float32 of shape (1, 4, 6) needs 96",
    ),
    (
        changed(*TENSOR, "dtype", to="uint8"),
        "manifest: tensor holds 80 bytes, uint8 of shape (1, 4, 5) needs 20",
    ),
    (
        changed(*TENSOR, "shape", to=[-1, -4, 5]),
        "manifest: tensor shape (-1, -4, 5) has a negative side or more than 8",
    ),
    (
        changed(*TENSOR, "data", to="!"),
        "manifest: tensor data is not base64: Only base64 data is allowed",
    ),
    (changed("golden", "tolerance", to=-1), "manifest: golden.tolerance is -1.0, expected at least 0"),
    (
        changed("golden", "logits", to={}),
        "manifest: golden.logits is empty: a self-test without answers proves nothing",
    ),
    (
        changed("golden", "logits", "rgb", to=[1.0]),
        "manifest: golden logits of rgb are 1 for 3 labels",
    ),
    (
        changed("golden", "logits", "x", to=[1.0]),
        "manifest: golden.logits has the unknown subset 'x'; its members in order: rgb+depth+sound",
    ),
    (changed("provenance", to=[]), "manifest.provenance is [], expected an object"),
    (changed("parameters", to=-1), "manifest: parameters is -1, expected at least 0"),
    (changed("parameters", to=1.5), "manifest.parameters is 1.5, expected a whole number"),
]


@pytest.mark.parametrize(("table", "message"), VIOLATIONS, ids=[m[:60].replace("\x00", "") for _, m in VIOLATIONS])
def test_a_violation_is_refused_with_its_place_value_and_what_is_allowed(table: Any, message: str) -> None:
    assert refusal(table) == message


@pytest.mark.parametrize("key", ["name", "labels", "modalities", "experts", "z_shape", "methods", "provenance"])
def test_a_missing_entry_is_named(key: str) -> None:
    assert refusal({k: v for k, v in TABLE.items() if k != key}) == f"manifest lacks the key {key!r}"


def test_a_missing_schema_version_is_refused() -> None:
    table = {k: v for k, v in TABLE.items() if k != "schema_version"}
    assert refusal(table) == f"manifest schema_version is None; this mars-edge reads {SCHEMA_VERSION}"


NOT_JSON = [
    ("", "manifest is not JSON: Expecting value: line 1 column 1 (char 0)"),
    (b"\xff\xfe\xfd", None),
    (FULL.to_json()[:-1], None),
    ('{"a":1,"a":2}', "manifest is not JSON: the key 'a' is there twice"),
    ('{"a":NaN}', "manifest is not JSON: NaN is no JSON number"),
    ('{"a":-Infinity}', "manifest is not JSON: -Infinity is no JSON number"),
    ('{"a":1e999}', "manifest is not JSON: 1e999 is too large for a number"),
    ("[" * 200_000, None),
    ('{"a":' + "9" * 5000 + "}", None),
]


@pytest.mark.parametrize(("text", "message"), NOT_JSON, ids=range(len(NOT_JSON)))
def test_text_that_is_not_json_is_refused(text: str | bytes, message: str | None) -> None:
    with pytest.raises(ModelFileError) as caught:
        Manifest.from_json(text)
    assert str(caught.value).startswith("manifest is not JSON: ")
    assert message is None or str(caught.value) == message


def test_a_manifest_built_in_code_is_checked_too() -> None:
    with pytest.raises(ModelFileError) as caught:
        dataclasses.replace(FULL, active_experts=9)
    assert str(caught.value) == "manifest: active_experts 9 of 3 experts"


VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 2**64, 10**400, 1e308, "", "rgb", "\x00", "\ud800", "rgb+rgb", [], [[]], {},
    {"": None}, [None] * 3, list(range(50)), {"name": "x", "kind": "vector", "length": 3},
]  # fmt: skip


def mutate(table: Any, rng: random.Random) -> Any:
    """A copy with one entry at a random depth replaced, removed, doubled or renamed."""
    table = copy.deepcopy(table)
    entry = table
    while True:
        keys: list[Any] = list(entry) if isinstance(entry, dict) else list(range(len(entry)))
        key = rng.choice(keys)
        if isinstance(entry[key], dict | list) and len(entry[key]) > 0 and rng.random() < 0.75:
            entry = entry[key]
            continue
        action = rng.randrange(4)
        if action == 0:
            del entry[key]
        elif action == 1 and isinstance(entry, dict):
            entry[rng.choice(["", "ir", "depth+sound", key + "x"])] = entry.pop(key)
        elif action == 2 and isinstance(entry, list):
            entry.append(entry[key])
        else:
            entry[key] = rng.choice(VALUES)
        return table


@pytest.mark.parametrize("seed", range(8))
def test_a_mutated_document_is_refused_or_whole_but_never_an_accident(seed: int) -> None:
    rng = random.Random(seed)
    refused = 0
    for _ in range(250):
        table = mutate(TABLE, rng)
        if rng.random() < 0.3:
            table = mutate(table, rng)
        try:
            manifest = Manifest.from_json(json.dumps(table))
        except ModelFileError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
        else:
            assert Manifest.from_json(manifest.to_json()) == manifest
            assert manifest.golden is None or all(t.array().size for t in manifest.golden.inputs.values())
    assert 100 < refused < 250


@pytest.mark.parametrize("seed", range(4))
def test_flipped_text_is_refused_or_whole_but_never_an_accident(seed: int) -> None:
    rng = random.Random(seed)
    text = FULL.to_json().encode()
    for _ in range(100):
        broken = bytearray(text)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            manifest = Manifest.from_json(bytes(broken))
        except ModelFileError:
            continue
        assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_masking_fault_that_no_runtime_detects_is_refused() -> None:
    table = json.loads(full_manifest().to_json())
    table["policy"]["masking_faults"] = ["dark", "blurred"]
    with pytest.raises(ModelFileError) as caught:
        Manifest.from_json(json.dumps(table))
    allowed = "dark, saturated, depth-invalid, covered, noise, frozen?"
    assert str(caught.value) == f"manifest: policy.masking_faults 'blurred' is none of {allowed}"


def test_a_subset_costs_its_encoders_the_route_the_shared_expert_k_experts_and_the_head() -> None:
    assert subset_cost(FULL, ("rgb", "sound")) == SubsetCost(
        macs=100 + 102 + 20 + 2 * 9 + 8 + 1, weight_bytes=10 + 12 + 5 + 2 * 5 + 4 + 1, activation_bytes=None
    )
    known = {name: dataclasses.replace(cost, activation_bytes=cost.macs) for name, cost in FULL.costs.items()}
    assert subset_cost(dataclasses.replace(FULL, costs=known), ("rgb",)).activation_bytes == 100


def segmentation() -> Manifest:
    """The same rig, a label in every pixel, the golden picture stored at half the size."""
    assert FULL.golden is not None
    pixels = ((0, 0), (3, 4))
    golden = dataclasses.replace(
        FULL.golden,
        inputs=dict(FULL.golden.inputs) | {"rgb": Tensor.of(np.arange(18, dtype=np.uint8).reshape(3, 2, 3))},
        logits=dict.fromkeys(FULL.golden.logits, (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)),
        pixels=pixels,
    )
    return dataclasses.replace(FULL, task="segmentation", positive_label=None, golden=golden)


def test_a_segmentation_has_logits_of_the_image_size_and_a_golden_picture_of_fewer_pixels() -> None:
    manifest = segmentation()
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.logits_shape == (3, 4, 5)
    assert manifest.golden is not None
    whole = manifest.golden.sample(manifest.modality("rgb"))
    stored = manifest.golden.inputs["rgb"].array()
    for y in range(4):
        for x in range(5):
            np.testing.assert_array_equal(whole[:, y, x], stored[:, y * 2 // 4, x * 3 // 5])
    logits = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    np.testing.assert_array_equal(manifest.golden.compared(logits), [0, 20, 40, 19, 39, 59])


@pytest.mark.parametrize(
    ("golden", "said"),
    [
        ({"pixels": ()}, "golden.pixels must name pixels for a segmentation and nothing else"),
        ({"pixels": ((0, 0), (4, 4))}, "golden pixel (4, 4) is outside the 4 x 5 image"),
        ({"pixels": ((0, 0),)}, "golden logits of rgb are 6 for 3 labels"),
    ],
)
def test_a_golden_answer_to_other_pixels_than_the_image_has_is_refused(golden: dict[str, Any], said: str) -> None:
    manifest = segmentation()
    assert manifest.golden is not None
    with pytest.raises(ModelFileError) as caught:
        dataclasses.replace(manifest, golden=dataclasses.replace(manifest.golden, **golden))
    assert str(caught.value) == f"manifest: {said}"
