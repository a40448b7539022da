"""AWQ and A-SINQ: against autoawq on fixed matrices, against a search written out, and their properties."""

import pytest
import torch
from torch import Tensor

from baselines.awq import AWQ, principal
from baselines.gptq import GPTQ
from baselines.hqq import HQQ
from baselines.rtn import RTN
from sinq import (
    SINQ,
    Calibration,
    Grid,
    HalfQuadratic,
    Kernel,
    Normalized,
    QuantizedTensor,
    SINQRefined,
    using,
)
from sinq.calibration.statistics import Inputs
from sinq.methods.scalar import ScalarMethod
from tests.conftest import needs_golden, tiny_model, tiny_tokens
from tests.golden import golden_entries, output_error, read_golden

GRID = Grid(bits=3, group_size=16)


def seen(inputs: Tensor) -> Inputs:
    statistic = Inputs(inputs.shape[-1], inputs.device)
    statistic.update(inputs)
    return statistic


def spiky(tokens: int = 300, width: int = 128) -> Tensor:
    """Inputs a few of whose channels are much larger than the rest."""
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(tokens, width, generator=generator) * (2 * torch.randn(width, generator=generator)).exp()
    )


def asinq(grid: Grid = GRID) -> AWQ:
    return AWQ(SINQ(grid), norm=1, weight_term=False, clip=False)


@needs_golden
@pytest.mark.parametrize(("file", "name"), golden_entries("awq"))
def test_no_worse_than_the_package_on_held_out_inputs(file: str, name: str) -> None:
    golden = read_golden(file)
    method = AWQ(RTN(Grid(int(name.split(".")[1][1:]), 64)), clip=False)
    ours = method.quantize(golden["weight"], seen(golden["activations"].float()))
    assert output_error(golden, ours.dequantize()) <= 1.01 * output_error(golden, golden[name])


@needs_golden
@pytest.mark.parametrize(("file", "name"), golden_entries("awq"))
def test_the_packages_matrix_is_one_of_the_candidates(file: str, name: str) -> None:
    """Scales and rounding are equal; the search may end at another candidate (see the module's docstring)."""
    golden = read_golden(file)
    method = AWQ(RTN(Grid(int(name.split(".")[1][1:]), 64, auxiliary_bits=32)))
    whole = Normalized(golden["weight"])
    candidates = method._candidates([whole], seen(golden["activations"].float()))
    matrices = [method.inner.round(whole.scaled_by(channel)).dequantize() for channel in candidates]
    differences = [
        torch.linalg.matrix_norm(ours - golden[name]) / torch.linalg.matrix_norm(golden["weight"])
        for ours in matrices
    ]
    assert min(differences) < 1e-3  # a rounding tie here and there


def test_the_search_is_the_published_one() -> None:
    """One layer, α by α, in float64: (w / s) quantized times s; the smallest squared output error wins."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(32, 64, generator=generator), spiky(200, 64)
    grid = Grid(3, 16, auxiliary_bits=32)
    activation, tried = inputs.abs().double().mean(0), {}
    for step in range(20):
        scale = activation ** (step / 20)
        scale = (scale / (scale.max() * scale.min()).sqrt()).float()
        rounded = QuantizedTensor.round(weight * scale, grid).dequantize() / scale
        tried[step] = ((weight - rounded).double() @ inputs.double().T).square().sum(), rounded
    best = min(tried.values(), key=lambda pair: pair[0])
    assert best[0] < tried[0][0]  # the search matters here
    ours = AWQ(RTN(grid), weight_term=False, clip=False).quantize(weight, seen(inputs)).dequantize()
    torch.testing.assert_close(ours, best[1])


@pytest.mark.parametrize("inner", [RTN(GRID), RTN(Grid(2, 32, tiling=2)), SINQ(GRID), HQQ(GRID)])
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("tokens", [300, 60])
def test_dropping_candidates_early_drops_no_winner(
    weight: Tensor, inner: ScalarMethod, norm: int, tokens: int
) -> None:
    """Compare with whole errors of all candidates, in float64, rounded by the definitions.

    Two layers share an input.
    """
    method, inputs = AWQ(inner, norm=norm, clip=False), spiky(tokens)
    weights = [weight, weight.flip(0)[:32] ** 3]
    normalized = [inner.normalize(one) for one in weights]
    candidates = [torch.ones(128), *method._candidates(normalized, seen(inputs))]
    with using(Kernel.reference):
        errors = [
            _whole_error(weights, [inner.round(one.scaled_by(channel)) for one in normalized], inputs, norm)
            for channel in candidates
        ]
    chosen = method._search(normalized, seen(inputs))
    assert chosen is not None
    found = next(
        error for channel, error in zip(candidates, errors, strict=True) if torch.equal(channel, chosen)
    )
    assert found <= min(errors) * (1 + 1e-4)


def _whole_error(weights: list[Tensor], rounded: list[QuantizedTensor], inputs: Tensor, norm: int) -> float:
    pairs = zip(weights, rounded, strict=True)
    return sum(
        ((one - value.dequantize()).double() @ inputs.double().T).abs().pow(norm).sum().item()
        for one, value in pairs
    )


@pytest.mark.parametrize("tokens", [1, 40, 128, 300])
def test_principal_inputs_give_the_same_norms_the_longest_first(tokens: int) -> None:
    inputs, errors = spiky(tokens), torch.randn(128, 20, generator=torch.Generator().manual_seed(1))
    rows = principal(inputs)
    assert len(rows) == min(tokens, 128)
    expected = (inputs.double() @ errors.double()).square().sum(0)
    torch.testing.assert_close((rows.double() @ errors.double()).square().sum(0), expected, rtol=1e-5, atol=0)
    lengths = rows.double().norm(dim=1)
    assert (lengths.diff() <= 1e-3 * lengths[0]).all()


def test_clipping_is_that_of_the_definition(weight: Tensor) -> None:
    method = AWQ(RTN(Grid(4, 16)))
    ours = method.quantize(weight, seen(spiky())).dequantize()
    with using(Kernel.reference):
        expected = method.quantize(weight, seen(spiky())).dequantize()
    assert (~torch.isclose(ours, expected, rtol=1e-3, atol=1e-6)).sum() <= weight.numel() / 100


def test_flat_activations_and_no_weight_term_is_round_to_nearest(weight: Tensor) -> None:
    flat = torch.where(torch.rand(100, 128, generator=torch.Generator().manual_seed(0)) < 0.5, -2.0, 2.0)
    result = AWQ(RTN(GRID), weight_term=False, clip=False).quantize(weight, seen(flat))
    assert torch.equal(result.dequantize(), RTN(GRID).quantize(weight).dequantize())


@pytest.mark.parametrize(
    "inner", [RTN(GRID), SINQ(GRID), SINQ(GRID, refinement=HalfQuadratic()), SINQRefined(GRID), HQQ(GRID)]
)
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("weight_term", [True, False])
def test_never_worse_than_its_inner_method_on_what_it_saw(
    weight: Tensor, inner: ScalarMethod, norm: int, weight_term: bool
) -> None:
    inputs = spiky()
    method = AWQ(inner, norm=norm, weight_term=weight_term, clip=False)
    ours, plain = method.quantize(weight, seen(inputs)).dequantize(), inner.quantize(weight).dequantize()
    errors = [((weight - result) @ inputs.T).abs().pow(norm).sum() for result in (ours, plain)]
    assert errors[0] <= errors[1] * (1 + 1e-6)


def test_it_helps_where_channels_differ(weight: Tensor) -> None:
    inputs = spiky()
    for method in (AWQ(RTN(GRID), clip=False), asinq()):
        error, plain = (
            torch.linalg.matrix_norm((weight - m.quantize(weight, seen(inputs)).dequantize()) @ inputs.T)
            for m in (method, method.inner)
        )
        assert error < 0.8 * plain


def test_clipping_lowers_the_error_it_is_chosen_by(weight: Tensor) -> None:
    inputs = spiky()
    errors = [
        torch.linalg.matrix_norm(
            (weight - AWQ(RTN(Grid(2, 16)), clip=clip).quantize(weight, seen(inputs)).dequantize()) @ inputs.T
        )
        for clip in (True, False)
    ]
    assert errors[0] < errors[1]


def test_asinq_costs_what_sinq_costs(weight: Tensor) -> None:
    assert asinq().quantize(weight, seen(spiky())).nbytes == SINQ(GRID).quantize(weight).nbytes


def test_sinkhorn_runs_once_per_matrix(weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(SINQ, "normalize", lambda self, matrix: calls.append(1) or Normalized(matrix))
    asinq().quantize(weight, seen(spiky()))
    assert len(calls) == 1


def test_layers_that_share_an_input_share_their_scale() -> None:
    model = tiny_model("llama")
    AWQ(RTN(GRID), clip=False).compress(model, Calibration(tiny_tokens(4)))
    scales = {
        name: model.get_submodule(f"model.layers.0.{name}").weight.value.col_scale()
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
        )
    }
    first, gate = scales["self_attn.q_proj"], scales["mlp.gate_proj"]
    assert first is not None
    assert torch.equal(first, scales["self_attn.k_proj"])
    assert torch.equal(first, scales["self_attn.v_proj"])
    assert torch.equal(gate, scales["mlp.up_proj"])
    assert not torch.equal(first, gate)


def test_inputs_never_seen_leave_the_inner_method(weight: Tensor) -> None:
    result = AWQ(RTN(GRID), weight_term=False).quantize(weight, Inputs(128, weight.device))
    assert torch.equal(result.dequantize(), RTN(GRID).quantize(weight).dequantize())


def test_half_precision_activations_do_not_overflow(weight: Tensor) -> None:
    inputs = (30000 * spiky() / spiky().abs().max()).half()
    assert torch.isfinite(asinq().quantize(weight, seen(inputs)).dequantize()).all()


def test_expert_inputs_are_two_dimensional() -> None:
    """The official code averages over the first two dimensions: of (tokens, in), that leaves one number."""
    inputs = spiky()
    flat, batched = seen(inputs), seen(inputs.reshape(3, 100, -1))
    torch.testing.assert_close(flat.mean_magnitude(), inputs.abs().mean(0))
    assert torch.equal(flat.mean_magnitude(), batched.mean_magnitude())


def test_options_out_of_range_are_named() -> None:
    for options, message in (
        ({"norm": 3}, r"method\.norm=3 is not possible; it must be one of \(1, 2\)"),
        ({"ratios": 0}, r"method\.ratios=0 is not possible"),
        ({"inner": GPTQ(RTN())}, r"method\.inner=GPTQ is not possible"),
    ):
        with pytest.raises(ValueError, match=message):
            AWQ(**({"inner": RTN()} | options))  # type: ignore[arg-type]
