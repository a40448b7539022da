"""The model card beside a saved model: what is stored, facts of the run it came from, how to load it, limits.

The head of the file is what the hub reads: the library, tags, and the model that was compressed. Facts are
given as pairs; a run gives its method, its options and what it measured (`experiments/runs/kept.py`).
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sinq.formats.base import CompressedWeight
from sinq.model.edits import edits, weight_stores
from sinq.model.language_model import auto_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CARD = "README.md"
HEAD = """---
library_name: transformers
tags: [sinq, quantized]
---
# {title}
"""
USE = """
## Use

```python
import sinq  # of sinq-harness; makes transformers know the folder
from transformers import {loader}

model = {loader}.from_pretrained("folder")
```

## Limits

Other engines do not read this folder. Compressed layers are not trained: adapters stand beside them
(`sinq.transformers.lora`). Numbers above, if there are any, hold for the text and device they name.
"""


def model_card(model: "PreTrainedModel", tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Return the card, Markdown.

    Args:
        tensors: all that are stored, by name.
        about: further facts by name, in the order of the table.
    """
    use = USE.format(loader=auto_class(model.config).__name__)
    title = f"{type(model).__name__}, {'compressed' if edits(model) else 'dense'}"
    return HEAD.format(title=title) + facts_table(_stored(model, tensors) | dict(about)) + use


def facts_table(facts: Mapping[str, Any]) -> str:
    """Return named facts as a table of Markdown, in order."""
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    return "\n".join(["", "| | |", "|---|---|", *rows, ""])


def _cell(value: Any) -> str:
    """Return a value in one line of a table."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _stored(model: "PreTrainedModel", tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return facts about what is stored: matrices of each kind, dense tensors, edits."""
    kinds: dict[str, list[CompressedWeight]] = defaultdict(list)
    for store in weight_stores(model):
        kinds[_kind(store.value)].append(store.value)
    facts = {kind: _size(values) for kind, values in kinds.items()}
    compressed = sum(value.nbytes for values in kinds.values() for value in values)
    total = sum(tensor.nbytes for tensor in tensors.values())
    others = sorted({change.name for change in edits(model)} - {"replace_linear", "replace_experts"})
    facts["dense tensors"] = f"{(total - compressed) / 1e6:.2f} MB, {str(model.dtype).removeprefix('torch.')}"
    facts["all tensors"] = f"{total / 1e6:.2f} MB"
    return facts | ({"other changes to the model": ", ".join(others)} if others else {})


def _kind(value: CompressedWeight) -> str:
    grid = getattr(value, "grid", None)
    return f"matrices, {value.name if grid is None else grid.label}"


def _size(values: list[CompressedWeight]) -> str:
    nbytes = sum(value.nbytes for value in values)
    weights = sum(value.shape[0] * value.shape[1] for value in values)
    return f"{len(values)}, {8 * nbytes / weights:.3f} bits per weight, {nbytes / 1e6:.2f} MB"
