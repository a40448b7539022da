"""A block: coefficients from a causal convolution over time, and the sum of atoms that they weigh.

The convolution is a linear layer on the last `kernel` inputs, side by side; before the text there are zeros.
So it is quantized like any other linear layer.

The paper's figure has one mixing layer and no residual connection (`stacked=False`). With several, a block is
norm, mixing, residual, norm, MLP, residual, as in a transformer with its attention replaced: an extension.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from experiments.models.sdgm.atoms import Atoms, Modulation
from experiments.models.sdgm.config import SDGMConfig
from experiments.models.sdgm.state import LayerState, joined, tail


class SpectralMixing(nn.Module):
    """Map inputs (batch, tokens, width) to sums of atoms of the same shape."""

    def __init__(self, config: SDGMConfig) -> None:
        super().__init__()
        self.kernel = config.kernel
        self.to_coefficients = nn.Linear(config.kernel * config.hidden_size, config.atoms)
        self.weigh: nn.Module = nn.Softmax(-1) if config.coefficients == "softmax" else nn.Softplus()
        span = config.max_position_embeddings
        self.atoms = Atoms(config.atoms, config.hidden_size, span, config.shared_frequency)
        hidden = config.modulation
        self.modulation = Modulation(config.atoms, hidden, span) if hidden else None

    def forward(self, inputs: Tensor, start: int = 0, state: LayerState | None = None) -> Tensor:
        coefficients = self.coefficients(inputs, state)
        if self.modulation is not None:
            coefficients = coefficients * self.modulation(start, inputs.shape[1])
        if state is None or inputs.shape[1] > 1:
            return self.atoms(coefficients, start)
        return self._next(coefficients, start, state)

    def coefficients(self, inputs: Tensor, state: LayerState | None = None) -> Tensor:
        """Return the weights of atoms (batch, tokens, atoms): of each token and the kernel − 1 before it."""
        known = inputs if state is None else joined(state.inputs, inputs)
        missing = self.kernel - 1 + inputs.shape[1] - known.shape[1]
        padded = functional.pad(known, (0, 0, missing, 0))
        if state is not None:
            state.inputs = tail(known, self.kernel - 1)
        windows = padded.unfold(1, self.kernel, 1)  # (batch, tokens, width, kernel)
        return self.weigh(self.to_coefficients(windows.transpose(2, 3).flatten(2)))

    def _next(self, coefficients: Tensor, start: int, state: LayerState) -> Tensor:
        """Return the sum at one position, from oscillators that go on from the position before."""
        found = state.oscillators
        if found is None or found.position != start:
            found = state.oscillators = self.atoms.oscillators(start)
        waves = (found.sines() * self.atoms.amplitude).to(coefficients.dtype)
        return coefficients @ waves


class GatedMLP(nn.Module):
    """down(silu(gate)·up), as in Llama."""

    def __init__(self, config: SDGMConfig) -> None:
        super().__init__()
        width, neurons = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, neurons, bias=False)
        self.up_proj = nn.Linear(width, neurons, bias=False)
        self.down_proj = nn.Linear(neurons, width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(inputs)) * self.up_proj(inputs))


class PlainBlock(nn.Module):
    """The paper's one layer: hidden states are replaced by their synthesis."""

    def __init__(self, config: SDGMConfig) -> None:
        super().__init__()
        self.mixing = SpectralMixing(config)

    def forward(self, hidden_states: Tensor, start: int = 0, state: Any = None) -> Tensor:
        return self.mixing(hidden_states, start, state)


class StackedBlock(nn.Module):
    """A block of a stack: mixing and MLP, each on normed inputs and added to them."""

    def __init__(self, config: SDGMConfig) -> None:
        super().__init__()
        self.mixing_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mixing = SpectralMixing(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, hidden_states: Tensor, start: int = 0, state: Any = None) -> Tensor:
        hidden_states = hidden_states + self.mixing(self.mixing_norm(hidden_states), start, state)
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


def blocks(config: SDGMConfig) -> nn.ModuleList:
    """Return the blocks of a configuration."""
    kind: type[nn.Module] = StackedBlock if config.stacked else PlainBlock
    return nn.ModuleList(kind(config) for _ in range(config.num_hidden_layers))
