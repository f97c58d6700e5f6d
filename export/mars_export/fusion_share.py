"""Each modality's share of the fusion, moved into its encoder: a missing modality then costs no part of the fusion.

Axes: B batch, M modalities, C_m channels of a feature, d channels of z.
Design decision: a convolution of a concatenation is a sum of convolutions, W * [f_1 .. f_M] = sum_m W_m * f_m. So the
encoder of m ends with W_m, the route stage adds up the shares that are there, and the offset and ReLU stay with
it. The model answers as before, to rounding; a cached feature is a share, which is smaller and needs no convolution
again. It holds for a fusion of one convolution; a deeper one mixes modalities after its first layer and stays whole. So
does a 1 x 1 convolution: it costs little, and in int8 every share is one more rounding (spoken digits: up to 3 output
steps between engine and model instead of 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mars_training.model.fusion import Fusion
from mars_training.model.mars import DeployedMars, RouteStage


class SummedFusion(nn.Module):
    """Shares (B, d, H, W), exact zeros for what is missing, to z (B, d, H, W): their sum, the offset, ReLU."""

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.offset = nn.Parameter(offset.detach().clone().view(1, -1, 1, 1))

    def forward(self, shares: Sequence[Tensor]) -> Tensor:
        total = shares[0]
        for share in shares[1:]:
            total = total + share
        return torch.relu(total + self.offset)


def share_fusion(deployed: DeployedMars) -> bool:
    """Moves the shares of the fusion into the encoders, in place, and returns whether this fusion has any.

    Batch norms must be folded first.
    """
    route = deployed.route_stage
    if not (isinstance(route, RouteStage) and isinstance(route.fusion, Fusion)):
        return False
    fusion = route.fusion
    layers = list(fusion.block) if isinstance(fusion.block, nn.Sequential) else []
    if not layers or not isinstance(layers[0], nn.Conv2d) or layers[0].in_channels != sum(fusion.widths):
        return False
    if [type(layer) for layer in layers[1:] if not isinstance(layer, nn.Identity)] != [nn.ReLU]:
        return False
    whole = layers[0]
    if whole.kernel_size == (1, 1):
        return False
    for name, weight in zip(deployed.modalities, torch.split(whole.weight, list(fusion.widths), dim=1), strict=True):
        deployed.encoders[name] = nn.Sequential(deployed.encoders[name], _share(whole, weight))
    offset = whole.weight.new_zeros(whole.out_channels) if whole.bias is None else whole.bias
    route.fusion = SummedFusion(offset)  # type: ignore[assignment]
    return True


def _share(whole: nn.Conv2d, weight: Tensor) -> nn.Conv2d:
    assert whole.groups == 1
    share = nn.Conv2d(
        weight.shape[1],
        whole.out_channels,
        whole.kernel_size,  # type: ignore[arg-type]
        whole.stride,  # type: ignore[arg-type]
        whole.padding,  # type: ignore[arg-type]
        whole.dilation,  # type: ignore[arg-type]
        bias=False,
        device=weight.device,
    )
    share.weight.data = weight.detach().clone(memory_format=torch.contiguous_format)
    return share
