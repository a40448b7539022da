"""SpikeLLM (arXiv 2407.04752): inputs of layers as neurons that fire, salient channels for more steps.

`Ternary` has ternary weights, which is ours.
"""

from baselines.spikellm.method import SpikeLLM
from baselines.spikellm.ternary import Ternary

__all__ = ["SpikeLLM", "Ternary"]
