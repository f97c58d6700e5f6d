"""The engines that the suite lets compete, each as a function from preprocessed samples to logits.

Every contestant is imported when it is made, so that a missing one is a row with its reason. All of them hold the same
weights, get the same samples, and have the same number of threads. They answer only if their answers are right:
`judged` compares before anything is timed.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row, Who, note
from networks import Network, Samples, decision_inputs, dense_torch
from numpy.typing import NDArray

from mars_edge.errors import MarsEdgeError
from mars_edge.modality import Modality
from mars_edge.subsets import Subset, mask
from mars_runtime.engines import open_engine

Given = Mapping[str, NDArray[np.float32]]
Decide = Callable[[Given], NDArray[np.float32]]

FLOAT_TOLERANCE = 1e-3
REDUCED_SHARE = 2.0
ORT_DENSE = "onnxruntime, dense, fp32"
"""What most people would pick; ratios are over it."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Who it is and what it answers: logits (classes,), of the samples that are given alone."""

    who: Who
    decide: Decide


@dataclass(frozen=True, kw_only=True)
class UnavailableError(Exception):
    """A contestant cannot take part; `str` is the reason."""

    reason: str

    def __str__(self) -> str:
        return self.reason


def ours(path: Path, precision: str, threads: int) -> Contestant:
    """Our artifact in the engine that a device would use."""
    try:
        engine = open_engine(path, threads=threads)
    except MarsEdgeError as error:
        raise UnavailableError(reason=str(error)) from None
    who = Who(name=f"ours, {path.suffix}, {precision}", ours=True, precision=precision)
    return Contestant(who=who, decide=lambda given: engine.infer(given, {}).logits)


def eager(network: Network, *, skipping: bool) -> Contestant:
    """PyTorch as it was trained: everything computed, or only the encoders and experts that matter."""
    if not skipping:
        return _torch_dense(network, dense_torch(network), "PyTorch eager, dense, fp32")
    deployed = network.model.deployed
    deployed.always_dense = False
    names = network.names
    with torch.inference_mode():
        shapes = {m.name: torch.zeros(1, *m.shape) for m in network.info.source.modalities}
        zeros = dict(zip(names, map(torch.zeros_like, deployed.encode_all(shapes)), strict=True))

    @torch.inference_mode()
    def decide(given: Given) -> NDArray[np.float32]:
        present = torch.from_numpy(mask(tuple(n for n in names if n in given), names))[None]
        features = [
            deployed.encoders[n](torch.from_numpy(given[n])[None]) if n in given else zeros[n] for n in names
        ]  # fmt: skip
        logits: NDArray[np.float32] = deployed.classify(features, present)[0].numpy()
        return logits

    return Contestant(who=Who(name="PyTorch eager, skipping, fp32", precision="fp32"), decide=decide)


def compiled(network: Network) -> Contestant:
    """`torch.compile` of the dense graph, weights frozen; compiles C++ when it is first called."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise UnavailableError(reason="inductor needs a C++ compiler")
    from torch._inductor import config

    config.freezing = True
    torch._dynamo.reset()
    module = torch.compile(dense_torch(network), fullgraph=True)
    return _torch_dense(network, module, "torch.compile, dense, fp32")


def _torch_dense(network: Network, module: Callable[..., torch.Tensor], name: str) -> Contestant:
    modalities = network.info.source.modalities

    @torch.inference_mode()
    def decide(given: Given) -> NDArray[np.float32]:
        inputs = decision_inputs(modalities, given).values()
        logits: NDArray[np.float32] = module(*map(torch.from_numpy, inputs))[0].numpy()
        return logits

    return Contestant(who=Who(name=name, precision="fp32"), decide=decide)


def batched(
    path: Path, modalities: Sequence[Modality], threads: int
) -> Callable[[Samples], Sequence[NDArray[np.float32]]]:
    """Answers several samples with everything present in one call: a dense graph that was exported for that many."""
    session = _session(path, threads)

    def decide_all(samples: Samples) -> Sequence[NDArray[np.float32]]:
        inputs = {f"x_{m.name}": np.stack([sample[m.name] for sample in samples]) for m in modalities}
        present = np.ones((len(samples), len(modalities)), bool)
        logits: Sequence[NDArray[np.float32]] = session.run(None, {"present": present, **inputs})[0]
        return logits

    return decide_all


def onnxruntime(path: Path, modalities: Sequence[Modality], threads: int, name: str, precision: str) -> Contestant:
    """One dense graph in onnxruntime with its defaults, but for the number of threads."""
    session = _session(path, threads)
    return Contestant(
        who=Who(name=name, precision=precision),
        decide=lambda given: session.run(None, decision_inputs(modalities, given))[0][0],
    )


def _session(path: Path, threads: int) -> Any:
    if importlib.util.find_spec("onnxruntime") is None:
        raise UnavailableError(reason="not installed: onnxruntime")
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def openvino(path: Path, modalities: Sequence[Modality], threads: int, name: str, precision: str) -> Contestant:
    """One dense graph in OpenVINO for least latency; "bf16" is its own default where the processor has it."""
    if importlib.util.find_spec("openvino") is None:
        raise UnavailableError(reason="not installed: openvino (pip install 'mars-edge[bench]')")
    import openvino as runtime

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    if precision != "bf16":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        model = runtime.Core().compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        raise UnavailableError(reason=f"openvino refuses the graph: {str(error).splitlines()[0]}") from None
    if precision == "bf16" and "bfloat16" not in str(model.get_property("INFERENCE_PRECISION_HINT")):
        raise UnavailableError(reason="the processor computes no bfloat16")
    output = model.output("logits")

    def decide(given: Given) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = model(decision_inputs(modalities, given), share_inputs=True)[output][0]
        return logits

    return Contestant(who=Who(name=name, precision=precision), decide=decide)


def litert(path: Path, modalities: Sequence[Modality], threads: int) -> Contestant:
    """One dense graph in LiteRT, which was TensorFlow Lite, with its XNNPACK delegate."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise UnavailableError(reason="not installed: ai-edge-litert (pip install 'mars-edge[bench]')")
    if not path.exists():
        raise UnavailableError(reason=not_converted(path))
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    places = [found["index"] for found in sorted(interpreter.get_input_details(), key=lambda found: found["name"])]
    (output,) = interpreter.get_output_details()

    def decide(given: Given) -> NDArray[np.float32]:
        inputs = decision_inputs(modalities, given)
        for place, value in zip(places, inputs.values(), strict=True):
            interpreter.set_tensor(place, value.astype(np.float32, copy=False))
        interpreter.invoke()
        logits: NDArray[np.float32] = interpreter.get_tensor(output["index"])[0]
        return logits

    return Contestant(who=Who(name="LiteRT, dense, fp32", precision="fp32"), decide=decide)


def not_converted(path: Path) -> str:
    """Why there is no .tflite at `path`: what the converter said last, or that nobody asked for it."""
    said = path.with_suffix(".failed")
    if said.exists():
        return f"not converted: {said.read_text(encoding='utf-8')}"
    return "not converted: give --litert-python, see benchmarks/to_litert.py"


def made(makers: Mapping[Who, Callable[[], Contestant]]) -> tuple[list[Contestant], list[Row]]:
    """The contestants that can take part, and a row with the reason of every other."""
    found, skipped = [], []
    for who, make in makers.items():
        note(f"  preparing {who.name}")
        try:
            found.append(make())
        except UnavailableError as error:
            skipped.append(Row(who=who, reason=str(error)))
    return found, skipped


def judged(
    contestants: Sequence[Contestant], samples: Samples, wanted: Sequence[Subset]
) -> tuple[list[Contestant], list[Row]]:
    """Those whose answers are right, and a row with the reason of every other.

    fp32 must agree with the first fp32 to `FLOAT_TOLERANCE` of a logit. A lower precision may be `REDUCED_SHARE` times
    as far from fp32, in the mean over logits, as the first of our int8, which is therefore to come before it.
    """
    kept: list[Contestant] = []
    skipped: list[Row] = []
    reference: NDArray[np.float32] | None = None
    allowed = float("inf")
    for one in contestants:
        given = np.stack(list(_answers(one, samples, wanted)))
        reference = given if reference is None else reference
        exact, apart = one.who.precision == "fp32", np.abs(given - reference)
        off, limit = (float(apart.max()), FLOAT_TOLERANCE) if exact else (float(apart.mean()), allowed)
        if not off <= limit:
            skipped.append(Row(who=one.who, reason=f"answers off by {off:.3g}, allowed {limit:.3g}"))
            continue
        kept.append(one)
        if not exact and math.isinf(allowed):
            allowed = REDUCED_SHARE * off
    return kept, skipped


def _answers(one: Contestant, samples: Samples, wanted: Sequence[Subset]) -> Iterator[NDArray[np.float32]]:
    for sample in samples:
        for subset in wanted:
            yield np.array(one.decide({name: sample[name] for name in subset}))
