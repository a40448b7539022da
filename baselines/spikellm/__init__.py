"""SpikeLLM (arXiv 2407.04752): inputs of layers as neurons that fire, salient channels for more steps."""

from baselines.spikellm.method import SpikeLLM

__all__ = ["SpikeLLM"]
