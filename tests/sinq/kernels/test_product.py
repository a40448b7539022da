"""Products by the type of the value: a type from elsewhere, the chosen kernels, reasons for slower ones."""

from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from sinq import (
    SINQ,
    CompressedExperts,
    CompressedLinear,
    CompressedWeight,
    Grid,
    Kernel,
    QuantizedTensor,
    SparseOutliers,
    using,
)
from sinq.formats.additive import AdditiveTensor
from sinq.formats.codebooks import Codebooks
from sinq.formats.rotation import Rotated, Rotation
from sinq.kernels.product import Choice, dequantized, kernel_of, product
from sinq.model.experts import choices

CPU = torch.device("cpu")


class Diagonal(CompressedWeight):
    """A square matrix of which only the diagonal is stored, as somebody else might write it."""

    notes: dict[str, float] = {}  # noqa: RUF012

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal, self.shape = diagonal, (len(diagonal), len(diagonal))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.diagonal.diag().to(dtype)

    def state_dict(self) -> dict[str, Tensor]:
        return {"diagonal": self.diagonal}

    def config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        return cls(tensors["diagonal"])


class Scaling(Diagonal):
    """The same with a product that never makes the matrix."""

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        raise AssertionError("the matrix is not needed")


def scaled(value: Scaling, x: Tensor, bias: Tensor | None) -> Tensor:
    return x * value.diagonal + (0 if bias is None else bias)


@kernel_of.register
def _(value: Scaling, device: torch.device) -> Choice:
    return Choice("scaling", multiply=scaled)


def test_a_type_that_registers_nothing_is_dequantized_and_says_so() -> None:
    value, x = Diagonal(torch.arange(1.0, 5.0)), torch.randn(3, 4)
    assert kernel_of(value, CPU) == Choice("reference", ("Diagonal has no cpu kernel",), dequantized)
    assert torch.equal(product(value, x, torch.ones(4)), x @ value.diagonal.diag() + 1)


def test_a_type_from_elsewhere_registers_its_own_product() -> None:
    value, x = Scaling(torch.arange(1.0, 5.0)), torch.randn(3, 4)
    layer = CompressedLinear(value, torch.ones(4))
    assert layer.kernel == "scaling"
    assert torch.equal(layer(x), x * value.diagonal + 1)


def test_what_wraps_a_type_from_elsewhere_multiplies_by_it() -> None:
    generator = torch.Generator().manual_seed(0)
    value, x = Scaling(torch.arange(1.0, 9.0)), torch.randn(3, 8, generator=generator)
    rotated = Rotated(Rotation.random(8, seed=0), value)
    assert kernel_of(rotated, CPU).kernel == "scaling"
    torch.testing.assert_close(product(rotated, x), x @ (value.diagonal.diag() @ rotated.rotation.matrix()).T)
    weight = torch.randn(8, 8, generator=generator)
    sparse = SparseOutliers.store(value, weight, weight > 1)
    assert kernel_of(sparse, CPU).kernel == "scaling+csr"
    exact = x @ (value.diagonal.diag() + torch.where(weight > 1, weight.half().float(), 0.0)).T
    torch.testing.assert_close(product(sparse, x), exact)


def test_a_trained_value_runs_the_definition_and_says_so() -> None:
    value, x = Scaling(torch.arange(1.0, 5.0)), torch.randn(3, 4)
    value.diagonal.requires_grad_()
    with pytest.raises(AssertionError, match="the matrix is not needed"):
        product(value, x)
    with torch.no_grad():
        product(value, x)
    layer = CompressedLinear(Scaling(torch.arange(1.0, 5.0)), None)
    assert layer.kernel == "scaling"
    layer.weight.value.diagonal.requires_grad_()  # type: ignore[attr-defined]
    assert layer.kernel == "reference"
    assert "asks for a gradient" in layer.choice.refusals[0]


def test_inputs_that_ask_for_a_gradient_run_the_fast_version_and_get_the_definitions() -> None:
    value = Scaling(torch.arange(1.0, 5.0))
    x, bias = torch.randn(3, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    y = product(value, x, bias)  # the definition would raise
    with pytest.raises(AssertionError, match="the matrix is not needed"):
        y.sum().backward()
    torch.testing.assert_close(y, x * value.diagonal + bias)


def values() -> dict[str, CompressedWeight]:
    """One value of each kind that has a fast product."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=generator)
    sinq = SINQ(Grid(group_size=32)).quantize(weight)
    return {
        "sinq": sinq,
        "tiled": QuantizedTensor.round(weight, Grid(bits=3, group_size=16)),
        "additive": additive(8),
        "rotated": Rotated(Rotation.random(64, seed=0), sinq),
        "outliers": SparseOutliers.store(sinq, weight, weight > 2),
        "both": Rotated(Rotation.random(64, seed=1), SparseOutliers.store(sinq, weight, weight > 2)),
    }


@pytest.mark.parametrize("kind", ["sinq", "tiled", "additive", "rotated", "outliers", "both"])
@pytest.mark.parametrize("shape", [(1,), (2, 3), (40,)], ids=["one", "few", "many"])
def test_gradients_of_inputs_and_bias_are_the_definitions_in_float64(
    kind: str, shape: tuple[int, ...]
) -> None:
    value = values()[kind]
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(*shape, value.shape[1], generator=generator).requires_grad_()
    bias = torch.randn(value.shape[0], generator=generator).requires_grad_()
    towards = torch.randn(*shape, value.shape[0], generator=generator)
    assert kernel_of(value, CPU).kernel != "reference"
    y = product(value, x, bias)
    with torch.no_grad():
        assert torch.equal(y, product(value, x, bias))
    y.backward(towards)
    exact = towards.double() @ value.dequantize(torch.float64)
    assert x.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(x.grad.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        bias.grad.double(), towards.double().flatten(0, -2).sum(0), rtol=1e-5, atol=1e-5
    )


def additive(bits: int) -> AdditiveTensor:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2**bits, (6, 4, 1), generator=generator)
    return AdditiveTensor.store(
        codes, torch.randn(1, 2**bits, 8, generator=generator), torch.ones(6), Codebooks(1, bits, 8)
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (additive(12), "bits_per_codebook=12: tables of more than 8 bits outweigh the matrix"),
        (QuantizedTensor.round(torch.randn(6, 32), Grid(group_size=4)), "group_size=4 is no multiple of 8"),
    ],
    ids=["additive", "scalar"],
)
def test_a_refused_value_is_dequantized_whatever_wraps_it(value: CompressedWeight, reason: str) -> None:
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(6, 32, dtype=torch.bool)
    for whole in (
        value,
        Rotated(Rotation.random(32, seed=0), value),
        SparseOutliers.store(value, torch.ones(6, 32), mask),
    ):
        assert kernel_of(whole, CPU) == Choice("reference", (reason,))
        assert torch.equal(product(whole, x), x @ whole.dequantize().T)


def test_codes_of_up_to_8_bits_are_multiplied_from_tables() -> None:
    value, x = additive(8), torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    assert kernel_of(value, CPU).kernel == "cpu"
    torch.testing.assert_close(product(value, x), x @ value.dequantize().T, rtol=1e-4, atol=1e-4)


def test_a_device_without_kernels_says_so() -> None:
    value = QuantizedTensor.round(torch.randn(6, 64), Grid())
    assert kernel_of(value, torch.device("meta")).refusals == ("there are no kernels for meta",)


def test_a_kernel_that_cannot_run_is_an_error() -> None:
    value = QuantizedTensor.round(torch.randn(6, 64), Grid())
    with using(Kernel.triton), pytest.raises(ValueError, match="kernel=triton cannot run on cpu here"):
        product(value, torch.randn(1, 64))


def test_a_model_lists_the_choices_of_its_layers() -> None:
    value = QuantizedTensor.round(torch.randn(6, 64), Grid())
    experts = CompressedExperts([value, value], transposed=False, dtype=torch.float32)
    model = nn.ModuleList([CompressedLinear(value, None), nn.Linear(2, 2), experts])
    assert [choice.kernel for choice in choices(model)] == ["cpu", "reference"]
    assert [reason.split(" for")[0] for choice in choices(model) for reason in choice.refusals] == [
        "fused experts are dequantized"
    ]


@pytest.mark.filterwarnings("ignore:.*lru_cache")
def test_a_compiled_graph_holds_compositions_and_types_from_elsewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    inner, weight = QuantizedTensor.round(torch.randn(6, 64), Grid()), torch.randn(6, 64, generator=generator)
    rotated = Rotated(Rotation.random(64, seed=0), SparseOutliers.store(inner, weight, weight > 2))
    for value in (rotated, Scaling(torch.arange(1.0, 65.0))):
        layer, x = CompressedLinear(value, None), torch.randn(3, 64, generator=generator)
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


def test_a_compiled_graph_has_the_gradient_too() -> None:
    layer, x = CompressedLinear(values()["sinq"], None), torch.randn(3, 64)
    tracked, compiled = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(tracked).square().sum().backward()
    torch.compile(layer, backend="aot_eager", fullgraph=True)(compiled).square().sum().backward()
    assert tracked.grad is not None
    torch.testing.assert_close(compiled.grad, tracked.grad)
