"""Which modalities are present: enumeration and canonical labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError

Subset = tuple[str, ...]


def all_subsets(names: Sequence[str]) -> tuple[Subset, ...]:
    """Every non-empty subset of `names`, small ones first, each in the order of `names`.

    Three modalities give 7 subsets; the last one is the full set.
    """
    return tuple(c for size in range(1, len(names) + 1) for c in combinations(names, size))


def evaluated_subsets(names: Sequence[str], always_present: Iterable[str] = ()) -> tuple[Subset, ...]:
    """The subsets that training may draw and evaluation measures: those of `all_subsets` with all `always_present`.

    Raises:
        UsageError: a member of `always_present` is not in `names`.
    """
    needed = _known(always_present, names)
    return tuple(subset for subset in all_subsets(names) if needed <= set(subset))


def label(present: Iterable[str], order: Sequence[str]) -> str:
    """The canonical name of a subset: members in `order`, joined by "+"; "none" if empty.

    Raises:
        UsageError: a member of `present` is not in `order`.
    """
    return _label(tuple(present), tuple(order))


@lru_cache(maxsize=4096)
def _label(present: Subset, order: Subset) -> str:
    wanted = _known(present, order)
    return "+".join(name for name in order if name in wanted) or "none"


def parse(text: str, order: Sequence[str]) -> Subset:
    """The subset a label such as "depth+rgb" means, in the order of `order`.

    Raises:
        UsageError: the text names an unknown modality or none at all.
    """
    wanted = [part.strip() for part in text.split("+") if part.strip()]
    if not wanted:
        raise UsageError(f"empty modality subset {text!r}; allowed members: {', '.join(order)}")
    return tuple(label(wanted, order).split("+"))


def mask(present: Iterable[str], order: Sequence[str]) -> NDArray[np.bool_]:
    """The missing-modality mask delta, shape (M,), True where the modality is present.

    Raises:
        UsageError: a member of `present` is not in `order`.
    """
    wanted = _known(present, order)
    return np.array([name in wanted for name in order], dtype=np.bool_)


def _known(present: Iterable[str], order: Sequence[str]) -> set[str]:
    wanted = set(present)
    unknown = sorted(wanted - set(order))
    if unknown:
        raise UsageError(f"unknown modality {unknown[0]!r}; this model has: {', '.join(order)}")
    return wanted
