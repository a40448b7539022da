"""The mixture on coefficients: densities by hand in float64, a known mixture is found, draws replace them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from experiments.evaluation import CoefficientMixture, EvaluationContext, Perplexity
from experiments.evaluation.coefficient_mixture import (
    Covariance,
    Prior,
    _coefficients,
    _drawn,
    weighings,
)
from experiments.models.sdgm.architecture import Coefficients, SpectralDictionary
from experiments.models.source import LoadedModel
from sinq import CompressionReport, NotApplicable
from sinq.common.progress import silent
from tests.conftest import tiny_tokenizer
from tests.experiments.models.sdgm.tiny import FOUR, ONE, ids_of, model_of
from tests.experiments.tiny import subject

OPTIONS = CoefficientMixture(components=3, windows=6, seqlen=32)


def spectral(architecture: SpectralDictionary = ONE) -> EvaluationContext:
    loaded = LoadedModel(model_of(architecture).requires_grad_(False), tiny_tokenizer(), torch.float32)
    tokens = ids_of(1, 6 * 32).flatten()
    cpu = torch.device("cpu")
    return EvaluationContext(loaded.model, loaded, tokens, CompressionReport(), cpu, silent)


def made(count: int = 4000, seed: int = 0) -> torch.Tensor:
    """Draws from two clusters in five dimensions whose spreads differ by a factor of 10,000."""
    random = np.random.default_rng(seed)
    spread = np.array([1e-4, 1e-3, 1e-2, 0.1, 1.0])
    far = np.where(random.uniform(size=(count, 1)) < 0.3, 4.0, -1.0)
    return torch.from_numpy((far + random.normal(size=(count, 5))) * spread)


@pytest.mark.parametrize("covariance", Covariance)
def test_a_density_is_that_of_the_components_by_hand(covariance: Covariance) -> None:
    points = made()
    prior = Prior.fitted(points, replace(OPTIONS, covariance=covariance), 2)
    mixture, mean, spread = prior.mixture, prior.mean.numpy(), prior.spread.numpy()
    full = [np.diag(c) if covariance is Covariance.diagonal else c for c in mixture.covariances_]
    parts = [
        weight * multivariate_normal(m * spread + mean, c * np.outer(spread, spread)).pdf(points[:50].numpy())
        for weight, m, c in zip(mixture.weights_, mixture.means_, full, strict=True)
    ]
    assert prior.log_likelihood(points[:50]) == pytest.approx(float(np.log(sum(parts)).mean()), rel=1e-9)


def test_a_known_mixture_is_found_and_beats_one_gaussian_on_other_draws() -> None:
    points, others = made(), made(seed=1)
    prior, single = (Prior.fitted(points, OPTIONS, count) for count in (2, 1))
    assert sorted(prior.mixture.weights_) == pytest.approx([0.3, 0.7], abs=0.03)
    assert prior.log_likelihood(others) > single.log_likelihood(others) + 1
    drawn = Prior.fitted(points + 10, OPTIONS, 2).draw(4000) - 10
    assert torch.allclose(drawn.mean(0), others.mean(0), atol=0.2)
    assert not torch.equal(prior.draw(50), prior.draw(50))


@pytest.mark.parametrize("architecture", [ONE, FOUR, replace(ONE, coefficients=Coefficients.softplus)])
def test_a_model_has_the_numbers_of_its_blocks(architecture: SpectralDictionary) -> None:
    context = spectral(architecture)
    OPTIONS.check(context)
    found = OPTIONS.measure(context)
    blocks = found.samples["blocks"]
    assert len(blocks) == architecture.layers
    for name in ("log_likelihood", "gain", "usage_entropy", "token_entropy"):
        assert found.metrics[name] == pytest.approx(np.mean([each[name] for each in blocks.values()]))
    assert 0 < found.metrics["token_entropy"] <= found.metrics["usage_entropy"] <= math.log(6) + 1e-9
    held_out = replace(context, tokens=context.tokens[3 * 32 :])
    by_perplexity = Perplexity(seqlen=32, top_k=None).measure(held_out).metrics["nll"]
    assert found.metrics["nll"] == pytest.approx(by_perplexity, abs=1e-5)
    assert found.metrics["sampled_nll"] != pytest.approx(found.metrics["nll"], abs=1e-4)
    increase = found.metrics["sampled_nll"] - found.metrics["nll"]
    assert found.metrics["sampled_increase"] == pytest.approx(increase)
    assert OPTIONS.measure(context).metrics == found.metrics


def test_coefficients_are_those_of_the_blocks() -> None:
    model, ids = model_of(ONE), ids_of(2, 32)
    with torch.no_grad():
        (found,) = _coefficients(model, ids).values()
        expected = model.model.layers[0].mixing.coefficients(model.model.embed_tokens(ids))
    assert torch.allclose(found, expected.flatten(0, 1).double(), atol=1e-6)


def test_draws_replace_coefficients_and_sum_to_1_and_nothing_stays() -> None:
    model, ids = model_of(ONE).requires_grad_(False), ids_of(2, 32)
    before = model(ids).logits
    priors = {name: Prior.fitted(part, OPTIONS, 2) for name, part in _coefficients(model, ids).items()}
    with _drawn(model, priors):
        (drawn,) = _coefficients(model, ids).values()
        assert not torch.allclose(model(ids).logits, before, atol=1e-3)
    assert torch.allclose(drawn.sum(1), torch.ones(64, dtype=torch.float64), atol=1e-6)
    assert drawn.min() >= 0
    assert torch.equal(model(ids).logits, before)
    assert not any(module._forward_hooks for module in weighings(model).values())


def test_models_without_coefficients_and_too_many_components_are_refused() -> None:
    with pytest.raises(NotApplicable, match=r"LlamaForCausalLM has no\s+coefficients: leave it out"):
        OPTIONS.check(subject())
    with pytest.raises(ValueError, match=r"components=60 are too many for 96 tokens"):
        replace(OPTIONS, components=60).check(spectral())
    with pytest.raises(ValueError, match=r"coefficient_mixture\.windows=1 is not possible"):
        CoefficientMixture(windows=1)
