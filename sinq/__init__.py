"""SINQ and the quantizer library around it.

from sinq import SINQ, Grid

report = SINQ(Grid(bits=4, group_size=64)).compress(model)   # any Hugging Face causal language model, in place
sinq.save(model, folder)
model = sinq.load(folder)
"""

from sinq.checkpoint import load, save, stored_tensors
from sinq.grid import Grid, Levels
from sinq.half_quadratic import HalfQuadratic
from sinq.layers import Layers, OnMisfit, find_targets
from sinq.linear import CompressedExperts, CompressedLinear
from sinq.method import SINQ, LayerMethod, Method
from sinq.report import CompressionReport, LayerReport
from sinq.rounding import assign, choose
from sinq.sinkhorn import Sinkhorn, imbalance, sinkhorn_scales
from sinq.tensor import CompressedWeight, QuantizedTensor

__all__ = [
    "SINQ",
    "CompressedExperts",
    "CompressedLinear",
    "CompressedWeight",
    "CompressionReport",
    "Grid",
    "HalfQuadratic",
    "LayerMethod",
    "LayerReport",
    "Layers",
    "Levels",
    "Method",
    "OnMisfit",
    "QuantizedTensor",
    "Sinkhorn",
    "assign",
    "choose",
    "find_targets",
    "imbalance",
    "load",
    "save",
    "sinkhorn_scales",
    "stored_tensors",
]
