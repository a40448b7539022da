"""Names against the package `gguf`, orders of rows and frequencies against their definitions."""

import math
import re
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from sinq import NotApplicable
from sinq.export.gguf.architecture import Architecture
from sinq.export.source import Source
from tests.sinq.export.gguf.subjects import CONFIGS, EXPERTS, LLAMA3, SMALL


@pytest.mark.parametrize("kind", CONFIGS)
def test_names_are_those_of_the_package(kind: str) -> None:
    architecture = Architecture.of(CONFIGS[kind])
    number = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture.graph)
    assert isinstance(number, MODEL_ARCH)
    known = get_tensor_name_map(number, 2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[kind])
    layers = {name.rpartition(".")[0] for name in Source(model, torch.float32).tensors}
    for layer in layers:
        merged = re.sub(r"experts\.\d+", "experts", layer)  # one tensor there
        assert architecture.name(layer) == known.get_name(merged), layer
    with pytest.raises(NotApplicable, match=r"model\.layers\.0\.conv has no place"):
        architecture.name("model.layers.0.conv")


def test_rows_of_q_and_k_of_llama_only() -> None:
    """Channel c of the first half of a head goes to 2c, that of the second half to 2c + 1."""
    rows = torch.arange(64)[:, None]
    found = Architecture.of(CONFIGS["llama"]).order("model.layers.1.self_attn.q_proj")(rows).flatten()
    for head in range(4):
        for c in range(8):
            assert found[16 * head + 2 * c] == 16 * head + c
            assert found[16 * head + 2 * c + 1] == 16 * head + 8 + c
    for kind, layer in [("llama", "v_proj"), ("llama", "o_proj"), ("qwen2", "q_proj"), ("qwen3", "k_proj")]:
        assert torch.equal(
            Architecture.of(CONFIGS[kind]).order(f"model.layers.1.self_attn.{layer}")(rows), rows
        )


def test_frequencies_of_llama_3() -> None:
    """The divisor is 1 for short waves, `factor` for long ones, between them for those between."""
    found = Architecture.of(LlamaConfig(**SMALL, rope_parameters=LLAMA3)).rope_factors()
    assert found is not None
    for i, divisor in enumerate(found.tolist()):
        wave = 2 * math.pi * 500000 ** (2 * i / 16)
        smooth = (64 / wave - 1) / (4 - 1)
        expected = 1.0 if wave < 64 / 4 else 8.0 if wave > 64 / 1 else 1 / ((1 - smooth) / 8 + smooth)
        assert divisor == pytest.approx(expected, rel=1e-5)
    assert len(set(found.tolist())) > 2
    assert Architecture.of(CONFIGS["llama"]).rope_factors() is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LlamaConfig(**SMALL, hidden_act="gelu"), "hidden_act=gelu"),
        (MistralConfig(**SMALL, sliding_window=32), "sliding_window=32"),
        (Qwen3MoeConfig(**SMALL, **EXPERTS, norm_topk_prob=False), "norm_topk_prob=False"),
        (
            Qwen3MoeConfig(**SMALL, **EXPERTS, norm_topk_prob=True, decoder_sparse_step=2),
            "experts in some layers only",
        ),
        (Qwen3Config(**SMALL, rope_parameters=LLAMA3), "rope_type=llama3"),
        (Qwen3Config(**SMALL, attention_bias=True), "attention_bias=True"),
        (
            LlamaConfig(**SMALL, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
            "rope_type=yarn",
        ),
    ],
)
def test_graphs_that_llama_cpp_does_not_compute(config: Any, reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        Architecture.of(config)


def test_kinds_that_are_not_written() -> None:
    from transformers import GPT2Config

    with pytest.raises(NotApplicable, match="gpt2 is not written here; llama, mistral"):
        Architecture.of(GPT2Config())
