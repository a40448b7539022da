"""transformers' `Conv1D`: a linear layer of GPT-2 and others that stores its matrix transposed, (in, out).

The class is looked up where transformers has been imported already: a model that has such a layer did so, and
importing transformers takes longer than importing torch.
"""

import sys
from typing import Any

from torch import nn


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is a `Conv1D`."""
    return isinstance(module, conv1d() or ())


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer by its class: `nn.Linear`, `Conv1D`, or a subclass."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def conv1d() -> Any:
    """Return the class, or None where nothing has imported it yet."""
    return getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
