"""The suite `engines`: a whole model in llama.cpp, beside ours and dense transformers; prefill and decode.

llama.cpp reads files that are exported here: codes of RTN, rounded with our number of bits and groups, in
Q4_1 (2 to 4 bits), Q5_1 or Q8_0, and tensors that stay dense in bf16, as ours are. It is a contender in the
same rounds, on as many threads, in a process of its own that times itself. Batch 1, greedy; ours and
transformers run eagerly. So the two do the same work, but for SINQ's column scales, llama.cpp's inputs of 8
bits, and the bytes per weight, from which each has its floor. Ours is there once more with a head of 8 bits
(`method=head8`), rounded to nearest; the others have theirs in bf16.

Where the library is not there, or the model is none that llama.cpp knows, it is listed with the reason.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from baselines.rtn import RTN
from experiments.bench.case import Case
from experiments.bench.models import Named
from experiments.bench.suites import decode
from experiments.bench.timing import Implementation, PeerError, Skipped
from experiments.engines import library
from experiments.engines.llama_cpp import EngineError, LlamaCpp
from experiments.models.source import sparing_clone
from sinq import SINQ, CompressedHead, Context, Grid, Layers, NotApplicable, OnMisfit, export
from sinq.export.gguf import FILE, Gguf

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFILL_TOKENS, PROMPT_TOKENS, DECODE_TOKENS = 128, 8, 16
HEAD_BITS = 8
ENGINE = "llama.cpp"
Work = tuple[LlamaCpp, int]
"""A file in llama.cpp, and its bytes."""


def cases(
    model: Named, bits: tuple[int, ...], group_size: int, threads: int, device: torch.device
) -> Iterator[Case]:
    """Yield prefill and decode of a model, at every number of bits; llama.cpp runs until the last."""
    half: PreTrainedModel = decode.halved(model.dense)
    variants = {decode.BASELINE: model.dense, "dense bf16": half}
    for count in bits:
        method = SINQ(Grid(bits=count, group_size=group_size))
        head = RTN(Grid(bits=HEAD_BITS, group_size=group_size))
        variants[_ours(count)] = decode.compressed(half, method)
        variants[_ours_with_head(count)] = decode.compressed(half, CompressedHead(method, head))
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.dense.config.vocab_size, (PREFILL_TOKENS,), generator=generator)
    with ExitStack() as stack:
        grids = {count: Grid(count, group_size, symmetric=count == 8) for count in bits}  # Q8_0 is
        running, absent = _engines(stack, half, grids, threads, device)
        for phase, tokens in (("prefill", PREFILL_TOKENS), ("decode", DECODE_TOKENS)):
            contenders = [
                *_models(phase, variants, prompt, device, running),
                *(_engine(phase, count, work, prompt) for count, work in running.items()),
            ]
            name = f"{phase} of {tokens} tokens, {model.name}"
            yield Case("engines", name, contenders, decode.BASELINE, absent, tokens)


def _ours(bits: int) -> str:
    return f"SINQ {bits} bits"


def _ours_with_head(bits: int) -> str:
    return f"{_ours(bits)}, head {HEAD_BITS}"


def _title(bits: int) -> str:
    return f"{ENGINE} {bits} bits"


def _models(
    phase: str,
    variants: dict[str, "PreTrainedModel"],
    prompt: Tensor,
    device: torch.device,
    running: dict[int, Work],
) -> list[Implementation]:
    """Return dense and compressed models; ours is compared with llama.cpp at the same bits."""
    peers = {name(count): _title(count) for count in running for name in (_ours, _ours_with_head)}
    ids = prompt[None].to(device)
    if phase == "prefill":
        return [
            decode.prefill_of(name, each, ids, device, peers.get(name)) for name, each in variants.items()
        ]
    return [
        decode.decode_of(name, each, ids[:, :PROMPT_TOKENS], DECODE_TOKENS, device, peers.get(name))
        for name, each in variants.items()
    ]


def _engine(phase: str, bits: int, work: Work, prompt: Tensor) -> Implementation:
    """Return a file in llama.cpp as a contender."""
    engine, nbytes = work
    part, count, number = (prompt, 0, 0) if phase == "prefill" else (prompt[:PROMPT_TOKENS], DECODE_TOKENS, 1)
    seconds = partial(_seconds, engine, part, count, number)
    kernel = f"release {engine.version}"
    return Implementation(_title(bits), seconds, max(1, count) * nbytes, kernel, is_peer=True)


def _seconds(engine: LlamaCpp, prompt: Tensor, count: int, phase: int) -> float:
    try:
        return engine.phase_seconds(prompt, count)[phase]
    except EngineError as error:
        raise PeerError(str(error)) from error


def _engines(
    stack: ExitStack, dense: "PreTrainedModel", grids: dict[int, Grid], threads: int, device: torch.device
) -> tuple[dict[int, Work], list[Skipped]]:
    """Return llama.cpp at every number of bits where it runs, and the reasons where it does not."""
    reason = library.missing() if device.type == "cpu" else f"it runs on a CPU here, not on {device.type}"
    if reason is not None:
        return {}, [Skipped(ENGINE, reason)]
    running, absent = {}, []
    for bits, grid in grids.items():
        try:
            running[bits] = _started(stack, dense, grid, threads)
        except (NotApplicable, EngineError) as error:
            absent.append(Skipped(_title(bits), str(error)))
    return running, absent


def _started(stack: ExitStack, dense: "PreTrainedModel", grid: Grid, threads: int) -> Work:
    model = sparing_clone(dense)
    RTN(grid).compress(model, context=Context(Layers(on_misfit=OnMisfit.skip)))
    with tempfile.TemporaryDirectory() as scratch:  # the file stays mapped while llama.cpp runs
        export(model, Path(scratch, "out"), Gguf(low_bits=True))  # type: ignore[arg-type]
        file = Path(scratch, "out", FILE)
        engine = stack.enter_context(LlamaCpp(file, threads, PREFILL_TOKENS + DECODE_TOKENS))
        return engine, file.stat().st_size
