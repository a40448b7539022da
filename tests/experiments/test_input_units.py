"""Results do not depend on the unit of the calibration inputs, dead channels or not.

The methods are found, not listed: every layer method of `sinq/` and `baselines/` with a statistic, with each
value of each of its switches.
"""

import dataclasses
import enum
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines.aqlm import AQLM
from baselines.mgptq import MGPTQ
from baselines.mixed import Mixed
from baselines.omniquant import OmniQuant
from baselines.rtn import RTN
from baselines.sea import SEA
from experiments.config.build import method_classes
from sinq import SINQ, CompressedHead, LayerMethod, NotApplicable, Tuned
from sinq.calibration.statistics import Gradient, InputStatistic, Statistic
from sinq.formats.codebooks import Codebooks
from sinq.methods.slicing import Slicing
from sinq.methods.wrapper import MethodWrapper
from tests.baselines.inputs import correlated, seen, weighted_error

ROWS, COLUMNS = 32, 192
INNER: tuple[LayerMethod, ...] = (RTN(), SINQ())
QUICK: dict[type, dict[str, Any]] = {
    AQLM: {"format": Codebooks(2, 4, 4), "rounds": 2, "steps": 3},
    CompressedHead: {"head": RTN()},
    MGPTQ: {"training": dataclasses.replace(MGPTQ().training, steps=8)},
}
WITHOUT_STATISTIC = (Mixed, Tuned, MethodWrapper, Slicing, OmniQuant, SEA)
"""Methods that look at text, but are given no statistic of a layer: around others, or trained."""


def instances() -> Iterator[Any]:
    """An instance of every method that can be made with defaults, or around a simple or calibrated one."""
    plain = [kind(**QUICK.get(kind, {})) for kind in method_classes() if not needs_inner(kind)]
    yield from plain
    calibrated = [method for method in plain if isinstance(method, LayerMethod) and method.statistic]
    for kind in filter(needs_inner, method_classes()):
        for inner in (*INNER, *calibrated):
            try:
                yield kind(inner, **QUICK.get(kind, {}))
            except (NotApplicable, ValueError):
                continue


def needs_inner(kind: type) -> bool:
    return not {"inner", "then"}.isdisjoint(field.name for field in dataclasses.fields(kind))  # type: ignore[arg-type]


def variants(method: LayerMethod) -> Iterator[LayerMethod]:
    """The method, and the method with each other value of each switch."""
    yield method
    for field in dataclasses.fields(method):  # type: ignore[arg-type]
        value = getattr(method, field.name)
        others = list(type(value)) if isinstance(value, enum.Enum) else [not value]
        for other in others if isinstance(value, bool | enum.Enum) else []:
            if other != value:
                yield dataclasses.replace(method, **{field.name: other})  # type: ignore[type-var]


CALIBRATED = {
    repr(variant): variant
    for method in instances()
    if isinstance(method, LayerMethod) and method.statistic
    for variant in variants(method)
    if variant.statistic
}


def label(text: str) -> str:
    return text.replace("Grid(bits=4, group_size=64, tiling=1, levels=<Levels.uniform: None>", "G")[:90]


def test_every_calibrated_class_is_tried() -> None:
    tried = {type(method) for method in CALIBRATED.values()}
    needing = {type(method) for method in instances() if method.needs_calibration}
    assert {kind for kind in needing if not issubclass(kind, WITHOUT_STATISTIC)} == tried
    assert len(tried) >= 5


def inputs(seed: int, dead: int) -> Tensor:
    found = correlated(400, COLUMNS, seed)
    found[:, torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(seed))[:dead]] = 0
    return found


def statistic(kind: type[Statistic], values: Tensor) -> Statistic:
    """What a layer of this size would be given if it had seen these values."""
    found = kind.for_layer((ROWS, COLUMNS), torch.device("cpu"))
    if isinstance(found, Gradient):
        found.update(values[:ROWS], 8)
    else:
        assert isinstance(found, InputStatistic)
        found.update(values)
    return found


def error(method: LayerMethod, weight: Tensor, values: Tensor, factor: float) -> float:
    assert method.statistic is not None
    result = method.quantize(weight, statistic(method.statistic, values * factor)).dequantize()
    return math.sqrt(weighted_error(weight, result, seen(values)))


FACTORS = st.one_of(st.integers(-24, 24).map(lambda exponent: 2.0**exponent), st.just(0.01))


@pytest.mark.parametrize("method", CALIBRATED.values(), ids=map(label, CALIBRATED))
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1000), factor=FACTORS, dead=st.sampled_from([0, 1, 20]))
@example(seed=0, factor=0.01, dead=20)
def test_the_unit_of_the_inputs_changes_nothing(
    method: LayerMethod, seed: int, factor: float, dead: int
) -> None:
    weight = 0.05 * torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    values = inputs(seed, dead)
    # A power of 2 is exact. With 0.01 a code at a tie may change, and with it all later ones of its row.
    tolerance = 0.1 if factor == 0.01 else 0.02
    expected = error(method, weight, values, 1.0)
    assert error(method, weight, values, factor) == pytest.approx(expected, rel=tolerance)
