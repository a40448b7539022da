"""Pseudo-perplexity: how well an encoder predicts each token of a text from all others.

An encoder has no probability of a text, since its prediction for a place knows the tokens after it. Salazar
et al. (arXiv 1910.14659) hide one token at a time:

    PLL(W) = Σ_t ln p(w_t | W with [MASK] in place t)        PPPL = exp(−Σ_W PLL(W) / N)

over windows W and their N tokens, which are those of the tokenizer. [CLS] and [SEP] around a window are read
and never scored. Windows do not overlap. Each masked copy of a window is a forward pass of its own, so a
window of n tokens costs n times what perplexity does. With `share` below 1 only some tokens of each window
are masked, the same ones for every model: an unbiased estimate of the mean, by a seeded draw.

It is no perplexity: a word in several pieces is easy to guess from the pieces beside it, and context comes
from both sides. Compare pseudo-perplexities of one tokenizer and one `seqlen`, and nothing else with them.

Not covered: masking all pieces of a word at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import exp, inf
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from experiments.data.framed import Frame, frame_of, with_frame, without_frame
from experiments.evaluation.base import TRIAL_TOKENS, Evaluation, EvaluationContext, Measurement, tried
from experiments.evaluation.perplexity import LARGEST_NLL
from sinq.common.options import SEED, check, number, whole
from sinq.model.language_model import Predicts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPTION = "evaluation.pseudo_perplexity"


@dataclass(frozen=True)
class PseudoPerplexity(Evaluation):
    """Pseudo-perplexity of the evaluation text under an encoder."""

    name: ClassVar[str] = "pseudo_perplexity"
    predicts: ClassVar[Predicts | None] = Predicts.masked_tokens

    windows: int | None = 16
    """Number of windows, from the start of the text; null for all."""
    seqlen: int = 128
    """Tokens of a window, [CLS] and [SEP] included; at most the model's context."""
    share: float = 1.0
    """Share of the tokens of each window that are masked, one at a time; at least one is."""
    seed: int = 0
    """Seed of the draw of these tokens, where not all are masked."""
    batch: int = 8
    """Masked copies of a window at once. Their logits are in memory: batch × seqlen × vocabulary."""

    def __post_init__(self) -> None:
        share = number(above=0, most=1)
        check(self, OPTION, windows=whole(1), seqlen=whole(4), share=share, seed=SEED, batch=whole(1))

    def check(self, context: EvaluationContext) -> None:
        if context.loaded.tokenizer.mask_token_id is None:
            raise ValueError(
                f"{OPTION}: the model's tokenizer has no mask token; give the folder with the encoder's own"
                " tokenizer"
            )
        first = self._windows(context)[0, :TRIAL_TOKENS].to(context.device)
        with tried(self.name, context):
            masked_nll(context.loaded.model, first, torch.tensor([1]), self._mask(context), 1)

    def _mask(self, context: EvaluationContext) -> int:
        return int(context.loaded.tokenizer.mask_token_id)

    def _windows(self, context: EvaluationContext) -> Tensor:
        frame = frame_of(context.loaded.tokenizer)
        length = min(self.seqlen, context.loaded.context) - (0 if frame is None else 2)
        plain = replace(context, tokens=without_frame(context.tokens, frame))
        return with_frame(plain.windows(OPTION, length, self.windows), frame)

    def measure(self, context: EvaluationContext) -> Measurement:
        chosen, frame = self._windows(context), frame_of(context.loaded.tokenizer)
        count, seqlen = chosen.shape
        places = list(self._places(count, seqlen, frame))
        passed = context.progress(zip(chosen, places, strict=True), "pseudo-perplexity", count)
        nll = torch.stack(
            [
                masked_nll(context.model, ids.to(context.device), some, self._mask(context), self.batch)
                for ids, some in passed
            ]
        )
        mean = float(nll.mean())
        metrics = {
            "value": exp(mean) if not mean > LARGEST_NLL else inf,
            "nll": mean,
            "windows": count,
            "seqlen": seqlen,
            "tokens": nll.numel(),
            "share": self.share,
            "framed": frame is not None,
        }
        return Measurement(metrics, {"window_nll": nll.mean(1).tolist()})

    def _places(self, count: int, seqlen: int, frame: Frame) -> Iterator[Tensor]:
        """Yield the positions to mask in each window, rising, int64; equally many in each."""
        first, last = (0, seqlen) if frame is None else (1, seqlen - 1)
        masked = max(1, round(self.share * (last - first)))
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(count):
            drawn = torch.randperm(last - first, generator=generator)[:masked]
            yield drawn.sort().values + first

    def against_dense(self, compressed: Measurement, dense: Measurement) -> dict[str, Any]:
        return {"dense": dense.metrics["value"]}


@torch.inference_mode()
def masked_nll(model: "PreTrainedModel", ids: Tensor, places: Tensor, mask: int, batch: int) -> Tensor:
    """Return the negative log-likelihood of tokens that are masked one at a time, in nats, float64 (places,).

    Args:
        model: an encoder with a head for masked tokens.
        ids: a window, int64 (seqlen,).
        places: positions, int64 (places,).
        mask: id of the mask token.
        batch: masked copies at once.
    """
    found = []
    for some in places.to(ids.device).split(batch):
        rows = torch.arange(len(some), device=ids.device)
        hidden = ids.repeat(len(some), 1)
        hidden[rows, some] = mask
        log_probabilities = model(input_ids=hidden).logits[rows, some].float().log_softmax(-1)
        found.append(-log_probabilities[rows, ids[some]].double().cpu())
    return torch.cat(found)
