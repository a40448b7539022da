"""Compiled latencies: the same tokens as eager decoding; and where the time of a step goes."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from experiments.evaluation import EvaluationContext, Latency
from experiments.evaluation.compiled import CompiledModel
from experiments.evaluation.generation import decode, prefill
from experiments.evaluation.time_split import time_split
from sinq import SINQ, Grid
from tests.experiments.tiny import subject

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are made as ever, and then run by torch itself: no C++ is compiled."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def compressed(architecture: str = "llama") -> EvaluationContext:
    dense = subject(architecture)
    model: Any = subject(architecture).model
    return replace(dense, model=model, report=SINQ(Grid(group_size=32)).compress(model))


@torch.inference_mode()
def tokens_of(compiled: CompiledModel, count: int) -> list[int]:
    """The tokens that a compiled model writes after its prompt."""
    compiled._cache.reset()
    token = compiled._step(compiled._prompt, 0)
    found = [token.item()]
    for position in range(count - 1):
        token = compiled._step(token, compiled._prompt.shape[1] + position)
        found.append(token.item())
    return found


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_the_compiled_model_writes_the_same_tokens(architecture: str) -> None:
    given = compressed(architecture)
    prompt = given.tokens[None, :8]
    for model in (given.loaded.model, given.model):
        eager = decode(model, prefill(model, prompt), 6).tokens[0, 8:].tolist()
        assert tokens_of(CompiledModel(model, prompt, 6, CPU), 6) == eager


@pytest.mark.slow
def test_the_real_compiler_writes_the_same_tokens() -> None:
    torch.compiler.reset()
    given = compressed()
    prompt = given.tokens[None, :8]
    eager = decode(given.model, prefill(given.model, prompt), 6).tokens[0, 8:].tolist()
    assert tokens_of(CompiledModel(given.model, prompt, 6, CPU), 6) == eager


@pytest.mark.usefixtures("quick")
def test_a_row_has_eager_and_compiled_speeds_in_rounds() -> None:
    measured = Latency(8, 3, rounds=2, compiled=True).measure(compressed())
    for speeds in (measured.metrics, measured.metrics["compiled"]):
        for phase in ("prefill", "decode"):
            assert speeds[phase]["ratio"] == pytest.approx(
                speeds[phase]["tokens_per_second"] / speeds[phase]["dense_tokens_per_second"]
            )
    assert measured.metrics["compiled"]["compile_seconds"].keys() == {"dense", "compressed"}
    rounds = measured.samples["compiled_seconds"]["decode"]
    assert {name: len(each) for name, each in rounds.items()} == {"dense": 2, "compressed": 2}
    assert "compiled" not in Latency(8, 3, rounds=1).measure(compressed()).metrics


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_one_graph_is_named() -> None:
    given = compressed()
    given.model.model.layers[0].register_forward_hook(lambda *call: print(end=""))
    with pytest.raises(ValueError, match=r"latency.compiled=true cannot be had of Llama.*compiled=false"):
        CompiledModel(given.model, given.tokens[None, :8], 2, CPU)


def slowed(module: nn.Module, seconds: float) -> None:
    """Let a module take so long more."""
    forward = module.forward

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return forward(*args, **options)

    module.forward = slow  # type: ignore[method-assign]


@pytest.mark.parametrize("part", ["linear", "attention", "head", "rest"])
def test_the_slow_part_is_found(part: str) -> None:
    model: Any = subject().model
    model(torch.arange(4)[None], use_cache=False)  # first calls are slow anywhere
    block = model.model.layers[0]
    slowed(
        {
            "linear": block.self_attn.q_proj,
            "attention": block.self_attn,
            "head": model.lm_head,
            "rest": block.input_layernorm,
        }[part],
        0.3,
    )
    hooks = len(block.self_attn._forward_hooks)
    shares = time_split(model, lambda: model(torch.arange(4)[None], use_cache=False))
    assert shares.keys() == {"linear", "attention", "head", "rest"}
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda each: shares[each]) == part
    assert len(block.self_attn._forward_hooks) == hooks


def test_a_row_says_where_decoding_spends_its_time() -> None:
    split = Latency(8, 2, rounds=1).measure(compressed()).metrics["decode_split"]
    assert split.keys() == {"dense", "compressed"}
    for shares in split.values():
        assert shares.keys() == {"linear", "attention", "head", "rest"}
        assert sum(shares.values()) == pytest.approx(1)
        assert all(0 < share < 1 for share in shares.values())
