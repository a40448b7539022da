"""SINQ and the quantizer library around it.

from sinq import SINQ, Grid

report = SINQ(Grid(bits=4, group_size=64)).compress(model)   # any Hugging Face causal language model, in place
sinq.save(model, folder)
model = sinq.load(folder)
"""

from sinq.additive import AdditiveTensor
from sinq.calibration import Calibration
from sinq.checkpoint import load, save, stored_tensors
from sinq.collect import collect
from sinq.columns import MixedColumns
from sinq.context import Context
from sinq.dual_scale import SINQ
from sinq.errors import NotApplicable
from sinq.experts import CompressedExperts
from sinq.format import CompressedWeight
from sinq.grid import Grid, Levels
from sinq.half_quadratic import HalfQuadratic
from sinq.kernels import Kernel, chosen, using
from sinq.kernels.product import Choice, kernel_of, product
from sinq.layers import Layers, OnMisfit, find_targets
from sinq.linear import CompressedLinear
from sinq.method import BlockMethod, LayerMethod, LayerWrapper, Method
from sinq.presinq import PreSINQ
from sinq.refined import SINQRefined
from sinq.report import CompressionReport, LayerReport
from sinq.rotation import Rotated, Rotation
from sinq.rounding import assign, choose
from sinq.scalar import Normalized, ScalarMethod
from sinq.sinkhorn import Sinkhorn, imbalance, sinkhorn_scales
from sinq.sites import Site, SiteKind
from sinq.sparse import SparseOutliers
from sinq.stream import stream
from sinq.tensor import QuantizedTensor
from sinq.tuned import Tuned
from sinq.tuning import BlockTuning
from sinq.walk import BlockView, walk

__all__ = [
    "SINQ",
    "AdditiveTensor",
    "BlockMethod",
    "BlockTuning",
    "BlockView",
    "Calibration",
    "Choice",
    "CompressedExperts",
    "CompressedLinear",
    "CompressedWeight",
    "CompressionReport",
    "Context",
    "Grid",
    "HalfQuadratic",
    "Kernel",
    "LayerMethod",
    "LayerReport",
    "LayerWrapper",
    "Layers",
    "Levels",
    "Method",
    "MixedColumns",
    "Normalized",
    "NotApplicable",
    "OnMisfit",
    "PreSINQ",
    "QuantizedTensor",
    "Rotated",
    "Rotation",
    "SINQRefined",
    "ScalarMethod",
    "Sinkhorn",
    "Site",
    "SiteKind",
    "SparseOutliers",
    "Tuned",
    "assign",
    "choose",
    "chosen",
    "collect",
    "find_targets",
    "imbalance",
    "kernel_of",
    "load",
    "product",
    "save",
    "sinkhorn_scales",
    "stored_tensors",
    "stream",
    "using",
    "walk",
]
