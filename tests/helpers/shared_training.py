"""Trains toys alone and by two processes that share every batch: `python shared_training.py FOLDER VARIANT...`.

    FOLDER/NAME-1, FOLDER/NAME-2   the run of each variant, by one process and by two
    FOLDER/RANK.safetensors        what one process of two computed of a batch norm, and of sums
    FOLDER/lost.txt                what a process says when another was killed in the middle of a training

Processes are forks of this one, which itself computes nothing: what takes seconds, importing torch, is done once.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # an optimiser imports it: seconds, in every child
from safetensors.torch import save_file
from torch import nn
from toy_training import RECIPE, toy_data

from mars_edge.errors import MarsEdgeError
from mars_training import device, distributed
from mars_training import train as training
from mars_training.batch_norm import over_whole_batch
from mars_training.data.split import Batch, Data
from mars_training.epoch import StepReport
from mars_training.recipe import Recipe
from mars_training.train import Hooks, train

Work = Callable[[], None]


def with_model(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with fields of its model changed."""
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **changes))  # type: ignore[arg-type]


def incomplete() -> Data:
    """The toy's samples, of which one in four lacks rgb and one in eight depth, not evenly over the batch."""
    data = toy_data()
    present = torch.ones(len(data.train), 2, dtype=torch.bool)
    present[:32, 0] = False
    present[32:48, 1] = False
    return dataclasses.replace(data, train=dataclasses.replace(data.train, present=present))


PEERS = ("moe", "modality_dropout", "hemis", "shaspec", "dmrnet", "simmlm", "flex_moe")
PLAIN = with_model(RECIPE, student_rate=0.0, expert_dropout=0.0, residual_scope="sample")
VARIANTS = {
    "mars": PLAIN,
    "options": RECIPE,
    "float64": with_model(RECIPE, dispatch="sparse"),
    "sparse": with_model(PLAIN, dispatch="sparse", shared_expert=True),
    **{name: dataclasses.replace(PLAIN, method=name) for name in PEERS},
}


def together(size: int, work: Work) -> list[int]:
    """Wait statuses of `size` processes that share a training and do `work`; alone, a process has no group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [_start(rank, size, port, work) for rank in range(size)]
    return [os.waitpid(child, 0)[1] for child in children]


def _start(rank: int, size: int, port: int, work: Work) -> int:
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if size > 1:
            os.environ["TORCHELASTIC_RUN_ID"] = "toy"
        with distributed.joined("cpu"):
            work()
        os._exit(0)
    except MarsEdgeError as error:
        sys.stderr.write(f"{error}\n")  # one write: two processes share the file
        os._exit(3)
    finally:
        os._exit(1)


def must(statuses: list[int]) -> None:
    """All processes must have ended well."""
    if any(statuses):
        sys.exit(f"wait statuses {statuses}")


def in_float64() -> None:
    """Makes this process train in float64, where what is left of a difference is no rounding. It does not validate."""
    to_float32, prepare, moved = torch.Tensor.float, training.prepare, device.moved

    def kept(x: torch.Tensor) -> torch.Tensor:
        return x if x.dtype == torch.float64 else to_float32(x)

    def widened(batch: Batch, where: torch.device) -> Batch:
        inputs = {name: x.double() for name, x in batch.inputs.items()}
        return moved(dataclasses.replace(batch, inputs=inputs), where)

    torch.Tensor.float = kept  # type: ignore[assignment, method-assign]
    training.prepare = lambda *given, **named: prepare(*given, **named).double()  # type: ignore[assignment]
    training._scores = lambda job: []  # type: ignore[assignment]
    device.moved = widened


def batch_norm(folder: Path) -> None:
    """Outputs, gradients and statistics of this process's part of a batch of 6 maps."""
    torch.manual_seed(0)
    maps = torch.randn(6, 3, 2, 2) * 2.0 + 5.0
    weights = torch.randn(6, 3, 2, 2)
    model = nn.Sequential(nn.BatchNorm2d(3))
    before = list(model.state_dict())
    rows = distributed.own(maps).clone().requires_grad_()
    with over_whole_batch(model):
        inside = list(model.state_dict())
        out = model(rows)
        # A nonlinear function of the whole batch, and a mean over rows.
        loss = distributed.all_sum((out * distributed.own(weights)).sum()).square() + (out**3).mean()
        loss.backward()
        distributed.average_gradients(model)
    assert before == inside == list(model.state_dict())
    found = {f"grad.{n}": p.grad for n, p in model.named_parameters()} | dict(model.named_buffers())
    # Gradients of activations are those of the sum over processes.
    found |= {"out": out.detach(), "rows": rows.grad / distributed.size(), "all": distributed.all_rows(out.detach())}
    found |= {"mean": distributed.mean_over(out.detach().sum(), torch.tensor(out.numel()))}
    save_file({name: t.contiguous().clone() for name, t in found.items()}, folder / f"{distributed.rank()}.safetensors")


def uneven() -> None:
    """A batch of 5 cannot be shared by two."""
    distributed.own(torch.zeros(5))


def lose_one(folder: Path) -> None:
    """The second process is killed in its third step; the first tells what it sees."""

    def kill(report: StepReport) -> None:
        if report.step == 3 and not distributed.is_main():
            os.kill(os.getpid(), signal.SIGKILL)

    train(RECIPE, toy_data(), folder / "lost", seed=0, hooks=Hooks(after_step=kill))


def resume(folder: Path, size: int) -> None:
    """A run that two processes began, left within its second epoch, two steps saved; gone on with by `size`."""

    def stop(report: StepReport) -> None:
        if (report.epoch, report.step) == (1, 3):
            os._exit(4)

    recipe = dataclasses.replace(RECIPE, schedule=dataclasses.replace(RECIPE.schedule, checkpoint_every_s=1e-9))
    run = folder / f"resumed-{size}"

    def begin() -> None:
        train(recipe, toy_data(), run, seed=0, hooks=Hooks(after_step=stop))

    def finish() -> None:
        train(recipe, toy_data(), run, seed=0)

    if any(os.waitstatus_to_exitcode(status) != 4 for status in together(2, begin)):
        sys.exit("the beginning did not stop where it should")
    must(together(size, finish))


def main() -> None:
    """Runs everything; fails loudly."""
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        recipe = VARIANTS[name]
        data = toy_data() if name == "options" else incomplete()
        for size in (1, 2):
            run = folder / f"{name}-{size}"

            def work(name: str = name, recipe: Recipe = recipe, data: Data = data, run: Path = run) -> None:
                if name == "float64":
                    in_float64()
                train(recipe, data, run, seed=0)

            must(together(size, work))
    must(together(2, lambda: batch_norm(folder)))
    for size in (1, 2):
        resume(folder, size)
    stderr = os.dup(2)
    with (folder / "lost.txt").open("w") as told:
        os.dup2(told.fileno(), 2)
        lost = together(2, lambda: lose_one(folder))
    with (folder / "uneven.txt").open("w") as told:
        os.dup2(told.fileno(), 2)
        refused = together(2, uneven)
    os.dup2(stderr, 2)
    assert [os.waitstatus_to_exitcode(status) for status in lost] == [3, -signal.SIGKILL], lost
    assert [os.waitstatus_to_exitcode(status) for status in refused] == [3, 3], refused


if __name__ == "__main__":
    main()
