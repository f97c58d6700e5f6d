"""MARS: a mixture of experts that specialises on what is missing.

Axes: B batch, M modalities (fusion order), N experts, K active experts, d channels of z.
Design decision: the deployed model is a handful of pieces (encoders, route stage, experts, head) that are
only ever called through replaceable attributes, with all masking and gating between them. Each piece has
static shapes but for the batch and exports on its own; quantization-aware training swaps in prepared
pieces and trains on. The privileged residual router lives in `TrainingMars` alone.
Source: arXiv 2606.30355.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mars_training import draws
from mars_training.distributed import all_rows
from mars_training.model.fusion import Fusion
from mars_training.model.mixture import mixture, runs_sparse
from mars_training.model.routers import NoisyRouting, ResidualRouter, clean_routing, top_k_gates
from mars_training.model.rows import encode_rows


class RouteStage(nn.Module):
    """Features of all modalities, missing ones all zeros, to (z, feature-router logits (B, N))."""

    def __init__(self, fusion: Fusion, router: nn.Module, *, combination: nn.Module | None = None) -> None:
        super().__init__()
        self.fusion = fusion
        self.router = router
        self.combination = combination

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        z = self.fusion(features)
        logits: Tensor = self.router(z)
        return z, logits if self.combination is None else logits + self.combination(*features)


def mask_features(features: Sequence[Tensor], present: Tensor) -> list[Tensor]:
    """delta_m * f_m: each feature (B, ...) where `present` (B, M) is true; exact zeros elsewhere, NaN or not."""
    columns = present.unbind(dim=1)
    return [torch.where(p.view(-1, *[1] * (f.dim() - 1)), f, 0.0) for f, p in zip(features, columns, strict=True)]


class DeployedMars(nn.Module):
    """What runs on a device: routes by the feature router alone and cannot reach a privileged router."""

    def __init__(
        self,
        *,
        encoders: Mapping[str, nn.Module],
        route_stage: nn.Module,
        experts: Sequence[nn.Module],
        head: nn.Module,
        active_experts: int,
        expert_shared: nn.Module | None = None,
        dispatch: str = "dense",
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.route_stage = route_stage
        self.experts = nn.ModuleList(experts)
        self.head = head
        self.expert_shared = expert_shared
        self.active_experts = active_experts
        self.dispatch = dispatch
        self.always_dense = False

    @property
    def sparse(self) -> bool:
        """Whether an expert runs on its own rows alone; never while `always_dense`, when every piece must see data."""
        active, experts = self.active_experts, len(self.experts)
        return not self.always_dense and runs_sparse(self.dispatch, active, experts, training=self.training)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in fusion order."""
        return tuple(self.encoders.keys())

    def encode(self, name: str, x: Tensor) -> Tensor:
        """The feature f_m (B, C, H, W) of one modality."""
        feature: Tensor = self.encoders[name](x)
        return feature

    def encode_all(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Every modality's feature, in fusion order."""
        return [self.encode(name, inputs[name]) for name in self.modalities]

    def route(self, features: Sequence[Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """(z, clean router logits (B, N)) of the features that `present` (B, M) leaves."""
        z, logits = self.route_stage(*mask_features(features, present))
        # Under bf16 autocast the pieces answer in bf16; which experts win is decided in float32.
        return z, logits.float()

    def gates(self, router_logits: Tensor) -> Tensor:
        """Softmax over the K largest logits, zero elsewhere: (B, N)."""
        return top_k_gates(router_logits, self.active_experts)

    def decide(self, z: Tensor, gates: Tensor) -> Tensor:
        """Class logits (B, classes) of head(sum_j gates_j E_j(z)), plus E_shared(z) where there is one.

        A gate of zero takes an expert out: of the sum only, or where rows are dispatched sparsely, of the work too.
        """
        combined = mixture(self.experts, z, gates, sparse=self.sparse)
        if self.expert_shared is not None:
            combined = combined + self.expert_shared(z)
        logits: Tensor = self.head(combined)
        return logits.float()

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Class logits (B, classes) of the deployed path for any mask `present` (B, M)."""
        return self.classify(self.encode_all(inputs), present)

    def classify(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        """Class logits (B, classes) from features already encoded."""
        z, router_logits = self.route(features, present)
        return self.decide(z, self.gates(router_logits))


def mean_by_combination(shift: Tensor, partial: Tensor) -> Tensor:
    """Each row of `shift` (B, d) replaced by the mean over the rows with the same mask in `partial` (B, M).

    Where several processes share a batch, over the rows of all of them.
    """
    everyone = all_rows(partial.to(shift.dtype)).bool()
    same = (partial[:, None, :] == everyone[None, :, :]).all(dim=2).to(shift.dtype)
    return (same @ all_rows(shift)) / same.sum(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """One training step's two passes: all that the losses and the sampler read."""

    full: Tensor
    """Class logits (B, classes), all modalities present, routed by the feature router."""
    partial: Tensor
    """Class logits (B, classes), incomplete, routed by the residual router, or by the feature router in a mixture."""
    residual: NoisyRouting
    """The residual router on z_full - z_partial; in a plain mixture, the feature router on z_partial."""
    student: Tensor
    """Feature-router logits (B, N) on z_partial, to imitate the residual router."""
    feature: Tensor
    """Feature-router logits (B, N) on z_full."""


class TrainingMars(nn.Module):
    """The deployed model and its privileged teacher, the residual router.

    Attributes:
        detach_residual: beyond the paper; the residual's gradient stops before fusion and encoders.
        student_rate: beyond the paper; share of partial samples whose task loss goes through the feature
            router, as at inference, instead of the residual router. 0 is the paper, 1 a plain mixture.
        expert_dropout: beyond the paper; probability that a routed expert is left out of a sample.
        router_warmup: beyond the paper; first epochs in which the feature router routes both passes.
        residual_router: None in a plain mixture of experts.
    """

    def __init__(
        self,
        deployed: DeployedMars,
        residual_router: ResidualRouter | None,
        *,
        detach_residual: bool = False,
        residual_scope: str = "sample",
        student_rate: float = 0.0,
        expert_dropout: float = 0.0,
        router_warmup: int = 0,
    ) -> None:
        super().__init__()
        self.deployed = deployed
        self.residual_router = residual_router
        self.detach_residual = detach_residual
        self.residual_scope = residual_scope
        self.student_rate = student_rate
        self.expert_dropout = expert_dropout
        self.router_warmup = router_warmup

    def routes_by_features(self, epoch: int) -> bool:
        """Whether the feature router routes both passes in `epoch` (from 0): always in a plain mixture."""
        return self.residual_router is None or epoch < self.router_warmup

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        partial: Tensor,
        present: Tensor | None = None,
        *,
        by_features: bool = False,
    ) -> Passes:
        """The two passes over shared weights; `partial` (P B, M) are the sampled incomplete masks, P of a row together.

        `present` (B, M) is what each row has, everything when None: the first pass and the encoders see that much.
        With `by_features` the incomplete pass too is routed by the feature router.

        All passes go through fusion, experts and head as one stacked batch of (1 + P) B: batch norm then
        collects the statistics of complete and incomplete samples together, as a deployed model meets them.
        """
        deployed = self.deployed
        every = deployed.encode_all
        features = every(inputs) if present is None else encode_rows(deployed.encoders, inputs, present)
        rows = len(features[0])
        times = len(partial) // rows
        whole = torch.ones_like(partial[:rows]) if present is None else present
        stacked = [torch.cat([f, f.repeat_interleave(times, dim=0)]) for f in features]
        z, router_logits = self.deployed.route(stacked, torch.cat([whole, partial]))
        full, student = router_logits[:rows], router_logits[rows:]
        residual = self._residual_routing(z, partial, student)
        own = self.deployed.gates(student) if by_features else self._partial_gates(residual, student)
        gates = torch.cat([self.deployed.gates(full), own])
        logits = self.deployed.decide(z, self._drop_experts(gates, rows))
        return Passes(full=logits[:rows], partial=logits[rows:], residual=residual, student=student, feature=full)

    def _residual_routing(self, z: Tensor, partial: Tensor, student: Tensor) -> NoisyRouting:
        if self.residual_router is None:
            return clean_routing(student, self.deployed.active_experts)
        routing: NoisyRouting = self.residual_router(self._residual(z, partial))
        return routing

    def residual_gates(self, z_full: Tensor, z_partial: Tensor, partial: Tensor) -> Tensor:
        """The residual router's gates (B, N) for rows of which both representations are known; needs that router."""
        assert self.residual_router is not None
        routing: NoisyRouting = self.residual_router(self._residual(torch.cat([z_full, z_partial]), partial))
        return routing.gates

    def _residual(self, z: Tensor, partial: Tensor) -> Tensor:
        pooled = z.float().mean((2, 3))
        pooled = pooled.detach() if self.detach_residual else pooled
        z_full, z_partial = pooled[: -len(partial)], pooled[-len(partial) :]
        shift = z_full.repeat_interleave(len(partial) // len(z_full), dim=0) - z_partial
        return shift if self.residual_scope == "sample" else mean_by_combination(shift, partial)

    def _partial_gates(self, residual: NoisyRouting, student: Tensor) -> Tensor:
        if not (self.training and self.student_rate):
            return residual.gates
        own = draws.uniform(len(student), 1, device=student.device) < self.student_rate
        return torch.where(own, self.deployed.gates(student), residual.gates)

    def _drop_experts(self, gates: Tensor, rows: int) -> Tensor:
        if not (self.training and self.expert_dropout):
            return gates
        # Per row, for all of its passes: they are stacked in each process, not over all of them.
        drawn = draws.uniform(rows, len(gates) // rows, gates.shape[1], device=gates.device)
        drawn = torch.cat([drawn[:, 0], drawn[:, 1:].flatten(0, 1)])
        kept = gates * (drawn >= self.expert_dropout)
        total = kept.sum(dim=1, keepdim=True)
        # A sample that lost all its experts keeps them all: an empty mixture would teach the head a constant.
        return torch.where(total > 0, kept / total.clamp_min(1e-6), gates)
