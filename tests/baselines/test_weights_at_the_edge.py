"""Weights at the edge of what can be computed with: the error of a layer is finite, or the layer is refused.

Every method of `conf/method/`, also at 2 bits, with auxiliaries of 8 bits and in square tiles, is given one
odd matrix of a small model. It succeeds with finite errors, or raises one `ValueError` of one line that names
the layer; where no method can compute with the weights, before the first layer is changed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor, nn

import sinq
from baselines.rtn import RTN
from experiments.config.build import register
from sinq import SINQ, Calibration, Context, Grid, LayerMethod, Layers, OnMisfit, PartReport
from sinq.methods.plan import LARGEST_WEIGHT, SMALLEST_WEIGHT, LayerPlan, require_usable
from sinq.methods.report import relative_error
from sinq.model.linear import CompressedLinear
from tests.conftest import ROOT, tiny_model, tiny_tokens

CONF = ROOT / "conf"
PRESETS = sorted(file.stem for file in (CONF / "method").glob("*.yaml") if file.stem != "none")
AQLM = ("format={codebooks: 2, bits_per_codebook: 4, group: 4}", "rounds=1", "steps=2")
TUNED = (*(f"method.inner.{option}" for option in AQLM), "method.tuning.epochs=1")
QUICK = {
    "aqlm_untuned": tuple(f"method.{option}" for option in AQLM),
    **dict.fromkeys(("aqlm", "aqlm_1x16", "aqlm_cpu"), TUNED),
    "mgptq": ("method.training.steps=3",),
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


@pytest.fixture(autouse=True, scope="module")
def hydra() -> Iterator[None]:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def with_grid(method: Any, **options: Any) -> Any:
    """The method, with options of the grid that it or a method inside it has."""
    if isinstance(getattr(method, "inner", None), sinq.Method):
        return replace(method, inner=with_grid(method.inner, **options))
    return replace(method, grid=replace(method.grid, **options))


def variants(name: str) -> Iterator[Any]:
    """The method of a preset, and where they are possible its forms at 2 bits, with bytes, and in squares."""
    sized = () if name.startswith("aqlm") else ("group_size=32",)
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


def outcome(method: Any, odd: Callable[[Tensor], Tensor]) -> tuple[nn.Module, list[float], str]:
    """The model, and the errors of its layers or the message of the refusal."""
    model: Any = tiny_model("llama")
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    layer = model.get_submodule(LAYER)
    layer.weight.data = odd(layer.weight.data)
    layers = Layers(("lm_head", "mlp.*"), OnMisfit.skip)
    try:
        report = method.compress(model, Calibration(tiny_tokens(1)), Context(layers))
    except ValueError as error:
        return model, [], str(error)
    return model, [part.relative_error for part in report.parts], ""


@pytest.mark.parametrize("name", PRESETS)
def test_weights_that_cannot_be_computed_with_are_refused_before_any_work(name: str) -> None:
    for kind, odd in REFUSED.items():
        model, errors, message = outcome(next(variants(name)), odd)
        assert errors == [], kind
        assert LAYER in message and "repair the checkpoint" in message and "\n" not in message, (kind, message)
        assert not any(isinstance(module, CompressedLinear) for module in model.modules()), kind


@pytest.mark.parametrize("name", PRESETS)
def test_errors_are_finite_or_the_layer_is_refused_by_name(name: str) -> None:
    compressed = 0
    for method in variants(name):
        for kind, odd in ODD.items():
            _, errors, message = outcome(method, odd)
            assert all(map(math.isfinite, errors)), (method, kind)
            assert errors or (LAYER in message and "\n" not in message), (method, kind, message)
            compressed += bool(errors)
    assert compressed >= 6  # zeros, constants and tiny weights are no mistakes
