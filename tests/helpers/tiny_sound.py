"""A one-modality model that hears, as the smallest .onnx with the ports of ours: louder than silence is "sound".

Axes: 1 batch, F bands, T frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mars_edge.artifact import write_sealed
from mars_edge.manifest import Golden, Manifest, OperatingPoint, Tensor
from mars_edge.modality import Modality

VOICE = Modality(name="voice", kind="audio", rate_hz=8000.0, window_s=0.5, mel_bands=20)


def write_onnx(path: Path) -> Manifest:
    """Feature: the mean of the spectrogram; logits: (0.05 - mean, mean - 0.05) * 100."""
    manifest = _manifest()
    shape = [1, *VOICE.shape]
    real, flag = TensorProto.FLOAT, TensorProto.BOOL
    inputs = [("x_voice", real, shape), ("fresh_voice", flag, []), ("feature_voice", real, [1, 1])]
    outputs = [("logits", real, [1, 2]), ("router_logits", real, [1, 1]), ("f_voice", real, [1, 1])]
    weights = {
        "axes": np.array([1, 2, 3]),
        "flat": np.array([1, 1]),
        "slope": np.array([[-100.0, 100.0]], np.float32),
        "offset": np.array([5.0, -5.0], np.float32),
        "zero": np.zeros((1, 1), np.float32),
    }
    nodes = [
        helper.make_node("ReduceMean", ["x_voice", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "flat"], ["row"]),
        helper.make_node("Where", ["fresh_voice", "row", "feature_voice"], ["f_voice"]),
        helper.make_node("Gemm", ["f_voice", "slope", "offset"], ["logits"]),
        helper.make_node("Mul", ["f_voice", "zero"], ["router_logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_sound",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(*entry) for entry in outputs],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    entry = model.metadata_props.add()
    entry.key, entry.value = "manifest", manifest.to_json()
    write_sealed(path, model.SerializeToString())
    return manifest


def _manifest() -> Manifest:
    point = OperatingPoint(threshold=0.0, metric="accuracy", value=1.0, low=0.9, high=1.0, n=50, certified=True)
    quiet = Tensor.of(np.zeros(VOICE.shape, np.float32))
    return Manifest(
        name="tiny_sound",
        task="classification",
        labels=("silence", "sound"),
        positive_label=None,
        modalities=(VOICE,),
        experts=1,
        active_experts=1,
        feature_shapes={"voice": (1,)},
        z_shape=(1,),
        precision="fp32",
        methods=("encode_voice", "route", "expert_0", "head"),
        operating_points={"voice": point},
        provenance={"recipe": "tests"},
        golden=Golden(inputs={"voice": quiet}, logits={"voice": (5.0, -5.0)}, tolerance=1e-4),
    )
