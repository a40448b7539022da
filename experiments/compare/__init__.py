"""Paired comparison of rows. `python -m experiments.compare A B` sets two runs side by side."""

from experiments.compare.paired import Comparison, Verdict, compare, conditions, differences

__all__ = ["Comparison", "Verdict", "compare", "conditions", "differences"]
