"""Perplexity of a model in memory is the one of its row, and leaves the model as it was."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import experiments
from experiments import perplexity
from experiments.data.file import TextFile
from experiments.evaluation import Perplexity
from experiments.models.source import Pretrained, load, sparing_clone
from experiments.runs.pipeline import Execution, execute
from experiments.runs.run import Run
from sinq import SINQ, Grid
from tests.conftest import ROOT, tiny_model, tiny_tokenizer

TEXT = "".join(chr(32 + (7 * k * k + k // 3) % 90) for k in range(2000))


@pytest.mark.parametrize("windows", [3, None])
def test_it_is_the_number_of_the_row(
    windows: int | None, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    method, source = SINQ(Grid(4, 32)), Pretrained(path=str(tiny_folder))
    evaluation = {"perplexity": Perplexity(windows=windows)}
    run = Run(source, TextFile(path=str(file)), method, evaluation, device="cpu")
    row = execute(run, Execution(tmp_path / "results"))
    found = row["metrics"]["perplexity"]
    loaded = load(source, torch.device("cpu"))
    assert perplexity(loaded.model, loaded.tokenizer, TEXT, windows) == found["dense"]
    model = sparing_clone(loaded.model)
    method.compress(model)
    assert perplexity(model, loaded.tokenizer, TEXT, windows) == found["value"]
    assert perplexity(model, loaded.tokenizer, TextFile(path=str(file)), windows) == found["value"]


def test_a_model_in_training_is_measured_as_it_is_used_and_left_in_training() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()  # it has dropout
    expected = perplexity(model, tokenizer, TEXT, windows=2)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert perplexity(model, tokenizer, TEXT, windows=2) == expected
    assert [module.training for module in model.modules()] == modes


def test_mistakes_are_one_line() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(ValueError, match="the text has 5 tokens, fewer than one window of seqlen=64"):
        perplexity(model, tokenizer, "short")
    with pytest.raises(ValueError, match="windows=0 is not possible"):
        perplexity(model, tokenizer, TEXT, windows=0)
    with pytest.raises(AttributeError, match="has no attribute 'perplexty'"):
        _ = experiments.perplexty


def test_importing_the_harness_is_light() -> None:
    code = "import sys, experiments; print({'torch', 'hydra', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
