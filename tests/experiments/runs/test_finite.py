"""NaN and infinity are not measurements: the run fails, with the reason in its row."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from baselines.rtn import RTN
from experiments.data.text import StateOfTheUnion
from experiments.evaluation import Perplexity
from experiments.evaluation.divergence import Distance, Expected, divergence, flips
from experiments.evaluation.perplexity import _likelihood
from experiments.models.source import Pretrained
from experiments.runs import finite
from experiments.runs.pipeline import Execution, execute
from experiments.runs.run import Run
from sinq import Grid
from sinq.calibration.statistics import Gradient, Hessian, Inputs, SquaredGradient
from tests.experiments.tiny import subject

CPU = torch.device("cpu")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metrics", [{"value": 0.0}, {"a": {"b": 0.0}}])
def test_a_metric_that_is_not_finite_is_refused_by_its_name(value: float, metrics: dict[str, Any]) -> None:
    finite.check("evaluation.x", metrics, subject())
    changed = json.loads(json.dumps(metrics), parse_float=lambda _: value)
    with pytest.raises(
        finite.NotFiniteError, match=rf"^evaluation\.x of the dense model: [\w.]+ is {value}; "
    ):
        finite.check("evaluation.x", changed, subject())


def test_float16_is_named_where_it_may_be_the_reason() -> None:
    context = subject()
    half = replace(context, loaded=replace(context.loaded, model=context.loaded.model.half()))
    with pytest.raises(finite.NotFiniteError, match=r"try model\.dtype=bfloat16 or float32"):
        finite.check("evaluation.x", {"value": math.nan}, half)


def test_a_run_whose_logits_are_nan_fails_and_says_why(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    model.save_pretrained(tiny_folder)
    run = Run(
        Pretrained(path=str(tiny_folder)),
        StateOfTheUnion(evaluate_from=2025),
        RTN(Grid(group_size=32)),
        {"perplexity": Perplexity(windows=1)},
        device="cpu",
    )
    with pytest.raises(finite.NotFiniteError, match="value is nan, nll is nan"):
        execute(run, Execution(tmp_path / "results"))
    rows = [json.loads(file.read_text()) for file in (tmp_path / "results/runs").glob("*.json")]
    assert {row["status"] for row in rows} == {"failed"}
    assert all("perplexity of the dense model: value is nan" in row["reason"] for row in rows)


def predictions(rows: int = 3) -> tuple[torch.Tensor, Expected]:
    logits = torch.randn(rows, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    kept, tokens = logits.topk(4)
    others = logits.exp().scatter(1, tokens, 0).sum(-1, keepdim=True).log()
    tied = torch.zeros(rows, dtype=torch.bool)
    return logits, Expected(tokens, torch.cat([kept, others], 1).double(), tied)


@pytest.mark.parametrize("side", ["compressed", "dense"])
def test_the_divergence_from_nan_is_nan_and_not_perfect(side: str) -> None:
    logits, dense = predictions()
    if side == "compressed":
        logits[1] = torch.nan
    else:
        dense.log_probabilities[1] = torch.nan
    (flipped, _), kl = flips(logits, dense), divergence(logits.clone(), dense)
    assert kl.isnan().tolist() == [False, True, False]
    assert flipped.isnan().tolist() == [False, True, False]
    distance = Distance(dense)
    distance.add(logits)
    assert math.isnan(distance.mean_kl)


def test_the_perplexity_of_a_large_nll_is_infinite_and_no_error() -> None:
    found = [_likelihood(np.array([[nll]]))[0] for nll in (709.0, 710.0, math.nan)]
    assert found[0]["value"] == math.exp(709)
    assert found[1] == {"value": math.inf, "nll": 710.0}
    assert math.isnan(found[2]["value"])


@pytest.mark.parametrize("kind", [Hessian, Inputs, Gradient, SquaredGradient])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_statistics_check_what_is_added(kind: Any, value: float) -> None:
    statistic = kind.for_layer((4, 8), CPU)
    good, bad = torch.ones(4, 8), torch.ones(4, 8)
    bad[1, 2] = value
    more = (1,) if issubclass(kind, Gradient) else ()
    statistic.update(good, *more)
    before = {name: tensor.clone() for name, tensor in statistic.tensors().items()}
    with pytest.raises(ValueError, match=r"have NaN or Inf: .* try model\.dtype=float32"):
        statistic.update(bad, *more)
    assert all(torch.equal(tensor, before[name]) for name, tensor in statistic.tensors().items())
