"""Weights at the edge of what can be computed with: the error of a layer is finite, or the layer is refused.

Every method of `conf/method/`, also at 2 bits, with auxiliaries of 8 bits and in square tiles, is given one
odd matrix of a small model. It succeeds with finite errors, or raises one `ValueError` of one line that names
the layer; where no method can compute with the weights, before the first layer is changed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hydra import compose
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sinq
from baselines.aqlm import AQLM
from baselines.awq import AWQ
from baselines.gptq import GPTQ
from baselines.rtn import RTN
from sinq import Calibration, Context, Grid, LayerMethod, Layers, OnMisfit
from sinq.formats.codebooks import Codebooks
from sinq.formats.stored_scales import load_scale, store_scale
from sinq.methods.block_loop import quantize_matrices
from sinq.methods.plan import LayerPlan, require_usable
from sinq.methods.report import PartReport, relative_error
from sinq.model.linear import CompressedLinear
from sinq.model.targets import Target
from tests.conftest import ROOT, tiny_model, tiny_tokens

pytestmark = pytest.mark.usefixtures("hydra")
CONF = ROOT / "conf"
DENSE = ("none", "bf16", "prefix", "stat", "loraprune", "loraprune_cpu", "sea", "sea_cpu")
"""Presets that compress no layer; what slices, or changes attention, has tests of its own."""
PRESETS = sorted(file.stem for file in (CONF / "method").glob("*.yaml") if file.stem not in DENSE)
SMALL = ("format={codebooks: 2, bits_per_codebook: 4, group: 4}", "rounds=1", "steps=2")
TUNED = (*(f"method.inner.{option}" for option in SMALL), "method.tuning.epochs=1")
QUICK = {
    "aqlm_untuned": tuple(f"method.{option}" for option in SMALL),
    **dict.fromkeys(("aqlm", "aqlm_1x16", "aqlm_cpu"), TUNED),
    "mgptq": ("method.training.steps=3",),
    **dict.fromkeys(("omniquant", "omniquant_cpu", "omniquant_w4a4", "abq", "abq_cpu"), ("method.epochs=1",)),
    "spikellm": ("method.inner.epochs=1",),
    "spikellm_ternary": ("method.inner.format.group_size=32",),
    "prefixquant_tuned": ("method.inner.tuning.epochs=1",),
    "quarot": ("method.down=false",),  # its layer is left out
    "mixed": ("budget.bits_per_weight=6", "method.tokens=8", "method.probes=[3]"),
}
LAYER = "model.layers.0.self_attn.q_proj"


def one(value: float) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(value))


def spread(low: int, high: int, of_rows: bool) -> Callable[[Tensor], Tensor]:
    factors = torch.logspace(low, high, 64)
    return lambda weight: weight * (factors[:, None] if of_rows else factors)


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": one(math.nan),
    "-Inf": one(-math.inf),
    "one of 1e30": one(1e30),
    "all of 1e30": lambda weight: weight * 1e30,
    "beyond float32": lambda weight: weight.double() * 1e200,
    "below float32": lambda weight: weight.double() * 1e-200,
    "denormals": lambda weight: weight * 1e-43,
    "rows from 1e-20 to 1e20": spread(-20, 20, of_rows=True),
}
"""Weights that no method can compute with."""
ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "one of 65519": one(65519.0),
    "one of 1e12": one(1e12),
    "all times 1e10": lambda weight: weight * 1e10,
    "all times 1e-30": lambda weight: weight * 1e-30,
    "zeros": torch.zeros_like,
    "constant": lambda weight: torch.full_like(weight, 0.3),
    "one row of zeros": lambda weight: torch.cat([torch.zeros_like(weight[:1]), weight[1:]]),
    "one tiny group": lambda weight: torch.cat([weight[:, :32] * 1e-35, weight[:, 32:]], 1),
    "rows from 1e-6 to 1e6": spread(-6, 6, of_rows=True),
    "columns from 1e-6 to 1e6": spread(-6, 6, of_rows=False),
}
"""Weights that some methods can compress, and some must refuse."""
RIGHT = {"one of 65519", "all times 1e-30", "zeros", "constant", "one row of zeros"}
"""Weights that every method compresses."""
IN_MODELS = {"one of 1e12", "all times 1e-30", "one tiny group"}
"""Weights that methods are given which are more than layer by layer; their layers are those of the others."""


def with_grid(method: Any, **options: Any) -> Any:
    """The method, with options of the grid that it or a method inside it has."""
    if isinstance(getattr(method, "inner", None), sinq.Method):
        return replace(method, inner=with_grid(method.inner, **options))
    return replace(method, grid=replace(method.grid, **options))


def variants(name: str) -> Iterator[Any]:
    """The method of a preset, and where they are possible its forms at 2 bits, with bytes, and in squares."""
    sized = () if name.startswith("aqlm") or name == "spikellm_ternary" else ("group_size=32",)
    bits = ("bits=3",) if name == "sinq_nf3" else ()
    method = instantiate(
        compose("config", [f"method={name}", *sized, *bits, *QUICK.get(name, ())]).method, _convert_="all"
    )
    yield method
    for options in ({"bits": 2}, {"auxiliary_bits": 8}, {"tiling": 2}) if sized else ():
        try:
            yield with_grid(method, **options)
        except ValueError:  # bits of a table; fractional zeros in a byte
            continue


def one_block() -> Any:
    """A model of one block."""
    model: Any = tiny_model("llama")
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    return model


def errors_in_model(method: Any, model: Any, odd: Callable[[Tensor], Tensor]) -> list[float]:
    """Compress the attention of a model, one matrix of which is odd; return the errors of its layers."""
    layer = model.get_submodule(LAYER)
    layer.weight.data = odd(layer.weight.data)
    layers = Layers(("lm_head", "mlp.*"), OnMisfit.skip)
    report = method.compress(model, Calibration(tiny_tokens(1)), Context(layers))
    return [part.relative_error for part in report.parts if part.kind == "weight"]


def errors_alone(method: LayerMethod, model: Any, odd: Callable[[Tensor], Tensor]) -> list[float]:
    """Quantize the odd matrix alone, as the loop over blocks does."""
    layer = model.get_submodule(LAYER)
    matrix = odd(layer.weight.data)
    require_usable(LAYER, matrix)
    statistic = method.statistic and method.statistic.of_noise((64, 64), matrix.device)
    plan = LayerPlan(Target(LAYER, layer), method)
    ((_, report),) = quantize_matrices([(plan, LAYER, matrix)], statistic, matrix.device)
    return [report.relative_error]  # type: ignore[list-item]


def outcome(errors: Callable[..., list[float]], *arguments: Any) -> tuple[list[float], str]:
    """The errors of layers, or the message of the refusal."""
    try:
        return errors(*arguments), ""
    except ValueError as error:
        return [], str(error)


@pytest.mark.parametrize("name", PRESETS)
def test_weights_that_cannot_be_computed_with_are_refused_before_any_work(name: str) -> None:
    method, model = next(variants(name)), one_block()
    usual = model.get_submodule(LAYER).weight.data
    for kind, odd in REFUSED.items():
        model.get_submodule(LAYER).weight.data = usual
        errors, message = outcome(errors_in_model, method, model, odd)
        assert errors == [], kind
        assert LAYER in message, (kind, message)
        assert "repair the checkpoint" in message
        assert "\n" not in message
        assert not any(isinstance(module, CompressedLinear) for module in model.modules()), kind


@pytest.mark.parametrize("name", PRESETS)
def test_errors_are_finite_or_the_layer_is_refused_by_name(name: str) -> None:
    compressed, model = set(), one_block()
    for method in variants(name):
        for kind, odd in ODD.items():
            if isinstance(method, LayerMethod):
                errors, message = outcome(errors_alone, method, model, odd)
            elif kind in IN_MODELS:
                errors, message = outcome(errors_in_model, method, one_block(), odd)
            else:
                continue
            assert all(map(math.isfinite, errors)), (method, kind)
            assert errors or (LAYER in message and "\n" not in message), (method, kind, message)
            compressed |= {kind} if errors else set()
        if not isinstance(method, LayerMethod):
            break
    assert compressed >= RIGHT & (set(ODD) if isinstance(method, LayerMethod) else IN_MODELS)


@pytest.mark.parametrize("value", [-math.inf, math.nan, math.inf])
def test_a_part_whose_error_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=rf"layer some\.layer: the compressed matrix is {value} away from"):
        PartReport("weight", "some.layer", 4, 4, 2, value, 0.1)


@settings(max_examples=30, deadline=None)
@given(exponent=st.integers(-120, 48), seed=st.integers(0, 100))
def test_the_error_of_a_layer_depends_on_no_unit(exponent: int, seed: int) -> None:
    """Against float64; squares of very small and very large weights are beyond float32."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 16, generator=generator) * 2.0**exponent
    result = weight * (1 + 0.1 * torch.randn(8, 16, generator=generator))
    expected = ((weight.double() - result).norm() / weight.double().norm()).item()
    assert relative_error(weight, result) == pytest.approx(expected, rel=1e-5)
    assert relative_error(torch.zeros(2, 2), torch.zeros(2, 2)) == 0


@settings(max_examples=30, deadline=None)
@given(exponent=st.integers(-130, 130), bits=st.sampled_from([8, 16, 32]))
def test_scales_of_any_size_are_stored(exponent: int, bits: int) -> None:
    """Denormals too, in at least a few digits."""
    scale = torch.tensor([[1.0, 1.5, 2.0, 3.0]]) * 2.0 ** min(exponent, 125)
    assert (load_scale(store_scale(scale, bits)) / scale - 1).abs().max() < 0.02


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_scales_that_are_none_are_refused(value: float, bits: int) -> None:
    with pytest.raises(ValueError, match=r"scales from .* cannot be stored; they must be above 0 and finite"):
        store_scale(torch.tensor([[1.0, value, 2.0]]), bits)


def test_statistics_that_are_not_finite_name_the_layers() -> None:
    for method in (GPTQ(RTN(Grid(4, 32))), AWQ(RTN(Grid(4, 32))), AQLM(Codebooks(2, 4, 4), rounds=1)):
        layers = Layers(("lm_head",))
        with pytest.raises(ValueError, match=r"layer model\.layers\.0\..*NaN or Inf.*model\.dtype=float32"):
            method.compress(one_with_overflow(), Calibration(tiny_tokens(1)), Context(layers))


def one_with_overflow() -> Any:
    """A model whose second norm multiplies by more than float32 can square."""
    model = one_block()
    model.model.layers[0].input_layernorm.weight.data[:] = 1e25
    return model
