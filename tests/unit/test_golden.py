"""The golden sample: kept without loss, far from a tie, small, and there for every kind of data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mars_edge import subsets
from mars_edge.manifest import Golden
from mars_edge.modality import Modality
from mars_export import golden
from tests.helpers.tiny_mars import MODALITIES, NAMES, model, split

SUBSETS = subsets.all_subsets(NAMES)


def kept(modality: Modality, x: np.ndarray) -> np.ndarray:
    bare = Golden(inputs={modality.name: golden.stored(modality, x)}, logits={}, tolerance=0.0)
    return bare.sample(modality)


@pytest.mark.parametrize(
    ("modality", "tolerance"),
    [
        (MODALITIES[0], 0.5 / 255),
        (Modality(name="sound", kind="audio", rate_hz=8000, window_s=0.5), 0.5 / 255),
        (Modality(name="words", kind="text", length=7, vocabulary=70000), 0.0),
        (Modality(name="rows", kind="sequence", channels=3, length=9), 0.0),
        (Modality(name="numbers", kind="vector", length=5), 0.0),
    ],
    ids=lambda value: value.kind if isinstance(value, Modality) else "",
)
def test_what_is_kept_is_kept_again_without_loss(modality: Modality, tolerance: float) -> None:
    generator = np.random.default_rng(0)
    x = generator.random(modality.shape, dtype=np.float32)
    if modality.kind == "text":
        x = generator.integers(0, 70000, modality.shape).astype(np.float32)
    once = kept(modality, x)
    assert once.shape == modality.shape and once.dtype == np.float32
    assert np.abs(once - x).max() <= tolerance * 1.001
    np.testing.assert_array_equal(kept(modality, once), once)


def test_a_large_image_is_kept_with_fewer_pixels_each_of_which_is_one_of_the_image() -> None:
    modality = Modality(name="wide", kind="image", channels=3, size=(300, 500), dtype="uint8", range=(0, 255))
    x = np.random.default_rng(1).integers(0, 256, modality.shape).astype(np.float32) / np.float32(255)
    tensor = golden.stored(modality, x)
    assert np.prod(tensor.shape) <= 4096
    whole = kept(modality, x)
    assert whole.shape == modality.shape
    height, width = tensor.shape[1:]
    for row, column in ((0, 0), (height - 1, width - 1), (height // 2, width // 3)):
        value = x[:, row * 300 // height, column * 500 // width]
        np.testing.assert_array_equal(tensor.array()[:, row, column], value)


def test_the_chosen_sample_has_the_largest_routing_margin_of_a_plain_search() -> None:
    deployed, samples = model().deployed, split(12, 3)
    margins = []
    for i in range(len(samples)):
        sample = {m.name: kept(m, samples.inputs[m.name][i].float().numpy()) for m in MODALITIES}
        features = [deployed.encode(name, torch.from_numpy(sample[name])[None]) for name in NAMES]
        per_subset = []
        for subset in SUBSETS:
            present = torch.from_numpy(subsets.mask(subset, NAMES))[None]
            logits = sorted(deployed.route(features, present)[1][0].tolist(), reverse=True)
            per_subset.append(logits[deployed.active_experts - 1] - logits[deployed.active_experts])
        margins.append(min(per_subset))
    inputs = golden._clearest(deployed, MODALITIES, samples, SUBSETS)
    best = int(np.argmax(margins))
    for m in MODALITIES:
        np.testing.assert_array_equal(inputs[m.name].array(), kept(m, samples.inputs[m.name][best].float().numpy()))


def test_only_complete_rows_are_chosen_and_without_any_one_is_made_of_several() -> None:
    samples = split(6, 4)
    present = torch.ones(6, 3, dtype=torch.bool)
    present[:4, 1] = False
    lacking = dataclasses.replace(samples, present=present)
    assert len(golden._candidates(MODALITIES, lacking)) == 2
    present = torch.eye(3, dtype=torch.bool).repeat(2, 1)
    (only,) = golden._candidates(MODALITIES, dataclasses.replace(samples, present=present))
    for i, m in enumerate(MODALITIES):
        np.testing.assert_array_equal(only[m.name].array(), kept(m, samples.inputs[m.name][i].float().numpy()))


def test_a_segmentation_is_compared_in_nine_pixels() -> None:
    assert golden._pixels((20,)) == ()
    pixels = golden._pixels((20, 8, 12))
    assert len(set(pixels)) == 9 and pixels[0] == (2, 3) and pixels[-1] == (6, 9)
