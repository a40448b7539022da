"""Losses of a training: reconstruction in time and of spectra, and the likelihood of the next token.

    L = α ‖X̂ − X‖² / count + β ‖ |STFT(X̂)| − |STFT(X)| ‖² / count + γ · NLL

X are the embeddings, without a gradient: with one, embeddings of 0 would be the best reconstruction. Spectra
are along time, for each channel, in Hann windows that lie within the text.
"""

import torch
from torch import Tensor

TINY = 1e-7
"""Added below the root of a magnitude, whose gradient at 0 is not finite."""


def time_loss(synthesized: Tensor, embeddings: Tensor) -> Tensor:
    """Return the mean squared error of X̂ against X (batch, tokens, width), a scalar."""
    return (synthesized - embeddings.detach()).square().mean()


def stft_loss(synthesized: Tensor, embeddings: Tensor, window: int, hop: int) -> Tensor:
    """Return the mean squared difference of the magnitudes of short-time spectra, a scalar."""
    found = magnitudes(synthesized, window, hop)
    return (found - magnitudes(embeddings.detach(), window, hop)).square().mean()


def magnitudes(signal: Tensor, window: int, hop: int) -> Tensor:
    """Return |STFT| of each channel of a signal (batch, tokens, width): (batch · width, bins, frames).

    Args:
        window: positions of a frame, at most the tokens.
        hop: positions between the beginnings of two frames.
    """
    wide = torch.promote_types(signal.dtype, torch.float32)  # there is no transform of bfloat16
    channels = signal.transpose(1, 2).flatten(0, 1).to(wide)
    hann = torch.hann_window(window, device=signal.device, dtype=wide)
    spectrum = torch.stft(channels, window, hop, window=hann, center=False, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square() + TINY).sqrt()
