"""Progress of a sweep on hand-made outcomes: lines, time left, the bar; and the plan's lines."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.common.console import console
from experiments.results import record
from experiments.sweeps import plan, progress
from experiments.sweeps.plan import Estimate, Item, State
from experiments.sweeps.progress import OUTCOME, Watch, result
from tests.experiments.rows import finished


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"s": 1000.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: now["s"])
    return now


def item(name: str, seconds: float | None = None, options: str = "") -> Item:
    estimate = None if seconds is None else Estimate(seconds, 10**6)
    return Item((), State.to_do, name, name, estimate=estimate, options=options)


def ends(folder: Path, job: int, **outcome: Any) -> None:
    (folder / str(job)).mkdir(parents=True)
    (folder / str(job) / OUTCOME).write_text(json.dumps(outcome))


def printed(work: Any) -> list[str]:
    with console.capture() as capture:
        work()
    return capture.get().splitlines()


def test_each_finished_run_is_a_line_with_its_result_and_the_time_left(
    tmp_path: Path, clock: dict[str, float]
) -> None:
    row = finished("sinq")
    record.write(tmp_path / "results", row)
    watch = Watch([item("a"), item("b"), item("c"), item("d")], tmp_path, tmp_path / "results")
    assert printed(watch.look) == []
    clock["s"] += 30
    ends(tmp_path, 2, run_id=row["run_id"], seconds=12.3)  # not in the order of the launch
    (line,) = printed(watch.look)
    assert line == f"1/4 c  {result(row)}  12 s  (about 90 s left)".replace("90 s", "2 min")
    clock["s"] += 30
    ends(tmp_path, 0, failed="no room", seconds=1.0)
    ends(tmp_path, 1, failed="no room", seconds=1.0)
    first, second = printed(watch.look)
    assert first == "2/4 a  failed: no room  1 s  (about 60 s left)"
    assert second == "3/4 b  failed: the same as 2/4  1 s  (about 20 s left)"
    assert printed(lambda: watch.lost(3, {"failed": "killed"})) == ["4/4 d  failed: killed"]


def test_the_time_left_weighs_runs_by_the_plan(tmp_path: Path, clock: dict[str, float]) -> None:
    watch = Watch([item("a", 10), item("b", 30), item("c")], tmp_path, tmp_path)
    clock["s"] += 20
    ends(tmp_path, 0, failed="x")  # took twice its estimate; b and c (the median of both) are to come
    assert printed(watch.look) == ["1/3 a  failed: x  (about 2 min left)"]


def test_a_run_that_was_put_off_counts_when_it_comes_again(tmp_path: Path, clock: dict[str, float]) -> None:
    watch = Watch([item("a"), item("b")], tmp_path, tmp_path)
    ends(tmp_path, 0, busy="another process is at work on it")
    ends(tmp_path, 1, failed="x")
    assert printed(watch.look) == ["1/2 b  failed: x  (about 0 s left)"]
    watch.expect(2, again=0)
    ends(tmp_path, 2, failed="y")
    assert printed(watch.look) == ["2/2 a  failed: y"]


def test_runs_of_other_processes_are_seen_while_the_launcher_works(tmp_path: Path) -> None:
    watch = Watch([item("a"), item("b")], tmp_path, tmp_path)

    def work() -> None:
        with watch.looking():
            for job in (0, 1):
                ends(tmp_path, job, failed=str(job))
        watch.look()

    assert [line.split()[0] for line in printed(work)] == ["1/2", "2/2"]


def test_runs_of_one_name_are_told_apart_by_their_options(tmp_path: Path) -> None:
    watch = Watch(
        [item("a", options="x=1"), item("a", options="x=2"), item("b", options="x=1")], tmp_path, tmp_path
    )
    assert watch._names == ["a (x=1)", "a (x=2)", "b"]


def test_a_terminal_has_one_bar_that_says_which_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, markup=False, emoji=False)
    monkeypatch.setattr(progress, "console", screen)
    watch = Watch([item("[a]:smile:"), item("b")], tmp_path, tmp_path)
    with watch.shown():
        watch.begin(0)
        watch._bar.refresh()
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "run 1/2 [a]:smile:" in text
    assert "0/2" in text


def test_results_are_perplexity_and_accuracies() -> None:
    metrics = {"perplexity": {"value": 117.4321}, "zero_shot": {"tasks": {"piqa": {"acc": 0.621}, "m": {}}}}
    assert result({"metrics": metrics}) == "ppl 117.43  piqa 62.1%"
    assert result({"metrics": {}}) == ""


DATA = ["layers.exclude=[lm_head]", "[bold]x[/bold]", "[/a, /b]", "a:smile:b", "[red]", "[link=x]"]


@pytest.mark.parametrize("text", DATA)
def test_data_is_never_markup(text: str) -> None:
    shown = [
        Item((), State.to_do, text, "1", options=text),
        Item((), State.repeated, text, "2", f"of {text}", options=text),
        Item((), State.refused, reason=f"{text} is wrong", options=text),
    ]
    lines = printed(lambda: plan.show(shown, [text]))
    assert lines[0] == f"{text}  to do  {text}"
    assert lines[1] == f"{text}  duplicate of {text}"
    assert lines[2] == f"blocked: {text}: {text} is wrong"


def test_reasons_are_told_once_with_the_number_of_their_runs() -> None:
    pairs = [(f"bits={bits}", "text is missing") for bits in range(54)] + [("a", "b")]
    assert printed(lambda: plan.say_reasons("blocked", pairs)) == [
        "blocked: 54 runs (bits=0; bits=1; bits=2 and 51 more): text is missing",
        "blocked: a: b",
    ]


def test_a_plan_is_printed_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(plan, "say", said.append)

    def items() -> Iterator[Item]:
        for k in range(3):
            assert len(said) == k
            yield item(f"run {k}")

    assert len(plan.show(items(), [""])) == 3
    assert said[-1].startswith("plan: 3 to do; no estimate")
