"""Tables: which row fills a cell, what is said of it, what is refused, and what each format makes of it."""

import copy
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from experiments import compare
from experiments.common.intervals import mean_interval
from experiments.config import options
from experiments.config.build import Config, Experiment
from experiments.results import record
from experiments.results.record import Row
from experiments.sweeps.experiment import grids
from experiments.tables import cells, spec
from experiments.tables.cells import Judgement, fill
from experiments.tables.formats import Format, render
from experiments.tables.layout import lay_out
from experiments.tables.show import chosen
from experiments.tables.spec import Column, Line, Source, Table
from sinq.common.named import described
from tests import forked
from tests.conftest import needs_data


@contextmanager
def described_anew() -> Iterator[None]:
    """A description holds paths of SINQ_DATA: none is taken over from where it was another, nor left."""
    options.run_of.cache_clear()
    try:
        yield
    finally:
        options.run_of.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def described_here() -> Iterator[None]:
    """Share descriptions among all tests of this file: most describe the same runs, slow to compose."""
    with described_anew():
        yield


NOISE = np.random.default_rng(5)
HARD = 3 + NOISE.normal(0, 0.5, 16)  # what makes a window hard is hard for everyone
SUBJECT = {"model": "smollm2", "text": "wikitext2", "evaluation": "quality"}


def row(run_id: str, nll: Any = HARD, **method_options: Any) -> Row:
    """A finished row of the embedded model, as the pipeline records it."""
    run = options.run_of(options.overrides({**SUBJECT, **method_options}))
    nll = [float(value) for value in nll]
    made = {
        "run_id": run_id,
        "status": record.FINISHED,
        "identity": {
            "model": {**run.model.identity(), "dtype": "float32"},
            "text": {"name": run.text.name},
            "method": described(run.method),
            "layers": described(run.layers),
            "evaluation": described(dict(run.evaluation)),
            "device": "cpu",
        },
        "options": {"evaluation": described(dict(run.evaluation), defaults=True)},
        "metrics": {
            "perplexity": {
                "value": float(np.exp(np.mean(nll))),
                "windows": len(nll),
                "windows_available": 146,
                "seqlen": 2048,
            },
            "compression": {"seconds_quantize": 2.0, "seconds_statistics": 0.5},
        },
        "samples": {"perplexity": {"window_nll": nll}},
        "protocol": {
            "fingerprint": "f",
            "tokens": 9,
            "tokenizer": "t",
            "bos": "none",
            "dtype": "float32",
            "model_commit": None,
        },
        "provenance": {"device": "a processor"},
    }
    return json.loads(json.dumps(made))


def table(*lines: Line, **more: Any) -> Table:
    """One column, 4 bits, with a source and a tolerance of 1 %."""
    source = Source("arXiv 1", "v4", "7")
    defaults: dict[str, Any] = {
        "columns": [Column("4 bits")],
        "source": source,
        "run": SUBJECT,
        "tolerance": 0.01,
    }
    return Table(title="a_table & more", rows=list(lines), **{**defaults, **more})


def line(method: str, paper: float | None = None, **more: Any) -> Line:
    return Line(method, run={"method": method}, paper=[paper], **more)


OURS = float(np.exp(HARD.mean()))


def only(filled: cells.Filled) -> cells.Cell:
    ((cell,),) = filled.cells
    return cell


@pytest.mark.parametrize(
    ("paper", "verdict"),
    [(OURS / 1.0099, Judgement.reproduced), (OURS / 1.0101, Judgement.differs), (None, Judgement.unjudged)],
)
def test_a_value_is_inside_or_outside_the_tolerance(paper: float | None, verdict: Judgement) -> None:
    cell = only(fill(table(line("sinq", paper)), [row("a", method="sinq")]))
    assert (cell.verdict, cell.ours) == (verdict, pytest.approx(OURS))
    assert cell.difference == (None if paper is None else pytest.approx(OURS - paper))


def test_the_nearest_tolerance_counts() -> None:
    of_row = table(line("sinq", 100.0, tolerance=0.3), columns=[Column("x", tolerance=0.2)])
    assert of_row.tolerance_of(of_row.rows[0], of_row.columns[0]) == 0.3
    assert of_row.tolerance_of(line("rtn"), of_row.columns[0]) == 0.2
    assert of_row.tolerance_of(line("rtn"), Column("y")) == 0.01


def test_a_cell_without_a_run_says_how_to_make_it() -> None:
    cell = only(fill(table(line("sinq", 20.0)), []))
    assert (cell.verdict, cell.ours, cell.difference) == (Judgement.missing, None, None)
    assert cell.note == "python run.py model=smollm2 text=wikitext2 evaluation=quality method=sinq"


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"method.sinkhorn.iterations": 4}, ""),
        ({"bits": 3}, ""),
        ({"layers.exclude": "[lm_head,q_proj]"}, ""),
        ({"method": "rtn"}, ""),
        ({"evaluation.perplexity.seqlen": 512}, "run a does not fit: seqlen is 512, not 2048"),
    ],
)
def test_a_run_with_other_options_does_not_fill_a_cell(change: dict[str, Any], note: str) -> None:
    cell = only(fill(table(line("sinq")), [row("a", **{"method": "sinq", **change})]))
    assert cell.verdict is Judgement.missing
    assert cell.note.endswith(note)
    assert ("does not fit" in cell.note) == bool(note)


def test_a_run_over_fewer_windows_does_not_fill_a_cell_and_is_named() -> None:
    cell = only(fill(table(line("sinq")), [row("a", HARD[:4], method="sinq")]))
    assert cell.note.endswith("; run a does not fit: windows is 4, not 16")


def test_failed_rows_and_other_texts_are_passed_over() -> None:
    failed, elsewhere = row("a", method="sinq"), row("b", method="sinq")
    failed["status"], elsewhere["identity"]["text"]["name"] = record.FAILED, "c4"
    assert only(fill(table(line("sinq")), [failed, elsewhere])).verdict is Judgement.missing


def test_several_runs_for_one_cell_are_an_error_that_names_them() -> None:
    rows = [row("a", method="sinq"), row("b", method="sinq")]
    rows[1]["identity"]["device"] = "cuda"
    with pytest.raises(
        ValueError, match=r"sinq / 4 bits: several runs fit: a \(a processor\), b \(a processor\)"
    ):
        fill(table(line("sinq")), rows)
    assert only(fill(table(line("sinq")), chosen(rows, ["identity.device=cuda"]))).row == rows[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [("dtype", "bfloat16"), ("fingerprint", "g"), ("tokenizer", "u"), ("bos", "added once"), ("tokens", 8)],
)
def test_runs_measured_differently_are_refused_in_one_table(key: str, value: Any) -> None:
    rows = [row("a", method="sinq"), row("b", method="rtn")]
    rows[1]["protocol"][key] = value
    with pytest.raises(
        ValueError,
        match=f"runs a and b cannot stand in one table: .* is {rows[0]['protocol'][key]} and {value}",
    ):
        fill(table(line("sinq"), line("rtn")), rows)


def test_perplexities_of_words_and_of_pieces_are_refused_in_one_table() -> None:
    rows = [row("a", method="sinq"), row("b", method="rtn")]
    lines = table(line("sinq"), line("rtn"))
    for each, kind in zip(rows, ("words, 300, of the text", "byte pairs, 300, of the text"), strict=True):
        each["identity"]["model"]["tokenizer"] = kind
    with pytest.raises(ValueError, match=r"runs a and b cannot stand in one table: the first .* of words"):
        fill(lines, rows)
    rows[1]["identity"]["model"]["tokenizer"] = "words, 300, of the text"
    assert fill(lines, rows).cells[1][0].row == rows[1]


def test_a_run_is_not_set_beside_a_paper_of_another_protocol() -> None:
    wanted = {"protocol.dtype": ["bfloat16", "float16"], "metrics.perplexity.windows": 16}
    cell = only(fill(table(line("sinq", OURS), protocol=wanted), [row("a", method="sinq")]))
    assert (cell.verdict, cell.difference) == (Judgement.refused, None)
    assert cell.note == "run a: protocol.dtype is float32, the paper's bfloat16 or float16"


def test_the_dense_model_comes_first() -> None:
    lines = (line("none", OURS, baseline=True), line("sinq", OURS))
    right = [row("d", method="none"), row("a", method="sinq")]
    wrong = [row("d", HARD + 0.03, method="none"), row("a", method="sinq")]
    assert [c.verdict for (c,) in fill(table(*lines), right).cells] == [
        Judgement.reproduced,
        Judgement.reproduced,
    ]
    filled = fill(table(*lines), wrong)
    assert [c.verdict for (c,) in filled.cells] == [Judgement.differs, Judgement.untrusted]
    assert len(filled.warnings) == 1
    assert re.fullmatch(
        r"4 bits: the dense model has .* \(\+3\.0 %\); nothing of it is judged", filled.warnings[0]
    )
    unmeasured = fill(table(*lines), right[1:])
    assert [c.verdict for (c,) in unmeasured.cells] == [Judgement.missing, Judgement.untrusted]
    assert "the dense model is not measured" in unmeasured.warnings[0]
    for written in (Format.terminal, Format.markdown, Format.html):
        text = render(filled, written)
        assert text.index("the dense model has") < text.index("sinq")
    assert fill(table(*lines), []).warnings == ()


def test_the_best_is_marked_only_where_the_interval_says_so() -> None:
    noise = np.random.default_rng(6).normal(0, 0.1, 16)
    noise -= noise.mean()
    lines = (line("none", baseline=True), line("sinq"), line("rtn"))
    dense = row("d", HARD - 1, method="none")
    for nll, best in ((HARD + 0.1 + noise, True), (HARD + 0.001 + noise, False), (HARD, False)):
        rows = [dense, row("a", method="sinq"), row("b", nll, method="rtn")]
        assert (compare.compare(rows[1], rows[2]).verdict is compare.Verdict.better) == best
        assert [c.best for (c,) in fill(table(*lines), rows).cells] == [False, best, False]
    # alone, it is the best of nothing
    assert not any(c.best for (c,) in fill(table(*lines), [dense, row("a", method="sinq")]).cells)


def test_other_metrics_are_scaled_added_and_never_best() -> None:
    columns = [
        Column(
            "ms", metric="compression.seconds_quantize", add=["compression.seconds_statistics"], scale=1000
        )
    ]
    rows = [row("a", method="sinq"), row("b", HARD + 1, method="rtn")]
    rows[1]["metrics"]["compression"]["seconds_quantize"] = 4.0
    filled = fill(table(line("sinq"), line("rtn"), columns=columns), rows)
    assert [(c.ours, c.best) for (c,) in filled.cells] == [(2500.0, False), (4500.0, False)]


def test_what_the_harness_cannot_make_is_never_missing() -> None:
    spare = table(line("higgs", 9.0, refused="not here"), line("sinq"))
    assert cells.missing(spare, []) == [{**SUBJECT, "method": "sinq"}]
    assert only(fill(table(line("higgs", 9.0, refused="not here")), [])).note == "not here"
    assert cells.missing(spare, [row("a", method="sinq")]) == []


def test_combinations_without_meaning_are_no_missing_runs() -> None:
    """NF4 has 4 bits: at 3 there is nothing to run, whether or not other runs are there."""
    levels = table(line("rtn_nf4", 9.0), columns=[Column("3 bits", run={"bits": 3})])
    for rows in ([], [row("a", method="sinq")]):
        cell = only(fill(levels, rows))
        assert (cell.verdict, cell.ours) == (Judgement.not_applicable, None)
        assert cell.note == "bits=3 is not possible with levels=nf4, whose table has 4 bits"
        assert cells.missing(levels, rows) == []


def test_a_baseline_has_no_distance_to_itself() -> None:
    columns = [Column("KL", metric="perplexity.kl", relative=True)]
    filled = fill(table(line("none", baseline=True), columns=columns), [row("d", method="none")])
    assert (only(filled).verdict, only(filled).note) == (Judgement.not_applicable, "")


def test_a_column_sets_runs_against_a_row_of_their_section() -> None:
    shifts = np.tile([0.05, 0.15], 8)
    columns = [Column("Δ", against="sinq", decimals=3)]
    lines = (
        line("none", baseline=True),
        line("sinq", section="s"),
        line("rtn", section="s"),
        line("hqq", section="s"),
        line("hadamard"),
    )
    measured = {
        "none": HARD - 1,
        "sinq": HARD,
        "rtn": HARD + shifts,
        "hqq": HARD + NOISE.permutation(shifts - shifts.mean()),
        "hadamard": HARD,
    }
    rows = [row(method, nll, method=method) for method, nll in measured.items()]
    dense, base, rtn, hqq, elsewhere = (cell for (cell,) in fill(table(*lines, columns=columns), rows).cells)
    assert [cell.verdict for cell in (dense, base, elsewhere)] == [Judgement.not_applicable] * 3
    low, high = mean_interval(shifts) or (0.0, 0.0)
    assert rtn.comparison is not None
    assert (rtn.ours, rtn.comparison.interval) == (pytest.approx(shifts.mean()), pytest.approx((low, high)))
    layout = lay_out(fill(table(*lines, columns=columns), rows))
    texts = [cells_[-1].text for cells_ in layout.lines]
    assert texts[2] == f"+0.100 [{low:+.3f}, {high:+.3f}]"
    assert texts[3].endswith("] ≈")
    assert hqq.comparison is not None
    assert hqq.comparison.interval is not None
    assert any(note.startswith("≈") for note in layout.notes)
    assert not any(cell.bold for cells_ in layout.lines for cell in cells_)
    (alone,) = fill(
        table(line("sinq", section="s"), line("rtn", section="s"), columns=columns), rows[2:3]
    ).cells[1]
    assert (alone.ours, alone.note) == (None, "what it is set against is not measured")
    read = pd.read_csv(io.StringIO(render(fill(table(*lines, columns=columns), rows), Format.csv)))
    assert read["low"].dropna().tolist() == pytest.approx([low, hqq.comparison.interval[0]])
    assert read["paired"].dropna().tolist() == ["worse", "not distinguishable"]


def test_few_windows_and_undecided_intervals_have_different_marks() -> None:
    """On 5 windows there is no interval, no ≈ and no bold; the legend says why."""
    columns = [Column("Δ", against="sinq", decimals=3), Column("W2")]
    few = [row("a", HARD[:5], method="sinq"), row("b", HARD[:5] + 0.1, method="rtn")]
    lines = [Line(method, run={"method": method}) for method in ("sinq", "rtn")]
    asked = table(*lines, columns=columns, run={**SUBJECT, "evaluation.perplexity.windows": 5})
    layout = lay_out(fill(asked, few))
    assert layout.lines[1][1].text == "+0.100 (too few windows)"
    assert "(too few windows) no interval of a difference with fewer than 6" in layout.notes
    assert "≈" not in " ".join([*layout.notes, *(cell.text for each in layout.lines for cell in each)])
    assert not any(cell.bold for each in layout.lines for cell in each)


def test_values_that_are_only_shown_are_not_compared() -> None:
    cell = only(fill(table(line("sinq", OURS), incomparable="another engine"), [row("a", method="sinq")]))
    assert (cell.verdict, cell.ours, cell.difference, cell.note) == (
        Judgement.refused,
        pytest.approx(OURS),
        None,
        "another engine",
    )


@pytest.mark.parametrize(("limit", "fits"), [(50, True), (60, False)])
def test_other_evaluations_must_have_been_asked_alike(limit: int, fits: bool) -> None:
    asked = {"model": "smollm2", "text": "wikitext2", "evaluation": "zero_shot"}
    tasks = {"evaluation.zero_shot.tasks": "[piqa_local]", "evaluation.zero_shot.limit": 50}
    made = row("a", method="sinq")
    run = options.run_of(
        options.overrides({**asked, **tasks, "evaluation.zero_shot.tasks": "[piqa_local,wikitext2_local]"})
    )
    made["options"]["evaluation"] = described(dict(run.evaluation), defaults=True)
    made["options"]["evaluation"]["zero_shot"]["limit"] = limit
    made["metrics"] = {
        "zero_shot": {"tasks": {"piqa_local": {"flips": {"acc": {"prediction": {"value": 0.125}}}}}}
    }
    flips = Column("PIQA", metric="zero_shot.tasks.piqa_local.flips.acc.prediction.value", scale=100)
    cell = only(fill(table(line("sinq"), columns=[flips], run={**asked, **tasks}), [made]))
    assert cell.ours == (12.5 if fits else None)
    assert fits or cell.note.endswith("run a does not fit: limit is 60, not 50")


def test_a_pinned_revision_is_the_only_one_that_fills_a_cell() -> None:
    subject = {"model": "hub", "model.path": "some/model", "text": "wikitext2", "evaluation": "quality"}
    made = row("a", method="sinq")
    made["identity"]["model"] = {"name": "some/model", "revision": "abc", "dtype": "float32"}
    for pinned, found in (({}, True), ({"model.revision": "abc"}, True), ({"model.revision": "abd"}, False)):
        cell = only(fill(table(line("sinq"), run={**subject, **pinned}), [made]))
        assert (cell.row is not None) == found


class _Cells(HTMLParser):
    """The texts of a page's table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._inside = tag in ("td", "th")
        if self._inside:
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data


def example() -> cells.Filled:
    columns = [Column("W2", "a<b", run={"bits": 4}), Column("3_bits", "a<b", run={"bits": 3})]
    lines = [
        Line(name, run={"method": name}, paper=[OURS, None], section="all & sundry")
        for name in ("sinq", "rtn")
    ]
    return fill(table(*lines, columns=columns), [row("a", method="sinq"), row("b", HARD + 0.1, method="rtn")])


def test_every_format_says_the_same() -> None:
    filled = example()
    layout = lay_out(filled)
    best = f"{OURS:.2f} ({OURS:.2f}, +0.00 ✓)"
    other = f"{np.exp(HARD.mean() + 0.1):.2f} ({OURS:.2f}, {np.exp(HARD.mean() + 0.1) - OURS:+.2f} ✗)"
    assert [[cell.text for cell in cells_] for cells_ in layout.lines] == [
        ["all & sundry", "sinq", best, "– [1]"],
        ["", "rtn", other, "– [2]"],
    ]
    assert [[cell.bold for cell in cells_] for cells_ in layout.lines] == [
        [False, False, True, False],
        [False] * 4,
    ]
    lines = [text for text in render(filled, Format.markdown).splitlines() if text.startswith("|")]
    plain = [[part.strip().replace("\\", "") for part in text.strip("|").split("|")] for text in lines]
    assert plain[0] == ["", "method", "a<b W2", "a<b 3_bits"]
    assert plain[2:] == [["all & sundry", "sinq", f"**{best}**", "– [1]"], ["", "rtn", other, "– [2]"]]
    page = _Cells()
    page.feed(render(filled, Format.html))
    assert page.texts[-8:] == ["all & sundry", "sinq", best, "– [1]", "", "rtn", other, "– [2]"]
    assert "a<b" in page.texts
    assert "font-weight: bold" in render(filled, Format.html)
    shown = render(filled, Format.terminal)
    assert all(
        part in shown
        for part in (
            best.split(" (", maxsplit=1)[0],
            other.split(" (")[1],
            "[2] python run.py",
            "a_table & more",
        )
    )


def test_latex_has_rules_and_no_character_with_a_meaning_of_its_own() -> None:
    text = render(example(), Format.latex)
    assert [
        text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{llrr}")
    ] == [1, 1, 1, 1]
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [each for each in body.splitlines() if each.endswith(r"\\")]
    # as many columns as declared
    assert [len(re.findall(r"(?<!\\)&", each)) for each in lines[1:]] == [3, 3, 3]
    assert rf"\bfseries {OURS:.2f}" in body
    assert r"all \& sundry" in body
    assert r"3\_bits" in body
    assert r"$\surd$" in body
    assert not re.search(r"(?<!\\)[_#%]", text)


def test_csv_is_read_back_in_full() -> None:
    read = pd.read_csv(io.StringIO(render(example(), Format.csv)))
    assert list(read["ours"].dropna()) == [OURS, float(np.exp(np.mean(HARD + 0.1)))]
    assert list(read["run_id"].fillna("")) == ["a", "", "b", ""]
    assert list(read["verdict"]) == [
        v.value for v in (Judgement.reproduced, Judgement.missing, Judgement.differs, Judgement.missing)
    ]
    assert read["note"].dropna().str.startswith("python run.py").all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\ncolumns: [{labl: x}]\nrows: []", "labl: Key 'labl' not in 'Column'"),
        (
            "title: x\ncolumns: [{label: x}]\nrows: [{label: r, paper: [a]}]",
            r"paper\[0\]: Value 'a' of type 'str' could not be converted to Float",
        ),
        (
            "title: x\ncolumns: [{label: x}]\nrows: [{label: r, paper: [1, 2]}]",
            "row 'r' has 2 of the paper's values for 1 columns",
        ),
        (
            "title: x\ncolumns: [{label: x}]\nrows: [{label: r, paper: [1]}]",
            "row 'r' has a paper's values, but the table names no source",
        ),
        ("title: x\ncolumns: [{label: x}]\nrows: [{label: r}, {label: r}]", "rows: r given twice"),
        ("title: x\ncolumns: [{label: x}]\nrows: []", "the table has no rows"),
        (
            "title: x\ntolerance: 0\ncolumns: [{label: x}]\nrows: [{label: r}]",
            "tolerance=0.0 is not possible; it must be above 0",
        ),
        ("title: [", "while parsing a flow"),
    ],
)
def test_a_mistake_in_a_table_is_an_error_that_names_the_place(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"bad\.yaml: .*{message}"):
        spec.load("bad", tmp_path)


def test_unknown_tables_and_conditions_are_explained() -> None:
    with pytest.raises(ValueError, match=r"against=hqq is not possible; it must be the label of a row"):
        table(line("sinq"), columns=[Column("Δ", against="hqq")])
    with pytest.raises(
        ValueError,
        match="table=table99 does not exist; choose one of abq, activations, feedback, sdgm, smoke, smollm2",
    ):
        spec.load("table99")
    with pytest.raises(
        ValueError,
        match="table is missing; give table=<name>, one of abq, activations, feedback, sdgm, smoke, smollm2",
    ):
        grids(config(table=""), [])
    with pytest.raises(ValueError, match="table=table99 does not exist"):  # also where runs need no table
        grids(config(table="table99", runs=[{"method": "none"}]), [])
    with pytest.raises(ValueError, match="--where device is no condition"):
        chosen([], ["device"])
    with pytest.raises(ValueError, match=r"--where identity\.devise=cpu: no row has identity\.devise"):
        chosen([row("a", method="sinq")], ["identity.devise=cpu"])


def test_every_table_has_runs_that_can_be_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "models/stories260k").mkdir(parents=True)
    monkeypatch.setenv("SINQ_DATA", str(tmp_path))
    with described_anew():
        describe_all()


def describe_all() -> None:
    treatments: dict[tuple[str, ...], tuple[str, ...]] = {}
    subjects = set()
    for name in spec.names():
        read = spec.load(name)
        notes = {
            cell.note
            for line in fill(read, []).cells
            for cell in line
            if cell.verdict is Judgement.not_applicable
        }
        assert not any("takes no" in note for note in notes), name
        lacking = cells.missing(read, [])
        for run in lacking:
            subjects.add(
                options.overrides(
                    {key: value for key, value in options.split(run)[0].items() if key != "model.path"}
                )
            )
            method_options = options.overrides(options.split(run)[1])
            treatments[tuple(each for each in method_options if not each.startswith("bits="))] = (
                method_options  # once for all bits
            )
    for each in treatments.values():
        assert options.run_of(each).method is not None
    for each in subjects:
        named = (*each, "model.path=any") if "model=hub" in each else each
        assert options.run_of(named).evaluation.keys() & {"perplexity", "zero_shot"}


def config(table: str | None = None, runs: Sequence[Any] = ()) -> Any:
    made = OmegaConf.structured(Experiment(list(runs)))
    return OmegaConf.create({"experiment": made, "table": table, "results_dir": "nowhere", "force": False})


def test_an_experiment_is_a_list_of_grids() -> None:
    runs = [
        {"method": "none"},
        {"method": ["rtn", "sinq"], "bits": [4, 3], "layers.exclude": "[lm_head,up_proj]", "stream": False},
    ]
    assert grids(config(runs=runs), ["seed=1"]) == [
        ["method=none", "seed=1"],
        ["method=rtn,sinq", "bits=4,3", "layers.exclude=[lm_head,up_proj]", "stream=false", "seed=1"],
    ]
    assert grids(config(), ["bits=3,4"]) == [["bits=3,4"]]
    assert Config.__dataclass_fields__["experiment"].default_factory is Experiment


def test_an_experiment_without_runs_is_what_its_table_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    small = table(line("sinq"), line("rtn"))
    monkeypatch.setattr(spec, "load", lambda name: small)
    monkeypatch.setattr(record, "read", lambda folder: ([row("a", method="sinq")], []))
    (lacking,) = grids(config(table="any"), ["logger=none"])
    assert lacking == ["model=smollm2", "text=wikitext2", "evaluation=quality", "method=rtn", "logger=none"]
    again = config(table="any")
    again.force = True
    assert len(grids(again, [])) == 2


@needs_data
def test_an_experiment_runs_and_prints_its_table(tmp_path: Path) -> None:
    results = tmp_path / "results"
    done = forked.run(
        tmp_path, ("run.py", "experiment=smoke", "logger=none", "device=cpu", f"results_dir={results}")
    )
    assert done.done() == 0, done.output
    rows, _ = record.read(results)
    assert sorted(each["name"] for each in rows) == ["none", "rtn 3-bit g64", "sinq 3-bit g64"]
    shown = done.stdout[done.stdout.rindex("method") :]
    filled = fill(spec.load("smoke"), rows)
    for (cell,), name in zip(filled.cells, ("dense", "RTN", "SINQ"), strict=True):
        assert cell.ours is not None
        assert f"{cell.ours:.2f}" in next(
            text for text in shown.splitlines() if text.strip().startswith(name)
        )
    assert cells.missing(spec.load("smoke"), copy.deepcopy(rows)) == []
