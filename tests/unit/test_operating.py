"""Which subsets get an operating point: those with rows to choose it on and rows to measure it on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mars_export import operating, pieces
from mars_training.checkpoint import RunInfo
from mars_training.data.split import Split
from mars_training.methods import build_model, deployed_of
from tests.helpers.tiny_mars import MODALITIES, NAMES, SIZE, SOURCE, recipe, split
from tests.helpers.torch_engine import TorchEngine, manifest_of

MAPS = replace(SOURCE, labels=("sky", "road", "tree"), positive_label=None, task="segmentation")


def maps(count: int, seed: int, *, lacking: str | None = None) -> Split:
    torch.manual_seed(seed)
    presence = torch.ones(count, len(NAMES), dtype=torch.bool)
    if lacking is not None:
        presence[:, NAMES.index(lacking)] = False
    labels = torch.randint(0, 3, (count, SIZE, SIZE), dtype=torch.uint8)
    return replace(split(count, seed), labels=labels, present=presence)


@pytest.mark.parametrize("temperature", [True, False])
@pytest.mark.parametrize("lacking_in", ["validation", "test"])
def test_a_segmentation_has_no_point_for_a_subset_without_rows_of_both_splits(
    temperature: bool, lacking_in: str
) -> None:
    given = replace(recipe(), export=replace(recipe().export, temperature=temperature))
    deployed = pieces.float_pieces(deployed_of(build_model(given, MODALITIES, 3, "segmentation")))
    engine = TorchEngine(deployed, manifest_of(deployed, MAPS, given))
    validation = maps(4, 1, lacking="ir" if lacking_in == "validation" else None)
    test = maps(4, 2, lacking="ir" if lacking_in == "test" else None)
    points, how = operating.points(engine, validation, test, RunInfo(recipe=given, seed=0, source=MAPS))
    assert {label for label in how if "ir" in label}.isdisjoint(points)
    assert set(points) == {"rgb", "depth", "rgb+depth"}
    if lacking_in == "validation":
        assert how["rgb+ir"] == {"shortfalls": ["no validation row has it"]}
    assert all(how[label]["shortfalls"] for label in how if "ir" in label)
