"""Gradients of the language-model loss by layers' weights, passed on window by window without being kept.

The loss is the mean cross-entropy of the next token, in float32. One window at a time goes through the whole
model, forwards and backwards. Activations inside a block are dropped on the way forwards and computed again
on the way back, so that only one block's activations are in memory: on SmolLM2-135M with 2,048 tokens the
peak is 2.0 GB above the model instead of 4.3. Each weight's gradient is passed to its statistic as soon as it
is computed, and is freed: there are never gradients of more than one weight.

The model is restored afterwards: which parameters require a gradient, the gradients they have, and the
training mode of modules.

Not covered: one block at a time on a device, as statistics of inputs are taken. The model runs on its own
device, and must fit there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sinq.calibration.statistics import Gradient
from sinq.model.language_model import require_next_token
from sinq.model.modes import evaluating
from sinq.model.preconditions import require_language_model
from sinq.model.recomputing import recomputing
from sinq.model.targets import Target


def feed_gradients(
    model: nn.Module, targets: Sequence[Target], tokens: Tensor, statistics: Sequence[Gradient]
) -> None:
    """Pass every statistic the gradient of the loss by its target's weight, once for each window.

    Args:
        tokens: ids (windows, seqlen).

    Raises:
        ValueError: a window's loss is not finite.
    """
    require_language_model(model)
    receivers = [
        _receiver(target, statistic, tokens.shape[1])
        for target, statistic in zip(targets, statistics, strict=True)
    ]
    with (
        evaluating(model),
        _differentiating(model, [target.tensor for target in targets], receivers),
        recomputing(model),
    ):
        for index, window in enumerate(tokens):
            loss = next_token_loss(model, window)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the model's loss on calibration window {index} is {loss.item()},"
                    " which has no gradient to work from"
                )
            loss.backward()


def next_token_loss(model: Any, windows: Tensor) -> Tensor:
    """Return the mean cross-entropy of each token of a window given those before it.

    It is a scalar, in nats, in float32 or a wider type.

    Args:
        windows: ids of one window (seqlen,), or of several (windows, seqlen).

    Raises:
        NotApplicable: the model is an encoder, which sees the next token.
    """
    require_next_token(model, "loss of the next token")
    ids = windows.reshape(-1, windows.shape[-1]).to(next(model.parameters()).device)
    logits = model(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(wide, ids[:, 1:].flatten().to(logits.device))


def _receiver(target: Target, statistic: Gradient, tokens: int) -> Callable[[Tensor], None]:
    """Return a hook that moves a parameter's gradient into a statistic."""

    def receive(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        with torch.no_grad():
            matrices = list(target.split(gradient).values())
            statistic.update(matrices[0] if len(matrices) == 1 else torch.cat(matrices), tokens)

    return receive


@contextmanager
def _differentiating(
    model: nn.Module, wanted: Sequence[nn.Parameter], receivers: Sequence[Callable[[Tensor], None]]
) -> Iterator[None]:
    """Compute gradients of `wanted` alone within the context, and call the receiver of each."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    with ExitStack() as stack:
        for parameter, requires_grad, gradient in before:
            stack.callback(_restore, parameter, requires_grad, gradient)
            parameter.grad = None
            parameter.requires_grad_(False)
        for parameter, receive in zip(wanted, receivers, strict=True):
            parameter.requires_grad_(True)
            stack.callback(parameter.register_post_accumulate_grad_hook(receive).remove)
        stack.enter_context(torch.enable_grad())
        yield


def _restore(parameter: nn.Parameter, requires_grad: bool, gradient: Tensor | None) -> None:
    parameter.requires_grad_(requires_grad)
    parameter.grad = gradient
