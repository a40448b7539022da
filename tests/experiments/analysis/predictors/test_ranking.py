"""Rank correlations of layer errors: by hand, on made rows, and the command's refusals."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.analysis.predictors.ranking import (
    ALL,
    MEAN,
    PREDICTORS,
    correlations,
    interval,
    layer_table,
    partial,
    spearman,
)
from experiments.results.record import Row
from tests.experiments.analysis.command import command
from tests.experiments.rows import finished, store

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # by runpy
BLOCKS = 8
Q, DOWN = "self_attn.q_proj", "mlp.down_proj"


def made() -> tuple[Row, Row]:
    """A compressed row and its dense one: errors of q_proj follow the stable rank, of down_proj the depth."""
    row, dense = finished("sinq", 3), finished("none")
    random = np.random.default_rng(0)
    blocks = [f"model.layers.{k}" for k in range(BLOCKS)]
    ranks = {f"{block}.{kind}": float(random.uniform(1, 9)) for block in blocks for kind in (Q, DOWN)}
    errors = {f"{block}.{Q}": ranks[f"{block}.{Q}"] ** 2 / 100 for block in blocks}
    errors |= {f"{block}.{DOWN}": 2 - k / 10 for k, block in enumerate(blocks)}
    dense["samples"] |= {
        "stable_rank": {"stable_rank": ranks},
        "attention_entropy": {
            "entropy": {f"{block}.self_attn": math.sin(k) for k, block in enumerate(blocks)}
        },
    }
    row["samples"] |= {"layer_error": {"relative_error": errors}}
    return row, dense


def test_correlations_are_those_of_the_ranks_by_hand() -> None:
    found = {(each.predictor, each.layers): each for each in correlations(layer_table(*made()))}
    assert {layers for _, layers in found} == {ALL, MEAN, "q_proj", "down_proj"}
    assert {predictor for predictor, _ in found} == set(PREDICTORS)
    assert found["stable_rank", "q_proj"].rho == pytest.approx(1)
    assert found["depth", "down_proj"].rho == pytest.approx(-1)
    waves = [sorted(map(math.sin, range(BLOCKS))).index(math.sin(k)) for k in range(BLOCKS)]
    by_hand = -np.corrcoef(waves, range(BLOCKS))[0, 1]
    assert found["entropy", "down_proj"].rho == pytest.approx(by_hand)
    assert found["entropy", MEAN].rho == pytest.approx((by_hand + found["entropy", "q_proj"].rho) / 2)
    assert found["entropy", MEAN].interval is None
    assert (found["depth", ALL].count, found["depth", "q_proj"].count) == (2 * BLOCKS, BLOCKS)


def test_a_kind_of_few_layers_counts_among_all_only() -> None:
    row, dense = made()
    row["samples"]["layer_error"]["relative_error"] = {
        name: error
        for name, error in row["samples"]["layer_error"]["relative_error"].items()
        if not (name.endswith(DOWN) and int(name.split(".")[2]) > 3)
    }
    kinds = {each.layers: each.count for each in correlations(layer_table(row, dense))}
    assert kinds == {ALL: BLOCKS + 4, MEAN: BLOCKS, "q_proj": BLOCKS}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=4, max_size=30))
def test_ranks_with_ties_are_those_of_pandas(pairs: list[tuple[int, int]]) -> None:
    a, b = zip(*pairs, strict=True)
    expected = pd.Series(a).rank().corr(pd.Series(b).rank()) if len({*a}) > 1 and len({*b}) > 1 else 0
    assert spearman(a, b) == pytest.approx(expected, abs=1e-12)


def test_the_interval_is_bonett_and_wrights() -> None:
    half = 1.959964 * math.sqrt((1 + 0.5**2 / 2) / 27)
    low, high = interval(0.5, 30)
    assert (low, high) == pytest.approx(
        (math.tanh(math.atanh(0.5) - half), math.tanh(math.atanh(0.5) + half))
    )
    assert interval(1.0, 10) == (1.0, 1.0)


def test_what_is_left_at_equal_depth_is_the_correlation_of_residuals() -> None:
    """Partial correlation, by regressing ranks on ranks of the depth."""
    random = np.random.default_rng(2)
    depth = np.arange(20.0)
    a, b = depth + random.normal(0, 5, 20), -depth + random.normal(0, 5, 20)
    ranks = [pd.Series(each).rank().to_numpy() for each in (a, b, depth)]
    left = [each - np.polyval(np.polyfit(ranks[2], each, 1), ranks[2]) for each in ranks[:2]]
    pairs = [spearman(x.tolist(), y.tolist()) for x, y in ((a, b), (a, depth), (b, depth))]
    assert partial(*pairs) == pytest.approx(np.corrcoef(*left)[0, 1])
    assert partial(0.3, 1.0, 0.3) is None


def test_the_depth_explains_itself() -> None:
    found = correlations(layer_table(*made()))
    assert all(each.given_depth is None for each in found if each.predictor == "depth")
    assert all(each.given_depth is None for each in found if each.layers == "down_proj")
    (left,) = (e.given_depth for e in found if (e.predictor, e.layers) == ("stable_rank", "q_proj"))
    assert left == pytest.approx(1)


def test_the_interval_covers() -> None:
    """Pairs of a normal distribution of correlation 0.6, whose rank correlation is (6/π) asin(0.3)."""
    random, truth = np.random.default_rng(0), 6 / math.pi * math.asin(0.3)
    hits = 0
    for _ in range(1000):
        a = random.normal(size=30)
        low, high = interval(spearman(a.tolist(), (0.6 * a + 0.8 * random.normal(size=30)).tolist()), 30)
        hits += low <= truth <= high
    assert 925 <= hits <= 975


@pytest.mark.parametrize("lacking", ["layer_error", "stable_rank", "attention_entropy"])
def test_a_row_without_a_measurement_is_refused(lacking: str) -> None:
    row, dense = made()
    row["samples"].pop(lacking, None)
    dense["samples"].pop(lacking, None)
    with pytest.raises(ValueError, match=rf"run \w+ has no {lacking}.*evaluation=layers"):
        layer_table(row, dense)


def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row, dense = made()
    store(tmp_path, row, dense)
    words = ("method=sinq,bits=3", "--results", tmp_path, "--out")
    assert command(monkeypatch, "predictors", *words, tmp_path / "p.json") == 0
    said = capsys.readouterr().out
    assert "sinq 3-bit g64, m on t" in said
    assert "+1.00 (+1.00 … +1.00)" in said
    written = json.loads((tmp_path / "p.json").read_text())
    expected = layer_table(row, dense)
    assert written["layers"] == expected.to_dict("index")
    assert len(written["correlations"]) == 4 * len(PREDICTORS)
    assert command(monkeypatch, "predictors", *words, tmp_path / "p.csv") == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "p.csv", index_col="name"), expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("method=none",), "is of the dense model, which has no errors; name a compressed one"),
        (("method=rtn",), "was measured against none4t, which is not in this folder"),
        (("method=sinq", "--out", "p.txt"), "--out p.txt is of no known type"),
    ],
)
def test_wrong_words_are_one_line(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored = [finished("none", text="u"), finished("sinq", 3), finished("rtn")]
    store(tmp_path, *stored)
    assert command(monkeypatch, "predictors", *words, "--results", tmp_path) == 1
    said = capsys.readouterr().out
    assert message in said
    assert said.count("\n") == 1
