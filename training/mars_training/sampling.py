"""Discrepancy-guided sampling: what to hide is drawn more often where the two routers disagree.

Axes: B batch, M modalities, C incomplete combinations.
Source: arXiv 2606.30355 ("Discrepancy-guided sampling").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mars_edge import subsets
from mars_training.distributed import own
from mars_training.distributed import size as processes


def incomplete_combinations(modalities: Sequence[str], always_present: Sequence[str] = ()) -> Tensor:
    """Boolean (C, M): every non-empty proper subset with all that is `always_present`; the full set is no partial."""
    wanted = subsets.evaluated_subsets(modalities, always_present)[:-1]
    rows = [subsets.mask(subset, modalities) for subset in wanted]
    return torch.from_numpy(np.array(rows, dtype=np.bool_).reshape(len(rows), len(modalities)))


def guided_probabilities(discrepancy: Tensor, *, tau: float, floor: float) -> Tensor:
    """softmax(discrepancy / tau) with every entry raised to at least `floor`, then renormalised: (C,)."""
    floored = (discrepancy / tau).softmax(dim=0).clamp_min(floor)
    return floored / floored.sum()


class MaskSampler:
    """Draws an incomplete combination per sample and learns from the routers how often to draw each.

    Statistics belong to the combination that was drawn, wherever in a batch it stood. Uniform until
    `start` epochs have ended; from then on each epoch samples by the discrepancies of the one before.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        start: int,
        tau: float,
        floor: float = 0.03,
        always_present: Sequence[str] = (),
    ) -> None:
        self.combinations = incomplete_combinations(modalities, always_present)
        self.start, self.tau, self.floor = start, tau, floor
        count = len(self.combinations)
        self.probabilities = torch.full((count,), 1.0 / count, dtype=torch.float64)
        self.agreement = torch.zeros(count, dtype=torch.float64)
        self.drawn = torch.zeros(count, dtype=torch.float64)

    def draw(self, size: int) -> Tensor:
        """Indices (size,) into `combinations`, from torch's global generator: this process's of the whole batch."""
        return own(torch.multinomial(self.probabilities, size * processes(), replacement=True))

    def masks(self, drawn: Tensor) -> Tensor:
        """The mask `present` (B, M) of each drawn index."""
        return self.combinations[drawn]

    def record(self, drawn: Tensor, agreement: Tensor) -> None:
        """Add each sample's router agreement (B,) to the combination it was drawn with; NaN does not count."""
        # On the agreement's device: to read it here would make every step wait for a GPU.
        self.agreement, self.drawn = self.agreement.to(agreement.device), self.drawn.to(agreement.device)
        drawn = drawn.to(agreement.device)
        known = ~agreement.isnan()
        self.agreement.index_add_(0, drawn, agreement.detach().double().nan_to_num())
        self.drawn.index_add_(0, drawn, known.double())

    def discrepancy(self) -> Tensor:
        """d_c = 1 - mean agreement over this epoch (C,); 0 for a combination never drawn."""
        mean = self.agreement / self.drawn.clamp_min(1.0)
        return torch.where(self.drawn > 0, 1.0 - mean, torch.zeros_like(mean)).cpu()

    def end_epoch(self, epoch: int) -> Tensor:
        """Set the next epoch's probabilities, clear the statistics, return the discrepancies (C,).

        `epoch` counts from 0; epochs `start` and later are guided.
        """
        discrepancy = self.discrepancy()
        if epoch + 1 >= self.start:
            self.probabilities = guided_probabilities(discrepancy, tau=self.tau, floor=self.floor)
        self.agreement.zero_()
        self.drawn.zero_()
        return discrepancy
