"""MG-PTQ: bits per column from a graph neural network, then GPTQ."""

from baselines.mgptq.method import MGPTQ

__all__ = ["MGPTQ"]
