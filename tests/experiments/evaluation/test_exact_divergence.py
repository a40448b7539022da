"""The exact divergence against float64 over the whole vocabulary; its distribution; what is kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as over
from hypothesis import strategies as st

from experiments.common.meters import seconds
from experiments.evaluation import EvaluationContext, Perplexity, predictions
from experiments.evaluation.positions import Changes, Positions, changes
from experiments.models.source import sparing_clone
from tests.experiments.evaluation.pairs import SEQLEN, VOCABULARY, dense_runs, exact, pair
from tests.experiments.evaluation.pairs import predictions as log_probabilities
from tests.experiments.tiny import Capped, subject

OPTIONS = Perplexity(windows=3, seqlen=SEQLEN, top_k=None, exact=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))
    return tmp_path / "reference"


def distance(options: Perplexity, given: EvaluationContext) -> dict[str, Any]:
    """The metrics of the exact divergence."""
    found: dict[str, Any] = options.measure(given).metrics["divergence"]
    return found


def test_it_is_the_definition_in_float64(architecture: str) -> None:
    _, compressed = pair(architecture)
    measured = OPTIONS.measure(compressed)
    kl, flips = exact(compressed)
    found = measured.metrics["divergence"]
    assert kl.mean() > 0.01
    assert found["kl"] == pytest.approx(kl.mean().item(), rel=1e-5)
    assert found["kl_p90"] == pytest.approx(kl.quantile(0.9).item(), rel=1e-4)
    assert found["kl_max"] == pytest.approx(kl.max().item(), rel=1e-4)
    assert found["same_top"] == pytest.approx(1 - flips.double().mean().item())
    assert measured.samples["window_divergence"] == pytest.approx(kl.mean(1).tolist(), rel=1e-5)


def test_the_change_of_the_right_tokens_probability_is_the_definition() -> None:
    _, compressed = pair()
    right = compressed.tokens[: 3 * SEQLEN].reshape(3, SEQLEN)[:, 1:, None]
    probabilities = [
        log_probabilities(model, compressed).gather(2, right).exp()
        for model in (compressed.loaded.model, compressed.model)
    ]
    delta = (probabilities[1] - probabilities[0]).flatten()
    found = distance(OPTIONS, compressed)
    assert found["delta_p"] == pytest.approx(delta.mean().item(), rel=1e-4)
    assert found["delta_p_rms"] == pytest.approx(delta.square().mean().sqrt().item(), rel=1e-4)
    assert found["delta_p_min"] == pytest.approx(delta.min().item(), rel=1e-4)


def test_the_bound_is_below_it_and_meets_it_at_the_whole_vocabulary() -> None:
    _, compressed = pair()
    for top_k, same in ((1, False), (16, False), (VOCABULARY, True)):
        metrics = replace(OPTIONS, top_k=top_k).measure(compressed).metrics
        whole = metrics["divergence"]["kl"]
        assert metrics["kl"] == pytest.approx(whole, rel=2e-3) if same else metrics["kl"] < 0.99 * whole
        assert metrics["flip_rate"] == pytest.approx(1 - metrics["divergence"]["same_top"])


def test_the_dense_run_keeps_states_and_compressed_runs_read_them(cache: Path) -> None:
    dense, compressed = pair()
    OPTIONS.measure(dense)
    (file,) = cache.glob("*.states.npy")
    width = dense.model.config.hidden_size
    assert np.load(file).shape == (3, SEQLEN - 1, width)
    runs = dense_runs(dense)
    first = OPTIONS.measure(compressed)
    assert torch.Size([1, SEQLEN]) not in runs
    file.unlink()
    assert OPTIONS.measure(compressed) == first  # written again, by the dense model
    assert runs.count(torch.Size([1, SEQLEN])) == 3


def test_a_model_run_whole_is_run_beside_the_other(cache: Path) -> None:
    dense = subject()
    capped: Any = Capped()
    capped.inner.lm_head.weight *= 1.1
    given = replace(dense, model=capped, loaded=replace(dense.loaded, model=Capped()))  # type: ignore[arg-type]
    found = distance(OPTIONS, given)
    assert found["dense"] == "run beside it"
    assert found["kl"] == pytest.approx(exact(given)[0].mean().item(), rel=1e-3)
    assert not list(cache.glob("*")) or not list(cache.glob("*.states.npy"))


def test_a_model_that_was_not_compressed_does_not_differ(architecture: str) -> None:
    dense, _ = pair(architecture)
    clone: Any = sparing_clone(dense.model)
    found = distance(OPTIONS, replace(dense, model=clone))
    assert abs(found["kl"]) < 1e-6
    assert found["kl_max"] < 1e-5
    assert (found["same_top"], found["delta_p_rms"]) == (1, pytest.approx(0, abs=1e-6))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_predictions_that_are_no_numbers_have_no_divergence(bad: float) -> None:
    logits = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    logits[0, 1, 3] = logits[1, 4, 5] = bad
    found = changes(*logits.log_softmax(-1), torch.zeros(6, dtype=torch.long))
    for column in (found.kl, found.flipped, found.tied):
        assert np.isnan(column).tolist() == [False, True, False, False, True, False]


def test_impossible_tokens_count_nothing_or_much() -> None:
    minus = -torch.inf
    dense = torch.tensor([[0.0, minus, minus], [-0.6931472, -0.6931472, minus]])
    compressed = torch.tensor([[-0.6931472, -0.6931472, minus], [0.0, minus, minus]])
    found = changes(dense, compressed, torch.zeros(2, dtype=torch.long))
    assert found.kl[0] == pytest.approx(0.6931472)
    assert found.kl[1] > 1000
    assert np.isfinite(found.kl).all()


@pytest.mark.parametrize("chunk", [1, 5, 31])
def test_chunks_do_not_matter(chunk: int) -> None:
    generator = torch.Generator().manual_seed(1)
    dense, compressed = torch.randn(2, 31, 20, generator=generator).log_softmax(-1)
    targets = torch.randint(20, (31,), generator=generator)
    whole = changes(dense.clone(), compressed, targets)
    seen = Changes(iter(dense.clone().split(chunk)), targets)
    for some in compressed.split(chunk):
        seen.add(some)
    for name, column in vars(whole).items():
        np.testing.assert_allclose(getattr(seen.positions, name), column, rtol=1e-6, atol=1e-7)


def positions(kl: "np.ndarray[Any, Any]", confidence: "np.ndarray[Any, Any]", token: list[int]) -> Positions:
    flipped = (kl > 1).astype(float)
    return Positions(kl, -kl / 10, confidence, flipped, np.zeros_like(kl), np.array(token))


def test_groups_are_means_by_confidence_position_and_frequency() -> None:
    kl = np.array([0.5, 2.0, 0.1, 3.0, 0.2, 0.0, 1.5, 0.3])
    confidence = np.array([0.05, 0.1, 0.95, 0.99, 1.0, 0.5, 0.3, 0.85])
    found = predictions.groups(positions(kl, confidence, [7, 7, 7, 7, 7, 1, 2, 2]), positions=4)
    rows = {name: {(row["from"], row["to"]): row for row in found[name]} for name in found if "by" in name}
    by = rows["by_confidence"]
    assert by[0.99, 1.0]["positions"] == 2
    assert by[0.99, 1.0]["kl"] == pytest.approx(1.6)
    assert by[0.1, 0.2]["flip_rate"] == 1
    assert by[0.0, 0.1]["delta_p"] == pytest.approx(-0.05)
    assert {span: row["positions"] for span, row in rows["by_position"].items()} == {
        (1, 2): 2,
        (2, 4): 4,
        (4, 8): 2,
    }
    assert rows["by_position"][1, 2]["kl"] == pytest.approx((0.5 + 0.2) / 2)
    assert {span: row["positions"] for span, row in rows["by_frequency"].items()} == {(1, 4): 3, (4, 16): 5}
    for group in rows.values():
        assert sum(row["positions"] for row in group.values()) == 8
        assert sum(row["positions"] * row["kl"] for row in group.values()) == pytest.approx(kl.sum())


def test_the_histogram_has_every_position_once() -> None:
    kl = np.array([0.0, -1e-9, 1e-8, 1.77e-8, 1.79e-8, 0.99, 1.0, 1e6])
    counts = predictions.histogram(kl)["counts"]
    assert sum(counts) == len(kl)
    assert (counts[0], counts[1], counts[-1]) == (4, 1, 1)
    assert counts[31], counts[32] == (1, 1)


@over(st.lists(st.floats(0, 50), min_size=1, max_size=60))
def test_percentiles_rise_to_the_maximum_and_the_mean_is_between(values: list[float]) -> None:
    kl = np.array(values)
    found = predictions.metrics(positions(kl, np.full(len(kl), 0.5), [0] * len(kl)))
    rising = [found[f"kl_{name}"] for name in predictions.QUANTILES]
    assert rising == sorted(rising)
    assert rising[-1] == kl.max()
    assert found["kl"] <= rising[-1] + 1e-9


def test_the_trace_has_every_token_of_the_first_windows() -> None:
    _, compressed = pair()
    samples = replace(OPTIONS, trace=2).measure(compressed).samples
    kl, _ = exact(compressed)
    assert len(samples["trace"]) == 2
    for number, window in enumerate(samples["trace"]):
        assert window["kl"] == pytest.approx(kl[number].tolist(), rel=1e-3, abs=1e-6)
        assert window["token"] == compressed.tokens[number * SEQLEN + 1 : (number + 1) * SEQLEN].tolist()
    assert "trace" not in OPTIONS.measure(compressed).samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace": 5}, "evaluation.perplexity.trace"),
        ({"trace": 1, "exact": False}, "trace is 1, which needs evaluation.perplexity.exact=true"),
    ],
)
def test_a_trace_is_bounded_and_needs_the_exact_divergence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(OPTIONS, **options)


def relative_cost(best: Callable[[list[float]], float] = min) -> float:
    """Seconds of perplexity with the exact divergence over those without, on the embedded model."""
    from experiments.models.source import SmolLM2, load

    loaded = load(SmolLM2(), torch.device("cpu"))
    clone: Any = sparing_clone(loaded.model)
    tokens = torch.randint(1000, (2048,), generator=torch.Generator().manual_seed(0))
    given = replace(subject(), model=clone, loaded=loaded, tokens=tokens)
    plain = Perplexity(windows=1, top_k=None)
    options = (plain, replace(plain, exact=True))
    options[1].measure(replace(given, model=loaded.model))  # states are kept
    rounds = [
        [seconds(lambda one=one: one.measure(given), given.device) for one in options] for _ in range(4)
    ]
    return best([whole / alone for alone, whole in rounds])


@pytest.mark.slow
def test_it_costs_less_than_a_third_more() -> None:
    assert relative_cost() <= 1.3
