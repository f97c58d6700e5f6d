"""Which form of int8 keeps onnxruntime exact on an x86-64 processor without VNNI: measured against ExecuTorch.

    python benchmarks/saturation.py face_antispoof.pte face_antispoof.onnx --inputs samples.npz --samples 32
    qemu-x86_64 -cpu Haswell .venv/bin/python benchmarks/saturation.py face_antispoof.pte face_antispoof.onnx \\
        --inputs samples.npz --samples 32

Kernels for AVX2 without VNNI multiply unsigned by signed bytes and add pairs of products in 16 bits, which saturate.
The first line printed says, from one matrix product with a known result, whether they do so here; it is what shows
that an emulated processor took those kernels. Then one row per form of the same trained pieces: activations x weights.
Source: onnxruntime, "Quantize ONNX models", section on U8S8 and saturation,
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from agreement import Answers, Difference, add_sample_options, ask, compare, load_samples, table
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from mars_edge import subsets
from mars_edge.artifact import verify
from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.options import OneLineParser
from mars_export.onnx_precision import halved, rewrite
from mars_runtime.engines import open_engine
from mars_runtime.engines.graph import OnnxEngine
from mars_runtime.models import find_model

Quantizer = dict[str, NDArray[Any]]
Change = Callable[[Quantizer], Quantizer]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the uint8 quantizers of an artifact are rewritten before they are measured; None leaves them."""

    activations: Change | None
    weights: Change | None


def signed(quantizer: Quantizer) -> Quantizer:
    """The same real values as int8: 128 less in the zero point and in the stored values."""
    return quantizer | {
        key: (quantizer[key].astype(np.int16) - 128).astype(np.int8) for key in quantizer if key != "scale"
    }


def signed_7bit(quantizer: Quantizer) -> Quantizer:
    """Weights of 7 bits: up to half a step of theirs away."""
    return halved(signed(quantizer))


FORMS = {
    "u8 x u8": Form(activations=None, weights=None),
    "u8 x s8": Form(activations=None, weights=signed),
    "s8 x s8": Form(activations=signed, weights=signed),
    "u8 x 7 bit": Form(activations=None, weights=signed_7bit),
    "s8 x 7 bit": Form(activations=signed, weights=signed_7bit),
}


def pairs_saturate() -> bool:
    """Whether a product of unsigned and signed bytes comes out too small in onnxruntime on this processor."""
    depth = 64
    weights = numpy_helper.from_array(np.full((depth, 16), 127, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, depth])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"x": np.full((1, depth), 255, np.uint8)})
    return bool((product != depth * 255 * 127).any())


def in_form(model: ModelProto, form: Form) -> ModelProto:
    """A copy of a uint8 graph with its quantizers in another form, in every branch.

    Raises:
        UsageError: it has no uint8 quantizers.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    found = False
    for graph in _graphs(changed.graph):
        found |= any(t.data_type == TensorProto.UINT8 for t in graph.initializer)
        rewrite(graph, activations=form.activations, weights=form.weights)
    if not found:
        raise UsageError("the .onnx has no uint8 quantizers: export it for int8 with weights uint8")
    return changed


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def measure(program: str, graph: str, count: int, inputs: Path | None) -> dict[str, Difference]:
    """By form, onnxruntime beside the .pte over every subset together.

    Raises:
        MarsEdgeError: a file cannot be opened, or they are not of one quantized model.
    """
    reference_engine = open_engine(program, threads=1)
    manifest = reference_engine.manifest
    if manifest.logit_step is None:
        raise UsageError(f"{program} has a float output: there are no output steps to count in")
    samples = load_samples(manifest, count, inputs)
    wanted = subsets.all_subsets(manifest.names)
    reference = _together(ask(reference_engine, samples, wanted))
    reference_engine.close()
    model = onnx.load_from_string(bytes(verify(find_model(graph)).data))
    found = {}
    for name, form in FORMS.items():
        engine = OnnxEngine(manifest, in_form(model, form).SerializeToString(), threads=1)
        found[name] = compare(_together(ask(engine, samples, wanted)), reference, manifest.logit_step)
        engine.close()
    return found


def _together(answers: dict[subsets.Subset, Answers]) -> Answers:
    """All subsets as one set of rows."""
    return Answers(
        logits=np.concatenate([a.logits for a in answers.values()]),
        experts=np.concatenate([a.experts for a in answers.values()]),
    )


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/saturation.py face_antispoof.pte face_antispoof.onnx --samples 32",
    )
    parser.add_argument("program", metavar="PTE", help="the reference, int8")
    parser.add_argument("graph", metavar="ONNX", help="the same pieces with uint8 activations and weights")
    add_sample_options(parser, samples=32)
    return parser


def main() -> int:
    """Prints whether pairs saturate here, then one line per form."""
    options = _parser().parse_args()
    saturating = pairs_saturate()
    if not options.quiet:
        print(f"unsigned x signed pairs {'saturate' if saturating else 'are exact'} here", file=sys.stderr, flush=True)
    try:
        rows = measure(options.program, options.graph, options.samples, options.inputs)
    except MarsEdgeError as error:
        print(f"saturation: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"pairs_saturate": saturating, "forms": {name: asdict(row) for name, row in rows.items()}}))
    else:
        print(table(rows, "activations x weights"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
