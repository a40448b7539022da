"""Evaluations, one per file: each turns a model into metrics."""

from experiments.evaluation.attention_entropy import AttentionEntropy
from experiments.evaluation.base import Evaluation, EvaluationContext, Measurement
from experiments.evaluation.coefficient_mixture import CoefficientMixture
from experiments.evaluation.latency import Latency
from experiments.evaluation.layer_error import LayerError
from experiments.evaluation.llama_cpp import LlamaCppPerplexity
from experiments.evaluation.memory import Memory
from experiments.evaluation.operations import Operations
from experiments.evaluation.perplexity import Perplexity
from experiments.evaluation.pseudo_perplexity import PseudoPerplexity
from experiments.evaluation.scaling import Scaling
from experiments.evaluation.size import Size
from experiments.evaluation.stable_rank import StableRank
from experiments.evaluation.unigram import Unigram
from experiments.evaluation.zero_shot.evaluation import ZeroShot

__all__ = [
    "AttentionEntropy",
    "CoefficientMixture",
    "Evaluation",
    "EvaluationContext",
    "Latency",
    "LayerError",
    "LlamaCppPerplexity",
    "Measurement",
    "Memory",
    "Operations",
    "Perplexity",
    "PseudoPerplexity",
    "Scaling",
    "Size",
    "StableRank",
    "Unigram",
    "ZeroShot",
]
