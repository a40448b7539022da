"""Options of the spectral dictionary model and of its losses.

The paper's numbers are not published where they could be read. Sizes, kernel, windows and weights of the
losses are choices of this project.
"""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from experiments.models.architectures import Architecture
from experiments.models.sdgm.pointer import Head
from sinq.common.options import check, number, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Coefficients(enum.Enum):
    """Function that makes coefficients of scores: weights that sum to 1, or any that are positive."""

    softmax = "softmax"
    softplus = "softplus"


@dataclass(frozen=True)
class SpectralDictionary(Architecture):
    """A spectral dictionary language model.

    Raises:
        ValueError: an option is out of range, or several layers are not stacked. Later: a window of spectra
            is longer than the model's input.
    """

    layers: int = 1
    stacked: bool = False
    """Blocks with norms, residuals and an MLP. Without them it is the one layer of the paper's figure."""
    width: int = 256
    atoms: int = 128
    kernel: int = 5
    """Tokens that decide coefficients: the present one and those before it."""
    coefficients: Coefficients = Coefficients.softmax
    neurons: int = 704
    """Width of the MLP of stacked blocks."""
    copy_window: int = 64
    """Tokens among which the head looks for context and for a token to copy."""
    head: Head = Head.pointer
    modulation: int = 0
    """Hidden units of the MLP of time that changes the amplitudes of atoms; 0 for amplitudes that stay."""
    shared_frequency: bool = False
    """One frequency for all channels of an atom: a restriction that makes sums products of matrices."""
    time_weight: float = 1.0
    """α, of the reconstruction of embeddings."""
    stft_weight: float = 0.5
    """β, of the magnitudes of their spectra."""
    lm_weight: float = 1.0
    """γ, of the next token's negative log-likelihood."""
    stft_window: int = 32
    stft_hop: int = 8

    name: ClassVar[str] = "spectral_dictionary"

    def __post_init__(self) -> None:
        size, weight = whole(1, 2**16), number(least=0, most=1e6)
        check(
            self, "model.architecture", layers=whole(1, 64), width=size, atoms=size, kernel=whole(1, 1024),
            neurons=size, copy_window=whole(1, 2**16), modulation=whole(0, 2**10), time_weight=weight,
            stft_weight=weight, lm_weight=weight, stft_window=whole(2, 2**16), stft_hop=whole(1, 2**16),
        )  # fmt: skip
        if self.layers > 1 and not self.stacked:
            raise ValueError(
                f"model.architecture.layers={self.layers} is not possible without residual connections;"
                " add model.architecture.stacked=true"
            )

    @property
    def label(self) -> str:
        differs = [
            "stacked" if self.stacked and self.layers == 1 else "",
            "" if self.head is Head.pointer else self.head.name,
            "modulated" if self.modulation else "",
            "shared" if self.shared_frequency else "",
        ]
        return "-".join([f"sdgm{self.layers}", *filter(None, differs)])

    def model(self, vocabulary: int, seqlen: int) -> "PreTrainedModel":
        from experiments.models.sdgm.config import SDGMConfig
        from experiments.models.sdgm.model import SDGMForCausalLM

        if self.stft_window > seqlen:
            raise ValueError(
                f"model.architecture.stft_window={self.stft_window} is longer than model.seqlen={seqlen};"
                " choose a shorter one"
            )
        config = SDGMConfig(
            vocab_size=vocabulary, max_position_embeddings=seqlen, hidden_size=self.width, atoms=self.atoms,
            num_hidden_layers=self.layers, kernel=self.kernel, coefficients=self.coefficients.value,
            stacked=self.stacked, intermediate_size=self.neurons, copy_window=self.copy_window,
            head=self.head.value, modulation=self.modulation, shared_frequency=self.shared_frequency,
        )  # fmt: skip
        return SDGMForCausalLM(config)

    def loss(self, model: Any, windows: Tensor) -> Tensor:
        from experiments.models.sdgm.losses import stft_loss, time_loss

        output = model(windows, use_cache=False)
        logits = output.logits[:, :-1].flatten(0, 1)
        nll = nn.functional.nll_loss(logits, windows[:, 1:].flatten())
        made, wanted = output.synthesized, output.embeddings
        spectra = stft_loss(made, wanted, self.stft_window, self.stft_hop)
        return self.time_weight * time_loss(made, wanted) + self.stft_weight * spectra + self.lm_weight * nll
