import pytest
import torch

from baselines.dense import Dense
from baselines.hadamard import ResidualHadamard
from baselines.rtn import RTN
from sinq import SINQ, Context, Grid, Layers, NotApplicable, Sinkhorn
from sinq.methods.presinq import PreSINQ
from sinq.methods.rewriting import Rewriting
from tests.conftest import tiny_model, tiny_tokens
from tests.sinq.decoders import DECODERS, Keep, random_decoder, sharing_clone

REWRITING = {
    "presinq": PreSINQ(Keep()),
    "no o": PreSINQ(Keep(), output_projection=False),
    "residual": ResidualHadamard(Keep(), seed=1),
}


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-4 * other.abs().max())


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("method", REWRITING.values(), ids=REWRITING)
def test_the_model_is_the_same_function_until_it_is_quantized(decoder: str, method: Rewriting) -> None:
    dense, tokens = random_decoder(decoder), tiny_tokens()
    before = dense(tokens).logits
    clone = sharing_clone(dense)
    report = method.compress(clone)
    assert report.parts
    assert close(clone(tokens).logits, before)
    assert torch.equal(dense(tokens).logits, before)  # which shares its tensors with the clone


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("method", REWRITING.values(), ids=REWRITING)
def test_every_parameter_that_is_rewritten_matters(decoder: str, method: Rewriting) -> None:
    dense, tokens = random_decoder(decoder), tiny_tokens()
    before = dense(tokens).logits
    clone = sharing_clone(dense)
    method.rewrite(clone, None, Context())
    old = dict(dense.named_parameters(remove_duplicate=False))
    new = dict(clone.named_parameters(remove_duplicate=False))
    assert old.keys() == new.keys()
    for name in [name for name in old if new[name] is not old[name]]:
        assert new[name].shape == old[name].shape
        assert not new[name].requires_grad
        owner, _, key = name.rpartition(".")
        setattr(clone.get_submodule(owner), key, old[name])
        assert not close(clone(tokens).logits, before), name
        setattr(clone.get_submodule(owner), key, new[name])
    assert close(clone(tokens).logits, before)


def test_columns_that_share_inputs_are_balanced_together() -> None:
    model = random_decoder("llama-biases")
    layer = model.model.layers[0]

    def spreads() -> list[float]:
        # (kv head, query head of it, channel)
        output = layer.self_attn.o_proj.weight.unflatten(1, (2, 2, 16))
        stacks = [
            torch.cat(
                [layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight]
            ),
            torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]),
            layer.mlp.down_proj.weight,
            torch.cat([output[:, :, 0], output[:, :, 1]]).flatten(1),
        ]
        columns = [
            (groups / groups.std(2, keepdim=True)).std(0)
            for groups in (stack.unflatten(1, (-1, 16)) for stack in stacks)
        ]
        return [(std.amax(1) / std.amin(1)).mean().item() for std in columns]

    assert min(spreads()) > 2
    PreSINQ(RTN(Grid(group_size=16))).rewrite(model, None, Context())
    assert max(spreads()) < 1.4


def test_column_scales_are_sinkhorns_with_geometric_mean_one(weight: torch.Tensor) -> None:
    method = PreSINQ(RTN(Grid(group_size=32)), Sinkhorn(iterations=8))
    scale = method.column_scale(weight)
    sinq = SINQ(Grid(group_size=32, auxiliary_bits=32), Sinkhorn(iterations=8)).quantize(weight).col_scale()
    assert sinq is not None
    ratio = (scale / sinq[0]).reshape(4, 32)
    torch.testing.assert_close(ratio, ratio[:, :1].expand(4, 32))
    torch.testing.assert_close(scale.log().reshape(4, 32).mean(1), torch.zeros(4), rtol=0, atol=1e-6)


def test_experts_are_balanced_each_for_itself(weight: torch.Tensor) -> None:
    method = PreSINQ(RTN(Grid(group_size=48)))  # does not divide 128, but three experts side by side
    experts = torch.stack([weight, weight.flip(1), weight**2])
    assert torch.equal(
        method.column_scale(experts), torch.stack([method.column_scale(expert) for expert in experts])
    )


def test_a_group_size_that_does_not_fit_is_left_to_the_inner_method(weight: torch.Tensor) -> None:
    assert torch.equal(
        PreSINQ(RTN(Grid(group_size=60))).column_scale(weight),
        PreSINQ(RTN(Grid(group_size=32))).column_scale(weight),
    )
    with pytest.raises(ValueError, match="group_size=60 does not divide"):
        PreSINQ(RTN(Grid(group_size=60))).compress(random_decoder("llama"))


def test_rounding_a_balanced_matrix_loses_less(weight: torch.Tensor) -> None:
    plain = RTN(Grid(3, 32))
    scale = PreSINQ(plain).column_scale(weight)
    balanced = plain.quantize(weight / scale).dequantize() * scale
    assert (balanced - weight).norm() < 0.9 * (plain.quantize(weight).dequantize() - weight).norm()


def test_loud_channels_stay_finite_in_half_precision() -> None:
    model = random_decoder("llama")
    model.model.layers[0].self_attn.q_proj.weight[:, 5] *= 1e4
    model.model.layers[0].mlp.down_proj.weight[:, 7] = 0.0
    model.half()
    PreSINQ(Keep()).rewrite(model, None, Context())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert all(parameter.dtype == torch.float16 for parameter in model.parameters())


@pytest.mark.parametrize("method", REWRITING.values(), ids=REWRITING)
def test_a_weight_that_is_not_finite_is_named_before_it_spreads(method: Rewriting) -> None:
    model = random_decoder("llama")
    model.model.layers[1].self_attn.v_proj.weight[3, 4] = torch.inf
    with pytest.raises(ValueError, match=r"model\.layers\.1\.self_attn\.v_proj\.weight has NaN or Inf"):
        method.compress(model)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
@pytest.mark.parametrize("method", REWRITING.values(), ids=REWRITING)
def test_an_unknown_architecture_is_named(architecture: str, method: Rewriting) -> None:
    model = tiny_model(architecture)
    with pytest.raises(NotApplicable, match=rf"{type(model).__name__} is not .* Qwen3MoeForCausalLM"):
        method.compress(model)


def test_options_and_needs_are_those_of_the_inner_method() -> None:
    method = PreSINQ(PreSINQ(SINQ(Grid(3, 32))))
    assert method.grid == Grid(3, 32)
    assert (method.statistic, method.needs_calibration) == (None, False)
    with pytest.raises(NotApplicable, match="inner=Dense has no grid"):
        PreSINQ(Dense())


def test_the_time_of_folding_counts_and_layers_are_passed_on() -> None:
    report = PreSINQ(Keep()).compress(
        random_decoder("llama"), context=Context(Layers(exclude=("lm_head", "down_proj")))
    )
    assert report.seconds_quantize > sum(layer.seconds for layer in report.parts) > 0
    assert not any("down_proj" in layer.name for layer in report.parts)
