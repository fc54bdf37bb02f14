"""The model under test: its inputs, its weights, the network in plain torch, and its export to ONNX.

`inputs` and `weights` need numpy alone; `llama` and `export` import torch.
"""
