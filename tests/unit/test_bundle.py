"""What an export asks for, holds out, stores and refuses, short of lowering anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mars_edge import subsets
from mars_edge.errors import ParityError, UsageError
from mars_export import bundle
from mars_export.pieces import float_pieces, pieces_of
from mars_export.to_executorch import Coverage, require_coverage
from mars_training.costs import costs as model_costs
from mars_training.model.build import parameter_count
from tests.helpers.tiny_mars import NAMES, SOURCE, info, model, split


def test_too_little_on_the_delegate_is_refused_with_the_worst_method() -> None:
    coverage = {
        "encode_rgb": Coverage(delegated=10, total=10, left=()),
        "head": Coverage(delegated=1, total=4, left=("aten.mean.dim", "aten.sum.dim")),
    }
    require_coverage(coverage, 11 / 14)
    with pytest.raises(ParityError) as caught:
        require_coverage(coverage, 0.9)
    assert str(caught.value) == (
        "the delegate executes 78.6% of the work, at least 90% are needed; "
        "worst method head, outside: aten.mean.dim, aten.sum.dim"
    )


def test_counting_nothing_is_no_coverage() -> None:
    with pytest.raises(ParityError, match=r"^the delegate executes 0\.0% of the work"):
        require_coverage({}, 0.9)


def test_held_out_samples_are_spread_over_the_split_and_never_seen_before() -> None:
    test, train = split(100, 5), split(50, 6)
    chosen = bundle.held_out(test, 10, {"train": train})
    assert len(chosen) == 10
    assert len(bundle.held_out(test, 1000, {"train": train})) == 100
    torch.testing.assert_close(chosen.inputs["ir"][0], test.inputs["ir"][0])
    torch.testing.assert_close(chosen.inputs["ir"][-1], test.inputs["ir"][-1])
    with pytest.raises(ParityError) as caught:
        bundle.held_out(test, 10, {"train": train, "validation": test})
    assert str(caught.value) == "10 of 10 parity samples are in the validation split: take others"
    with pytest.raises(UsageError) as refused:
        bundle.held_out(test, 0, {})
    assert str(refused.value) == "--parity-samples is 0; parity needs at least 1 sample"


def test_a_format_we_cannot_write_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        bundle.expected_files([Path("a.pte"), Path("a.pte")])
    assert str(caught.value) == "an output is named twice: a.pte, a.pte"
    ready = bundle.Model(deployed=model().deployed, precision="fp32", info=info(), provenance={})
    splits = bundle.Splits(validation=split(4, 0), test=split(4, 1), parity=split(4, 2))
    with pytest.raises(UsageError) as missing:
        bundle.write(tmp_path / "none" / "a.onnx", ready, splits)
    assert str(missing.value) == f"no folder {tmp_path / 'none'} to write a.onnx into"


class Bare:
    """A payload that was never lowered: what the draft of a manifest needs to know of one."""

    def program(self, manifest: str) -> bytes:
        return manifest.encode()

    def coverage(self) -> dict[str, Coverage]:
        return {}

    def weight_bytes(self) -> dict[str, int]:
        return dict.fromkeys(pieces_of(model().deployed), 100)

    def memory(self) -> dict[str, int]:
        return {name: 8 * i for i, name in enumerate(pieces_of(model().deployed))}


def test_the_draft_says_where_the_model_came_from_and_what_it_costs() -> None:
    ready = bundle.Model(deployed=model().deployed, precision="fp32", info=info(), provenance={"selected_epoch": 3})
    draft = bundle._draft(ready, Bare())
    assert draft.provenance["recipe"]["name"] == "tiny"
    assert draft.provenance["selected_epoch"] == 3
    assert set(draft.provenance["versions"]) >= {"mars-edge", "torch", "executorch", "onnxruntime"}
    assert type(draft).from_json(draft.to_json()) == draft
    costs = model_costs(float_pieces(model().deployed), SOURCE.modalities)
    for subset in subsets.all_subsets(NAMES):
        label = subsets.label(subset, NAMES)
        assert draft.subset_costs[label].macs == costs.macs(subset)
        assert draft.subset_costs[label].weight_bytes == 100 * (len(subset) + 4)
    assert draft.subset_costs["rgb"].activation_bytes == 8 * (len(pieces_of(model().deployed)) - 1)


def test_the_draft_counts_the_trained_numbers_of_the_deployed_path_and_nothing_else() -> None:
    trained = model()
    folded = float_pieces(trained.deployed)
    draft = bundle._draft(bundle.Model(deployed=folded, precision="fp32", info=info(), provenance={}), Bare())
    assert draft.parameters == sum(
        p.numel() for piece in pieces_of(trained.deployed).values() for p in piece.parameters()
    )
    assert draft.parameters == model_costs(trained.deployed, SOURCE.modalities).parameters
    # Training has more, for its privileged pass; folding leaves less, two numbers of a batch norm becoming one.
    assert parameter_count(folded) < draft.parameters < parameter_count(trained)
