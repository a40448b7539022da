"""The training of a model with attention of another form, beside the model that it was made of.

The student's own parameters are replaced by float32 copies, since the teacher shares the old ones; they take
the model's number format again at the end.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from baselines.sea.lessons import Pair
from baselines.sea.losses import Losses, divergence, hidden_distance
from sinq.model.attention_forms.form import FORM
from sinq.model.attention_forms.sparse import EstimatedAttention
from sinq.training.batches import seed_of

JITTER = 0.75
"""Columns by which a key is moved at most."""


def trained_parameters(model: nn.Module, base: bool) -> dict[str, nn.Parameter]:
    """Return the parameters to train by name, all of them ready for it; no other requires a gradient.

    Args:
        base: True to train all parameters, False for those of forms alone.
    """
    if base:
        widen(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and (base or is_new(name)))
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_new(name: str) -> bool:
    """Return whether a parameter is one of a form's, by its name."""
    return FORM in name.split(".")


def widen(model: nn.Module) -> None:
    """Put float32 copies in place of all floating-point parameters but those of forms; ties stay."""
    copies: dict[int, nn.Parameter] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point() and not is_new(f"{name}.{key}"):
                fresh = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
                module._parameters[key] = copies.setdefault(id(parameter), fresh)


def settle(model: nn.Module, like: nn.Module) -> None:
    """End a training: no key is moved, parameters need no gradient and have the number formats of `like`."""
    for module in model.modules():
        if isinstance(module, EstimatedAttention):
            module.jitter = 0.0
    formats = {name: parameter.dtype for name, parameter in like.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
        if name in formats and parameter.dtype != formats[name]:
            parameter.data = parameter.data.to(formats[name])


class Student:
    """The losses of a model that is taught, and what a training asks of it besides.

    Args:
        teacher: the model before.
        attentions: the attentions of both, from `lessons`.
        jitter: share of the windows in which keys are moved at random.
        redraw: steps after which random features are drawn anew.
    """

    def __init__(
        self,
        teacher: nn.Module,
        model: nn.Module,
        attentions: Sequence[Pair],
        losses: Losses,
        jitter: float,
        redraw: int,
        seed: int,
    ) -> None:
        self._teacher, self._model, self._attentions, self._losses = teacher, model, attentions, losses
        self._jitter, self._redraw, self._seed = jitter, redraw, seed
        forms = [taught.form for _, taught in attentions]
        self._estimated = [form for form in forms if isinstance(form, EstimatedAttention)]
        self._recalls: list[float] = []

    def loss(self, windows: Tensor) -> Tensor:
        """Return the loss of windows of ids (windows, tokens), a scalar."""
        ids = windows.to(next(self._model.parameters()).device)
        wanted = self._asked(ids)
        self._set_jitter()
        found = self._run(self._model, ids)
        self._note_recall()
        return self._combined(wanted, found, ids)

    def measures(self) -> Mapping[str, float]:
        """Return the mean recall of attention since the last call, where the form leaves out keys."""
        found, self._recalls = self._recalls, []
        return {"recall": sum(found) / len(found)} if found else {}

    def before_update(self, step: int) -> None:
        """Draw new random features when it is time: a companion of the training."""
        if (step + 1) % self._redraw == 0:
            generator = torch.Generator().manual_seed(seed_of(self._seed, step + 1))
            for form in self._estimated:
                form.estimator.omega.copy_(form.estimator.draw_features(generator))

    def state(self) -> Mapping[str, Tensor]:
        """Return the random features, which are no parameters."""
        return {str(index): form.estimator.omega for index, form in enumerate(self._estimated)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put random features of before back."""
        for index, form in enumerate(self._estimated):
            form.estimator.omega.copy_(state[str(index)])

    @torch.no_grad()
    def _asked(self, ids: Tensor) -> Any:
        """Return the teacher's output, and give its notes to the student."""
        output = self._run(self._teacher, ids)
        for noted, taught in self._attentions:
            taught.notes = noted.notes
        return output

    def _run(self, model: Any, ids: Tensor) -> Any:
        return model(ids, use_cache=False, output_hidden_states=True)

    def _set_jitter(self) -> None:
        moved = bool(torch.rand(()) < self._jitter)
        for form in self._estimated:
            form.jitter = JITTER if moved else 0.0

    def _note_recall(self) -> None:
        found = [taught.recall.item() for _, taught in self._attentions if taught.recall is not None]
        self._recalls += [sum(found) / len(found)] if found else []

    def _combined(self, wanted: Any, found: Any, ids: Tensor) -> Tensor:
        weights = self._losses
        entropy = nn.functional.cross_entropy(
            found.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().to(found.logits.device)
        )
        attention = torch.stack([taught.loss for _, taught in self._attentions]).mean()
        return (
            weights.next_token * entropy
            + weights.hidden * hidden_distance(wanted.hidden_states[1:], found.hidden_states[1:])
            + weights.logits * divergence(_log_softmax(wanted.logits), _log_softmax(found.logits))
            + attention
        )


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)
