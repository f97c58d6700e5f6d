"""Quantization-aware training, lowering to .pte and .onnx, parity and calibration; needs the export extra."""
