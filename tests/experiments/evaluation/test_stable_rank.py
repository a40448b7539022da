"""Stable rank, against the singular values of a full decomposition."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experiments.evaluation import StableRank
from experiments.evaluation.stable_rank import stable_rank
from experiments.models.source import sparing_clone
from sinq import SINQ, Grid
from tests.experiments.tiny import subject

SINQ3 = SINQ(Grid(bits=3, group_size=32))


def by_svd(matrix: torch.Tensor) -> float:
    values = torch.linalg.svdvals(matrix.double())
    return float(values.square().sum() / values[0] ** 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000), st.floats(0, 3))
def test_it_is_the_formula_of_singular_values(rows: int, columns: int, seed: int, decay: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator)
    matrix = matrix * (1 + torch.arange(columns)) ** -decay
    assert stable_rank(matrix) == pytest.approx(by_svd(matrix), rel=1e-5)


def test_known_matrices() -> None:
    assert stable_rank(torch.eye(9)) == pytest.approx(9)
    assert stable_rank(torch.ones(7, 4)) == pytest.approx(1)
    assert stable_rank(torch.outer(torch.arange(5.0), torch.tensor([1.0, -2, 3]))) == pytest.approx(1)
    assert stable_rank(torch.zeros(3, 4)) == 0
    assert stable_rank(torch.diag(torch.tensor([2.0, 1, 1]))) == pytest.approx(1.5)


@pytest.mark.parametrize("close", [1, 1 - 1e-4, 1 - 1e-7])
def test_singular_values_that_are_nearly_equal(close: float) -> None:
    left, right = (torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64))[0] for _ in range(2))
    values = torch.linspace(0.5, close, 50, dtype=torch.float64)
    values[0] = 1
    matrix = left @ values.diag() @ right
    assert stable_rank(matrix) == pytest.approx(by_svd(matrix), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_scale_and_orientation_do_not_matter(scale: float) -> None:
    matrix = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    expected = pytest.approx(stable_rank(matrix), rel=1e-5)
    assert stable_rank(matrix * scale) == expected
    assert stable_rank(matrix.T) == expected


def test_every_layer_of_a_dense_model_but_its_head(architecture: str) -> None:
    context = subject(architecture)
    found = StableRank().measure(context)
    linear = {
        name: module.weight
        for name, module in context.model.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not context.model.get_output_embeddings()
    }
    ranks = found.samples["stable_rank"]
    assert linear.keys() <= ranks.keys()
    assert {name: ranks[name] for name in linear} == pytest.approx(
        {name: by_svd(weight) for name, weight in linear.items()}, rel=1e-5
    )
    assert found.metrics["layers"] == len(ranks)
    assert found.metrics["min"] == min(ranks.values()) == ranks[found.metrics["lowest"]]
    assert found.metrics["mean"] == pytest.approx(sum(ranks.values()) / len(ranks))


@pytest.mark.parametrize("kind", ["llama", "moe"])
def test_compressed_layers_are_what_their_codes_stand_for(kind: str) -> None:
    dense = subject(kind)
    model: Any = sparing_clone(dense.model)
    context = replace(dense, model=model, report=SINQ3.compress(model))
    before, after = (StableRank().measure(each).samples["stable_rank"] for each in (dense, context))
    assert before.keys() == after.keys()
    name = "model.layers.0.self_attn.q_proj"
    decoded = model.get_submodule(name).weight.value.dequantize()
    assert after[name] == pytest.approx(by_svd(decoded), rel=1e-5)
    assert after[name] != before[name]


def test_experts_are_averaged() -> None:
    context = subject("moe")
    ranks = StableRank().measure(context).samples["stable_rank"]
    name = next(name for name in ranks if name.endswith("experts.down_proj"))
    experts = context.model.get_parameter(name).detach()
    assert ranks[name] == pytest.approx(sum(map(by_svd, experts)) / len(experts), rel=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    context = subject("llama")
    before = copy.deepcopy(context.model.state_dict())
    StableRank().measure(context)
    assert all(torch.equal(value, before[name]) for name, value in context.model.state_dict().items())
