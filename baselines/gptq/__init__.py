"""GPTQ (arXiv 2210.17323): rounding with error feedback."""

from baselines.gptq.curvature import Toward
from baselines.gptq.method import GPTQ, ActOrder

__all__ = ["GPTQ", "ActOrder", "Toward"]
