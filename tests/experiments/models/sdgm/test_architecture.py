"""The spectral dictionary as an architecture: it learns more than frequencies, and its size is known."""

import math

import pytest
import torch

from experiments.models.architectures import Architecture, Transformer
from experiments.models.sdgm.architecture import SpectralDictionary
from experiments.models.sdgm.pointer import Head
from tests.experiments.models.sdgm.tiny import FOUR, ONE


@pytest.mark.parametrize("architecture", [ONE, FOUR], ids=["one", "four"])
def test_training_finds_what_depends_on_the_tokens_before(architecture: SpectralDictionary) -> None:
    """The next token is twice the present one: all are equally frequent, so counting them gives ln 36."""
    torch.manual_seed(0)
    model = architecture.model(40, 64).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(150):
        windows = _doubled(torch.randint(1, 37, (8, 1)))
        optimizer.zero_grad()
        architecture.loss(model, windows).backward()
        optimizer.step()
    with torch.no_grad():
        found = model(_doubled(torch.arange(1, 37)[:, None]), labels=_doubled(torch.arange(1, 37)[:, None]))
    assert found.loss.item() < 0.5 * math.log(36)


def _doubled(first: torch.Tensor) -> torch.Tensor:
    """Return windows (n, 32) that begin with ids (n, 1), each next one twice the last, modulo 37."""
    return torch.cat([first * 2**step % 37 for step in range(32)], dim=1)


def _size(architecture: Architecture) -> int:
    return sum(parameter.numel() for parameter in architecture.model(4096, 256).parameters())


def test_the_baseline_has_as_many_parameters() -> None:
    """The transformer that conf/model/sdgm1.yaml names beside it."""
    ours, baseline = _size(SpectralDictionary()), _size(Transformer(neurons=1472))
    assert (ours, baseline) == (3_474_305, 3_490_560)


def test_labels_say_what_differs() -> None:
    assert (ONE.label, FOUR.label) == ("sdgm1", "sdgm4")
    assert SpectralDictionary(stacked=True).label == "sdgm1-stacked"
    assert SpectralDictionary(head=Head.mean).label == "sdgm1-mean"
    assert SpectralDictionary(modulation=8, shared_frequency=True).label == "sdgm1-modulated-shared"
