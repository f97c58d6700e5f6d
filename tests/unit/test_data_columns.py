"""Columns in memory and on demand give the same tensors, and the budget of memory is one for all of a split."""

from __future__ import annotations

import numpy as np
import torch

from mars_edge.modality import Modality
from mars_training.data.columns import Decoded, LabelMaps, RawRows, column, columns, label_maps

IR = Modality(name="ir", kind="image", size=(6, 8), dtype="uint8", range=(0.0, 255.0))
RGB = Modality(name="rgb", kind="image", channels=3, size=(6, 8), dtype="uint8", range=(0.0, 255.0))
TITLE = Modality(name="title", kind="text", length=4, vocabulary=2**24)
N = 20


def raw(modality: Modality) -> RawRows[int]:
    if modality.kind == "text":
        return RawRows(range(N), lambda row: f"word{row} of {row}")
    return RawRows(
        range(N),
        lambda row: np.random.default_rng(row).integers(0, 256, (9, 9, modality.channels), dtype=np.uint8),
    )


def test_a_column_on_demand_is_the_column_in_memory() -> None:
    at = torch.tensor([3, 19, 3, 0])
    for modality in (IR, RGB, TITLE):
        whole = column(modality, raw(modality))
        on_demand = column(modality, raw(modality), most_bytes=0)
        assert isinstance(whole, torch.Tensor) and isinstance(on_demand, Decoded)
        assert len(on_demand) == len(whole) == N
        assert torch.allclose(whole[at].float(), on_demand[at], atol=1.0 / 4096)
        if modality.kind == "text":
            assert torch.equal(whole[at], on_demand[at])


def test_what_is_not_present_is_zeros_and_never_read() -> None:
    present = torch.ones(N, 2, dtype=torch.bool)
    present[5, 1] = False

    def read(row: int) -> object:
        assert row != 5
        return raw(RGB)[row]

    found = columns([IR, RGB], {"ir": raw(IR), "rgb": RawRows(range(N), read)}, present)
    assert not bool(found["rgb"][torch.tensor([5])].any()) and bool(found["ir"][torch.tensor([5])].any())
    assert bool(found["rgb"][torch.tensor([4])].any())


def test_small_columns_go_into_memory_first_and_all_together_stay_within_the_budget() -> None:
    samples = {"rgb": raw(RGB), "ir": raw(IR)}
    row = 2 * 6 * 8
    kinds = {}
    for rows in (0, N, 3 * N, 4 * N - 1, 4 * N):
        found = columns([RGB, IR], samples, most_bytes=rows * row)
        assert list(found) == ["rgb", "ir"]
        kinds[rows] = [isinstance(found[name], torch.Tensor) for name in ("rgb", "ir")]
    assert kinds == {
        0: [False, False],
        N: [False, True],
        3 * N: [False, True],
        4 * N - 1: [False, True],
        4 * N: [True, True],
    }


def test_label_maps_on_demand_are_the_ones_in_memory() -> None:
    maps = RawRows(range(N), lambda row: np.full((2, 3), row, dtype=np.uint8))
    whole, on_demand = label_maps(maps, (2, 3)), label_maps(maps, (2, 3), most_bytes=10)
    assert isinstance(whole, torch.Tensor) and isinstance(on_demand, LabelMaps)
    at = torch.tensor([7, 0])
    assert torch.equal(whole[at], on_demand[at])
    assert on_demand[at][:, 0, 0].tolist() == [7, 0] and on_demand[at].dtype == torch.uint8
