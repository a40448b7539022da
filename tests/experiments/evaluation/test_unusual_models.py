"""Evaluations of models with other bodies, caches and names than Llama has."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.evaluation import EvaluationContext, Latency, Memory, Perplexity
from experiments.evaluation.generation import decode, prefill
from experiments.evaluation.logits import head_is_plain
from experiments.evaluation.text_pass import token_nll
from experiments.models import LoadedModel
from sinq import CompressionReport
from sinq.common.progress import silent
from tests.conftest import tiny_tokenizer
from tests.sinq.architectures.tiny import CONTEXT, tiny, tokens

CPU = torch.device("cpu")
CACHES = ["llama", "mamba", "rwkv", "recurrent_gemma", "openai-gpt", "bloom"]


def written(model: PreTrainedModel, prompt: Tensor, count: int) -> Tensor:
    """The most probable tokens after a prompt, each from a pass over the whole sequence."""
    for _ in range(count):
        chosen = model(prompt, use_cache=False).logits[:, -1:].argmax(-1)
        prompt = torch.cat([prompt, chosen], 1)
    return prompt


@torch.no_grad()
@pytest.mark.parametrize("name", CACHES)
def test_decoding_writes_what_the_whole_sequence_gives(name: str) -> None:
    model, prompt = tiny(name), tokens(1, 16)
    step = decode(model, prefill(model, prompt), 5)
    assert torch.equal(step.tokens, written(tiny(name), prompt, 5))


@pytest.mark.parametrize("name", ["llama4_text", "falcon", "mpt", "gemma2", "gpt_neo"])
def test_a_window_read_in_chunks_is_the_window_read_whole(name: str) -> None:
    model, window = tiny(name), tokens(1, 32)
    if head_is_plain(model, window):
        assert token_nll(model, window) == pytest.approx(token_nll(model, window, chunked=False), rel=1e-5)
    else:
        assert name == "gemma2"  # which caps its logits


@pytest.mark.parametrize("name", ["llama", "gpt2", "mpt", "rwkv", "whisper", "bailing_hybrid", "gemma3"])
def test_the_context_is_known_under_any_name(name: str) -> None:
    assert LoadedModel(tiny(name), tiny_tokenizer(), torch.float32).context == CONTEXT


class BrokenError(RuntimeError): ...


@pytest.mark.parametrize("evaluation", [Latency(16, 2), Memory(16), Perplexity(1, 16)])
def test_what_cannot_be_called_is_found_before_work(
    evaluation: Latency | Memory | Perplexity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))
    model = tiny("llama")
    loaded = LoadedModel(model, tiny_tokenizer(), torch.float32)
    context = EvaluationContext(model, loaded, tokens(1, 64)[0], CompressionReport(), CPU, silent)
    evaluation.check(context)

    def forward(*_: object, **__: object) -> None:
        raise BrokenError("no such path")

    model.forward = forward
    with pytest.raises(
        ValueError, match=rf"evaluation\.{evaluation.name} cannot be made of LlamaForCausalLM: BrokenError"
    ):
        evaluation.check(context)
