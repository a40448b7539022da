"""The search against brute force over what it tried, on rows made by hand; and once for real."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the extra search is not installed")

from experiments.results import record
from experiments.runs.search import Search, TrialError
from tests.damage import DAMAGES
from tests.experiments.sweeping import start

SPACE = {"bits": [2, 3, 4, 8], "group_size": [32, 64], "method": ["a", "b"]}


class Bench:
    """Make rows in which more bits are better and b is smaller and worse than a; count the requests."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[float, float]] = {}
        self.asked = self.before = 0

    def __call__(self, options: Sequence[str], number: int) -> Any:
        self.asked += 1
        assert number == self.asked - self.before
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
    front = Search(SPACE, trials=12, max_bytes=max_bytes).front(bench, [], tmp_path)
    assert set(front) == best(bench.made, max_bytes or float("inf"))
    assert [bench.made[name][0] for name in front] == sorted(bench.made[name][0] for name in front)
    assert bench.asked == 12


def test_nothing_is_tried_twice_and_the_search_ends_with_the_space(tmp_path: Path) -> None:
    tried: list[str] = []
    bench, space = Bench(), SPACE | {"method": ["a"]}

    def attempt(options: Sequence[str], number: int) -> Any:
        tried.append(" ".join(options))
        return bench(options, number)

    search = Search(space, trials=40, seed=1)
    assert (search.combinations, search.total) == (8, 8)
    Search(space, trials=3, seed=1).front(attempt, [], tmp_path)  # and then in another process
    front = search.front(attempt, [], tmp_path)
    assert len(tried) == len(set(tried)) == 8
    assert set(front) == best(bench.made)
    assert search.front(attempt, [], tmp_path) == front
    assert len(tried) == 8


def test_what_failed_is_tried_again_by_a_later_call(tmp_path: Path) -> None:
    space = {"bits": [3, 4], "group_size": [32], "method": ["a"]}
    asked: list[str] = []

    def fails(options: Sequence[str], number: int) -> Any:
        asked.append(" ".join(options))
        raise TrialError("no data")

    assert Search(space).front(fails, [], tmp_path) == []
    assert len(set(asked)) == len(asked) == 2
    bench = Bench()
    assert set(Search(space).front(bench, [], tmp_path)) == best(bench.made)
    assert bench.asked == 2


def test_values_that_a_space_names_twice_count_once() -> None:
    assert Search({"bits": [3, 3, 4], "method": ["a"]}).combinations == 2


@pytest.mark.parametrize("damage", ["garbage", "cut", "zeros"])
def test_a_damaged_study_is_named_with_the_way_out(tmp_path: Path, damage: str) -> None:
    Search(SPACE, trials=2).front(Bench(), [], tmp_path)
    DAMAGES[damage](tmp_path / "search.db")
    with pytest.raises(ValueError, match=r"search\.db cannot be used as Optuna's study \(.+\); delete it"):
        Search(SPACE, trials=4).front(Bench(), [], tmp_path)


def test_a_budget_in_perplexity_leaves_out_what_is_beyond(tmp_path: Path) -> None:
    bench = Bench()
    front = Search(SPACE, trials=10, max_perplexity=28.0).front(bench, [], tmp_path)
    assert front
    assert all(bench.made[name][1] <= 28 for name in front)
    assert (
        Search({"bits": [2], "group_size": [64], "method": ["b"]}, 2, max_perplexity=28.0).front(
            Bench(), [], tmp_path
        )
        == []
    )


def test_a_search_that_was_cut_off_goes_on_and_another_one_is_another(tmp_path: Path) -> None:
    def cut_off(options: Sequence[str], number: int) -> Any:
        if bench.asked == 5:
            raise KeyboardInterrupt
        return bench(options, number)

    bench = Bench()
    with pytest.raises(KeyboardInterrupt):
        Search(SPACE, trials=8).front(cut_off, ["seed=1"], tmp_path)
    front = Search(SPACE, trials=8).front(bench, ["seed=1"], tmp_path)
    assert bench.asked == 8
    assert Search(SPACE, trials=8).front(bench, ["seed=1"], tmp_path) == front
    assert bench.asked == 8
    bench.before = 8
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
    space = [
        "sweep=search",
        "sweep.trials=9",
        "sweep.space={method:[rtn,sinq_nf4],bits:[3,4],group_size:[32]}",
    ]
    cli = start(tmp_path / "work", *where, *small, *space)
    assert cli.done() == 0, cli.output
    assert "Pareto front of 4 trials" in cli.output
    assert "all 4 combinations of sweep.space were tried; sweep.trials=9" in cli.output
    lines = [line for line in cli.output.splitlines() if line.startswith("trial ")]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert len({line.partition(",  ")[0].split(maxsplit=2)[2] for line in lines}) == 4
    assert sum("not applicable: " in line for line in lines) == 1
    assert sum(bool(re.search(r"  ppl \d+\.?\d*  \d+\.\d MB  [0-9a-f]{12}$", line)) for line in lines) == 3
    rows = record.read(tmp_path / "results")[0]
    assert len(rows) == 4
    assert (tmp_path / "results/search.db").exists()
    again = start(tmp_path / "work", *where, *small, *space)
    assert again.done() == 0, again.output
    assert len(record.read(tmp_path / "results")[0]) == len(rows)
