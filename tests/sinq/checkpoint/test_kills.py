"""Kills at every system call of a save: what loads afterwards is the model before or the one after."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sinq
from sinq import SINQ, Grid, stored_tensors
from tests.conftest import tiny_model
from tests.killed import CALLS, NEEDS_STRACE, killed

pytestmark = NEEDS_STRACE
BEFORE, AFTER = 4, 3
"""Bits of the model that is in the folder, and of the one that is saved over it."""


def compressed(bits: int) -> torch.nn.Module:
    model = tiny_model("llama")
    SINQ(Grid(bits=bits, group_size=32)).compress(model)
    return model


def save(folder: Path, wait: Callable[[], None]) -> None:
    model = compressed(AFTER)
    wait()
    sinq.save(model, folder)


def state(folder: Path) -> int | None:
    """Return the bits of the model that loads, compared to the last number; None where it is refused."""
    try:
        model = sinq.load(folder)
    except (ValueError, FileNotFoundError) as refusal:
        if "\n" in str(refusal):
            raise
        return None
    found = stored_tensors(model)
    for bits in (BEFORE, AFTER):
        expected = stored_tensors(compressed(bits))
        if all(name in found and torch.equal(found[name], tensor) for name, tensor in expected.items()):
            assert set(found) == set(expected)
            return bits
    pytest.fail(f"{folder} loads a model that was never saved")


def test_a_save_that_is_killed_leaves_one_model_or_none(tmp_path: Path) -> None:
    found: list[int | None] = []
    for call in CALLS:
        for number in itertools.count(1):
            folder, there_before = tmp_path / f"{call}{number}", len(found) % 2 == 0
            if there_before:
                sinq.save(compressed(BEFORE), folder)
            if not killed(call, number, save, folder):
                break
            found.append(state(folder))
            assert there_before or found[-1] != BEFORE
            sinq.save(compressed(AFTER), folder)
            assert state(folder) == AFTER
    assert len(found) > 20
    assert {BEFORE, AFTER, None} <= set(found)
    print(f"{len(found)} kills: {found}")
