"""Attention of another form: a module in place of softmax attention, between the projections.

transformers' decoders compute queries, keys and values (with positions), and call a function that is chosen
by the configuration. Here an attention module gets a copy of its configuration that names our function, and
that function calls the module's `AttentionForm`:

    q k v ▶ positions ▶ form(q, k, v, scale) ▶ o

No code of an architecture is replaced; masks of the model, and other models of the same configuration, stay
as they are.

A form reads a whole text in one pass. It keeps no state from call to call, so the model has no cache: what
generates token by token reads the text again (`generate` does, by itself). A cache with tokens is refused.
So are texts padded on the left: a form counts visible keys from the first token. Padding on the right is
never seen by a real token.
"""

import copy
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sinq.common.errors import NotApplicable
from sinq.model.attention import CACHE_NAMES, attentions
from sinq.model.blocks import FOREIGN_ERRORS
from sinq.model.modes import evaluating
from sinq.model.sharing import sparing_clone

FORM = "attention_form"
"""Name of the module that an attention module gets."""
IMPLEMENTATION = "sinq_attention_form"
"""Name of our function among transformers' implementations of attention."""
OTHERS = ("softcap", "s_aux", "position_bias")
"""Arguments by which transformers asks for other scores than products of queries and keys."""
TRIED_IDS = 2


class AttentionForm(nn.Module, ABC):
    """A causal attention."""

    @abstractmethod
    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the output (batch, heads, tokens, width).

        Args:
            query: (batch, heads, tokens, width).
            key, value: (batch, kv heads, tokens, width); heads that share one are next to each other.
            scale: factor of the products of queries and keys.
        """


def install_form(model: Any, name: str, form: AttentionForm) -> None:
    """Let an attention module of a model compute by a form, in place of softmax attention or another form.

    Raises:
        ValueError: the model has no such module, or it does not choose its attention by the configuration.
    """
    attention: Any = dict(model.named_modules()).get(name)
    config: Any = getattr(attention, "config", None)
    if attention is None or not hasattr(config, "_attn_implementation"):
        raise ValueError(f"{type(model).__name__} has no attention module {name} that can have another form")
    if config._attn_implementation != IMPLEMENTATION:
        _register()
        attention.config = copy.copy(config)
        attention.config._attn_implementation_internal = IMPLEMENTATION
    attention.add_module(FORM, form)
    _read_whole(model)


def attention_forms(model: nn.Module) -> dict[str, AttentionForm]:
    """Return the forms of a model by the name of their attention module."""
    ending = f".{FORM}"
    return {
        name.removesuffix(ending): module
        for name, module in model.named_modules()
        if isinstance(module, AttentionForm) and name.endswith(ending)
    }


class Sized(AttentionForm):
    """A form that notes sizes: it tells whether an attention module calls a form at all."""

    sizes: tuple[int, int] | None = None
    """Heads of queries, and their width."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if value.shape[3] != query.shape[3]:
            raise ValueError("its values are not as wide as its keys")
        self.sizes = query.shape[1], query.shape[3]
        return torch.zeros_like(query)


@torch.no_grad()
def query_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Return heads and width of the queries of each attention module, all of which can have another form.

    Raises:
        NotApplicable: one cannot.
    """
    clone = sparing_clone(model)
    forms = {name: Sized() for name in attentions(clone)}
    try:
        for name, form in forms.items():
            install_form(clone, name, form)
        with evaluating(clone):
            clone(torch.zeros(1, TRIED_IDS, dtype=torch.long, device=next(clone.parameters()).device))
    except FOREIGN_ERRORS as error:
        raise NotApplicable(
            f"{type(model).__name__} cannot have attention of another form: {error}"
        ) from error
    if silent := [name for name, form in forms.items() if form.sizes is None]:
        raise NotApplicable(
            f"{silent[0]} of {type(model).__name__} does not choose its attention by the configuration, so it"
            " cannot have another form; Llama, Qwen and OPT can"
        )
    return {name: form.sizes for name, form in forms.items() if form.sizes is not None}


def repeated(states: Tensor, heads: int) -> Tensor:
    """Return keys or values (batch, kv heads, tokens, width) for each head, (batch, heads, tokens, width)."""
    return states if states.shape[1] == heads else states.repeat_interleave(heads // states.shape[1], 1)


def _register() -> None:
    from transformers import AttentionInterface  # late: importing it takes seconds

    AttentionInterface.register(IMPLEMENTATION, attend)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute attention by a module's form, as transformers calls it; return (batch, tokens, heads, width).

    Raises:
        ValueError: there are keys of other tokens than the queries', the mask hides more than padding, or the
            scores are no products of queries and keys.
    """
    window = others.get("sliding_window") or math.inf
    if window < query.shape[2] or any(others.get(name) is not None for name in OTHERS):
        raise ValueError(
            f"{type(module).__name__} changes its scores, or has a window of {window} tokens; attention of"
            " another form is for full attention by products"
        )
    if key.shape[2] != query.shape[2]:
        raise ValueError(
            f"{type(getattr(module, FORM)).__name__} reads a text in one pass and was called with"
            f" {query.shape[2]} queries and {key.shape[2]} keys; use use_cache=False, no prefix, and kv=none"
        )
    require_causal(attention_mask)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = getattr(module, FORM)(query, key, value, scale)
    return output.transpose(1, 2).contiguous(), None


def require_causal(mask: Tensor | None) -> None:
    """Raise `ValueError` unless a mask hides only later tokens and padding on the right.

    Args:
        mask: (batch or 1, heads or 1, queries, keys), True or 0 where visible; None for causal.
    """
    if mask is None:
        return
    visible = mask if mask.dtype == torch.bool else mask == 0
    last = visible[:, :, -1]
    if bool((last[..., 1:] & ~last[..., :-1]).any()) or not bool(visible[..., 0].all()):
        raise ValueError(
            "a text is padded on the left, or has a window of attention; attention of another form needs"
            " padding on the right (tokenizer.padding_side='right'), and texts one at a time to generate"
        )


def _read_whole(model: Any) -> None:
    """Let a model have no cache, and let `generate` know it."""
    model.config.use_cache = False
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.use_cache = False
    if without_cache not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(without_cache, with_kwargs=True)


def without_cache(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let a model keep no keys and values: a hook before its forward.

    Raises:
        ValueError: it is given a cache.
    """
    if any(kwargs.get(name) is not None for name in CACHE_NAMES):
        raise ValueError(
            f"{type(model).__name__} has attention of another form, which keeps no keys and values from call"
            " to call; use use_cache=False"
        )
    return args, kwargs | {"use_cache": False}
