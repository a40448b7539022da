"""SINQ and the quantizer library around it.

from sinq import SINQ, Grid

report = SINQ(Grid(bits=4, group_size=64)).compress(model)  # in place, any Hugging Face causal language model
sinq.save(model, folder)
model = sinq.load(folder)
"""

from sinq.algorithms.half_quadratic import HalfQuadratic
from sinq.algorithms.sinkhorn import Sinkhorn, imbalance, sinkhorn_scales
from sinq.calibration.collect import collect
from sinq.calibration.data import Calibration
from sinq.calibration.sites import Site, SiteKind
from sinq.checkpoint.folder import load, save, stored_tensors
from sinq.checkpoint.foreign.reader import load_foreign
from sinq.checkpoint.stream import stream
from sinq.common.errors import NotApplicable
from sinq.common.import_hooks import import_after
from sinq.export.awq import AWQFolder
from sinq.export.base import Exporter
from sinq.export.bnb_nf4 import BitsAndBytesNF4
from sinq.export.compressed_tensors import CompressedTensors
from sinq.export.gguf import Gguf, GgufQ4K
from sinq.export.gptq import GPTQFolder
from sinq.export.mlx import MLX
from sinq.export.official_sinq import OfficialSINQ
from sinq.export.report import ExportReport
from sinq.export.run import export
from sinq.export.torchao import TorchAO
from sinq.formats.activations import ActivationFormat
from sinq.formats.additive import AdditiveTensor
from sinq.formats.base import CompressedWeight
from sinq.formats.grid import Grid, Levels
from sinq.formats.key_values import KeyValueFormat, StateFormat
from sinq.formats.mixed_columns import MixedColumns
from sinq.formats.repacked import RepackedTensor
from sinq.formats.rotation import Rotated, Rotation
from sinq.formats.rounding import assign, choose
from sinq.formats.scalar import QuantizedTensor
from sinq.formats.sparse_outliers import SparseOutliers
from sinq.formats.ternary import TernaryTensor
from sinq.kernels import Kernel, chosen, using
from sinq.kernels.product import Choice, kernel_of, product
from sinq.methods.activations import Activations
from sinq.methods.base import BlockMethod, LayerMethod, LayerWrapper, Method
from sinq.methods.compressed_head import CompressedHead
from sinq.methods.key_values import KeyValues
from sinq.methods.presinq import PreSINQ
from sinq.methods.report import CompressionReport, Decision, PartReport
from sinq.methods.scalar import Groups, Normalized, NormalizingMethod, ScalarMethod
from sinq.methods.sinq import SINQ
from sinq.methods.sinq_refined import SINQRefined
from sinq.methods.tuned import Tuned
from sinq.model.context import Context
from sinq.model.experts import CompressedExperts
from sinq.model.linear import CompressedLinear
from sinq.model.targets import Layers, OnMisfit, find_targets
from sinq.model.walk import BlockView, walk
from sinq.training.block_tuning import BlockTuning

# so that transformers reads folders of ours, without importing it here
import_after("transformers.modeling_utils", "sinq.transformers")

__all__ = [
    "MLX",
    "SINQ",
    "AWQFolder",
    "ActivationFormat",
    "Activations",
    "AdditiveTensor",
    "BitsAndBytesNF4",
    "BlockMethod",
    "BlockTuning",
    "BlockView",
    "Calibration",
    "Choice",
    "CompressedExperts",
    "CompressedHead",
    "CompressedLinear",
    "CompressedTensors",
    "CompressedWeight",
    "CompressionReport",
    "Context",
    "Decision",
    "ExportReport",
    "Exporter",
    "GPTQFolder",
    "Gguf",
    "GgufQ4K",
    "Grid",
    "Groups",
    "HalfQuadratic",
    "Kernel",
    "KeyValueFormat",
    "KeyValues",
    "LayerMethod",
    "LayerWrapper",
    "Layers",
    "Levels",
    "Method",
    "MixedColumns",
    "Normalized",
    "NormalizingMethod",
    "NotApplicable",
    "OfficialSINQ",
    "OnMisfit",
    "PartReport",
    "PreSINQ",
    "QuantizedTensor",
    "RepackedTensor",
    "Rotated",
    "Rotation",
    "SINQRefined",
    "ScalarMethod",
    "Sinkhorn",
    "Site",
    "SiteKind",
    "SparseOutliers",
    "StateFormat",
    "TernaryTensor",
    "TorchAO",
    "Tuned",
    "assign",
    "choose",
    "chosen",
    "collect",
    "export",
    "find_targets",
    "imbalance",
    "kernel_of",
    "load",
    "load_foreign",
    "product",
    "save",
    "sinkhorn_scales",
    "stored_tensors",
    "stream",
    "using",
    "walk",
]
