"""Estimation of attention in linear time: K numbers for each query and head, where T are asked for.

SEA (arXiv 2310.01777), of its authors' code with causal masks, for heads H of width d:

    C = linear attention of q, k to [P ; v]                 P: a learned table of positions       (T, 2d)
    u = GELU(LayerNorm(A [C ; v]))                          shared by heads                       (T, 2d)
    two channels of K/4 for each head = B u                 LayerNorm over K/4
    twice a convolution 3 × 3 with dilation 2, and ReLU     over tokens, to the past alone, and over K/4
    four times as wide; a convolution 1 × 1 to H channels; LayerNorm over K                       (H, T, K)

The same u gives two gates for each query. K is a multiple of 4, so that nothing is interpolated. Rows of the
convolutions reach 8 tokens back. The linear attention and all that is normalized is float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from sinq.model.attention_forms.linear import (
    feature_count,
    features,
    linear_attention,
    orthogonal_features,
)

SHRINK = 4
"""Factor by which the convolutions' rows are narrower than the estimate."""
DILATION = 2


@dataclass(frozen=True)
class EstimatorShape:
    """Sizes of an estimator."""

    heads: int
    width: int
    """Width d of a head."""
    blocks: int
    """Numbers for each query, K."""
    tokens: int
    """Longest text."""
    fraction: float
    """Divisor of d ln d in the number of random features."""


class Estimator(nn.Module):
    """An estimate of the attention of all heads, and the gates.

    Parameters and buffers are float32 when made, with any content; `initialize` begins a training.
    """

    omega: Tensor

    def __init__(self, shape: EstimatorShape) -> None:
        super().__init__()
        heads, width, narrow = shape.heads, shape.width, shape.blocks // SHRINK
        self.shape = shape
        self.register_buffer("omega", torch.zeros(feature_count(width, shape.fraction), width))
        self.positions = nn.Parameter(torch.empty(shape.tokens, width))
        self.encoder = nn.Linear(3 * width, 2 * width)
        self.encoder_norm = nn.LayerNorm(2 * width)
        self.rows = nn.Linear(2 * width, 2 * narrow)
        self.rows_norm = nn.LayerNorm(narrow)
        self.first = nn.Conv2d(2 * heads, 2 * heads, 3, dilation=DILATION)
        self.second = nn.Conv2d(2 * heads, 2 * heads, 3, dilation=DILATION)
        self.head_mix = nn.Conv2d(2 * heads, heads, 1)
        self.blocks_norm = nn.LayerNorm(shape.blocks)
        self.gates = nn.Linear(2 * width, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return the estimate (batch, heads, T, K), logits, and the gates' logits (batch, heads, T, 2).

        Args:
            query, key, value: (batch, heads, T, width).

        Raises:
            ValueError: the text is longer than the table of positions.
        """
        encoded = self._encode(query, key, value, scale)
        channels = self.rows(encoded).unflatten(-1, (2, -1))  # (batch, heads, T, 2, K/4)
        rows = self.rows_norm(channels.permute(0, 1, 3, 2, 4).flatten(1, 2))
        rows = causal_convolution(self.second, causal_convolution(self.first, rows).relu()).relu()
        estimate = self.head_mix(rows).repeat_interleave(SHRINK, -1)  # a 1 × 1 convolution commutes with it
        return self.blocks_norm(estimate), self.gates(encoded)

    def _encode(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return u, (batch, heads, T, 2 width)."""
        tokens = query.shape[2]
        if tokens > len(self.positions):
            raise ValueError(
                f"a text of {tokens} tokens is longer than the {len(self.positions)} positions of the"
                " estimator; use shorter windows, or train with a larger method.tokens"
            )
        dtype = self.encoder.weight.dtype
        with torch.autocast(query.device.type, enabled=False):
            left, right = (features(states, self.omega, scale) for states in (query, key))
            positions = self.positions[:tokens].float().expand(*value.shape[:2], -1, -1)
            context = linear_attention(left, right, torch.cat([positions, value.float()], -1))
        joined = torch.cat([context, value.float()], -1)
        return gelu(self.encoder_norm(self.encoder(joined.to(dtype))))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator, gate_bias: float) -> None:
        """Set all parameters to the start of a training; matrices are uniform in ±1/√inputs."""
        self.omega.copy_(self.draw_features(generator))
        self.positions.copy_(torch.randn(self.positions.shape, generator=generator))
        for layer in (self.encoder, self.rows, self.first, self.second, self.head_mix, self.gates):
            bound = layer.weight[0].numel() ** -0.5
            for parameter in layer.parameters():
                parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
        for norm in (self.encoder_norm, self.rows_norm, self.blocks_norm):
            norm.reset_parameters()
        self.gates.bias.fill_(gate_bias)

    def draw_features(self, generator: torch.Generator | None = None) -> Tensor:
        """Return new random features Ω, on the CPU."""
        return orthogonal_features(len(self.omega), self.shape.width, generator)


def causal_convolution(convolution: nn.Conv2d, rows: Tensor) -> Tensor:
    """Return the convolution of rows (batch, channels, T, n), which sees tokens up to its own."""
    reach = DILATION * (convolution.kernel_size[0] - 1)
    result: Tensor = convolution(pad(rows, (reach // 2, reach // 2, reach, 0)))
    return result
