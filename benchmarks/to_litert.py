"""The dense graph of a network as a .tflite file, in an environment of its own: litert-torch brings another torch.

    python -m venv litert && litert/bin/pip install litert-torch opencv-python-headless
    python benchmarks/suite.py --only engines --litert-python litert/bin/python --md FILE --json FILE

`networks.write_plain` writes what is read here. The graph takes who is present (1, M) as floats, then a picture per
modality.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in (".", "training")]

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from mars_training.data.split import Source  # noqa: E402
from mars_training.methods import build_model  # noqa: E402
from mars_training.model.mars import TrainingMars  # noqa: E402
from mars_training.recipe import recipe_from_dict  # noqa: E402


class Dense(nn.Module):
    """Everything is computed; `present` (1, M) of zeros and ones takes features out."""

    def __init__(self, model: TrainingMars) -> None:
        super().__init__()
        self.deployed = model.deployed
        self.deployed.always_dense = True

    def forward(self, present: Tensor, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.deployed.modalities, inputs, strict=True))
        return self.deployed(given, present > 0.5)


def load(folder: Path) -> tuple[Dense, Source]:
    """The network that `networks.write_plain` left."""
    said = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    source = Source.from_dict(said["source"])
    model = build_model(recipe_from_dict(said["recipe"]), source.modalities, len(source.labels))
    assert isinstance(model, TrainingMars)
    model.load_state_dict(load_file(folder / "network.safetensors"))
    # Weights in channels-last order, as training keeps them, are read wrong by litert-torch 0.10: other answers.
    plain = model.to(memory_format=torch.contiguous_format)
    return Dense(plain).eval(), source


def main() -> int:
    """Write FOLDER/dense.tflite."""
    import litert_torch

    folder = Path(sys.argv[1])
    module, source = load(folder)
    example = (torch.ones(1, len(source.names)), *(torch.zeros(1, *m.shape) for m in source.modalities))
    partial = folder / "dense.tflite.tmp"
    litert_torch.convert(module, example).export(str(partial))
    partial.rename(folder / "dense.tflite")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
