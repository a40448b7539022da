"""Folders that were changed: the right answer or a refusal in one line, and never a memory error."""

import json
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.forked import fork
from tests.sinq.checkpoint.tampering import BYTES, FORMATS, JSON, TENSOR, Change, save_clean, try_changes

CHANGES = st.builds(
    Change,
    kind=st.sampled_from((*BYTES, *TENSOR, *JSON)),
    seed=st.integers(0, 2**32),
    sealed=st.booleans(),
)
BATCH = 12
"""Changes that one process tries."""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    for name in FORMATS:
        save_clean(folder / name, name)
    return folder


def outcomes(clean: Path, work: Path, name: str, changes: list[Change]) -> list[str]:
    """What each change to a folder comes to; the last is the end of the process if that crashed."""
    results = work / uuid4().hex
    process = fork(work, try_changes, clean / name, changes, results)
    status = process.done()
    found = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    return found if status == 0 else [*found, f"ended with {status}: {process.output}"]


def judge(changes: list[Change], found: list[str]) -> Counter[str]:
    """Count outcomes; only a change that a program would make itself may lead to another answer."""
    counts: Counter[str] = Counter()
    for change, result in zip(changes, found, strict=False):
        accepted = {"right", "refused"} | (
            {"another answer"} if change.sealed and change.kind not in BYTES else set()
        )
        assert result in accepted, f"{change}: {result}"
        counts[result] += 1
    assert len(found) == len(changes)
    return counts


@pytest.mark.parametrize("name", FORMATS)
@given(changes=st.lists(CHANGES, min_size=BATCH, max_size=BATCH))
@settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_changed_folder_is_refused_or_right(
    clean: Path, tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[Change]
) -> None:
    judge(changes, outcomes(clean, tmp_path_factory.mktemp("work"), name, changes))


@pytest.mark.slow
def test_two_thousand_changed_folders(clean: Path, tmp_path: Path) -> None:
    total: Counter[str] = Counter()
    kinds = (*BYTES, *TENSOR, *JSON)
    for name in FORMATS:
        for part in range(6):
            numbers = range(part * 48, (part + 1) * 48)
            changes = [
                Change(kinds[k % len(kinds)], seed=k, sealed=k // len(kinds) % 2 == 0) for k in numbers
            ]
            total += judge(changes, outcomes(clean, tmp_path, name, changes))
    print(dict(total))
    assert total["refused"] > total.total() / 2
    assert total["right"]
