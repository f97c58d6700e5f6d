"""Undetected faults: only the named modality changes, it stays marked present, and detection is priced."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_edge.faults import CONTENT_FAULTS
from mars_edge.modality import Modality
from mars_training.data.split import Source, Split
from mars_training.evaluate import evaluate
from mars_training.robustness import (
    SWAP,
    UNDETECTED_FAULTS,
    evenly_spread,
    fault_table,
    faults_of,
    measure_faults,
    with_fault,
)

NAMES = ("seen", "heard")
SEEN = Modality(name="seen", kind="image", size=(4, 4), dtype="uint8", range=(0, 255))
HEARD = Modality(name="heard", kind="vector", length=4, dtype="float32", range=(0, 2))
SOURCE = Source(modalities=(SEEN, HEARD), labels=("dark", "light"), positive_label=None, note="toy")


class Mean(nn.Module):
    """Answers "light" when the mean of all present values, each counted `weight` times, is above a half."""

    def __init__(self, seen: float = 1.0, heard: float = 1.0) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: nn.Identity() for name in NAMES})
        self.weights = nn.Parameter(torch.tensor([seen, heard]))

    @property
    def modalities(self) -> tuple[str, ...]:
        return NAMES

    def encode_all(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        return [inputs[name].flatten(1).mean(dim=1) for name in NAMES]

    def classify(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        weights = present * self.weights
        mean = (torch.stack(list(features), dim=1) * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-6)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def split_of(n: int = 40, present: Tensor | None = None) -> Split:
    """Light samples are bright in both modalities, with the raw samples behind them."""
    generator = np.random.default_rng(0)
    labels = np.arange(n) % 2
    seen = (generator.integers(0, 60, (n, 4, 4)) + 180 * labels[:, None, None]).astype(np.uint8)
    heard = (generator.random((n, 4)) * 0.5 + 1.4 * labels[:, None]).astype(np.float32)
    return Split(
        inputs={
            "seen": torch.stack([torch.from_numpy(SEEN.preprocess(x)) for x in seen]),
            "heard": torch.stack([torch.from_numpy(HEARD.preprocess(x)) for x in heard]),
        },
        labels=torch.from_numpy(labels),
        groups=torch.zeros(n, dtype=torch.long),
        group_names=("x",),
        present=present,
        raw={"seen": seen, "heard": list(heard)},
    )


ALL = torch.arange(40)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", UNDETECTED_FAULTS)
def test_a_fault_changes_the_named_modality_alone_and_leaves_it_present(name: str, fault: str) -> None:
    split = split_of()
    faulty = with_fault(split, SOURCE, name, fault, seed=0)
    (other,) = [n for n in NAMES if n != name]
    assert faulty.inputs[other] is split.inputs[other]
    assert torch.equal(faulty.presence, split.presence) and bool(faulty.presence.all())
    assert torch.equal(faulty.class_labels, split.class_labels)
    if fault != "blur":  # an eighth of four values is one: nothing to blur
        assert not torch.equal(faulty.inputs[name][ALL], split.inputs[name][ALL].float())


@pytest.mark.parametrize("fault", CONTENT_FAULTS)
def test_a_fault_is_in_the_raw_sample_and_then_preprocessed(fault: str) -> None:
    faulty = with_fault(split_of(), SOURCE, "heard", fault, seed=3)
    assert faulty.raw is not None
    for i in (0, 7):
        expected = HEARD.preprocess(faulty.raw["heard"][i])
        assert torch.equal(faulty.inputs["heard"][torch.tensor([i])][0], torch.from_numpy(expected))
    if fault == "black":
        assert not faulty.raw["heard"][0].any()


@pytest.mark.parametrize("fault", ["garbage", SWAP])
def test_the_same_seed_gives_the_same_fault_in_any_order_of_reading(fault: str) -> None:
    first, second, other = (with_fault(split_of(), SOURCE, "seen", fault, seed=s).inputs["seen"] for s in (1, 1, 2))
    backwards = second[ALL.flip(0)].flip(0)
    assert torch.equal(first[ALL], backwards)
    assert not torch.equal(first[ALL], other[ALL])


def test_two_samples_get_different_garbage() -> None:
    garbage = with_fault(split_of(), SOURCE, "seen", "garbage", seed=0).inputs["seen"][ALL]
    assert len({row.numpy().tobytes() for row in garbage}) == 40


def test_a_swapped_modality_shows_every_row_once_and_never_in_its_own_place() -> None:
    split = split_of()
    swapped = with_fault(split, SOURCE, "heard", SWAP, seed=5).inputs["heard"][ALL]
    own = split.inputs["heard"][ALL]
    where = [[i for i in range(40) if torch.equal(row, own[i])] for row in swapped]
    assert sorted(i for (i,) in where) == list(range(40))
    assert all(i != at for at, (i,) in enumerate(where))


def test_every_fault_is_measured_beside_no_fault_and_the_modality_masked() -> None:
    split, model = split_of(), Mean()
    found = measure_faults(model, split, SOURCE)
    scores = {s.subset: s for s in evaluate(model, split, SOURCE).scores}
    assert (found.samples, found.clean) == (40, scores["seen+heard"])
    assert [m.modality for m in found.modalities] == ["seen", "heard"]
    assert [m.masked for m in found.modalities] == [scores["heard"], scores["seen"]]
    for entry in found.modalities:
        assert list(entry.faults) == list(UNDETECTED_FAULTS)
        # With one of two equal witnesses dark, every light sample looks dark: half of all are wrong.
        assert entry.faults["black"].error == 0.5
        assert entry.worth("black") == 0.5
        assert entry.faults["black"].subset == "seen+heard"
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.to_dict()["modalities"][1]["faults"]["black"]["worth"] == 0.5


def test_a_model_that_does_not_look_at_a_modality_is_not_hurt_by_it() -> None:
    found = measure_faults(Mean(seen=0.0), split_of(), SOURCE)
    unused, used = found.modalities
    assert {s.error for s in unused.faults.values()} == {found.clean.error}
    assert used.faults["black"].error > found.clean.error


def test_a_modality_that_is_never_missing_has_nothing_to_compare_with() -> None:
    found = measure_faults(Mean(), split_of(), SOURCE, always_present=("seen",))
    assert [m.masked is None for m in found.modalities] == [True, False]
    assert found.modalities[0].worth("black") is None
    line = fault_table(found).splitlines()[3].split()
    assert (line[:2], line[-2:]) == (["seen", "black"], ["-", "-"])


def test_samples_are_spread_evenly_and_only_rows_with_all_modalities_count() -> None:
    assert evenly_spread(torch.arange(100), 5).tolist() == [0, 25, 50, 74, 99]
    assert evenly_spread(torch.arange(4), 9).tolist() == [0, 1, 2, 3]
    present = torch.ones(40, 2, dtype=torch.bool)
    present[::4, 1] = False
    assert measure_faults(Mean(), split_of(present=present), SOURCE, samples=12).samples == 12
    assert measure_faults(Mean(), split_of(present=present), SOURCE).samples == 30


def test_a_reader_without_raw_samples_and_too_few_rows_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        measure_faults(Mean(), dataclasses.replace(split_of(), raw=None), SOURCE)
    assert str(caught.value) == "faults need the raw samples of 'seen', which this data set's reader does not give"
    present = torch.ones(40, 2, dtype=torch.bool)
    present[1:, 0] = False
    with pytest.raises(UsageError) as caught:
        measure_faults(Mean(), split_of(present=present), SOURCE)
    assert str(caught.value) == "1 rows have all modalities; faults are measured on at least 2"


def test_text_can_only_be_that_of_another_moment() -> None:
    words = [np.array("a plate of rice"), np.array("soup")]
    assert faults_of(words) == (SWAP,)
    assert faults_of([np.zeros(3)]) == UNDETECTED_FAULTS
    split = dataclasses.replace(split_of(2), raw={"seen": words, "heard": list(np.zeros((2, 4)))})
    with pytest.raises(UsageError) as caught:
        with_fault(split, SOURCE, "seen", "black", seed=0)
    assert str(caught.value) == "fault 'black' does not fit seen; allowed: swap"


def test_the_table_has_a_line_per_fault_and_fits_a_terminal() -> None:
    lines = fault_table(measure_faults(Mean(), split_of(), SOURCE)).splitlines()
    assert len(lines) == 4 + 2 * len(UNDETECTED_FAULTS)
    assert max(map(len, lines)) <= 100
    assert lines[2].startswith("no fault")
