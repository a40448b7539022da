"""Foreign checkpoints that were changed: an answer or a refusal in one line, in the memory of the files."""

import json
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.forked import fork
from tests.sinq.checkpoint.foreign.changed import KINDS, Change, try_changes
from tests.sinq.checkpoint.foreign.writers import KINDS as FORMATS
from tests.sinq.checkpoint.foreign.writers import write

CHANGES = st.builds(Change, kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
ACCEPTED = {"right", "another answer", "loaded", "refused"}
READERS = ("gptq", "awq", "compressed", "official3")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    for name, kind in FORMATS.items():
        write(folder / name, kind)
    return folder


def tried(clean: Path, work: Path, name: str, changes: list[Change]) -> Counter[str]:
    """Count what changes to a folder come to, in a process of their own."""
    results = work / uuid4().hex
    process = fork(work, try_changes, clean / name, changes, results)
    status = process.done()
    found = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for change, result in zip(changes, found, strict=False):
        assert result in ACCEPTED, f"{name}: {change}: {result}"
    assert len(found) == len(changes), f"{name}: {changes[len(found)]} ended with {status}: {process.output}"
    return Counter(found)


@pytest.mark.parametrize("name", READERS)
@given(changes=st.lists(CHANGES, min_size=16, max_size=16))
@settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_changed_checkpoint_is_refused_or_answers(
    clean: Path, tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[Change]
) -> None:
    tried(clean, tmp_path_factory.mktemp("work"), name, changes)


@pytest.mark.slow
def test_many_changed_checkpoints(clean: Path, tmp_path: Path) -> None:
    total: Counter[str] = Counter()
    for name in FORMATS:
        total += tried(clean, tmp_path, name, [Change(KINDS[k % len(KINDS)], seed=k) for k in range(190)])
    print(dict(total))
    assert total["refused"] > total.total() / 3
    assert total["right"]
