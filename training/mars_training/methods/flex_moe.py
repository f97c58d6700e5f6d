"""Flex-MoE: a learned stand-in per missing modality and combination, and an expert of its own per combination.

Axes: B batch, M modalities, N experts, K active experts, C channels.
Source: arXiv 2410.08245, sections 3.2 (missing modality bank) and 3.3 (generalised and specialised router); weight as
released. Ours: the mixture stands where MARS has it, after fusion, with MARS's experts and router, in place of a
transformer's feed-forward layers; with fewer experts than combinations, some share one; `loss.balance` weighs balance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_edge.modality import Modality
from mars_training.data.split import Batch, Task
from mars_training.distributed import all_sum, anywhere, mean_over
from mars_training.losses import balance_loss, task_loss
from mars_training.methods.peer import (
    Peer,
    channels_of,
    mars_parameters,
    matched_width,
    require_classification,
    stacked,
)
from mars_training.methods.step import Step, Terms, own_partial, two_pass_terms, weighted
from mars_training.model.build import (
    build_encoders,
    build_full_expert,
    build_fusion,
    build_head,
    channels_last,
    parameter_count,
)
from mars_training.model.mixture import mixture, runs_sparse
from mars_training.model.routers import FeatureRouter, clean_routing, top_k_gates
from mars_training.recipe import LossRecipe, ModelRecipe


def combination_code(present: Tensor) -> Tensor:
    """A number 0 to 2^M - 1 per row of `present` (B, M): modality m adds 2^m where it is there."""
    weights = 2 ** torch.arange(present.shape[1], device=present.device)
    return (present * weights).sum(dim=1)


class MissingBank(nn.Module):
    """Each feature where it is there; elsewhere a learned vector for its modality and the combination that is there."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.vectors = nn.ParameterList(nn.Parameter(torch.zeros(2 ** len(channels), c)) for c in channels)

    def forward(self, features: Sequence[Tensor], present: Tensor) -> list[Tensor]:
        code = combination_code(present)
        columns = zip(features, self.vectors, present.unbind(dim=1), strict=True)
        return [
            torch.where(there.view(-1, 1, 1, 1), f, vectors[code].to(f.dtype)[:, :, None, None])
            for f, vectors, there in columns
        ]


class FlexMixture(nn.Module):
    """Logits of the gated experts on the fused features, missing ones replaced from the bank."""

    def __init__(
        self,
        *,
        bank: MissingBank,
        fusion: nn.Module,
        router: nn.Module,
        experts: Sequence[nn.Module],
        head: nn.Module,
        active_experts: int,
        dispatch: str,
    ) -> None:
        super().__init__()
        self.bank = bank
        self.fusion = fusion
        self.router = router
        self.experts = nn.ModuleList(experts)
        self.head = head
        self.active_experts = active_experts
        self.dispatch = dispatch

    def route(self, features: Sequence[Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """(z, router logits (B, N) in float32)."""
        z = self.fusion(self.bank(features, present))
        return z, self.router(z).float()

    def decide(self, z: Tensor, router_logits: Tensor) -> Tensor:
        """Class logits, float32."""
        gates = top_k_gates(router_logits, self.active_experts)
        sparse = runs_sparse(self.dispatch, self.active_experts, len(self.experts), training=self.training)
        logits: Tensor = self.head(mixture(self.experts, z, gates, sparse=sparse))
        return logits.float()

    def forward(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        return self.decide(*self.route(features, present))


def build_flex_moe(
    recipe: ModelRecipe, modalities: Sequence[Modality], classes: int, task: Task = "classification"
) -> Peer:
    """The untrained model: experts as many as MARS has, as wide as its parameters allow beside the bank.

    Raises:
        UsageError: the task is segmentation.
    """
    require_classification("flex_moe", task)
    encoders = build_encoders(recipe, modalities)
    bank = MissingBank(channels_of(recipe, encoders))
    fusion = build_fusion(recipe, list(encoders))
    router = FeatureRouter(recipe.width, recipe.experts)

    def ends(width: int) -> list[nn.Module]:
        channels = (*recipe.expert_channels[:-1], width)
        experts = [build_full_expert(recipe, channels=channels) for _ in range(recipe.experts)]
        return [*experts, build_head(recipe, width, classes, task)]

    fixed = sum(map(parameter_count, [*encoders.values(), bank, fusion, router]))
    *experts, head = ends(matched_width(mars_parameters(recipe, modalities, classes, task) - fixed, ends))
    core = FlexMixture(
        bank=bank,
        fusion=fusion,
        router=router,
        experts=experts,
        head=head,
        active_experts=recipe.active_experts,
        dispatch=recipe.dispatch,
    )
    return channels_last(Peer(encoders=encoders, core=core))


def step(model: nn.Module, batch: Batch, partial: Tensor, loss: LossRecipe, epoch: int) -> Step:
    """First the complete rows alone, then both passes, incomplete ones drawn to the expert of their combination."""
    assert isinstance(model, Peer) and isinstance(model.core, FlexMixture)
    features = model.encode_rows(batch.inputs, batch.present)
    complete = batch.present.all(dim=1)
    # Batch norm needs two rows.
    if epoch < loss.first_stage and anywhere(all_sum(complete.sum()) > 1):
        rows = [f[complete] for f in features]
        return Step(terms=general_terms(model.core, rows, batch.present[complete], batch.labels[complete], loss))
    twice, masks = stacked(features, batch.present, own_partial(partial, batch.present))
    z, routed = model.core.route(twice, masks)
    full, incomplete = model.core.decide(z, routed).chunk(2)
    terms = two_pass_terms(full, incomplete, batch.labels, loss)
    whole = masks.all(dim=1)
    zero = terms["task"].detach() * 0.0
    terms["balance"] = _balance(model.core, routed[whole]) if anywhere(whole.any()) else zero
    terms["specialise"] = specialisation_loss(routed[~whole], masks[~whole]) if anywhere(~whole.all()) else zero
    return Step(terms=weighted(terms, loss))


def general_terms(
    core: FlexMixture, features: Sequence[Tensor], present: Tensor, labels: Tensor, loss: LossRecipe
) -> Terms:
    """The first stage: the task and the balance of the experts on complete rows."""
    z, routed = core.route(features, present)
    task = task_loss(core.decide(z, routed), labels, loss)
    return weighted({"task": task, "balance": _balance(core, routed)}, loss)


def _balance(core: FlexMixture, routed: Tensor) -> Tensor:
    return balance_loss(clean_routing(routed, core.active_experts), core.active_experts)


def specialisation_loss(routed: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy of router logits (B, N) against the expert of each row's combination, its code - 1 modulo N."""
    own = (combination_code(present) - 1) % routed.shape[1]
    total = functional.cross_entropy(routed, own, reduction="sum")
    return mean_over(total, torch.tensor(len(routed), device=routed.device))
