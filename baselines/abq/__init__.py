"""ABQ-LLM (arXiv 2408.08554): OmniQuant with corrections of distributions, for any number of bits."""

from baselines.abq.method import ABQ

__all__ = ["ABQ"]
