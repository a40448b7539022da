"""Perplexity by llama.cpp, where it needs no library: the rounding of inputs, and refusals before work."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.rtn import RTN
from experiments.engines import library
from experiments.evaluation import LlamaCppPerplexity
from experiments.evaluation.llama_cpp import rounded_inputs, to_bytes
from sinq import Grid
from tests.conftest import tiny_model, tiny_tokens
from tests.experiments.tiny import subject


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.floats(-6, 2))
def test_inputs_are_multiples_of_a_half(seed: int, blocks: int, power: float) -> None:
    x = torch.randn(3, 32 * blocks, generator=torch.Generator().manual_seed(seed)) * 10**power
    x[0] = 0
    for row, found in zip(x.numpy().reshape(-1, 32), to_bytes(x).numpy().reshape(-1, 32), strict=True):
        step = np.float32(np.abs(row).max()) / np.float32(127)
        codes = np.rint(row / step) if step > 0 else np.zeros(32)
        np.testing.assert_array_equal(found, (codes * np.float32(np.float16(step))).astype(np.float32))


def test_inputs_are_rounded_for_a_while() -> None:
    model, ids = tiny_model("llama"), tiny_tokens(1)
    RTN(Grid(bits=4, group_size=32)).compress(model)
    before = model(ids).logits
    with rounded_inputs(model):
        assert not torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)


def test_a_missing_library_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ValueError("llama.cpp is not here")

    monkeypatch.setattr(library, "folder", missing)
    with pytest.raises(ValueError, match=r"llama\.cpp is not here"):
        LlamaCppPerplexity().check(subject())


def test_a_model_that_is_none_of_llama_cpps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "folder", lambda: None)
    LlamaCppPerplexity(windows=1, seqlen=32).check(subject("llama"))
    with pytest.raises(ValueError, match="opt is not written here"):
        LlamaCppPerplexity(windows=1, seqlen=32).check(subject("opt"))


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"evaluation\.llama_cpp\.seqlen=1 is not possible"):
        LlamaCppPerplexity(seqlen=1)
