"""Changed checkpoints, with every reader: an answer or a refusal in one line, in the memory of the files."""

import json
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tests.forked import fork
from tests.sinq.checkpoint.foreign.changed import DENSE, FILES, KINDS, Change, try_changes
from tests.sinq.checkpoint.foreign.writers import CONFIG, write
from tests.sinq.checkpoint.foreign.writers import KINDS as FORMATS
from tests.sinq.checkpoint.tampering import save_clean

ACCEPTED = {"right", "another answer", "loaded", "refused"}
READ = ("gptq", "awq", "compressed", "official3")
"""Formats that are tried each time."""
OTHERS = {"ours": FILES, "dense": (*DENSE, *FILES)}
"""Changes that other readers are tried with; those of our tensors and edits are in `test_tampered.py`."""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    for name, kind in FORMATS.items():
        write(folder / name, kind)
    save_clean(folder / "ours", "sinq")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(folder / "dense")
    return folder


def tried(clean: Path, work: Path, name: str, changes: list[Change]) -> Counter[str]:
    """Count what changes to a folder come to, in a process of their own."""
    results = work / uuid4().hex
    reader = name if name in OTHERS else "foreign"
    process = fork(work, try_changes, clean / name, reader, changes, results)
    status = process.done()
    found = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for change, result in zip(changes, found, strict=False):
        assert result in ACCEPTED, f"{name}: {change}: {result}"
    assert len(found) == len(changes), f"{name}: {changes[len(found)]} ended with {status}: {process.output}"
    return Counter(found)


@pytest.mark.parametrize("name", [*READ, *OTHERS])
@given(data=st.data())
@settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_changed_checkpoint_is_refused_or_answers(
    clean: Path, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    kinds = st.sampled_from(OTHERS.get(name, KINDS))
    change = st.builds(Change, kind=kinds, seed=st.integers(0, 2**32))
    changes = data.draw(st.lists(change, min_size=16, max_size=16))
    tried(clean, tmp_path_factory.mktemp("work"), name, changes)


@pytest.mark.slow
def test_many_changed_checkpoints(clean: Path, tmp_path: Path) -> None:
    total: Counter[str] = Counter()
    for name in (*FORMATS, *OTHERS):
        kinds = OTHERS.get(name, KINDS)
        found = tried(clean, tmp_path, name, [Change(kinds[k % len(kinds)], seed=k) for k in range(190)])
        print(name, dict(found))
        total += found
    print(dict(total))
    assert total["refused"] > total.total() / 3
    assert total["right"]
