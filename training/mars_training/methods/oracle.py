"""The oracle: MARS routed by its privileged router at evaluation too, an upper bound that no device can reach.

Axes: B batch, M modalities.
Source: arXiv 2606.30355, ablation ("routed by the residual router at test"). Its classification reads the features
of modalities that the mask calls missing. So it is built from the training model alone, is no module of a deployed
model, and only a comparison's rows that are marked as oracle may use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_training.model.mars import TrainingMars


class Oracle:
    """Scores as a `Deployable` does, but every feature must be real, the missing ones' too."""

    def __init__(self, model: TrainingMars) -> None:
        self._model = model

    @property
    def encoders(self) -> nn.ModuleDict:
        """By modality name."""
        return self._model.deployed.encoders

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in fusion order."""
        return self._model.deployed.modalities

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter, the residual router's too."""
        return self._model.parameters()

    def eval(self) -> Oracle:
        """Switch to inference behaviour: the residual router draws no noise."""
        self._model.eval()
        return self

    def encode_all(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Every modality's feature, in fusion order."""
        return self._model.deployed.encode_all(inputs)

    def classify(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        """Class logits: complete rows routed by the feature router, incomplete ones by the residual router.

        A model of residual scope "combination" routes by the mean residual of the rows given, as in training.
        """
        z, by_feature = self._model.deployed.route(features, present)
        z_full, _ = self._model.deployed.route(features, torch.ones_like(present))
        by_residual = self._model.residual_gates(z_full, z, present)
        complete = present.all(dim=1, keepdim=True)
        gates = torch.where(complete, self._model.deployed.gates(by_feature), by_residual)
        return self._model.deployed.decide(z, gates)


def oracle_of(model: nn.Module) -> Oracle:
    """The oracle of a trained MARS model.

    Raises:
        UsageError: the model has no residual router.
    """
    if not isinstance(model, TrainingMars) or model.residual_router is None:
        raise UsageError(f'an oracle needs a residual router, which {type(model).__name__} lacks; train method "mars"')
    return Oracle(model)
