"""Layers that stay dense, and models that are refused: each for a reason that is said."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import AfmoeConfig, AutoModelForCausalLM, RwkvConfig

from baselines.aqlm import AQLM
from baselines.awq import AWQ
from baselines.gptq import GPTQ
from baselines.gwq import GWQ
from baselines.mixed import Budget, Mixed
from baselines.rtn import RTN
from sinq import (
    BlockTuning,
    Calibration,
    CompressedLinear,
    Context,
    Grid,
    Layers,
    Method,
    PreSINQ,
    Tuned,
    stored_tensors,
)
from sinq.formats.codebooks import Codebooks
from sinq.model.unfit import computes_a_product
from tests.conftest import BODY, SMALL, tiny_model, tiny_tokens

METHOD = RTN(Grid(bits=8, group_size=16))
NAME = "model.layers.0.self_attn.q_proj"


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class WithScores(nn.Linear):
    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        scores = super().forward(input)
        return scores.topk(2).values, scores


class Written(nn.Linear):
    """The product, written in another way."""

    def forward(self, input: Tensor) -> Tensor:
        product = input @ self.weight.T
        return product if self.bias is None else product + self.bias


def put(kind: type[nn.Linear]) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        layer = kind(64, 64, bias=False)
        layer.weight = model.get_submodule(NAME).weight
        model.set_submodule(NAME, layer)

    return change


def patched(model: nn.Module) -> None:
    layer = model.get_submodule(NAME)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight) + 1  # type: ignore[method-assign]


def hooked(model: nn.Module) -> None:
    model.get_submodule(NAME).register_forward_hook(lambda _, __, output: output * 2)


def parametrized(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model.get_submodule(NAME))


def cast(dtype: torch.dtype) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        weight = model.get_submodule(NAME).weight.to(dtype)
        model.get_submodule(NAME).weight = nn.Parameter(weight, requires_grad=False)

    return change


def sparse(model: nn.Module) -> None:
    layer = model.get_submodule(NAME)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse(), requires_grad=False)


def extra(inputs: int, outputs: int) -> Callable[[nn.Module], None]:
    return lambda model: model.add_module("extra", nn.Linear(inputs, outputs, bias=False))


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (put(Doubled), NAME, "Doubled has a forward of its own"),
        (put(WithScores), NAME, "WithScores has a forward of its own"),
        (patched, NAME, "Linear has a forward of its own"),
        (hooked, NAME, "it has hooks, which would be lost"),
        (parametrized, NAME, "its weight is parametrized"),
        (cast(torch.int8), NAME, "its weight is int8"),
        (cast(torch.complex64), NAME, "its weight is complex64"),
        (cast(torch.float8_e4m3fn), NAME, "its weight is float8_e4m3fn"),
        (sparse, NAME, "its weight is sparse_coo"),
        (extra(0, 64), "extra", "its weight is empty"),
        (extra(64, 0), "extra", "its weight is empty"),
    ],
)
def test_a_layer_that_cannot_be_replaced_stays_and_is_listed(
    change: Callable[[nn.Module], None], name: str, reason: str
) -> None:
    model = tiny_model("llama")
    change(model)
    layer = model.get_submodule(name)
    report = METHOD.compress(model)
    assert dict(report.left_dense) == {name: reason}
    assert model.get_submodule(name) is layer
    assert report.decisions == {"left_dense": 1}
    assert len(report.parts) == 14 - (name == NAME)


def test_a_subclass_that_computes_the_same_is_compressed() -> None:
    model = tiny_model("llama")
    put(Written)(model)
    report = METHOD.compress(model)
    assert not report.left_dense
    assert isinstance(model.get_submodule(NAME), CompressedLinear)
    assert computes_a_product(Written(3, 3).to("meta"))  # whatever its weight
    assert not computes_a_product(Doubled(3, 3))


def moe() -> nn.Module:
    torch.manual_seed(0)
    config = AfmoeConfig(
        **SMALL, **BODY, num_key_value_heads=2, head_dim=16, intermediate_size=128, moe_intermediate_size=32,
        num_experts=4, num_experts_per_tok=2, num_dense_layers=1, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def test_routers_stay_dense_unless_they_are_asked_for() -> None:
    name = "model.layers.1.mlp.router.gate"
    assert METHOD.compress(moe()).left_dense[name] == "it chooses or weighs experts"
    report = METHOD.compress(moe(), context=Context(Layers(routers=True)))
    assert name in [part.name for part in report.parts]


def tied_parameter(model: nn.Module) -> None:
    attention = model.model.layers[0].self_attn
    attention.k_proj.weight = attention.q_proj.weight


def one_module_in_two_blocks(model: nn.Module) -> None:
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj


def one_parameter_in_two_blocks(model: nn.Module) -> None:
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight


@pytest.mark.parametrize("share", [tied_parameter, one_module_in_two_blocks, one_parameter_in_two_blocks])
@pytest.mark.parametrize(
    "method", [METHOD, GPTQ(RTN(METHOD.grid)), GWQ(METHOD.grid)], ids=["rtn", "gptq", "gwq"]
)
@pytest.mark.parametrize("sequential", [True, False])
def test_a_shared_weight_has_one_value(
    share: Callable[[nn.Module], None], method: RTN, sequential: bool
) -> None:
    model, apart = tiny_model("llama"), tiny_model("llama")
    share(model)
    dense = model(tiny_tokens()).logits
    report = method.compress(model, Calibration(tiny_tokens(), sequential))
    METHOD.compress(apart)
    assert len(report.parts) == 13
    assert not any(type(module) is nn.Linear for module in model.model.modules())
    found = model(tiny_tokens()).logits
    assert (found - dense).norm() < 0.05 * dense.norm()
    size = sum(tensor.nbytes for tensor in stored_tensors(model).values())
    if method is METHOD:
        whole = sum(tensor.nbytes for tensor in stored_tensors(apart).values())
        assert whole - size == METHOD.compress(tiny_model("llama")).parts[0].nbytes * (
            1 if share is tied_parameter else 2
        )


def with_config(**entries: object) -> nn.Module:
    model = tiny_model("llama")
    model.config.quantization_config = entries
    return model


def compressed() -> nn.Module:
    model = tiny_model("llama")
    METHOD.compress(model)
    return model


def partly_on_meta() -> nn.Module:
    model = tiny_model("llama")
    model.model.layers[1].to("meta")
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_config(quant_method="bitsandbytes"), "quantized already, by bitsandbytes"),
        (lambda: nn.DataParallel(tiny_model("llama")), "DataParallel is a wrapper"),
        (compressed, "already compressed: 14 of its layers"),
        (lambda: tiny_model("llama").to("meta"), "not in memory .*stream"),
        (partly_on_meta, r"model\.layers\.1\..* are not in memory"),
        (
            lambda: AutoModelForCausalLM.from_config(
                RwkvConfig(**SMALL, hidden_size=64, num_hidden_layers=2)
            ),
            "changes weights while it runs .* rescale_every=0",
        ),
    ],
)
def test_a_model_that_cannot_be_compressed_is_refused_before_work(
    make: Callable[[], nn.Module], message: str
) -> None:
    model = make()
    layers = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        METHOD.compress(model)
    assert [type(module) for module in model.modules()] == layers


def test_a_gguf_model_is_dense() -> None:
    assert METHOD.compress(with_config(quant_method="gguf")).parts


@pytest.mark.parametrize("change", [*map(cast, (torch.int8, torch.complex64, torch.float8_e4m3fn)), sparse])
def test_a_method_that_rewrites_refuses_what_it_would_round(change: Callable[[nn.Module], None]) -> None:
    model = tiny_model("llama")
    change(model)
    gain = model.model.layers[0].input_layernorm.weight.clone()
    with pytest.raises(ValueError, match=rf"{NAME}\.weight is .*, and only dense floating-point weights"):
        PreSINQ(METHOD).compress(model)
    assert torch.equal(model.model.layers[0].input_layernorm.weight, gain)


@pytest.mark.parametrize(
    "wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal]
)
@pytest.mark.parametrize("name", [NAME, "model.layers.1.mlp.down_proj"])
def test_a_method_that_rewrites_refuses_what_it_cannot_replace(
    wrap: Callable[[nn.Module], nn.Module], name: str
) -> None:
    model = tiny_model("llama")
    wrap(model.get_submodule(name))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"{name} is parametrized, and only weights that are parameters"):
        PreSINQ(METHOD).compress(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


CALIBRATED = (
    GPTQ(RTN(METHOD.grid)),
    GWQ(METHOD.grid),
    AWQ(METHOD),
    PreSINQ(GPTQ(RTN(METHOD.grid))),
    Mixed(METHOD, Budget(6.0), probes=(3,)),
    Tuned(AQLM(Codebooks(2, 4, 4), rounds=1, steps=1), BlockTuning(epochs=1)),
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("method", CALIBRATED, ids=lambda method: method.name)
def test_a_model_that_cannot_run_is_refused_before_work(method: Method, dtype: torch.dtype) -> None:
    """Its layers have several number formats, which no product takes."""
    model = tiny_model("llama")
    cast(dtype)(model)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reason = "LlamaForCausalLM cannot be run on the calibration text|weights can be computed with"
    with pytest.raises(ValueError, match=reason) as refused:
        method.compress(model, Calibration(tiny_tokens()))
    assert "\n" not in str(refused.value)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("method", CALIBRATED, ids=lambda method: method.name)
def test_what_is_not_in_memory_is_refused_by_every_method(method: Method) -> None:
    with pytest.raises(ValueError, match=r"weights of LlamaForCausalLM.* are not in memory"):
        method.compress(tiny_model("llama").to("meta"), Calibration(tiny_tokens()))
    with pytest.raises(ValueError, match="quantized already, by awq"):
        method.compress(with_config(quant_method="awq"), Calibration(tiny_tokens()))


@pytest.mark.parametrize("method", [GPTQ(RTN(METHOD.grid)), GWQ(METHOD.grid)])
def test_calibration_refuses_what_it_cannot_run(method: GPTQ) -> None:
    model = nn.Sequential(tiny_model("llama"))
    with pytest.raises(ValueError, match="Sequential is not a transformers model"):
        method.compress(model, Calibration(tiny_tokens()))
    assert not any(isinstance(module, CompressedLinear) for module in model.modules())


@pytest.mark.parametrize("method", CALIBRATED, ids=lambda method: method.name)
@pytest.mark.parametrize("token", [-1, 96, 10**6])
def test_tokens_that_the_model_does_not_know_are_refused_before_work(method: Method, token: int) -> None:
    """Wherever they stand in the text."""
    model = tiny_model("llama")
    tokens = tiny_tokens()
    tokens[-1, -1] = token
    with pytest.raises(ValueError, match=rf"token {token} of the calibration text is not one of the 96"):
        method.compress(model, Calibration(tokens))
    assert type(model.get_submodule(NAME)) is nn.Linear
