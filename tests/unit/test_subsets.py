"""Subsets of modalities: all of them, each with one name."""

from __future__ import annotations

import itertools

import pytest

from mars_edge import subsets
from mars_edge.errors import UsageError

ORDER = ("rgb", "depth", "ir")


@pytest.mark.parametrize("count", range(1, 7))
def test_every_non_empty_subset_is_listed_once_smallest_first(count: int) -> None:
    names = [f"m{i}" for i in range(count)]
    listed = subsets.all_subsets(names)
    reference = {
        frozenset(name for name, bit in zip(names, bits, strict=True) if bit)
        for bits in itertools.product((0, 1), repeat=count)
    } - {frozenset[str]()}
    assert len(listed) == len(set(listed)) == 2**count - 1
    assert {frozenset(s) for s in listed} == reference
    assert [len(s) for s in listed] == sorted(len(s) for s in listed)
    assert listed[-1] == tuple(names)


def test_members_keep_the_order_of_the_model() -> None:
    for subset in subsets.all_subsets(ORDER):
        assert list(subset) == [name for name in ORDER if name in subset]


def test_a_label_does_not_depend_on_the_order_of_its_members() -> None:
    for subset in subsets.all_subsets(ORDER):
        for shuffled in itertools.permutations(subset):
            assert subsets.label(shuffled, ORDER) == "+".join(subset)


def test_a_label_is_read_back_as_its_subset() -> None:
    for subset in subsets.all_subsets(ORDER):
        assert subsets.parse(subsets.label(subset, ORDER), ORDER) == subset
    assert subsets.parse(" ir + rgb+ir", ORDER) == ("rgb", "ir")


def test_the_empty_subset_is_called_none_and_cannot_be_asked_for() -> None:
    assert subsets.label([], ORDER) == "none"
    for text in ("", "  ", "+"):
        with pytest.raises(UsageError) as caught:
            subsets.parse(text, ORDER)
        assert str(caught.value) == f"empty modality subset {text!r}; allowed members: rgb, depth, ir"


def test_a_mask_is_true_exactly_where_the_modality_is_present() -> None:
    for subset in subsets.all_subsets(ORDER):
        delta = subsets.mask(subset, ORDER)
        assert delta.dtype == bool
        assert delta.tolist() == [name in subset for name in ORDER]
    assert subsets.mask([], ORDER).tolist() == [False, False, False]


@pytest.mark.parametrize(
    "use", [subsets.label, subsets.mask, lambda names, order: subsets.parse("+".join(names), order)]
)
def test_an_unknown_member_is_named(use) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError) as caught:
        use(["rgb", "dpeth"], ORDER)
    assert str(caught.value) == "unknown modality 'dpeth'; this model has: rgb, depth, ir"


def test_evaluated_subsets_hold_what_is_always_present() -> None:
    found = subsets.evaluated_subsets(("rgb", "aolp", "nir"), ("rgb",))
    assert found == (("rgb",), ("rgb", "aolp"), ("rgb", "nir"), ("rgb", "aolp", "nir"))
    assert subsets.evaluated_subsets(("a", "b")) == subsets.all_subsets(("a", "b"))
    with pytest.raises(UsageError) as caught:
        subsets.evaluated_subsets(("a", "b"), ("c",))
    assert str(caught.value) == "unknown modality 'c'; this model has: a, b"
