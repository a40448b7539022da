"""The step `decode`: tokens per second of a Qwen3-8B of random weights under CUDA graphs, and prefill.

A step of decoding is captured once as a graph with a static cache and replayed, so Python costs nothing, for
the dense bf16 model and the compressed ones alike. All read every weight once per step, so the goals are
ratios to bf16. Last comes the dense model compiled by torch, if time is left.
"""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch
from transformers import PreTrainedModel, StaticCache

from experiments.bench.floor import bandwidth, copy, model_nbytes
from experiments.bench.gpu.check import Check, Setting, at_least, attempted
from experiments.bench.gpu.models import QWEN3_8B, qwen3
from experiments.bench.timing import clocked, graphed, measure
from experiments.evaluation.generation import cache_names
from experiments.evaluation.latency import kernel
from experiments.models.source import sparing_clone
from sinq import SINQ, Context, Grid, Layers, OnMisfit

STEP = "decode"
BITS = (4, 8, 3, 2)
BATCHES = (1, 16, 4)
LAYERS, VOCABULARY, CONTEXT, PREFILL = 36, 151_936, 512, 2048
ROUNDS = 3
GOALS = {(4, 1): 2.4, (8, 1): 1.0, (4, 16): 1.0}
"""Least speed over bf16 by (bits, batch)."""
Speeds = dict[int, float]
"""Seconds of a step of the dense model by batch; 0 is prefill."""


def checks(setting: Setting) -> Iterator[Check]:
    """Yield speeds of decoding and prefill by bits and batch."""
    dense = qwen3(setting, QWEN3_8B, LAYERS, VOCABULARY)
    yield from attempted(STEP, "copy bandwidth", partial(_bandwidth, setting))
    speeds: Speeds = {}
    yield from attempted(STEP, "bf16", partial(_dense, setting, dense, speeds))
    for bits in BITS[:1] if setting.dry else BITS:
        yield from attempted(STEP, f"{bits} bits", partial(_compressed, setting, dense, bits, speeds))
    if not setting.dry:
        yield from attempted(STEP, "bf16 compiled", partial(_compiled, setting, dense, speeds))


def _bandwidth(setting: Setting) -> Check:
    timing, _ = measure([copy(setting.device, 2**20 if setting.dry else 2**30)], ROUNDS)
    return Check(STEP, "copy bandwidth, read and written", bandwidth(timing[0]) / 1e9, "GB/s")


def _dense(setting: Setting, model: PreTrainedModel, speeds: Speeds) -> Iterator[Check]:
    for batch in BATCHES:
        speeds[batch] = _seconds(one_token(model, batch, setting), setting)
        yield Check(STEP, f"bf16 under graphs, batch {batch}", batch / speeds[batch], "tokens/s")
    speeds[0] = _prefill_seconds(model, setting)
    yield Check(STEP, f"bf16 prefill of {PREFILL}", PREFILL / speeds[0], "tokens/s")


def _compressed(setting: Setting, dense: PreTrainedModel, bits: int, speeds: Speeds) -> Iterator[Check]:
    model: PreTrainedModel = sparing_clone(dense)  # type: ignore[assignment]
    SINQ(Grid(bits=bits, group_size=64)).compress(model, context=Context(Layers(on_misfit=OnMisfit.shrink)))
    note = f"{kernel(model)}, {model_nbytes(model) / 1e9:.2f} GB a token"
    for batch in BATCHES:
        ratio = speeds[batch] / _seconds(one_token(model, batch, setting), setting)
        goal = None if setting.dry else GOALS.get((bits, batch))
        yield at_least(STEP, f"{bits} bits over bf16, batch {batch}", ratio, goal, "×", note)
    yield Check(
        STEP,
        f"{bits} bits over bf16, prefill of {PREFILL}",
        speeds[0] / _prefill_seconds(model, setting),
        "×",
    )


def _compiled(setting: Setting, model: PreTrainedModel, speeds: Speeds) -> Check:
    step = one_token(model, 1, setting, torch.compile(model))
    step()
    step()
    return Check(STEP, "bf16 compiled over bf16, batch 1", speeds[1] / _seconds(step, setting), "×")


@torch.no_grad()
def one_token(
    model: PreTrainedModel, batch: int, setting: Setting, run: Callable[..., object] | None = None
) -> Callable[[], object]:
    """Return a step of decoding on a static cache, without anything that asks the device for a number.

    Args:
        run: the model as it is called, compiled for example; by default the model.
    """
    device, config = setting.device, model.config
    cache = StaticCache(config, max_cache_len=CONTEXT)
    tokens = torch.ones(batch, 8, dtype=torch.long, device=device)
    held = {cache_names(model)[0]: cache, "use_cache": True}
    model(input_ids=tokens, logits_to_keep=1, **held)
    mask = {"full_attention": torch.ones(batch, 1, 1, CONTEXT, dtype=torch.bool, device=device)}
    position, token = torch.full((batch, 1), 8, device=device), tokens[:, :1].contiguous()

    def step() -> object:
        with torch.no_grad():
            return (model if run is None else run)(
                input_ids=token,
                attention_mask=mask,
                position_ids=position,
                **held,
            )

    return step


def _seconds(step: Callable[[], object], setting: Setting) -> float:
    """Return the median seconds of a step, replayed as a graph on CUDA."""
    timed = graphed(step, setting.device)
    return median([timed() for _ in range(ROUNDS + 1)][1:])


@torch.no_grad()
def _prefill_seconds(model: PreTrainedModel, setting: Setting) -> float:
    length = 16 if setting.dry else PREFILL
    prompt = torch.ones(1, length, dtype=torch.long, device=setting.device)

    def prefill() -> object:
        with torch.no_grad():
            return model(input_ids=prompt, use_cache=False, logits_to_keep=1)

    timed = clocked(prefill, setting.device)
    return median([timed() for _ in range(ROUNDS + 1)][1:])
