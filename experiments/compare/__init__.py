"""Paired comparison of rows. `python -m experiments.compare A B` sets two runs side by side."""

from experiments.compare.paired import MARKS, Comparison, Verdict, compare, conditions, differences

__all__ = ["MARKS", "Comparison", "Verdict", "compare", "conditions", "differences"]
