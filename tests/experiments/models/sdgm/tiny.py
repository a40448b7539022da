"""A small spectral dictionary model whose parameters are all far from 0."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from experiments.models.sdgm.architecture import SpectralDictionary
from experiments.models.sdgm.pointer import Head

ONE = SpectralDictionary(width=16, atoms=6, kernel=3, copy_window=5, stft_window=8, stft_hop=3)
FOUR = SpectralDictionary(
    layers=4, stacked=True, width=16, atoms=6, kernel=3, neurons=24, copy_window=5, stft_window=8, stft_hop=3
)

VARIANTS = {
    "generator": replace(ONE, head=Head.generator),
    "mean": replace(ONE, head=Head.mean),
    "shared": replace(FOUR, shared_frequency=True),
    "modulated": replace(ONE, modulation=3),
}
"""Models with other heads and other atoms."""


def model_of(architecture: SpectralDictionary, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a model of 40 tokens and inputs up to 64, the same at every call."""
    torch.manual_seed(0)
    model = architecture.model(40, 64).eval()
    for name, parameter in model.named_parameters():
        if not name.endswith(("log_frequency", "phase")):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.to(dtype)  # type: ignore[arg-type]


def ids_of(batch: int, tokens: int) -> torch.Tensor:
    """Return ids (batch, tokens), the same at every call."""
    return torch.randint(40, (batch, tokens), generator=torch.Generator().manual_seed(0))
