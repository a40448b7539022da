"""llama.cpp, against our own models: graphs, blocks, tokenizers; and its failures."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel, Qwen2Config

from baselines.rtn import RTN
from experiments.common.paths import data_dir
from experiments.engines import library
from experiments.engines.llama_cpp import EngineError, LlamaCpp
from experiments.evaluation import LlamaCppPerplexity
from experiments.evaluation.llama_cpp import rounded_inputs
from experiments.evaluation.text_pass import token_nll
from experiments.models.embedded import SMOLLM2
from sinq import Context, Grid, Layers, OnMisfit, PreSINQ, export
from sinq.export.gguf import FILE, Gguf
from sinq.export.source import Source
from tests.experiments.tiny import subject
from tests.sinq.export.gguf.subjects import CONFIGS, LLAMA3, SMALL, model_of

pytestmark = [
    pytest.mark.readers,
    pytest.mark.skipif(library.missing() is not None, reason=str(library.missing())),
]
IDS = torch.arange(3, 63)
TEXTS = (
    "Once upon a time, in 1969, there was a little girl.",
    "  It's 12,345.67 € — don't\n\n\tpanic!  naïve 日本語 🙂\r\n",
    "def f(x):\n    return x**2  # squared\n",
)


@contextmanager
def engine(model: PreTrainedModel, folder: Path, tokenizer: Any = None, **options: Any) -> Iterator[LlamaCpp]:
    """A model, exported or written dense, in llama.cpp."""
    folder.mkdir()
    if options:
        export(model, folder / "out", tokenizer=tokenizer, **options)
    else:
        (folder / "out").mkdir()
        Gguf().write(Source(model, torch.float32, tokenizer=tokenizer), folder / "out")
    with LlamaCpp(folder / "out" / FILE, threads=1, context=128, exact=True) as running:
        yield running


def relative(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the error over that of the logits."""
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


GRAPHS = CONFIGS | {
    "llama3": LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "biased": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "qwen2-tied": Qwen2Config(**SMALL, tie_word_embeddings=True),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs_compute_our_logits(kind: str, tmp_path: Path) -> None:
    model = model_of(GRAPHS[kind], gain=4)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.copy_(torch.randn_like(parameter))
    with engine(model, tmp_path / "dense") as running:
        assert running.vocabulary == 64
        assert relative(running.logits(IDS), model(IDS[None]).logits[0]) < 1e-5


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (6, False), (8, True)])
def test_blocks_without_an_offset_compute_our_logits(bits: int, symmetric: bool, tmp_path: Path) -> None:
    """With our inputs rounded as llama.cpp rounds them, only the order of sums differs."""
    model = model_of(CONFIGS["llama"], gain=4)
    RTN(Grid(bits=bits, group_size=32, symmetric=symmetric)).compress(model)
    with engine(model, tmp_path / "out", format="gguf", dtype=torch.float32) as running:
        found = running.logits(IDS)
    assert relative(found, model(IDS[None]).logits[0]) > 1e-3
    with rounded_inputs(model):
        assert relative(found, model(IDS[None]).logits[0]) < 1e-5


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_blocks_with_an_offset_are_as_far_as_rounded_inputs(bits: int, tmp_path: Path) -> None:
    """Offsets are halves there, which turn some roundings: the error is that of another draw of them."""
    model = model_of(CONFIGS["qwen3"], gain=4)
    RTN(Grid(bits=bits, group_size=32)).compress(model)
    plain = model(IDS[None]).logits[0]
    with rounded_inputs(model):
        rounding = relative(model(IDS[None]).logits[0], plain)
    with engine(model, tmp_path / "out", format=Gguf(low_bits=True), dtype=torch.float32) as running:
        assert relative(running.logits(IDS), plain) < 1.5 * rounding < 0.05


def test_super_blocks(tmp_path: Path) -> None:
    config = LlamaConfig(**SMALL | {"hidden_size": 256, "intermediate_size": 512})
    model = model_of(config, gain=4)
    RTN(Grid(bits=4, group_size=64)).compress(model)
    expected = model(IDS[None]).logits[0]
    with engine(model, tmp_path / "k", format="gguf_q4_k", dtype=torch.float32) as running:
        assert relative(running.logits(IDS), expected) < 0.3
    with engine(model, tmp_path / "one", format="gguf", dtype=torch.float32) as running:
        assert relative(running.logits(IDS), expected) < 0.1


def embedded() -> Path:
    if not SMOLLM2.is_cached:
        pytest.skip("the embedded model is not in the cache")
    return SMOLLM2.folder()


def stories() -> Path:
    folder = data_dir()
    if folder is None:
        pytest.skip("stories260k is not here; set SINQ_DATA")
    return folder / "models" / "stories260k"


@pytest.mark.parametrize("find", [embedded, stories])
def test_a_real_model_tokenizes_writes_and_measures_alike(find: Any, tmp_path: Path) -> None:
    folder = find()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    skip = Context(Layers(on_misfit=OnMisfit.skip))
    PreSINQ(inner=RTN(Grid(bits=5, group_size=32))).compress(model, context=skip)
    ids = torch.tensor(tokenizer(TEXTS[0])["input_ids"])
    with engine(model, tmp_path / "out", tokenizer, format="gguf", dtype=torch.float16) as running:
        assert [running.tokens(text) for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
        assert running.chat_template == tokenizer.chat_template
        written = running.greedy(ids, 12)
        text = torch.tensor(tokenizer(" ".join(TEXTS))["input_ids"])
        nll = running.nll(text)
    ours = model.generate(ids[None], max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert written == ours.tolist()
    assert nll == pytest.approx(float(token_nll(model, text[None]).mean()), abs=0.05)


def test_long_texts_are_read_in_several_calls(tmp_path: Path) -> None:
    config = LlamaConfig(**SMALL | {"max_position_embeddings": 1024})
    model, ids = (
        model_of(config, gain=4),
        torch.randint(3, 60, (700,), generator=torch.Generator().manual_seed(0)),
    )
    Gguf().write(Source(model, torch.float32), tmp_path)
    with LlamaCpp(tmp_path / FILE, threads=1, context=700) as running:
        assert running.nll(ids) == pytest.approx(
            float(token_nll(model, ids[None], chunked=False).mean()), abs=2e-3
        )
        assert running.logits(ids).shape == (700, 64)
        prefill, decode = running.phase_seconds(ids[:600], 2)
    assert prefill > 0
    assert decode > 0


def test_the_evaluation_has_both_numbers() -> None:
    context = subject(compressed=None)
    dense = LlamaCppPerplexity(windows=2, seqlen=32).measure(context)
    assert dense.metrics["difference"] == pytest.approx(0, abs=1e-3)
    assert dense.metrics["nll"] == pytest.approx(dense.metrics["our_nll"], abs=1e-3)
    assert [len(values) for values in dense.samples.values()] == [2, 2, 2]


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file.gguf").write_text("text")
    with (
        pytest.raises(EngineError, match=r"cannot read .*file\.gguf.*magic"),
        LlamaCpp(tmp_path / "file.gguf", 1, 8),
    ):
        pass


def test_a_crash_is_one_line(tmp_path: Path) -> None:
    Gguf().write(Source(model_of(CONFIGS["llama"], gain=4), torch.float32), tmp_path)
    with LlamaCpp(tmp_path / FILE, 1, 8) as running:
        os.kill(running.process.pid, signal.SIGSEGV)
        with pytest.raises(EngineError, match=r"llama\.cpp's process ended with -11: [^\n]*$"):
            running.nll(IDS[:4])
