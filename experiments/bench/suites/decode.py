"""The suite `decode`: tokens per second of a whole model, dense and compressed, prefill and decode apart.

Batch 1, greedy, eager. Each decode sample begins with a fresh prefill of a short prompt, which is not timed.
The floor of a token is reading every weight once (with the head, without the cache of keys and values).
Prefill has the same floor for the whole prompt, which says little, because arithmetic dominates there.

Tensors that SINQ leaves dense (head, norms) and the activations are bf16. All models are in memory at once,
so that they can alternate.
"""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from experiments.bench.case import Case
from experiments.bench.floor import model_nbytes
from experiments.bench.models import Named
from experiments.bench.timing import Implementation
from experiments.common.meters import seconds
from experiments.evaluation.generation import phase_seconds, prefill
from experiments.evaluation.latency import kernel
from experiments.models.source import sparing_clone
from sinq import SINQ, Context, Grid, Layers, Method, OnMisfit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASELINE = "dense fp32"
PREFILL_TOKENS, PROMPT_TOKENS, DECODE_TOKENS = 64, 8, 8


def cases(model: Named, bits: tuple[int, ...], group_size: int, device: torch.device) -> list[Case]:
    """Return prefill and decode of a model, at every number of bits.

    Groups that do not divide a layer are made smaller.
    """
    half = halved(model.dense)
    variants = {BASELINE: model.dense, "dense bf16": half}
    variants |= {
        f"SINQ {count} bits": compressed(half, SINQ(Grid(bits=count, group_size=group_size)))
        for count in bits
    }
    vocabulary = model.dense.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(vocabulary, (1, PREFILL_TOKENS), generator=generator).to(device)
    short = prompt[:, :PROMPT_TOKENS]
    prefills = [prefill_of(name, variant, prompt, device) for name, variant in variants.items()]
    decodes = [decode_of(name, variant, short, DECODE_TOKENS, device) for name, variant in variants.items()]
    named = (
        (f"prefill of {PREFILL_TOKENS} tokens, {model.name}", prefills, PREFILL_TOKENS),
        (f"decode of {DECODE_TOKENS} tokens, {model.name}", decodes, DECODE_TOKENS),
    )
    return [Case("decode", name, contenders, BASELINE, tokens=tokens) for name, contenders, tokens in named]


def halved(dense: "PreTrainedModel") -> "PreTrainedModel":
    """Return a copy in bf16."""
    return copy.deepcopy(dense).to(torch.bfloat16)  # type: ignore[arg-type]


def compressed(dense: "PreTrainedModel", method: Method) -> "PreTrainedModel":
    """Return a copy with a method's weights; tensors that stay dense are shared."""
    model = sparing_clone(dense)
    method.compress(model, context=Context(Layers(on_misfit=OnMisfit.shrink)))
    return model  # type: ignore[return-value]


def prefill_of(
    name: str, model: "PreTrainedModel", prompt: Tensor, device: torch.device, peer: str | None = None
) -> Implementation:
    """Return prefill of a prompt (1, tokens) by a model."""

    def run() -> float:
        return seconds(lambda: prefill(model, prompt), device)

    is_peer = name.startswith("dense")
    return Implementation(name, run, model_nbytes(model), kernel(model), peer, is_peer)


def decode_of(
    name: str,
    model: "PreTrainedModel",
    prompt: Tensor,
    tokens: int,
    device: torch.device,
    peer: str | None = None,
) -> Implementation:
    """Return decoding `tokens` after a prompt (1, tokens) by a model."""

    def run() -> float:
        return phase_seconds(model, prompt, tokens, device)[1]

    is_peer = name.startswith("dense")
    return Implementation(name, run, tokens * model_nbytes(model), kernel(model), peer, is_peer)
