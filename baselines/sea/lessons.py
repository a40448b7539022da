"""Forms of attention for the time of SEA's training: the teacher's notes, the student's is compared.

The teacher's attention is softmax attention that notes its queries, keys and output (`Noted`). The student's
(`Taught`) computes by the dense definition of its form, quadratic in the length, and compares with these
notes. Its T × T matrices are kept for the way back; with training.gradient_checkpointing=true those of one
block at a time are. Both are put in for the time of the training only.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, scaled_dot_product_attention

from baselines.sea.losses import alike, exp
from sinq.model.attention_forms.form import FORM, AttentionForm, attention_forms, install_form, repeated
from sinq.model.attention_forms.sparse import SparseAttention

Notes = tuple[Tensor, Tensor, Tensor]
"""Queries and keys of all heads, and the output, (batch, heads, T, width) each."""


class Noted(AttentionForm):
    """Softmax attention that notes what it is given and returns."""

    notes: Notes

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads = query.shape[1]
        key, value = repeated(key, heads), repeated(value, heads)
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        self.notes = query, key, output
        return output


class Taught(AttentionForm):
    """A form whose computation is compared with the teacher's notes.

    Args:
        weight: that of divergences among the losses.
        keys: number of keys, up to which a query sees all.
    """

    notes: Notes
    """The teacher's, of the same texts; to be set before a pass."""

    def __init__(self, form: AttentionForm, weight: float, keys: int) -> None:
        super().__init__()
        self.form, self._weight, self._keys = form, weight, keys
        self.loss = torch.zeros(())
        """Losses of the last pass."""
        self.recall: Tensor | None = None
        """Mean share of the teacher's attention that is kept; None where all keys are looked at."""
        self.draws = False
        """True to keep the maps of a pass."""
        self.maps: tuple[Tensor, Tensor]
        """Mean over windows and heads of the true and the estimated attention, (T, T) both."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        wanted_query, wanted_key, wanted_output = self.notes
        wanted = log_attention(wanted_query, wanted_key, scale)
        loss = alike(wanted, log_attention(query, repeated(key, query.shape[1]), scale), self._weight)
        if isinstance(self.form, SparseAttention):
            attended = self.form.dense(query, key, value, scale)
            output = attended.output
            self.recall = kept_share(wanted, attended.mask, self._keys)
            if attended.estimate is not None:
                estimate = causal_log_softmax(attended.estimate)
                loss = loss + alike(wanted, estimate, self._weight)
                if self.draws:
                    self.maps = exp(wanted).mean((0, 1)), exp(estimate).mean((0, 1))
        else:
            output = self.form(query, key, value, scale)
        self.loss = loss + mse_loss(output.float(), wanted_output.float())
        return output


HIDDEN = -1e30
"""Addend of the scores of later keys: finite, so that 0 times it is 0."""
Pair = tuple[Noted, Taught]
"""The attentions of a layer, of the teacher and of the model that is taught."""


def log_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return the logarithm of causal softmax attention, float32 (batch, heads, T, T), of (…, T, width) both.

    It is finite: `HIDDEN` below the others at later keys.
    """
    with torch.autocast(query.device.type, enabled=False):
        return causal_log_softmax(query.float() @ key.float().mT * scale)


def causal_log_softmax(scores: Tensor) -> Tensor:
    """Return the log-softmax of scores (..., T, T) over the keys up to each query."""
    hidden = torch.full(scores.shape[-2:], HIDDEN, device=scores.device).triu(1)
    return (scores.float() + hidden).log_softmax(-1)


@torch.no_grad()
def kept_share(attention: Tensor, mask: Tensor, keys: int) -> Tensor:
    """Return the mean share of true attention at the keys of a mask, a scalar.

    Args:
        attention: logarithm of the true attention (batch, heads, T, T).
        mask: kept keys, (…, T, T).
        keys: queries that see no more keys are left out; all count where none sees more.
    """
    share = (exp(attention) * mask).sum(-1)
    return share[..., keys if keys < share.shape[-1] else 0 :].mean()


@contextmanager
def lessons(model: nn.Module, teacher: nn.Module, weight: float, keys: int) -> Iterator[list[Pair]]:
    """Let a teacher's attention note, and a model's forms compare, within the context; yield both by layer.

    Args:
        weight, keys: see `Taught`.
    """
    forms = attention_forms(model)
    pairs = {name: (Noted(), Taught(form, weight, keys)) for name, form in forms.items()}
    for name, (noted, taught) in pairs.items():
        install_form(teacher, name, noted)
        setattr(model.get_submodule(name), FORM, taught)
    try:
        yield list(pairs.values())
    finally:
        for name, form in forms.items():
            setattr(model.get_submodule(name), FORM, form)
