"""AQLM (arXiv 2401.06118): additive quantization."""

from baselines.aqlm.method import AQLM

__all__ = ["AQLM"]
