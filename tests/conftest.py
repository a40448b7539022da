"""Shared pieces of the tests: the data folder, tiny models of every architecture, a golden file reader."""

import os
from copy import deepcopy

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Read when torch is imported. Threads of workers that share cores would spin, waiting for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3MoeConfig,
)

from sinq.kernels.cache import cache_dir
from tests import interpreter

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ["SINQ_DATA"]).parent if os.environ.get("SINQ_DATA") else ROOT.parent / "shared"
if (SHARED / "data").is_dir():
    os.environ.setdefault("SINQ_DATA", str(SHARED / "data"))
os.environ["NUMBA_CACHE_DIR"] = str(cache_dir())  # which tests that move SINQ_CACHE do not mean

needs_golden = pytest.mark.skipif(
    not (SHARED / "golden").is_dir(), reason=f"golden files are not at {SHARED / 'golden'}"
)
needs_data = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason=f"texts and models are not at {SHARED / 'data'}; set SINQ_DATA"
)


def pytest_configure(config: pytest.Config) -> None:
    if interpreter.needed():
        config.pluginmanager.register(interpreter.Interpreter())


SMALL = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BODY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL, **BODY, intermediate_size=128, tie_word_embeddings=False),
    "qwen3-tied": Qwen3Config(
        **SMALL, **BODY, intermediate_size=128, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True
    ),
    "qwen3-untied": Qwen3Config(
        **SMALL, **BODY, intermediate_size=128, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False
    ),
    "gpt2": GPT2Config(**SMALL, n_embd=64, n_layer=2, n_head=4, n_positions=64),
    "opt": OPTConfig(**SMALL, **BODY, ffn_dim=128, word_embed_proj_dim=32),
    "moe": Qwen3MoeConfig(
        **SMALL,
        **BODY,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
    ),
}


def tiny_model(architecture: str) -> PreTrainedModel:
    """A randomly initialised model, the same at every call."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(deepcopy(CONFIGS[architecture])).eval().requires_grad_(False)


def tiny_tokens(windows: int = 2, seqlen: int = 32) -> torch.Tensor:
    """Token ids (windows, seqlen), the same at every call."""
    return torch.randint(3, 96, (windows, seqlen), generator=torch.Generator().manual_seed(0))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {chr(32 + k): 3 + k for k in range(93)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<pad>")


@pytest.fixture(params=sorted(CONFIGS))
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def weight() -> torch.Tensor:
    """A matrix (96, 128) whose rows and columns differ in scale, as real ones do."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(96, 1, generator=generator).exp()
    columns = torch.randn(1, 128, generator=generator).exp()
    return 0.02 * torch.randn(96, 128, generator=generator) * rows * columns


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A Hugging Face folder with a tiny Llama."""
    folder = tmp_path / "tiny"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
