"""Rounded queries: what some papers count as inputs of attention beside keys and values (OmniQuant's W4A4).

Queries are kept nowhere, so they do not pass the cache where keys and values are rounded. transformers'
decoders hand all three to a function that the configuration names. An attention module gets a copy of its
configuration that names ours, which lets the module's `KeyValueStore` round the queries and calls the
function that was named before. Masks, caches and code of the architecture stay as they are.
"""

import copy
import sys
from typing import Any

from torch import Tensor, nn

from sinq.common.errors import NotApplicable
from sinq.model.attention_forms.form import query_shapes
from sinq.model.key_values import STORE

IMPLEMENTATION = "sinq_rounded_queries"
"""Name of our function among transformers' implementations of attention."""
BEFORE = "attention_before"
"""Attribute of an attention module: the implementation that was named before."""


def require_reached(model: nn.Module, label: str) -> None:
    """Raise `NotApplicable` for a model whose attention does not call the function of its configuration."""
    try:
        query_shapes(model)
    except NotApplicable as error:
        raise NotApplicable(f"{label}: queries cannot be rounded; {error}") from error


def round_queries(attention: Any) -> None:
    """Let the store of an attention module round its queries.

    Raises:
        ValueError: the module does not choose its attention by a configuration.
    """
    config: Any = getattr(attention, "config", None)
    if not hasattr(config, "_attn_implementation"):
        raise ValueError(f"{type(attention).__name__} does not choose its attention by the configuration")
    if config._attn_implementation == IMPLEMENTATION:
        return
    _register()
    setattr(attention, BEFORE, config._attn_implementation)
    attention.config = copy.copy(config)
    attention.config._attn_implementation_internal = IMPLEMENTATION


def _register() -> None:
    from transformers import AttentionInterface  # late: importing it takes seconds

    AttentionInterface.register(IMPLEMENTATION, attend)


def attend(module: Any, query: Tensor, *others: Any, **named: Any) -> Any:
    """Round queries (batch, heads, tokens, width), and compute attention by the function named before."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    before = ALL_ATTENTION_FUNCTIONS.get_interface(getattr(module, BEFORE), plain)
    return before(module, getattr(module, STORE).rounded_queries(query), *others, **named)
