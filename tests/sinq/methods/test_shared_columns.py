"""Column scales shared by matrices: one t where one layer before takes it, and what refuses."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from baselines.gptq import GPTQ
from sinq import SINQ, Calibration, Grid, NotApplicable, SINQRefined, stream
from sinq.export.source import Source
from sinq.methods.shared_columns import SharedColumns
from tests.conftest import tiny_model, tiny_tokens
from tests.sinq.decoders import DECODERS, random_decoder

METHODS = [SINQ(Grid(4, 16), shared_columns=True), SINQRefined(Grid(4, 16), shared_columns=True)]


@pytest.mark.parametrize("method", METHODS, ids=["sinq", "sinq_refined"])
@pytest.mark.parametrize("name", sorted(DECODERS))
def test_every_column_scale_can_be_folded(name: str, method: Any) -> None:
    model = random_decoder(name)
    method.compress(model)
    source = Source(model, torch.float32)
    assert source.find_folds().folded == set(source.matrices)


def test_query_key_and_value_share_what_the_stacked_matrix_has() -> None:
    model = random_decoder("llama")
    layer = model.model.layers[0].self_attn
    stacked = torch.cat([layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight])
    method = SINQ(Grid(4, 16, auxiliary_bits=32), shared_columns=True)
    wanted = method.columns(stacked, (len(stacked), 16)).reshape(-1, 16)
    wanted = (wanted / wanted.log().mean(1, keepdim=True).exp()).reshape(1, -1)
    method.compress(model)
    layers = [getattr(model.model.layers[0].self_attn, f"{part}_proj") for part in "qkv"]
    found = [layer.weight.value.tensors["col_scale"] for layer in layers]
    assert torch.allclose(found[0], wanted, rtol=1e-5)
    assert all(torch.equal(one, other) for one, other in pairwise(found))


def test_query_heads_of_one_kv_head_share_theirs() -> None:
    method = SharedColumns(SINQ(Grid(4, 16), shared_columns=True), repeats=2, head_width=16)
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    scale = method.col_scale(weight).reshape(2, 2, 16)
    assert torch.equal(scale[:, 0], scale[:, 1])
    assert not torch.allclose(scale[0], scale[1])


def test_down_is_as_without_shared_columns() -> None:
    shared, plain = random_decoder("qwen2"), random_decoder("qwen2")
    METHODS[0].compress(shared)
    SINQ(Grid(4, 16)).compress(plain)
    one, other = (model.model.layers[1].mlp.down_proj.weight.value for model in (shared, plain))
    assert torch.equal(one.dequantize(), other.dequantize())


@pytest.mark.parametrize(
    "options",
    [{"kurtosis_gate": 5.0}, {"grid": Grid(tiling=2)}],
)
def test_options_that_make_no_sense_with_it(options: dict[str, Any]) -> None:
    with pytest.raises(NotApplicable, match="shared_columns=true"):
        SINQ(**options, shared_columns=True)


def test_one_matrix_alone_is_refused(tmp_path: Any) -> None:
    with pytest.raises(NotApplicable, match="needs a whole model"):
        METHODS[0].quantize(torch.randn(32, 64))
    with pytest.raises(NotApplicable, match="shared_columns=true needs a whole model"):
        GPTQ(inner=METHODS[0]).compress(random_decoder("llama"), Calibration(tiny_tokens()))
    tiny_model("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(NotApplicable, match="go together"):
        stream(tmp_path / "model", tmp_path / "out", METHODS[0])


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(NotApplicable, match="GPT2LMHeadModel"):
        METHODS[0].compress(tiny_model("gpt2"))
