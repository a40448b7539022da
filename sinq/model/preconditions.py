"""Conditions on a model, checked before anything is done to it; one error says what to do."""

import inspect
import re
import sys
from typing import Any

from torch import nn

CHANGES_WEIGHTS = re.compile(r"\w+\.weight\.(div|mul|add|sub)_\(")
"""Pattern of code that changes a weight in place."""


def require_in_memory(model: nn.Module) -> None:
    """Raise `ValueError` if a model is a wrapper, quantized already, or without weights in memory."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(f"{type(model).__name__} is a wrapper; compress the model in it (`.module`)")
    if method := quantized_by(model):
        raise ValueError(
            f"{type(model).__name__} is quantized already, by {method}; load its original weights"
        )
    away = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if away:
        raise ValueError(
            f"{len(away)} weights of {type(model).__name__}, such as {away[0]}, are not in memory (on the"
            " meta device, or offloaded to disk by a device map); load the model without offloading, or use"
            " sinq.stream, which reads a checkpoint layer by layer"
        )


def quantized_by(model: nn.Module) -> str | None:
    """Return the name of the method that quantized a model before it was loaded, or None.

    A GGUF file is dequantized when transformers loads it, so its model is none.
    """
    config: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return None
    options = config if isinstance(config, dict) else config.to_dict()
    method = options.get("quant_method", "an unknown method")
    name = str(getattr(method, "value", method))
    return None if name == "gguf" else name


def require_constant_weights(model: nn.Module) -> None:
    """Raise `ValueError` if the code of a model changes weights in place while it runs.

    RWKV's does: it divides some, to keep half precision from overflowing, unless `rescale_every` is 0.
    """
    module = sys.modules.get(type(model).__module__)
    config = getattr(model, "config", None)
    if module is None or config is None or getattr(config, "rescale_every", None) == 0:
        return
    if found := CHANGES_WEIGHTS.search(inspect.getsource(module)):
        hint = "; set rescale_every=0 in its configuration" if hasattr(config, "rescale_every") else ""
        raise ValueError(
            f"the code of {type(model).__name__} changes weights while it runs ({found[0]}…),"
            f" so compressed ones cannot stand for them{hint}"
        )


def require_language_model(model: nn.Module) -> None:
    """Raise `ValueError` if a model cannot be run on token ids as a transformers model is."""
    if not hasattr(model, "base_model") or not hasattr(model, "config"):
        raise ValueError(
            f"{type(model).__name__} is not a transformers model, which calibration runs;"
            " compress the model itself, not a module around it"
        )
