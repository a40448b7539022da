"""A Gaussian mixture on the coefficients of a spectral dictionary model: their prior, and how good it is.

The mixture (scikit-learn's expectation maximization) is fitted to the coefficient vectors C_t of each block,
pooled over the tokens of the first half of some windows, and scored on the second half:

| number | |
|---|---|
| `log_likelihood` | mean log density of a held-out vector, nats |
| `gain` | that, less the log density of one Gaussian with the same kind of covariance |
| `usage_entropy` | entropy of the mean of C over tokens, nats: ln(atoms) where all atoms are used alike |
| `token_entropy` | mean entropy of the C of a token |
| `nll` | of the next token in the held-out windows |
| `sampled_nll` | the same where every C is a draw from its mixture: what the prior alone predicts |
| `sampled_increase` | the difference of the two: what the coefficients of a token tell of the next one |

Vectors are standardized by atom before the fit, and log densities are of the vectors as they are: softmax
coefficients of 128 atoms vary by some 1e-3, less than the least variance that the library adds. Softmax
coefficients sum to 1, so a full covariance is singular but for that addition; draws are clipped at 0 and sum
to 1 again. The sources say no more than that a mixture is fitted: components, covariance and the use of draws
are choices made here.

Not covered: the mixture as a term of the loss, which would have to be fitted before training is over.
"""

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from experiments.evaluation.base import Evaluation, EvaluationContext, Measurement
from experiments.evaluation.text_pass import token_nll
from experiments.evaluation.unigram import entropy
from sinq import NotApplicable
from sinq.common.options import SEED, check, whole

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

LEAST_VARIANCE = 1e-4
"""Added to the variances of standardized coefficients."""


class Covariance(enum.Enum):
    """Kind of covariance of a component."""

    diagonal = "diag"
    full = "full"


@dataclass(frozen=True)
class CoefficientMixture(Evaluation):
    """A Gaussian mixture fitted to the coefficients of every block."""

    name: ClassVar[str] = "coefficient_mixture"

    components: int = 16
    covariance: Covariance = Covariance.diagonal
    windows: int = 32
    """Number of windows, from the start of the text: one half to fit, one to score."""
    seqlen: int = 256
    """Tokens of a window; at most the model's context."""
    seed: int = 0

    def __post_init__(self) -> None:
        size = whole(1, 1024)
        check(self, f"evaluation.{self.name}", components=size, windows=whole(2), seqlen=whole(2), seed=SEED)

    def check(self, context: EvaluationContext) -> None:
        if not weighings(context.loaded.model):
            kind = type(context.loaded.model).__name__
            raise NotApplicable(
                f"evaluation.{self.name} is of spectral dictionary models (model=sdgm1, sdgm4); {kind} has no"
                f" coefficients: leave it out (~evaluation.{self.name})"
            )
        fitted = len(self._windows(context)) // 2 * min(self.seqlen, context.loaded.context)
        if fitted < 2 * self.components:
            raise ValueError(
                f"evaluation.{self.name}: components={self.components} are too many for {fitted} tokens;"
                " choose fewer, or more windows"
            )

    def _windows(self, context: EvaluationContext) -> Tensor:
        return context.windows(f"evaluation.{self.name}", self.seqlen, self.windows)

    @torch.inference_mode()
    def measure(self, context: EvaluationContext) -> Measurement:
        """Return the means over blocks, and the numbers of each block as samples."""
        chosen = self._windows(context).to(context.device)
        fit, held_out = chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]
        seen, unseen = (_coefficients(context.model, part) for part in (fit, held_out))
        priors = {name: Prior.fitted(seen[name], self, self.components) for name in seen}
        blocks = {name: _numbers(prior, seen[name], unseen[name], self) for name, prior in priors.items()}
        names = next(iter(blocks.values()))
        metrics: dict[str, Any] = {key: fmean(each[key] for each in blocks.values()) for key in names}
        metrics["nll"] = _nll(context.model, held_out)
        with _drawn(context.model, priors):
            metrics["sampled_nll"] = _nll(context.model, held_out)
        metrics["sampled_increase"] = metrics["sampled_nll"] - metrics["nll"]
        facts = {"tokens": held_out.numel(), "windows": len(chosen), "seqlen": chosen.shape[1]}
        return Measurement(metrics | facts, {"blocks": blocks})


@dataclass(frozen=True)
class Prior:
    """A fitted mixture of standardized coefficients."""

    mixture: "GaussianMixture"
    mean: Tensor
    """float64 (atoms,)"""
    spread: Tensor
    """Standard deviation of each atom's coefficient (atoms,)."""

    @classmethod
    def fitted(cls, coefficients: Tensor, options: CoefficientMixture, components: int) -> "Prior":
        """Return the mixture fitted to coefficients (tokens, atoms)."""
        from sklearn.mixture import GaussianMixture

        mean, spread = coefficients.mean(0), coefficients.std(0).clamp_min(1e-12)
        random = np.random.RandomState(options.seed)  # an object, so that draws go on
        mixture = GaussianMixture(
            components,
            covariance_type=options.covariance.value,
            reg_covar=LEAST_VARIANCE,
            random_state=random,
        )
        return cls(mixture.fit(((coefficients - mean) / spread).numpy()), mean, spread)

    def log_likelihood(self, coefficients: Tensor) -> float:
        """Return the mean log density of coefficients (tokens, atoms), in nats."""
        score = self.mixture.score(((coefficients - self.mean) / self.spread).numpy())
        return float(score - self.spread.log().sum().item())

    def draw(self, count: int) -> Tensor:
        """Return the next draws (count, atoms), clipped at 0."""
        drawn = torch.from_numpy(self.mixture.sample(count)[0]) * self.spread + self.mean
        order = self.mixture.random_state.permutation(count)  # they come sorted by component
        return drawn[torch.from_numpy(order)].clamp_min(0)


def _numbers(prior: Prior, seen: Tensor, unseen: Tensor, options: CoefficientMixture) -> dict[str, float]:
    found = prior.log_likelihood(unseen)
    single = Prior.fitted(seen, options, 1).log_likelihood(unseen)
    return {
        "log_likelihood": found,
        "gain": found - single,
        "usage_entropy": entropy(unseen.mean(0)),
        "token_entropy": fmean(map(entropy, unseen)),
    }


def weighings(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model whose outputs are coefficients (batch, tokens, atoms), by name."""
    from experiments.models.sdgm.mixing import SpectralMixing

    return {name: part.weigh for name, part in model.named_modules() if isinstance(part, SpectralMixing)}


@contextmanager
def _hooked(model: nn.Module, hook: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Call a function with the name and the coefficients of each block; what it returns replaces them."""

    def hook_of(name: str) -> Callable[..., Tensor | None]:
        return lambda _module, _inputs, output: hook(name, output)

    handles = [part.register_forward_hook(hook_of(name)) for name, part in weighings(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _coefficients(model: Any, windows: Tensor) -> dict[str, Tensor]:
    """Return the coefficients (tokens, atoms) of each block, float64 on the CPU."""
    found: dict[str, list[Tensor]] = {name: [] for name in weighings(model)}
    with _hooked(model, lambda name, output: found[name].append(output.flatten(0, 1).cpu().double())):
        for window in windows:
            model.base_model(input_ids=window[None], use_cache=False)
    return {name: torch.cat(parts) for name, parts in found.items()}


@contextmanager
def _drawn(model: Any, priors: dict[str, Prior]) -> Iterator[None]:
    """Put draws from each block's mixture in place of its coefficients; those of a softmax sum to 1 again."""
    kinds = weighings(model)

    def draw(name: str, output: Tensor) -> Tensor:
        drawn = priors[name].draw(output.shape[:-1].numel()).view_as(output)
        if isinstance(kinds[name], nn.Softmax):
            drawn = drawn / drawn.sum(-1, keepdim=True)
        return drawn.to(output)

    with _hooked(model, draw):
        yield


def _nll(model: Any, windows: Tensor) -> float:
    return fmean(token_nll(model, window[None], chunked=False).mean().item() for window in windows)
