"""STAT: heads and neurons removed without training."""

from baselines.stat.method import STAT

__all__ = ["STAT"]
