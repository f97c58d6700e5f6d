"""What every training method gives the loop: the losses of one step, and how far two routers agreed.

Axes: B batch, M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Terms = dict[str, Tensor]
"""Named scalar losses; "loss" is the one that is minimised."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step's outcome.

    Attributes:
        terms: scalars on the graph; "loss" is minimised, the others are reported.
        agreement: (B,) share of the experts that both routers chose, for the sampler; NaN where a row has no
            residual; None for methods without two routers.
    """

    terms: Terms
    agreement: Tensor | None = None


def own_partial(partial: Tensor, present: Tensor) -> Tensor:
    """`partial` (B, M) without what a row never had; a row that would keep nothing keeps all it has."""
    kept = partial & present
    return torch.where(kept.any(dim=1, keepdim=True), kept, present)
