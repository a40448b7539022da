"""Names of rows: methods are set apart by their options, models and texts have their real names."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from baselines.awq import AWQ
from baselines.gptq import GPTQ
from baselines.hadamard import Hadamard
from baselines.rtn import RTN
from experiments.evaluation import Latency, Perplexity
from experiments.results.names import distinct_names, method_names, subject, titles
from experiments.results.record import Row
from sinq import SINQ, Grid, HalfQuadratic, Layers, Levels, Sinkhorn
from sinq.common.named import described
from tests.experiments.rows import finished

PLAIN = SINQ(Grid(4, 64))


def row(method: Any = PLAIN, name: str = "sinq 4-bit g64", run_id: str = "a", **changes: Any) -> Row:
    """A row with the identity and options that the pipeline records for a method."""
    made = finished() | {"name": name, "run_id": run_id}
    layers = changes.pop("layers", Layers())
    evaluation = changes.pop("evaluation", Perplexity(windows=4))
    made["identity"] |= {
        "method": described(method), "layers": described(layers), "kernel": "auto", "stream": False,
        "evaluation": {"perplexity": described(evaluation)}, **changes,
    }  # fmt: skip
    made["options"] = {
        "method": described(method, defaults=True), "layers": described(layers, defaults=True),
        "evaluation": {"perplexity": described(evaluation, defaults=True)},
    }  # fmt: skip
    return made


def test_rows_of_one_name_are_told_apart_by_the_options_that_differ() -> None:
    rows = [
        row(),
        row(SINQ(Grid(4, 64, tiling=2))),
        row(SINQ(Grid(4, 64, levels=Levels.nf4))),
        row(layers=Layers(exclude=("lm_head", "down_proj"))),
        row(stream=True),
        row(SINQ(Grid(4, 64), sinkhorn=Sinkhorn(iterations=4))),
        row(SINQ(Grid(4, 64), refinement=HalfQuadratic())),
        row(calibration={"name": "text", "version": 1, "text": {"name": "c4", "fingerprint": "1"}}),
        row(kernel="reference"),
    ]
    assert [name.removeprefix("sinq 4-bit g64").strip() for name in method_names(rows)] == [
        "", "tiling=2", "levels=nf4", "exclude=[lm_head,down_proj]", "stream=True", "iterations=4",
        "refinement=yes", "calibration=c4", "kernel=reference",
    ]  # fmt: skip


def test_calibrations_are_told_apart_with_text_and_without() -> None:
    sources = [
        {"name": "text", "version": 1, "text": {"name": "c4", "part": "calibration", "fingerprint": "1"}},
        {"name": "random_tokens", "version": 1},
        {"name": "self_generated", "version": 2},
        {"name": "self_generated", "version": 2, "temperature": 0.5},
    ]
    names = method_names([row(calibration=source) for source in sources])
    assert [name.removeprefix("sinq 4-bit g64 ") for name in names] == [
        "calibration=c4", "calibration=random_tokens", "calibration=self_generated",
        "calibration=self_generated temperature=0.5",
    ]  # fmt: skip


def test_an_inner_method_is_named() -> None:
    rows = [row(Hadamard(inner), "hadamard 4-bit g64") for inner in (RTN(), GPTQ(RTN()), AWQ(RTN()))]
    assert method_names(rows) == [
        f"hadamard 4-bit g64 method=hadamard({inner})" for inner in ("rtn", "gptq(rtn)", "awq(rtn)")
    ]


def test_how_a_row_was_measured_is_not_in_its_name() -> None:
    rows = [
        row(),
        row(run_id="b", evaluation=Perplexity(windows=16)),
        row(run_id="c", evaluation=Latency()),
        row(run_id="d", evaluation=Perplexity(seqlen=512)),
    ]
    assert method_names(rows) == ["sinq 4-bit g64"] * 4
    assert len(set(distinct_names(rows))) == 4


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [PLAIN, SINQ(Grid(4, 64, tiling=2)), AWQ(RTN()), AWQ(SINQ()), RTN(), GPTQ(RTN())]
            ),
            st.sampled_from([Layers(), Layers(exclude=())]),
            st.sampled_from(["m", "n"]),
            st.integers(1, 3),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_distinct_names_are_distinct_and_never_name_what_is_not_there(drawn: list[Any]) -> None:
    rows = []
    for number, (method, layers, model, windows) in enumerate(drawn):
        made = row(method, run_id=f"id{number}", layers=layers)
        made["identity"]["model"] = {"name": model, "dtype": "float32"}
        made["metrics"]["perplexity"]["windows"] = windows
        rows.append(made)
    names = distinct_names(rows)
    assert len(set(names)) == len(names)
    assert not [name for name in names if "None" in name or "kind" in name or "version" in name]
    assert all(name.startswith("sinq 4-bit g64") for name in names)


def test_models_have_their_real_names_and_equal_titles_get_what_differs() -> None:
    first = finished()
    first["choices"]["model"] = "hub"
    first["identity"]["model"] = {"name": "Qwen3-1.7B", "fingerprint": "1", "dtype": "float32"}
    assert subject(first) == "Qwen3-1.7B on t"
    more = finished(bits=3)
    more["identity"]["model"] = first["identity"]["model"]
    more["metrics"]["perplexity"] |= {"windows": 16}
    elsewhere = finished(text="u")
    assert titles([first, more, elsewhere]) == [
        "Qwen3-1.7B on t, 20 windows", "Qwen3-1.7B on t, 16 windows", "m on u",
    ]  # fmt: skip
    twin = {**first, "run_id": "twin"}
    assert titles([first, twin]) == ["Qwen3-1.7B on t, run sinq4t", "Qwen3-1.7B on t, run twin"]
