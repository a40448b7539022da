"""The spectral dictionary model as a model of transformers, under the model type `sdgm`.

Importing this module registers it, so that its folders load like any other's. Its logits are logarithms of
probabilities: the mixture of generator and pointer is one of probabilities, and a softmax of them gives it
back. Generation keeps an `SDGMState`.

Not covered: padding on the left, inputs other than ids, inputs longer than `max_position_embeddings`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from experiments.models.sdgm.atoms import Atoms, Modulation
from experiments.models.sdgm.config import SDGMConfig
from experiments.models.sdgm.mixing import blocks
from experiments.models.sdgm.pointer import Context, Head, Pointed, mixture, of_last
from experiments.models.sdgm.state import LayerState, SDGMState, joined, tail


@dataclass
class SDGMOutput(ModelOutput):
    """Output of both models; the body has no logits."""

    last_hidden_state: Tensor | None = None
    """[h; c] (batch, tokens, 2 · width)."""
    gate: Tensor | None = None
    embeddings: Tensor | None = None
    """X (batch, tokens, width)."""
    synthesized: Tensor | None = None
    """X̂, the output of the last block, of the same shape."""
    cache: SDGMState | None = None
    found: Any = None
    loss: Tensor | None = None
    logits: Tensor | None = None


class SDGMPreTrained(PreTrainedModel):
    """Initialization, and what transformers asks about the architecture."""

    config_class = SDGMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _is_stateful = True
    _no_split_modules = ["PlainBlock", "StackedBlock"]  # noqa: RUF012 - as transformers declares it

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw atoms: amplitudes N(0, 1/atoms), frequencies log-uniform from 1/2 to T_max/2 periods.

        A modulation begins as a factor of 1.
        """
        super()._init_weights(module)
        if isinstance(module, Atoms):
            init.normal_(module.amplitude, std=1 / math.sqrt(len(module.amplitude)))
            init.uniform_(module.log_frequency, math.log(0.5), math.log(module.span / 2))
            init.uniform_(module.phase, 0, 2 * math.pi)
        if isinstance(module, Modulation):
            init.normal_(module.inner, std=2 * math.pi)
            init.normal_(module.bias)
            init.zeros_(module.outer)


class SDGMModel(SDGMPreTrained):
    """Embedding, blocks, norm, and the context of the pointer."""

    def __init__(self, config: SDGMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = blocks(config)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.context = Context(config.hidden_size, config.copy_window, Head(config.head))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: SDGMState | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> SDGMOutput:
        """Return hidden states of ids (batch, tokens), which follow those that `cache` has read.

        Raises:
            ValueError: padding, or positions beyond the model's.
        """
        start = 0 if cache is None else cache.position
        self._refuse(input_ids, attention_mask, start)
        if cache is None and use_cache:
            cache = SDGMState([LayerState() for _ in self.layers])
        embeddings = hidden = self.embed_tokens(input_ids)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, start=start, state=None if cache is None else cache.layers[index])
        both, gate, found = self._pointed(self.norm(hidden), input_ids, cache)
        return SDGMOutput(both, gate, embeddings, hidden, cache if use_cache else None, found)

    def _pointed(
        self, normed: Tensor, ids: Tensor, cache: SDGMState | None
    ) -> tuple[Tensor, Tensor | None, list[Pointed]]:
        if cache is None:
            return self.context(normed, normed, ids)
        keys, key_ids = joined(cache.hidden, normed), joined(cache.ids, ids)
        kept = self.context.window - 1
        cache.hidden, cache.ids = tail(keys, kept), tail(key_ids, kept)
        cache.position += ids.shape[1]
        return self.context(normed, keys, key_ids)

    def _refuse(self, ids: Tensor, mask: Tensor | None, start: int) -> None:
        longest = self.config.max_position_embeddings
        if start + ids.shape[1] > longest:
            raise ValueError(
                f"an input of {start + ids.shape[1]} tokens is longer than the model's {longest}:"
                " positions beyond it were never trained; use a shorter one, or a larger model.seqlen"
            )
        if mask is not None and not bool(mask.all()):
            raise ValueError("a spectral dictionary model reads no padding; give texts of one length")


class SDGMForCausalLM(SDGMPreTrained, GenerationMixin):
    """The model with its head."""

    def __init__(self, config: SDGMConfig) -> None:
        super().__init__(config)
        self.model = SDGMModel(config)
        self.lm_head = nn.Linear(2 * config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Return False: the state is made by the first call, and has no keys and values."""
        return False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: SDGMState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> SDGMOutput:
        """Return logits (batch, tokens, vocabulary) of the token after each; with labels, their mean loss.

        Args:
            logits_to_keep: number of last tokens to give logits of; 0 for all.
        """
        output = self.model(input_ids, attention_mask, cache, use_cache)
        hidden = output.last_hidden_state[:, -logits_to_keep:]  # -0 keeps all
        gate = None if output.gate is None else output.gate[:, -logits_to_keep:]
        output.logits = mixture(self.lm_head(hidden), gate, of_last(output.found, hidden.shape[1]))
        if labels is not None:
            output.loss = self.loss_function(output.logits, labels, self.config.vocab_size, **options)
        return output


AutoConfig.register("sdgm", SDGMConfig)
AutoModel.register(SDGMConfig, SDGMModel)
AutoModelForCausalLM.register(SDGMConfig, SDGMForCausalLM)
