"""The suite `decode`: tokens per second of a whole model, dense and compressed in turn, prefill and decode apart.

Batch 1, greedy, eager. Each decode sample begins from a fresh prefill of a short prompt, which is not timed. The floor of one token is
reading every weight once (the head included, the cache of keys and values left out); prefill has the same floor for its whole
prompt, which says little, as arithmetic decides there.

What SINQ leaves dense (head, norms) and the activations are bf16. All models are held in memory at once, so that they can take turns.
"""

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.bench.case import Case
from experiments.bench.floor import model_nbytes
from experiments.bench.models import Named
from experiments.bench.timing import Implementation
from experiments.common.meters import seconds
from experiments.evaluation.generation import phase_seconds, prefill
from experiments.evaluation.latency import kernel
from experiments.models.source import sparing_clone
from sinq import SINQ, Context, Grid, Layers, OnMisfit

BASELINE = "dense fp32"
PREFILL_TOKENS, PROMPT_TOKENS, DECODE_TOKENS = 64, 8, 8


def cases(model: Named, bits: tuple[int, ...], group_size: int, device: torch.device) -> list[Case]:
    """Prefill and decode of a model, at every number of bits. Where groups do not fit a layer they are made smaller."""
    half: PreTrainedModel = copy.deepcopy(model.dense).to(torch.bfloat16)  # type: ignore[arg-type]
    variants = {BASELINE: model.dense, "dense bf16": half}
    variants |= {
        f"SINQ {count} bits": compressed(half, Grid(bits=count, group_size=group_size)) for count in bits
    }
    vocabulary = model.dense.config.vocab_size
    prompt = torch.randint(vocabulary, (1, PREFILL_TOKENS), generator=torch.Generator().manual_seed(0)).to(
        device
    )
    reading = [_reading(name, one, prompt, device) for name, one in variants.items()]
    writing = [_writing(name, one, prompt[:, :PROMPT_TOKENS], device) for name, one in variants.items()]
    return [
        Case(
            "decode",
            f"prefill of {PREFILL_TOKENS} tokens, {model.name}",
            reading,
            BASELINE,
            tokens=PREFILL_TOKENS,
        ),
        Case(
            "decode",
            f"decode of {DECODE_TOKENS} tokens, {model.name}",
            writing,
            BASELINE,
            tokens=DECODE_TOKENS,
        ),
    ]


def compressed(dense: PreTrainedModel, grid: Grid) -> PreTrainedModel:
    """A copy with SINQ's weights; tensors that stay dense are shared."""
    model = sparing_clone(dense)
    SINQ(grid).compress(model, context=Context(Layers(on_misfit=OnMisfit.shrink)))
    return model  # type: ignore[return-value]


def _reading(name: str, model: PreTrainedModel, prompt: Tensor, device: torch.device) -> Implementation:
    def run() -> float:
        return seconds(lambda: prefill(model, prompt), device)

    return Implementation(name, run, model_nbytes(model), kernel(model), is_peer=name.startswith("dense"))


def _writing(name: str, model: PreTrainedModel, prompt: Tensor, device: torch.device) -> Implementation:
    def run() -> float:
        return phase_seconds(model, prompt, DECODE_TOKENS, device)[1]

    return Implementation(
        name, run, DECODE_TOKENS * model_nbytes(model), kernel(model), is_peer=name.startswith("dense")
    )
