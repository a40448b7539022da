"""Architectures of models that are trained here from random weights (`trained.py`).

An architecture is a value: it makes a model of transformers, and has the loss of its training. It knows
neither text nor tokenizer. The transformers here are the baseline of architectures that replace attention,
and the subject of studies of training.
"""

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from sinq.calibration.gradients import next_token_loss
from sinq.common.named import Named
from sinq.common.options import check, number, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Architecture(Named, ABC):
    """Kind and sizes of a causal language model."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Return a short name for rows and folders, such as decoder1."""

    @abstractmethod
    def model(self, vocabulary: int, seqlen: int) -> "PreTrainedModel":
        """Return a model with random weights, drawn from torch's generator.

        Args:
            vocabulary: number of tokens.
            seqlen: the longest input, in tokens.
        """

    def loss(self, model: Any, windows: Tensor) -> Tensor:
        """Return what training minimizes, a scalar, for ids (windows, seqlen)."""
        return next_token_loss(model, windows)


class MLP(enum.Enum):
    """The two or three matrices after attention, and the function between them."""

    gated = "gated"
    """silu(gate)·up in a Llama: RMSNorm, rotary positions."""
    gelu = "gelu"
    """One matrix in, GELU, one out, in an OPT: LayerNorm, learned positions, biases."""
    relu = "relu"
    """As gelu, with ReLU."""
    linear = "linear"
    """As gelu, with no function: two matrices that are one. A control, not a good model."""


@dataclass(frozen=True)
class Transformer(Architecture):
    """A decoder with softmax attention.

    Raises:
        ValueError: an option is out of range, heads do not divide the width, or a Llama is to have what only
            an OPT has.
    """

    layers: int = 1
    width: int = 256
    heads: int = 4
    neurons: int = 704
    """Width of the hidden layer of the MLP; 8/3 of the width, rounded up to groups of 64."""
    mlp: MLP = MLP.gated
    post_norm: bool = False
    """Norms after each part of a block and its residual sum, as in the first transformers; else before it."""
    dropout: float = 0.0
    """Share of hidden states set to 0 in training, after each part of a block."""

    name: ClassVar[str] = "transformer"

    def __post_init__(self) -> None:
        size = whole(1, 2**16)
        check(
            self,
            "model.architecture",
            layers=whole(1, 64),
            width=size,
            heads=size,
            neurons=size,
            dropout=number(least=0, below=1),
        )
        if self.mlp is MLP.gated and (self.post_norm or self.dropout):
            option = "post_norm" if self.post_norm else "dropout"
            value = str(getattr(self, option)).lower()
            raise ValueError(
                f"model.architecture.{option}={value} is not possible with mlp=gated, a Llama without it;"
                " choose mlp=gelu, relu or linear"
            )
        if self.width % (2 * self.heads):
            raise ValueError(
                f"model.architecture.heads={self.heads} is not possible with width={self.width}:"
                " each head needs an even number of channels; choose a divisor of half the width"
            )

    @property
    def label(self) -> str:
        plain = "" if self.mlp is MLP.gated else f"-{self.mlp.name}"
        return f"decoder{self.layers}{plain}{'-post' if self.post_norm else ''}"

    def model(self, vocabulary: int, seqlen: int) -> "PreTrainedModel":
        from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

        sizes: dict[str, Any] = {
            "vocab_size": vocabulary,
            "max_position_embeddings": seqlen,
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "tie_word_embeddings": False,
            **SPECIAL,
        }
        if self.mlp is MLP.gated:
            return LlamaForCausalLM(LlamaConfig(intermediate_size=self.neurons, **sizes))
        return OPTForCausalLM(
            OPTConfig(
                ffn_dim=self.neurons,
                word_embed_proj_dim=self.width,
                activation_function=self.mlp.value,
                do_layer_norm_before=not self.post_norm,
                dropout=self.dropout,
                **sizes,
            )
        )


SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
"""Special tokens of a configuration: the tokenizer's one (`learned_tokenizer.py`) begins and ends a text."""
