"""OmniQuant (arXiv 2308.13137): clipping of weights and scales of channels, learned block by block."""

from baselines.omniquant.method import OmniQuant

__all__ = ["OmniQuant"]
