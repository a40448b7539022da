"""Mistakes with any method, as somebody makes them in Python: one line that has the right form."""

import dataclasses
import pkgutil
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

import baselines
from baselines.aqlm import AQLM
from baselines.awq import AWQ
from baselines.gptq import GPTQ
from baselines.hadamard import Hadamard
from baselines.hqq import HQQ
from baselines.mixed import Mixed
from baselines.rtn import RTN
from sinq import SINQ, Calibration, Context, Grid, Layers, Method, PreSINQ, Tuned, methods
from tests.conftest import tiny_model, tiny_tokens


def all_methods() -> list[type[Any]]:
    modules = (
        import_module(info.name)
        for package in (methods, baselines)
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    )
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return sorted(
        (each for each in found if issubclass(each, Method) and dataclasses.is_dataclass(each)),
        key=lambda each: each.__name__,
    )


METHODS = all_methods()


def made(method: type[Any]) -> Any:
    needed = dataclasses.MISSING, dataclasses.MISSING
    inner = [each for each in dataclasses.fields(method) if (each.default, each.default_factory) == needed]
    return method(**{each.name: RTN() for each in inner})


def ids(method: type[Any]) -> str:
    return method.__name__


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_a_number_where_a_part_belongs_is_one_line_with_the_right_form(method: type[Any]) -> None:
    assert len(METHODS) > 12
    if not dataclasses.fields(method):
        pytest.skip(f"{method.__name__} has no options")
    first = dataclasses.fields(method)[0].name
    with pytest.raises(TypeError) as raised:
        method(4)
    assert str(raised.value).startswith(f"{method.__name__}({first}=4) is not possible: {first} must be a")
    assert f"as in {method.__name__}({first}=" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_an_option_that_is_not_there_is_one_line(method: type[Any]) -> None:
    with pytest.raises(TypeError) as raised:
        method(bitz=4)
    names = [field.name for field in dataclasses.fields(method)]
    assert str(raised.value).startswith(f"{method.__name__} has no option bitz; it")
    assert all(name in str(raised.value) for name in names)


@pytest.mark.parametrize(
    ("make", "right"),
    [
        (lambda: SINQ(bits=4), "SINQ has no option bits; write SINQ(grid=Grid(bits=4))"),
        (lambda: RTN(group_size=32), "RTN has no option group_size; write RTN(grid=Grid(group_size=32))"),
        (lambda: SINQ(4), "SINQ(grid=4) is not possible: grid must be a Grid, as in SINQ(grid=Grid(bits=4))"),
        (lambda: HQQ(3.0), "HQQ(grid=3.0) is not possible: grid must be a Grid"),
        (lambda: SINQ(Grid), "grid must be a Grid, as in SINQ(grid=Grid())"),
        (lambda: SINQ(Grid(), iterations=3), "write SINQ(sinkhorn=Sinkhorn(iterations=3))"),
        (lambda: GPTQ({"bits": 4}), "inner must be a NormalizingMethod, as in GPTQ(inner=SINQ())"),
        (lambda: AWQ(bits=3), "AWQ has no option bits; write AWQ(inner=SINQ(grid=Grid(bits=3)))"),
        (lambda: PreSINQ(bits=3), "write PreSINQ(inner=SINQ(grid=Grid(bits=3)))"),
        (lambda: AWQ(inner=RTN), "inner must be a ScalarMethod, as in AWQ(inner=SINQ("),
        (lambda: Hadamard("rtn"), "Hadamard(inner='rtn') is not possible: inner must be a"),
        (lambda: AQLM(bits=2), "AQLM has no option bits; its options are "),
    ],
)  # fmt: skip
def test_the_right_form_is_named(make: Any, right: str) -> None:
    with pytest.raises(TypeError) as raised:
        make()
    assert right in str(raised.value)


@pytest.mark.parametrize("method", METHODS, ids=ids)
@pytest.mark.parametrize(
    "calibration",
    [["text"] * 8, "some text", tiny_tokens(), {"input_ids": [[1, 2]]}],
    ids=["list", "str", "ids", "dict"],
)
def test_anything_but_a_calibration_is_one_line(method: type[Any], calibration: Any) -> None:
    model = tiny_model("llama")
    with pytest.raises(TypeError, match=r"calibration=.* pass calibration=Calibration\(tokens\)") as raised:
        made(method).compress(model, calibration)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300
    assert all(type(module).__module__.startswith(("torch", "transformers")) for module in model.modules())


@pytest.mark.parametrize(
    ("tokens", "kind", "found"),
    [
        (["a"], TypeError, r"tokens=\['a'\]"),
        (torch.ones(2, 3), ValueError, r"tokens=float32 \[2, 3\]"),
        (torch.ones(3, dtype=torch.int64), ValueError, r"tokens=int64 \[3\]"),
        (torch.ones(0, 32, dtype=torch.int64), ValueError, r"tokens=int64 \[0, 32\]"),
        (torch.ones(2, 0, dtype=torch.int64), ValueError, r"tokens=int64 \[2, 0\]"),
    ],
)
def test_tokens_that_are_none_are_refused(tokens: Any, kind: type[Exception], found: str) -> None:
    with pytest.raises(
        kind, match=rf"Calibration\({found}\) is not possible; tokens must be a tensor of token ids"
    ):
        Calibration(tokens)


def dense_linears(model: nn.Module) -> int:
    return sum(type(module) is nn.Linear for module in model.modules())


@pytest.mark.parametrize("method", [each for each in METHODS if each.changes_model], ids=ids)
def test_a_second_compression_says_that_the_model_is_compressed(method: type[Any]) -> None:
    model = tiny_model("llama")
    RTN(Grid(8, 32)).compress(model)
    before = model.state_dict()
    with pytest.raises(
        ValueError, match="LlamaForCausalLM is already compressed: 14 of its layers"
    ) as raised:
        made(method).compress(model, Calibration(tiny_tokens()))
    assert "\n" not in str(raised.value)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_layers_that_were_left_dense_can_be_compressed_later() -> None:
    model = tiny_model("llama")
    RTN(Grid(8, 32)).compress(model, context=Context(Layers(exclude=("lm_head", "down_proj"))))
    assert len(SINQ(Grid(4, 32)).compress(model).parts) == 2
    assert len(SINQ(Grid(4, 32)).compress(model, context=Context(Layers(exclude=()))).parts) == 1
    assert dense_linears(model) == 0


def test_parts_of_the_right_kind_are_taken() -> None:
    assert Tuned(AWQ(RTN(Grid(3)))).inner == AWQ(inner=RTN(grid=Grid(bits=3)))
    assert Mixed(inner=SINQ()) == dataclasses.replace(Mixed(inner=RTN()), inner=SINQ())
