"""LoRAPrune on tiny models, for its tests."""

import copy
from typing import Any

from torch import nn

from baselines.dense import Dense
from baselines.loraprune import LoRAPrune
from baselines.loraprune.schedule import Sparsity
from sinq import Calibration
from sinq.training.lora import LoRA
from sinq.training.trainer import Training
from tests.conftest import tiny_tokens

KINDS = ("llama", "qwen3-tied", "gpt2", "opt")
TEXT = Calibration(tiny_tokens(8, 24))
SHORT = Training(steps=10, batch=4, at_once=2, learning_rate=1e-2)


def quick(ratio: float = 0.5, **options: Any) -> LoRAPrune:
    """The method on all blocks of a tiny model, with masks changed at every step."""
    schedule = {"every": 1, "last_update": True} | options.pop("sparsity", {})
    return LoRAPrune(
        **{
            "then": Dense(),
            "sparsity": Sparsity(ratio, **schedule),
            "keep_first": 0.0,
            "keep_last": 0,
            "lora": LoRA(4),
            "training": SHORT,
        }
        | options
    )


class StopError(Exception):
    """An interruption in the middle of a training."""


def sharing(model: nn.Module) -> Any:
    """A copy of a model's modules that shares all of its parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
