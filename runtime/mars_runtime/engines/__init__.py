"""Engines: one interface over the native ExecuTorch library, its official binding, and onnxruntime."""

from mars_runtime.engines.opening import ENGINES, EngineStatus, engine_status, open_engine, read_manifest
from mars_runtime.engines.protocol import Engine, Inference

__all__ = ["ENGINES", "Engine", "EngineStatus", "Inference", "engine_status", "open_engine", "read_manifest"]
