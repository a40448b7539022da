"""LoRAPrune (arXiv 2305.18403): heads and neurons removed while adapters are trained, by their gradients."""

from baselines.loraprune.method import LoRAPrune

__all__ = ["LoRAPrune"]
