"""Bits per layer, chosen by measured sensitivity to meet a budget."""

from baselines.mixed.knapsack import Budget
from baselines.mixed.method import Mixed

__all__ = ["Budget", "Mixed"]
