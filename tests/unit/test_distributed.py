"""Two processes that share every batch train as one does; torch.distributed's gloo on the processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mars_training import distributed, draws
from mars_training.batch_norm import WholeBatchNorm, over_whole_batch

SCRIPT = Path(__file__).parent.parent / "helpers" / "shared_training.py"
MARS = ("mars", "options", "sparse")
PEERS = ("moe", "modality_dropout", "hemis", "shaspec", "dmrnet", "simmlm", "flex_moe")


def trained(folder: Path, *variants: str) -> Path:
    command = [sys.executable, str(SCRIPT), str(folder), *variants]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=found, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), *MARS, "float64")


def assert_same_training(one: Path, two: Path, *, within: float = 1e-4) -> None:
    histories: list[list[dict[str, Any]]] = [
        json.loads((run / "metrics.json").read_text())["history"] for run in (one, two)
    ]
    assert len(histories[0]) == len(histories[1]) == 2
    for a, b in zip(*histories, strict=True):
        assert a["terms"] == pytest.approx(b["terms"], rel=0.0, abs=within)
        assert {n: p for n, (_, p) in a["sampling"].items()} == pytest.approx(
            {n: p for n, (_, p) in b["sampling"].items()}, abs=1e-9
        )
        assert [s["value"] for s in a["scores"]] == [s["value"] for s in b["scores"]]
    for name in ("last.safetensors", "selected.safetensors"):
        weights, others = load_file(one / name), load_file(two / name)
        assert list(weights) == list(others)
        for key in weights:
            assert torch.allclose(weights[key], others[key], rtol=0.0, atol=within), key


@pytest.mark.parametrize("name", MARS)
def test_two_processes_have_the_losses_and_weights_of_one(runs: Path, name: str) -> None:
    assert_same_training(runs / f"{name}-1", runs / f"{name}-2")


def test_nothing_but_rounding_is_between_them(runs: Path) -> None:
    assert_same_training(runs / "float64-1", runs / "float64-2", within=1e-11)


@pytest.mark.slow
def test_so_do_the_peers(tmp_path: Path) -> None:
    trained(tmp_path, *PEERS)
    for name in PEERS:
        assert_same_training(tmp_path / f"{name}-1", tmp_path / f"{name}-2")


RIG = """
name = "tiny_rig"
[data]
reader = "rig"
train = 32
validation = 16
[model]
experts = 4
active_experts = 2
width = 8
expert_channels = [8]
[model.encoders]
rgb = {channels = [4], strides = [4]}
depth = {channels = [4], strides = [4]}
ir = {channels = [4], strides = [4]}
[schedule]
epochs = 2
batch_size = 16
"""


@pytest.mark.slow
def test_torchrun_trains_as_one_process_and_only_one_process_talks(tmp_path: Path) -> None:
    (tmp_path / "rig.toml").write_text(RIG)
    arguments = ["-m", "mars_edge", "train", str(tmp_path / "rig.toml"), "--device", "cpu", "--threads", "1", "--json"]
    starts: dict[str, list[str]] = {"one": [], "two": ["-m", "torch.distributed.run", "--nproc-per-node", "2"]}
    printed = {}
    for name, start in starts.items():
        command = [sys.executable, *start, *arguments, "-o", str(tmp_path / name)]
        found = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MARS_EDGE_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(command, env=found, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("epoch 2/2") == 1
        printed[name] = json.loads(done.stdout)
    assert printed["two"]["last"]["terms"] == pytest.approx(printed["one"]["last"]["terms"], abs=1e-4)
    assert_same_training(tmp_path / "one", tmp_path / "two")


def test_a_run_that_two_began_is_gone_on_with_by_two_or_by_one(runs: Path) -> None:
    assert_same_training(runs / "resumed-1", runs / "options-1")
    assert_same_training(runs / "resumed-2", runs / "options-2")


def test_only_one_process_writes(runs: Path) -> None:
    names = sorted(p.name for p in (runs / "mars-2").iterdir())
    assert names == [".lock", "last.safetensors", "metrics.json", "run.json", "selected.safetensors"]


def test_a_process_whose_peer_was_killed_says_so_in_one_line(runs: Path) -> None:
    assert (runs / "lost.txt").read_text() == (
        "another process of this training is gone; start all of them again to go on from the last checkpoint\n"
    )


def test_a_batch_that_cannot_be_shared_is_refused(runs: Path) -> None:
    line = "a batch of 5 cannot be shared evenly by 2 processes; change schedule.batch_size\n"
    assert (runs / "uneven.txt").read_text() == 2 * line


def test_a_shared_batch_norm_is_that_of_the_whole_batch(runs: Path) -> None:
    torch.manual_seed(0)
    maps = (torch.randn(6, 3, 2, 2) * 2.0 + 5.0).requires_grad_()
    weights = torch.randn(6, 3, 2, 2)
    model = nn.Sequential(nn.BatchNorm2d(3))
    out = model(maps)
    ((out * weights).sum().square() + (out**3).mean()).backward()
    parts = [load_file(runs / f"{rank}.safetensors") for rank in (0, 1)]
    assert maps.grad is not None
    assert torch.allclose(torch.cat([p["out"] for p in parts]), out, atol=1e-5)
    assert torch.allclose(torch.cat([p["rows"] for p in parts]), maps.grad, rtol=1e-4, atol=1e-4)
    for part in parts:
        assert torch.allclose(part["all"], out, atol=1e-5)
        assert float(part["mean"]) == pytest.approx(float(out.detach().mean()), abs=1e-6)
        for name, parameter in model.named_parameters():
            assert torch.allclose(part[f"grad.{name}"], parameter.grad, rtol=1e-4, atol=1e-4)
        for name, buffer in model.named_buffers():
            assert torch.allclose(part[name], buffer, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (5, 3)])
def test_alone_it_is_a_batch_norm(momentum: float | None, shape: tuple[int, ...]) -> None:
    theirs: nn.BatchNorm1d | nn.BatchNorm2d
    theirs, kept = ((nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(3, momentum=momentum) for _ in range(2))
    ours = WholeBatchNorm(kept)
    for _ in range(3):
        x = torch.randn(shape) * 3.0 + 1.0
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        theirs(a).pow(3).sum().backward()
        ours(b).pow(3).sum().backward()
        assert a.grad is not None and b.grad is not None
        assert torch.allclose(a.grad, b.grad, atol=1e-3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, atol=1e-5), name
    x = torch.randn(shape)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)


def test_alone_nothing_is_swapped_summed_or_shared() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    with over_whole_batch(model):
        assert type(model[0]) is nn.BatchNorm2d
    x = torch.randn(4, 2)
    untouched: list[Tensor] = [distributed.all_sum(x), distributed.all_rows(x), distributed.average(x)]
    assert all(y is x for y in untouched)
    assert torch.equal(distributed.own(x), x)
    assert (distributed.rank(), distributed.size(), distributed.is_main()) == (0, 1, True)
    assert distributed.from_main(lambda: 3) == 3


def test_alone_draws_are_those_of_torch() -> None:
    torch.manual_seed(3)
    ours = draws.uniform(4, 2), draws.normal(4), draws.integers(0, 9, 4, 2), draws.exponential(4, 3)
    torch.manual_seed(3)
    theirs = torch.rand(4, 2), torch.randn(4), torch.randint(0, 9, (4, 2)), torch.empty(4, 3).exponential_()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_mean_over_nothing_is_zero() -> None:
    assert float(distributed.mean_over(torch.tensor(0.0), torch.tensor(0))) == 0.0


def test_other_errors_are_not_taken_for_a_lost_process() -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit"), distributed.joined("cpu"):
        raise RuntimeError("shapes do not fit")
