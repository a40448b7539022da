"""PrefixQuant (arXiv 2410.05265): outlier tokens before every text, so that static scales fit the rest."""

from baselines.prefixquant.method import Prefix

__all__ = ["Prefix"]
