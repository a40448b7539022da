"""Smaller blocks compute what the same block with zeroed units computes, and come back from disk."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sinq
from sinq import SINQ, Grid, NotApplicable
from sinq.model.conv1d import is_conv1d
from sinq.model.edits import edit, edits, unexplained
from sinq.model.slicing import Kept, SliceBlock, kept_groups, slice_block, spread
from sinq.model.units import Counts, Units, find_units, shape_of
from tests.conftest import tiny_model, tiny_tokens
from tests.sinq.sliceable import ENCODERS, SLICEABLE, random_model


def silence(units: Units, kept: Kept) -> None:
    """Zero the columns of o and down that belong to what is not kept: those units then say nothing."""
    columns = {
        units.names.output: spread(kept.heads, units.head_width),
        units.names.down: kept.neurons,
    }
    for name, index in columns.items():
        layer = units.layer(name)
        weight = layer.weight.T if is_conv1d(layer) else layer.weight
        gone = torch.ones(weight.shape[1], dtype=torch.bool)
        gone[index] = False
        weight[:, gone] = 0


def some(units: Units, seed: int) -> Kept:
    """A random choice, of another size for each seed; query heads of a group in any order."""
    generator = torch.Generator().manual_seed(seed)
    counts = units.counts
    groups = torch.randperm(counts.kv_heads, generator=generator)[: 1 + seed % counts.kv_heads]
    neurons = torch.randperm(counts.neurons, generator=generator)[: 40 + 8 * seed]
    return kept_groups(units, groups, neurons)


@pytest.mark.parametrize("name", sorted(SLICEABLE))
def test_a_sliced_model_is_the_model_whose_other_units_are_silent(name: str) -> None:
    model, silent = random_model(name), random_model(name)
    for seed, (units, other) in enumerate(zip(find_units(model), find_units(silent), strict=True)):
        kept = some(units, seed)
        silence(other, kept)
        slice_block(model, units, kept)
        assert units.counts == kept.counts
    tokens = tiny_tokens()
    assert torch.allclose(model(tokens).logits, silent(tokens).logits, atol=2e-5)
    before = sum(parameter.numel() for parameter in silent.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) < before


@pytest.mark.parametrize("name", sorted(SLICEABLE))
def test_it_comes_back_from_disk_and_is_compressed(name: str, tmp_path: Path) -> None:
    model = random_model(name)
    for seed, units in enumerate(find_units(model)):
        slice_block(model, units, some(units, seed))
    assert unexplained(model) == []
    SINQ(Grid(bits=8, group_size=8)).compress(model)
    sinq.save(model, tmp_path)
    again = sinq.load(tmp_path)
    prompt = tiny_tokens(1, 8)
    assert torch.allclose(again(prompt).logits, model(prompt).logits, atol=1e-5)
    assert type(again) is type(model)
    if name not in ENCODERS:
        generates_with_its_cache(name, again, prompt)


def generates_with_its_cache(name: str, again: Any, prompt: Tensor) -> None:
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with_cache = again.generate(prompt, use_cache=True, **options)
    assert torch.equal(with_cache, again.generate(prompt, use_cache=False, **options))
    shapes = [layer.keys.shape[1] for layer in again(prompt, use_cache=True).past_key_values.layers]
    assert shapes == [
        seed % units.counts.kv_heads + 1 for seed, units in enumerate(find_units(random_model(name)))
    ]


def test_query_heads_may_leave_their_groups_one_by_one() -> None:
    model, silent = random_model("llama"), random_model("llama")
    kept = Kept(torch.tensor([1, 2]), torch.tensor([0, 1]), torch.arange(128))
    silence(find_units(silent)[0], kept)
    slice_block(model, find_units(model)[0], kept)
    assert model.model.layers[0].self_attn.num_key_value_groups == 1
    assert torch.allclose(model(tiny_tokens()).logits, silent(tiny_tokens()).logits, atol=2e-5)


def test_a_choice_of_everything_changes_no_bit_and_no_parameter_of_the_dense_model() -> None:
    dense = tiny_model("qwen3-untied")
    model = copy.deepcopy(dense, {id(p): p for p in dense.parameters()})
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    units = find_units(model)[1]
    slice_block(model, units, kept_groups(units, range(2), range(128)))
    slice_block(model, find_units(model)[0], kept_groups(units, [1, 0], range(127, -1, -1)))
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, dense.model.layers[1].mlp.up_proj.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def test_kept_rows_keep_type_and_need_of_a_gradient() -> None:
    model = tiny_model("llama").bfloat16().requires_grad_(True)
    slice_block(model, find_units(model)[0], kept_groups(find_units(model)[0], [3, 1], [5]))
    down = model.model.layers[0].mlp.down_proj
    assert (down.weight.dtype, down.weight.requires_grad, down.in_features) == (torch.bfloat16, True, 1)
    assert model.model.layers[0].self_attn.q_proj.out_features == 32


def index(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (Kept(index(), index(), index(0)), "can keep 1 to 4 of its heads, not 0"),
        (Kept(index(0, 1), index(0), index()), "can keep 1 to 128 of its neurons, not 0"),
        (Kept(index(0, 1), index(0), index(1, 1)), "kept neurons must be different indices"),
        (Kept(index(0, 1), index(0), index(128)), "kept neurons must be indices below 128"),
        (Kept(index(0, 1), index(0), torch.ones(3)), "kept neurons must be different indices"),
        (Kept(index(0, 2), index(0), index(1)), "not those of the kept kv heads"),
        (Kept(index(0, 1, 2), index(0, 1), index(1)), "cannot have 3 query heads on 2 kv heads"),
    ],
)
def test_a_choice_that_is_none_is_refused_before_anything_changes(kept: Kept, message: str) -> None:
    model = random_model("llama")
    with pytest.raises(ValueError, match=message):
        slice_block(model, find_units(model)[0], kept)
    assert edits(model) == ()
    assert find_units(model)[0].counts == Counts(4, 2, 128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (SliceBlock("model.layers.7", 2, 1, 9), "has no block model.layers.7"),
        (SliceBlock("model.layers.0", 2, 1, 129), "1 to 128 of its neurons, not 129"),
        (SliceBlock("model.layers.0", 2, True, 12), "must be of type int"),
        (SliceBlock("model.layers.0", 2, 0, 12), "1 to 2 of its kv_heads, not 0"),
        (SliceBlock("model.layers.0", 3, 2, 12), "3 query heads on 2 kv heads"),
        (SliceBlock("model.norm", 3, 2, 12), "heads and neurons are not known"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(change: SliceBlock, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edit(random_model("llama"), change)


def test_models_of_unknown_units_and_compressed_layers_are_refused_by_name() -> None:
    with pytest.raises(NotApplicable, match=r"model.layers.0 is a Qwen3MoeDecoderLayer, whose heads"):
        find_units(tiny_model("moe"))
    model = tiny_model("llama")
    SINQ(Grid(bits=4, group_size=32)).compress(model)
    with pytest.raises(ValueError, match=r"q_proj is a CompressedLinear; only linear layers"):
        find_units(model)


def test_opt_and_gpt2_have_a_kv_head_for_each_query_head() -> None:
    for name in ("opt", "gpt2"):
        model = random_model(name)
        with pytest.raises(ValueError, match="each needs the same number, one"):
            slice_block(model, find_units(model)[0], Kept(index(0, 1), index(0), index(1)))


def test_shapes_of_both_layouts() -> None:
    assert shape_of(nn.Linear(3, 5)) == (5, 3)
    assert shape_of(random_model("gpt2").transformer.h[0].mlp.c_fc) == (256, 64)
