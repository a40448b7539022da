"""State of an unfinished training as named tensors: parameters, the optimizer's moments, the log.

It is all that a killed process needs to go on to the same weights: batches and random numbers are functions
of the step. Tensors only, so that reading a file can run no code.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sinq.common.named import described
from sinq.training.log import TrainingLog

PARAMETER, MOMENT, COMPANION, LOG = "parameter", "optimizer", "companion", "log"


def name_of_state(options: Any, parameters: Mapping[str, Tensor]) -> str:
    """Return a name that only a training with the same options and shapes has."""
    shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
    content = json.dumps([described(options), shapes], sort_keys=True)
    return f"training-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def gathered(
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    companion: Mapping[str, Tensor],
    log: TrainingLog,
) -> dict[str, Tensor]:
    """Return copies, on the CPU, of all that a state has."""
    groups = {PARAMETER: parameters, MOMENT: _moments(optimizer), COMPANION: companion, LOG: log.tensors()}
    return {
        f"{group}/{name}": tensor.detach().cpu().clone().contiguous()
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def put_back(
    state: Mapping[str, Tensor], parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> TrainingLog:
    """Write a state to parameters and optimizer, and return its log."""
    for name, tensor in group_of(state, PARAMETER).items():
        parameters[name].copy_(tensor)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in group_of(state, MOMENT).items():
        index, _, kind = name.partition("/")
        moments.setdefault(int(index), {})[kind] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return TrainingLog.from_tensors(group_of(state, LOG))


def group_of(state: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    """Return the tensors of one of the groups of a state."""
    return {name.removeprefix(f"{group}/"): t for name, t in state.items() if name.startswith(f"{group}/")}


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state as `<index of the parameter>/<kind>`."""
    return dict(_each_moment(optimizer.state_dict()["state"]))


def _each_moment(state: Mapping[int, Mapping[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for index, kinds in state.items():
        for kind, tensor in kinds.items():
            yield f"{index}/{kind}", tensor
