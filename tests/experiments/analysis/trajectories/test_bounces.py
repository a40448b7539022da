"""Drop and rebound of made trainings by hand, their verdicts, and the command."""

import csv
from pathlib import Path
from statistics import stdev

import pytest

from experiments.analysis.trajectories.bounces import ENTROPY, RANK, lines
from experiments.results.trajectories import trajectories
from tests.experiments.analysis.command import command
from tests.experiments.checkpoints import checkpoint, course
from tests.experiments.rows import finished, store

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # by runpy


def test_a_line_is_drop_and_rebound_by_hand() -> None:
    (line,) = lines(trajectories(course({0: 2.5, 10: 1.5, 30: 1.0, 60: 1.3})), ENTROPY)
    assert (line.start, line.minimum, line.step, line.end) == (2.5, 1.0, 30, 1.3)
    assert line.drop == pytest.approx(0.6)
    assert line.rebound == pytest.approx(0.2)
    assert (line.seeds, line.spread, line.verdict) == (1, None, "drop and rebound (one seed)")


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({0: 2.5, 1: 2.0, 2: 1.0}, "drop only"),
        ({0: 2.5, 1: 1.0, 2: 1.1}, "drop only"),
        ({0: 2.5, 1: 2.46, 2: 2.6}, "no drop"),
        ({0: 2.5, 1: 2.6, 2: 2.7}, "no drop"),
    ],
)
def test_a_verdict_needs_both(values: dict[int, float], verdict: str) -> None:
    (line,) = lines(trajectories(course(values)), ENTROPY)
    assert line.verdict == verdict


@pytest.mark.parametrize(("ends", "verdict"), [
    ((1.5, 1.6, 1.7), "drop and rebound"),
    ((1.0, 1.2, 1.9), "rebound within the spread of seeds"),
])  # fmt: skip
def test_seeds_are_averaged_and_their_spread_counts(ends: tuple[float, ...], verdict: str) -> None:
    rows = [row for seed, end in enumerate(ends) for row in course({0: 2.0, 1: 1.0, 2: end}, seed=seed)]
    (line,) = lines(trajectories(rows), ENTROPY)
    rebounds = [end - 1.0 for end in ends]
    assert line.rebound == pytest.approx(sum(rebounds) / 3)
    assert line.spread == pytest.approx(stdev(rebounds))
    assert (line.seeds, line.verdict) == (3, verdict)


def test_of_stable_ranks_the_lower_matrices_count() -> None:
    rows = []
    for step, value in {0: 9.0, 1: 5.0, 2: 7.0}.items():
        row = checkpoint(step)
        row["samples"] = {
            "stable_rank": {"stable_rank": {"a.0.fc1": value, "a.0.fc2": 1.0, "a.0.q_proj": 2.0}}
        }
        rows.append(row)
    (line,) = lines(trajectories(rows), RANK)
    assert (line.layer, line.minimum, line.step) == ("a.0.fc1", 5.0, 1)


def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, *course({0: 2.5, 10: 1.0, 60: 1.3}))
    assert command(monkeypatch, "trajectories", "--results", tmp_path, "--out", tmp_path / "t.csv") == 0
    assert "drop and rebound" in " ".join(capsys.readouterr().out.split())
    with (tmp_path / "t.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert (line["quantity"], line["minimum"], line["verdict"]) == (
        "entropy", "1.0", "drop and rebound (one seed)",
    )  # fmt: skip
    assert command(monkeypatch, "trajectories", "--results", tmp_path, "--out", "t.txt") == 1


def test_a_folder_without_trainings_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, finished("none"), *course({0: 2.5, 10: 1.0}))
    assert command(monkeypatch, "trajectories", "--results", tmp_path) == 1
    assert "has no training with 3 steps or more; measure some with" in " ".join(
        capsys.readouterr().out.split()
    )
