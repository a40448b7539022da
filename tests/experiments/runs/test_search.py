"""The search against brute force over what it tried, on rows made by hand; and once for real."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the extra search is not installed")

from experiments.results import record
from experiments.runs.search import Search
from tests.experiments.sweeping import start

SPACE = {"bits": [2, 3, 4, 8], "group_size": [32, 64], "method": ["a", "b"]}


class Bench:
    """Make rows in which more bits are better and b is smaller and worse than a; count the requests."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[float, float]] = {}
        self.asked = 0

    def __call__(self, options: Sequence[str]) -> Any:
        self.asked += 1
        chosen = dict(option.split("=") for option in options)
        bits, group, b = int(chosen["bits"]), int(chosen["group_size"]), chosen["method"] == "b"
        if (bits, b) == (8, True):
            return None
        size, perplexity = bits * 100.0 + 3200 / group - 30 * b, 20 + 80 / bits**2 + group / 64 + 3 * b
        self.made["".join(options)] = (size, perplexity)
        return {
            "run_id": "".join(options),
            "metrics": {"size": {"model_nbytes": size}, "perplexity": {"value": perplexity}},
        }


def best(made: dict[str, tuple[float, float]], max_bytes: float = float("inf")) -> set[str]:
    """Return the names within the budget that nothing within it equals in both numbers and beats in one."""
    within = {name: value for name, value in made.items() if value[0] <= max_bytes}
    return {
        n
        for n, v in within.items()
        if not any(w != v and w[0] <= v[0] and w[1] <= v[1] for w in within.values())
    }


@pytest.mark.parametrize("max_bytes", [None, 420.0])
def test_the_front_is_what_nothing_tried_beats(tmp_path: Path, max_bytes: float | None) -> None:
    bench = Bench()
    front = Search(SPACE, trials=30, max_bytes=max_bytes).front(bench, [], tmp_path)
    assert set(front) == best(bench.made, max_bytes or float("inf"))
    assert [bench.made[name][0] for name in front] == sorted(bench.made[name][0] for name in front)
    assert bench.asked == 30


def test_a_budget_in_perplexity_leaves_out_what_is_beyond(tmp_path: Path) -> None:
    bench = Bench()
    front = Search(SPACE, trials=30, max_perplexity=28.0).front(bench, [], tmp_path)
    assert front
    assert all(bench.made[name][1] <= 28 for name in front)
    assert (
        Search({"bits": [2], "group_size": [64], "method": ["b"]}, 2, max_perplexity=28.0).front(
            bench, [], tmp_path
        )
        == []
    )


def test_a_search_that_was_cut_off_goes_on_and_another_one_is_another(tmp_path: Path) -> None:
    def cut_off(options: Sequence[str]) -> Any:
        if bench.asked == 5:
            raise KeyboardInterrupt
        return bench(options)

    bench = Bench()
    with pytest.raises(KeyboardInterrupt):
        Search(SPACE, trials=8).front(cut_off, ["seed=1"], tmp_path)
    front = Search(SPACE, trials=8).front(bench, ["seed=1"], tmp_path)
    assert bench.asked == 8
    assert Search(SPACE, trials=8).front(bench, ["seed=1"], tmp_path) == front
    assert bench.asked == 8
    Search(SPACE, trials=8).front(bench, ["seed=2"], tmp_path)
    assert bench.asked == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": {}}, "sweep.space={} is not possible"),
        ({"space": {"bits": []}}, "each with at least one value"),
        ({"space": SPACE, "trials": 0}, "sweep.trials=0 is not possible; it must be a whole number from 1 "),
        (
            {"space": SPACE, "max_bytes": -1},
            "sweep.max_bytes=-1 is not possible; it must be a number above 0, or null",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Search(**options)


def test_the_command_line_searches_and_prints_a_front(tiny_folder: Path, tmp_path: Path) -> None:
    where = ["model=hub", f"model.path={tiny_folder}", f"results_dir={tmp_path / 'results'}"]
    small = [
        "text.evaluate_from=2025",
        "evaluation=quality",
        "evaluation.perplexity.windows=1",
        "logger=none",
        "device=cpu",
    ]
    space = ["sweep=search", "sweep.trials=3", "sweep.space={method:[rtn,sinq],bits:[3,4],group_size:[32]}"]
    cli = start(tmp_path / "work", *where, *small, *space)
    assert cli.done() == 0, cli.output
    assert "Pareto front of 3 trials" in cli.output
    rows = record.read(tmp_path / "results")[0]
    assert 2 <= len(rows) <= 4
    assert (tmp_path / "results/search.db").exists()
    again = start(tmp_path / "work", *where, *small, *space)
    assert again.done() == 0, again.output
    assert len(record.read(tmp_path / "results")[0]) == len(rows)
