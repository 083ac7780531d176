"""The formats that a student is exported in: their files, and the packages that they need."""

from __future__ import annotations

FILES = {"state-dict": "model.safetensors", "torch-export": "model.pt2", "onnx": "model.onnx"}
FORMATS = tuple(FILES)
PACKAGES = {"state-dict": ("safetensors",), "torch-export": (), "onnx": ("onnx", "onnxscript", "onnxruntime")}
