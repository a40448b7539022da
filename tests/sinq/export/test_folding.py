"""Column scales folded into the layers before: the same function, with the same codes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.rtn import RTN
from sinq import SINQ, Context, Grid, Layers, PreSINQ
from sinq.export.source import Source
from sinq.formats.scalar import QuantizedTensor
from sinq.model.edits import weight_stores
from tests.sinq.decoders import DECODERS, random_decoder
from tests.sinq.export.exported import logits


def source_of(model: Any) -> Source:
    source = Source(model, torch.float32)
    return replace(source, folds=source.find_folds())


def rebuilt(source: Source, name: str) -> Any:
    """A dense model of the exported views and tensors, loaded by names of the model's state dict."""
    dense = random_decoder(name)
    state = {key: source.tensor(key) for key in source.tensors if key in dense.state_dict()}
    state |= {f"{key}.weight": source.view(key).dense() for key in source.matrices if ".experts." not in key}
    missing, unexpected = dense.load_state_dict(state, strict=False)
    assert not unexpected
    for key in missing:
        if ".experts." in key:
            dense.get_parameter(key).copy_(fused(source, key))
    return dense


def fused(source: Source, key: str) -> Tensor:
    owner, _, parameter = key.rpartition(".")
    parts = ("gate_proj", "up_proj") if parameter == "gate_up_proj" else (parameter,)
    experts = [[source.view(f"{owner}.{k}.{part}").dense() for part in parts] for k in range(4)]
    return torch.stack([torch.cat(each) for each in experts])


def with_shared_columns(model: Any) -> None:
    """Give matrices that read one tensor the first one's column scales, and o those of one query head."""
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        groups = [[attention.q_proj, attention.k_proj, attention.v_proj]]
        if hasattr(mlp, "up_proj"):
            groups.append([mlp.gate_proj, mlp.up_proj])
        for group in groups:
            first = group[0].weight.value.tensors["col_scale"]
            for layer in group[1:]:
                store = layer.weight
                store.hold(replace(store.value, tensors={**store.value.tensors, "col_scale": first.clone()}))
        store, width = attention.o_proj.weight, attention.head_dim
        shared = store.value.tensors["col_scale"][:, :width].repeat(1, store.shape[1] // width)
        store.hold(replace(store.value, tensors={**store.value.tensors, "col_scale": shared}))


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_shared_columns_all_fold_to_the_same_function(name: str) -> None:
    model = random_decoder(name)
    SINQ(Grid(4, 16, auxiliary_bits=32)).compress(model)
    codes = [store.value.tensors["codes"] for store in weight_stores(model)]
    with_shared_columns(model)
    source = source_of(model)
    if "moe" not in name:
        assert source.folds.folded == set(source.matrices)
    found = logits(rebuilt(source, name))
    assert torch.allclose(found, logits(model), atol=2e-4 * float(found.abs().max()))
    assert all(
        torch.equal(a, b.value.tensors["codes"]) for a, b in zip(codes, weight_stores(model), strict=True)
    )


def test_plain_sinq_folds_down_alone_without_shared_columns() -> None:
    model = random_decoder("qwen2")
    SINQ(Grid(4, 16)).compress(model)
    folded = source_of(model).folds.folded
    assert folded == {f"model.layers.{k}.mlp.down_proj" for k in range(2)}


def test_tiles_never_fold() -> None:
    model = random_decoder("llama")
    SINQ(Grid(4, 16, tiling=2)).compress(model)
    assert not source_of(model).folds.folded


def test_a_head_of_its_own_folds_into_the_final_norm() -> None:
    model = random_decoder("qwen3-untied")
    SINQ(Grid(4, 16, auxiliary_bits=32)).compress(model, context=Context(Layers(exclude=())))
    source = source_of(model)
    assert "lm_head" in source.folds.folded
    found = logits(rebuilt(source, "qwen3-untied"))
    assert torch.allclose(found, logits(model), atol=2e-4 * float(found.abs().max()))


def test_down_folds_into_a_dense_up_with_its_bias() -> None:
    model = random_decoder("llama-biases")
    SINQ(Grid(4, 16, auxiliary_bits=32)).compress(
        model, context=Context(Layers(exclude=("up_proj", "lm_head")))
    )
    source = source_of(model)
    assert "model.layers.0.mlp.down_proj" in source.folds.folded
    found = logits(rebuilt(source, "llama-biases"))
    assert torch.allclose(found, logits(model), atol=2e-4 * float(found.abs().max()))


def test_nothing_folds_without_column_scales() -> None:
    model = random_decoder("llama")
    PreSINQ(RTN(Grid(4, 16))).compress(model)
    assert not source_of(model).folds.folded
    assert all(isinstance(store.value, QuantizedTensor) for store in weight_stores(model))
