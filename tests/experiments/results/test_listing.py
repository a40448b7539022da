"""The tables of `run.py` and `experiments.results`: whole at every width, sorted, chosen, in every format."""

import csv
import io
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from experiments.results import __main__ as command
from experiments.results import listing, notes, overview, record
from experiments.results.record import Row
from experiments.sweeps import plan, summary
from tests.experiments.rows import failed, finished, store

NUMBER = re.compile(r"\d[\d.,]*(e[+-]\d+)?%?×?|[0-9a-f]{12}")


def narrow(monkeypatch: pytest.MonkeyPatch, width: int, terminal: bool = True) -> Console:
    """Make every module print to a console of a width; return it."""
    console = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, markup=False
    )
    for module in (command, overview, plan):
        monkeypatch.setattr(module, "console", console)
    return console


def said(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


@st.composite
def drawn_rows(draw: st.DrawFn) -> list[Row]:
    """Draw rows of all magnitudes, with ids as the pipeline makes them."""
    rows = []
    for number in range(draw(st.integers(1, 5))):
        row = finished(draw(st.sampled_from(["none", "sinq", "rtn"])), draw(st.integers(2, 8)))
        row["run_id"] = f"{draw(st.integers(0, 16**11 - 1)):011x}{number:x}"
        row["metrics"]["perplexity"]["value"] = draw(st.floats(1, 1e12))
        row["metrics"]["perplexity"]["kl"] = draw(st.floats(1e-6, 50))
        row["metrics"]["size"]["model_nbytes"] = draw(st.integers(10**4, 10**12))
        if "compression" in row["metrics"]:
            row["metrics"]["compression"]["seconds_quantize"] = draw(st.floats(1e-4, 1e5))
        rows.append(row)
    return rows


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn_rows(), st.integers(30, 150))
def test_every_number_and_id_is_whole_at_every_width(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], width: int
) -> None:
    """All that looks like a number in the narrow table is a number of the wide one."""
    shown = []
    for wide in (width, 10_000):
        with pytest.MonkeyPatch.context() as patch:
            console = narrow(patch, wide)
            overview.show(rows, Path("r"), "title")
            columns = listing.chosen(listing.arranged(rows), None)
            command._print(rows, columns, "terminal", True)
            shown.append(said(console))
    known = {match[0] for match in NUMBER.finditer(shown[1])}
    assert {match[0] for match in NUMBER.finditer(shown[0])} - known == set()
    assert all(row["run_id"] in shown[0].split() for row in rows)
    assert "…" not in shown[0]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_what_is_left_out_is_said_with_the_way_to_it(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = store(tmp_path, finished("none"), finished("sinq"), finished("rtn", 3))
    console = narrow(monkeypatch, width)
    overview.show(rows, tmp_path, "m on t")
    table = said(console).partition("too narrow for ")
    assert all(len(line) <= width for line in table[0].partition("file t;")[0].splitlines())
    if width < 80:
        assert "prefill tok/s" in table[2]
        assert f"python -m experiments.results --results {tmp_path} --format markdown" in table[2]
    assert "ppl" in table[0]
    for row in rows:
        assert f"{row['metrics']['perplexity']['value']:.3f}" in table[0].split()


def results(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str, width: int = 200) -> str:
    """Run the command; returns what it prints to the console."""
    console = narrow(monkeypatch, width)
    monkeypatch.setattr(sys, "argv", ["results", "--results", str(folder), *arguments])
    command.main()
    return said(console)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [finished(method, bits) for method in ("sinq", "rtn") for bits in (4, 2, 3)]
    store(tmp_path, finished("none"), finished("sinq", text="u"), *rows)
    store(
        tmp_path,
        *(
            failed(f"gptq {k}-bit g64", "ValueError: too\nbad [b] \x1b[1m")
            | {"run_id": f"f{k}", "choices": {"method": "gptq", "model": "m", "text": "t"}}
            for k in (2, 3)
        ),
    )
    return tmp_path


def test_rows_are_sorted_by_model_text_method_and_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = results(monkeypatch, folder)
    ids = [line.split()[0] for line in text.splitlines() if re.match(r" [a-z]+\d", line)]
    assert ids == ["none4t", "f2", "f3", "rtn2t", "rtn3t", "rtn4t", "sinq2t", "sinq3t", "sinq4t", "sinq4u"]


def test_a_reason_is_one_line_and_printed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = results(monkeypatch, folder, width=80)
    assert (
        "failed: 2 runs (f2 gptq 2-bit g64; f3 gptq 3-bit g64): ValueError: too bad [b] [1m"
        in text.splitlines()
    )
    long = notes.one_line("word " * 10_000)
    assert len(long) == notes.LONGEST
    assert long.endswith("…")


def test_columns_rows_and_order_are_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = "name,bits,calibrated,perplexity,metrics.latency.decode.ratio"
    text = results(
        monkeypatch, folder, "--columns", keys, "--where", "text=t", "--where", "method=sinq,status=finished",
        "--sort", "perplexity", "--falling",
    )  # fmt: skip
    lines = text.splitlines()
    assert lines[0].split() == ["name", "bits", "calibrated", "ppl", "metrics.latency.decode.ratio"]
    assert [line.split()[1] for line in lines[2:5]] == ["2-bit", "3-bit", "4-bit"]
    assert [line.split()[-1] for line in lines[2:5]] == ["1.00", "1.50", "2.00"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--columns", "name,width"), "there is no column width; there are: run, model, .*, perplexity"),
        (("--sort", "speed"), "there is no column speed; there are"),
        (("--where", "method=awq"), "method=awq fits none of 10 runs"),
        (("--where", "width=2"), "width in width=2 is nothing that a run was chosen by"),
        (("--against", "awq"), "--against awq names no row; give a run id or one of: none, rtn"),
    ],
)
def test_what_there_is_not_is_one_line(
    arguments: tuple[str, ...], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        results(monkeypatch, folder, *arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["markdown", "latex", "csv"])
def test_other_formats_have_every_column_and_nothing_beside_the_table(
    form: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert results(monkeypatch, folder, "--format", form, "--against", "sinq", width=20) == ""
    out, err = capsys.readouterr()
    assert "rows, all columns" in err
    assert "failed: 2 runs" in err
    if form == "csv":
        lines = list(csv.DictReader(io.StringIO(out)))
        row = finished("rtn", 3)
        (line,) = [line for line in lines if line["run"] == "rtn3t"]
        assert float(line["perplexity"]) == row["metrics"]["perplexity"]["value"]
        assert (line["bits"], line["verdict"]) == ("3", "worse")
    else:
        count = len([line for line in out.splitlines() if "rtn3t" in line])
        assert count == 1
        assert ("\\toprule" in out) == (form == "latex")


def test_a_link_is_replaced_and_its_target_left_alone(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path_factory.mktemp("elsewhere") / "victim"
    victim.write_text("precious")
    (folder / "results.parquet").symlink_to(victim)
    results(monkeypatch, folder)
    assert victim.read_text() == "precious"
    assert len(pd.read_parquet(folder / "results.parquet")) == 10


def noted(label: str, count: int = 5, run_id: str = "a", **grid: Any) -> Row:
    row = finished(**grid) | {"run_id": run_id, "name": run_id}
    row["metrics"]["compression"]["decisions"] = {label: count}
    return row


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("shrunk_group_size=43", "group size reduced in 2 layers (down_proj 64 → 43)"),
        ("shrunk_group_size", "group size reduced in 2 layers (down_proj)"),  # of rows of schema 1
        ("bits=3", "bits chosen in 2 layers (down_proj → 3)"),
        ("rows_rounded", "rows left to the inner method, where that was better in 2 layers (down_proj)"),
        ("a_new_one", "a new one in 2 layers (down_proj)"),
    ],
)
def test_decisions_are_in_words_people_read(label: str, words: str) -> None:
    decided = label if "=" in label else f"{label}=0.5"
    names = [f"model.layers.{k}.mlp.down_proj" for k in range(2)] + ["model.layers.0.mlp.up_proj"]
    layers = pd.DataFrame({"name": names, "decisions": [decided, f"other=1; {decided}", "other=2"]})
    assert notes.decisions(noted(label, 2), layers)[0] == words
    assert "(" not in notes.decisions(noted("rows_rounded", 1), None)[0]


def test_equal_notes_are_printed_once_with_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [noted("shrunk_group_size=4", run_id=f"run{k}") for k in range(6)]
    alone = noted("skipped", 1, "other")
    assert [line.partition(":")[0] for line in overview.decided([*rows, alone], tmp_path)] == [
        "6 runs (run0; run1; run2 and 3 more)", "other",
    ]  # fmt: skip
    assert overview.decided(rows, tmp_path)[0].startswith("all 6 runs: group size reduced in 5 layers")
    console = narrow(monkeypatch, 100)
    summary.list_misses([{"options": f"bits={k}", "failed": "no [network]"} for k in range(4)])
    summary.list_misses([{"options": "bits=9", "not applicable": "why"}, {"run_id": "x", "options": "y"}])
    assert said(console).splitlines() == [
        "failed: 4 runs (bits=0; bits=1; bits=2 and 1 more): no [network]", "not applicable: bits=9: why",
    ]  # fmt: skip


def test_each_model_of_a_sweep_has_a_table_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for name in ("Qwen3-1.7B", "Qwen3-0.6B"):
        row = finished() | {"run_id": name, "dense_run_id": None}
        row["choices"]["model"] = "hub"
        row["identity"]["model"] = {"name": name, "fingerprint": name[-4:], "dtype": "float32"}
        rows.append(row)
    console = narrow(monkeypatch, 100)
    summary.show(store(tmp_path, *rows), tmp_path, "2 runs in results")
    assert "Qwen3-1.7B on t: 2 runs in results" in said(console)
    assert "Qwen3-0.6B on t: 2 runs in results" in said(console)
    assert "hub on" not in said(console)


def test_the_file_can_be_read_by_its_flat_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results(monkeypatch, folder)
    pivot = pd.read_parquet(folder / "results.parquet").pivot_table(
        index="method", columns="bits", values="perplexity"
    )
    assert pivot.loc["sinq", 2] == pytest.approx(finished("sinq", 2)["metrics"]["perplexity"]["value"])
    assert record.load(folder)["group_size"].dropna().unique() == [64]
