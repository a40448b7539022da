"""Uniformly sliced models as ordinary checkpoints, loaded by transformers alone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from baselines.dense import Dense
from baselines.stat import STAT
from baselines.stat.budget import Allocation
from sinq import SINQ, Calibration, Grid, NotApplicable
from sinq.checkpoint.plain import save_plain
from sinq.model.language_model import auto_class
from sinq.model.slicing import kept_groups, slice_block
from sinq.model.units import find_units
from tests.conftest import tiny_tokens
from tests.sinq.sliceable import ENCODERS, random_model

GROUPED = ("llama", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize("name", [*GROUPED, "opt", "opt-post-norm", "gpt2", *ENCODERS])
def test_transformers_loads_what_was_sliced_uniformly(name: str, tmp_path: Path) -> None:
    model = random_model(name)
    for units in find_units(model):
        groups = [1] if name in GROUPED else range(4)
        slice_block(model, units, kept_groups(units, groups, range(3, 60)))
    save_plain(model, tmp_path)
    again = auto_class(model.config).from_pretrained(tmp_path)
    assert type(again) is type(model)
    tokens = tiny_tokens()
    with torch.no_grad():
        assert torch.allclose(again(tokens).logits, model(tokens).logits, atol=1e-5)
    assert again.num_parameters() == model.num_parameters()


def test_uniform_stat_is_a_plain_checkpoint_and_the_default_is_not(tmp_path: Path) -> None:
    text = Calibration(tiny_tokens(16))
    model = random_model("qwen2")
    STAT(Dense(), target=0.7, allocation=Allocation.uniform).compress(model, text)
    save_plain(model, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [each.counts for each in find_units(again)] == [each.counts for each in find_units(model)]
    other = random_model("qwen2")
    slice_block(other, find_units(other)[0], kept_groups(find_units(other)[0], [0], range(9)))
    with pytest.raises(NotApplicable, match=r"layers\.0 and model\.layers\.1 have different sizes"):
        save_plain(other, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_a_configuration_cannot_say_is_refused(tmp_path: Path) -> None:
    model = random_model("gpt2")
    for units in find_units(model):
        slice_block(model, units, kept_groups(units, [0, 1], range(60)))
    with pytest.raises(NotApplicable, match=r"gpt2 divides its hidden size by the number of heads.* has 2"):
        save_plain(model, tmp_path)
    model = random_model("llama")
    SINQ(Grid(bits=4, group_size=16)).compress(model)
    with pytest.raises(NotApplicable, match="the model has an edit replace_linear"):
        save_plain(model, tmp_path)
