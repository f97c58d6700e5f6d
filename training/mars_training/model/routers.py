"""The two routers of MARS and the gates they give.

Axes: B batch, N experts, K active experts, d channels of the task representation z.
Source: arXiv 2606.30355, section "Residual-guided routing"; noisy gating: arXiv 1701.06538, section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_training import draws

# Keeps the noise scale, and with it the load estimator's denominator, away from zero.
_NOISE_FLOOR = 1e-2


def in_float32(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function` of `x` without autocast, which would round to 8 bits what is compared: ranks of near-equal logits."""
    # Asked first, so that a graph that is exported holds no trace of it. The meta device has no autocast to ask for.
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return function(x)
    with torch.autocast(x.device.type, enabled=False):
        return function(x.float())


def top_k_gates(logits: Tensor, k: int) -> Tensor:
    """Gates (B, N): the softmax over each row's K largest logits, exactly zero elsewhere."""
    values, indices = logits.topk(k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, indices, values.softmax(dim=-1))


class FeatureRouter(nn.Module):
    """Clean logits (B, N) from z (B, d, H, W): pool, Linear(d, d), batch norm, ReLU, Linear(d, N). Deployed."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.out = nn.Conv2d(width, experts, 1)

    def forward(self, z: Tensor) -> Tensor:
        return in_float32(self._logits, z)

    def _logits(self, z: Tensor) -> Tensor:
        logits: Tensor = self.out(self.hidden(z.mean((2, 3), keepdim=True)))
        return logits.flatten(1)


class CombinationBias(nn.Module):
    """What the combination adds to the feature router's logits (B, N): a learned bias per modality that is there.

    A modality counts as missing when its feature (B, C, H, W) is zero everywhere, as masking leaves it, so that
    the route stage needs no input beyond the features. Starts at zero.
    """

    def __init__(self, modalities: int, experts: int) -> None:
        super().__init__()
        self.bias = nn.Linear(modalities, experts, bias=False)
        nn.init.zeros_(self.bias.weight)

    def forward(self, *features: Tensor) -> Tensor:
        there = torch.cat([f.abs().flatten(1).amax(1, keepdim=True) for f in features], dim=1) > 0
        return in_float32(self.bias, there.to(self.bias.weight.dtype))


@dataclass(frozen=True, kw_only=True)
class NoisyRouting:
    """What a router said: logits and noise scale (B, N), the noisy logits, and their gates.

    `drawn` is False where no noise was, so that `noisy` is `clean` and the scale is a constant.
    """

    clean: Tensor
    scale: Tensor
    noisy: Tensor
    gates: Tensor
    drawn: bool = True

    def of(self, rows: Tensor) -> NoisyRouting:
        """The routing of the samples where `rows` (B,) is true."""
        return NoisyRouting(
            clean=self.clean[rows],
            scale=self.scale[rows],
            noisy=self.noisy[rows],
            gates=self.gates[rows],
            drawn=self.drawn,
        )


def clean_routing(logits: Tensor, k: int) -> NoisyRouting:
    """The routing of a router without noise: gates of the clean logits (B, N).

    The smooth load still needs a scale: the constant 1 / N, as for the noise of arXiv 2106.05974, appendix A.
    """
    scale = torch.full_like(logits, 1.0 / logits.shape[1])
    return NoisyRouting(clean=logits, scale=scale, noisy=logits, gates=top_k_gates(logits, k), drawn=False)


class ResidualRouter(nn.Module):
    """Routes by the residual z_full - z_partial (B, d): privileged, exists in training only.

    Logits are a bias-free linear map; in training each gets Gaussian noise of a learned scale
    softplus(W_n z_res) + 0.01; in evaluation none. `noisy=False`, an ablation, has no noise at all.
    """

    def __init__(self, width: int, experts: int, active_experts: int, *, noisy: bool = True) -> None:
        super().__init__()
        self.logits = nn.Linear(width, experts, bias=False)
        self.noise = nn.Linear(width, experts, bias=False) if noisy else None
        self.active_experts = active_experts

    def forward(self, residual: Tensor) -> NoisyRouting:
        # Autocast would round to 8 bits what the losses compare: the ranks of near-equal logits.
        with torch.autocast(residual.device.type, enabled=False):
            clean: Tensor = self.logits(residual)
            if self.noise is None:
                return clean_routing(clean, self.active_experts)
            scale = functional.softplus(self.noise(residual)) + _NOISE_FLOOR
        noisy = clean + draws.normal(*clean.shape, device=clean.device) * scale if self.training else clean
        return NoisyRouting(clean=clean, scale=scale, noisy=noisy, gates=top_k_gates(noisy, self.active_experts))
