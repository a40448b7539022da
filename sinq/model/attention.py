"""Attention modules of a decoder: where they are, what they keep of a token, and where positions enter.

transformers' decoders agree on this: an attention module has the index of its layer, hands new keys and
values to `update` of the cache it is called with, and reads positions through one module (rotary embedding,
or a table of learned ones). What differs is refused by name: windows that forget tokens, and states that are
no keys.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sinq.common.errors import NotApplicable
from sinq.model.blocks import FOREIGN_ERRORS, find_blocks
from sinq.model.key_value_layer import KeyValueLayer
from sinq.model.language_model import require_next_token
from sinq.model.modes import evaluating

CACHE_NAMES = ("cache", "past_key_values")
"""Names of an attention module's argument for the cache, in transformers' order of age, newest first."""
POSITIONS = ("rotary_emb", "wpe", "embed_positions")
"""Names of the modules that read positions."""
TRIED_IDS = 2


def cache_argument(kind: Any) -> str | None:
    """Return the name of the argument of a module class's forward that is a cache; None if it has none."""
    taken = inspect.signature(kind.forward).parameters
    return next((name for name in CACHE_NAMES if name in taken), None)


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention modules of a decoder's blocks by name.

    Raises:
        NotApplicable: there is not one in each block, or the model is an encoder.
    """
    require_next_token(model, "causal attention, whose keys and values are kept")
    blocks = find_blocks(model)
    inside = {module for block in blocks for module in block.modules()}
    found = {
        name: module
        for name, module in model.named_modules()
        if module in inside and hasattr(module, "layer_idx") and cache_argument(type(module)) is not None
    }
    outermost = [name for name in found if any(other.startswith(f"{name}.") for other in found)]
    found = {name: module for name, module in found.items() if name not in outermost}
    if len(found) != len(blocks):
        raise NotApplicable(
            f"{type(model).__name__} has {len(blocks)} blocks and {len(found)} attention modules that hand"
            " keys and values to a cache; only models with one in each block can round or prefix them"
        )
    return found


@torch.no_grad()
def head_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Return heads and width of the keys of each attention module, from a run of the model.

    Raises:
        NotApplicable: the model keeps something else than growing keys and values, or values of another
        shape.
    """
    found = attentions(model)
    kept = kept_layers(model, torch.zeros(1, TRIED_IDS, dtype=torch.long))
    if any(isinstance(layer, KeyValueLayer) and layer.rounds for layer in kept):
        raise NotApplicable(
            f"{type(model).__name__} rounds keys and values already; start from the dense model, and put a"
            " prefix first"
        )
    wrong = next(
        (layer for layer in kept if type(layer).__name__ not in ("DynamicLayer", "KeyValueLayer")), None
    )
    if wrong is not None or len(kept) != len(found):
        what = (
            "a sliding window" if getattr(wrong, "is_sliding", False) else "other states than keys and values"
        )
        raise NotApplicable(
            f"{type(model).__name__} keeps {what} in its attention, and rounds or prefixes none of them; a"
            " window can be switched off with sliding_window=null in config.json where texts are shorter"
        )
    shapes = {}
    for name, module in found.items():
        layer = kept[int(module.layer_idx)]  # type: ignore[arg-type]
        if layer.keys.shape != layer.values.shape:
            raise NotApplicable(
                f"keys and values of {name} have different shapes; only equal ones can be kept"
            )
        shapes[name] = (layer.keys.shape[1], layer.keys.shape[3])
    return shapes


@torch.no_grad()
def kept_layers(model: Any, ids: Tensor) -> list[Any]:
    """Return the layers of the cache that a model makes for ids (batch, tokens).

    Raises:
        NotApplicable: it makes none.
    """
    try:
        with evaluating(model):
            output = model(ids.to(next(model.parameters()).device), use_cache=True)
    except FOREIGN_ERRORS as error:
        raise NotApplicable(f"{type(model).__name__} cannot be run with a cache: {error}") from error
    kept: Any = next((value for name in CACHE_NAMES if (value := output.get(name)) is not None), None)
    if not getattr(kept, "layers", None):
        raise NotApplicable(f"{type(model).__name__} keeps no keys and values in a cache")
    return list(kept.layers)


def position_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules through which a decoder reads positions.

    Raises:
        NotApplicable: none is known.
    """
    found = [module for name, module in model.named_modules() if name.rpartition(".")[2] in POSITIONS]
    if not found:
        raise NotApplicable(
            f"{type(model).__name__} has no module of positions that is known here"
            f" ({', '.join(POSITIONS)}), so its texts cannot begin after a prefix"
        )
    return found
