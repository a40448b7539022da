"""The model of the suites `quantize-model` and `decode`.

It is the embedded model if that was converted already, else random weights in the same shape.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experiments.models.embedded import SMOLLM2
from experiments.models.source import DType, Pretrained, SmolLM2, load

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AUTO, EMBEDDED, RANDOM = "auto", "smollm2", "random"
SHAPE: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""Shape of SmolLM2-135M."""


@dataclass(frozen=True)
class Named:
    """A dense model in float32, and its name."""

    name: str
    dense: "PreTrainedModel"


def find(wanted: str, device: torch.device) -> Named:
    """Return a model on a device.

    Args:
        wanted: `smollm2`, `random`, a Hugging Face folder, or `auto` (`smollm2` where no download is needed,
            else `random`).

    Raises:
        ValueError: there is no such model.
    """
    if wanted == AUTO:
        wanted = EMBEDDED if SMOLLM2.is_cached else RANDOM
    if wanted == RANDOM:
        from transformers import AutoModelForCausalLM, LlamaConfig

        torch.manual_seed(0)
        model = (
            AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.float32)
            .eval()
            .requires_grad_(False)
        )
        return Named("random weights in the shape of SmolLM2-135M", model.to(device))
    if wanted == EMBEDDED:
        return Named("SmolLM2-135M", load(SmolLM2(DType.float32), device).model)
    if not Path(wanted).is_dir():
        raise ValueError(
            f"--model {wanted} does not exist; give {AUTO}, {EMBEDDED}, {RANDOM} or a Hugging Face folder"
        )
    return Named(Path(wanted).name, load(Pretrained(DType.float32, path=wanted), device).model)
