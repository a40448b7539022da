"""KL divergence and flips against brute force over the whole vocabulary; the file of dense predictions."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.common.cache import CHECKSUM, Entry
from experiments.evaluation import EvaluationContext, Perplexity, divergence
from experiments.evaluation.divergence import Expected, Reference
from experiments.models.source import sparing_clone
from tests.experiments.evaluation.pairs import SEQLEN, VOCABULARY, dense_runs, exact, pair, predictions
from tests.experiments.tiny import Capped, subject

OPTIONS = Perplexity(windows=3, seqlen=SEQLEN, top_k=VOCABULARY)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))
    return tmp_path / "reference"


def test_with_the_whole_vocabulary_it_is_the_exact_divergence(architecture: str) -> None:
    _, compressed = pair(architecture)
    measured = OPTIONS.measure(compressed)
    kl, flips = exact(compressed)
    assert kl.mean() > 0.01
    assert 0.1 < flips.double().mean() < 0.9
    assert measured.samples["window_kl"] == pytest.approx(kl.mean(1).tolist(), rel=1e-3)
    assert measured.metrics["kl"] == pytest.approx(kl.mean().item(), rel=1e-3)
    assert measured.samples["window_flips"] == pytest.approx(flips.double().mean(1).tolist(), abs=1e-12)
    assert measured.metrics["flip_rate"] == pytest.approx(flips.double().mean().item(), abs=1e-12)
    assert measured.metrics["kl_top_k"] == VOCABULARY


def test_with_fewer_tokens_it_is_a_lower_bound_that_grows(architecture: str) -> None:
    _, compressed = pair(architecture)
    bounds = [replace(OPTIONS, top_k=k).measure(compressed).metrics for k in (1, 8, 32, VOCABULARY)]
    values = [bound["kl"] for bound in bounds]
    assert 0 < values[0] < values[1] < values[2] < values[3]
    assert len({bound["flip_rate"] for bound in bounds}) == 1


def test_it_is_the_divergence_of_merged_outcomes() -> None:
    _, compressed = pair()
    dense, own = (predictions(model, compressed) for model in (compressed.loaded.model, compressed.model))
    kept = dense.topk(8).indices
    p, q = dense.exp().gather(2, kept), own.exp().gather(2, kept)
    p, q = (torch.cat([part, 1 - part.sum(-1, keepdim=True)], -1) for part in (p, q))
    assert replace(OPTIONS, top_k=8).measure(compressed).metrics["kl"] == pytest.approx(
        (p * (p / q).log()).sum(-1).mean().item(), rel=1e-3
    )


def test_more_tokens_than_there_are_is_all_of_them() -> None:
    assert replace(OPTIONS, top_k=1000).measure(pair()[1]).metrics["kl_top_k"] == VOCABULARY


def test_a_model_that_was_not_compressed_does_not_differ(architecture: str) -> None:
    dense, _ = pair(architecture)
    clone: Any = sparing_clone(dense.model)
    metrics = replace(OPTIONS, top_k=16).measure(replace(dense, model=clone)).metrics
    assert 0 <= metrics["kl"] < 1e-6
    assert metrics["flip_rate"] == 0


def test_a_model_that_is_run_whole_is_compared_too() -> None:
    dense = subject()
    capped: Any = Capped()
    capped.inner.lm_head.weight *= 1.1
    loaded = replace(dense.loaded, model=Capped())  # type: ignore[arg-type]
    given = replace(dense, model=capped, loaded=loaded)
    measured = OPTIONS.measure(given)
    kl, flips = exact(given)
    assert measured.metrics["head"] == "whole"
    assert measured.metrics["kl"] == pytest.approx(kl.mean().item(), rel=1e-2)
    assert measured.metrics["flip_rate"] == pytest.approx(flips.double().mean().item())


def kept(log_probabilities: torch.Tensor, k: int) -> Expected:
    """The predictions (positions, vocabulary), written to a file as a dense model's and read again."""
    reference = divergence.Reference(Entry("reference", "kept.npy"), 1, len(log_probabilities), k)
    with reference.create() as see:
        see(log_probabilities.clone())
    return reference.window(0, torch.device("cpu"))


@pytest.mark.parametrize("k", [1, 2, 5, 64])
def test_of_equal_probabilities_the_first_counts_as_in_argmax(k: int) -> None:
    """Logits of few distinct values, as bfloat16 has them: nearly every position is tied."""
    generator = torch.Generator().manual_seed(k)
    logits = torch.randint(0, 3, (2, 400, 64), generator=generator).float()
    logits[:, :50, 7] = 9  # some are not
    dense, compressed = logits.log_softmax(-1)
    changed, tied = divergence.flips(compressed, kept(dense, k))
    assert changed.tolist() == (logits[0].argmax(-1) != logits[1].argmax(-1)).double().tolist()
    several = [(each == each.amax(-1, keepdim=True)).sum(-1) > 1 for each in logits]
    assert tied.tolist() == (several[0] | several[1]).double().tolist()
    assert 0 < tied.mean() < 1
    assert not divergence.flips(dense, kept(dense, k))[0].any()


def test_ties_are_counted_and_the_row_says_how() -> None:
    metrics = OPTIONS.measure(pair()[1]).metrics
    assert metrics["tie_rate"] == 0
    assert "argmax" in metrics["ties"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_predictions_that_are_no_numbers_have_no_distance(bad: float) -> None:
    """A bad position of either model is NaN, in the window's means too; the others are as before."""
    logits = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    broken = logits.clone()
    broken[0, 1, 3] = broken[1, 4, 5] = bad
    dense, compressed = broken.log_softmax(-1)
    expected = kept(dense, 8)
    changed, tied = divergence.flips(compressed, expected)
    for measured in (changed, tied, divergence.divergence(compressed.clone(), expected)):
        assert measured.isnan().tolist() == [False, True, False, False, True, False]
    window = divergence.Distance(expected)
    window.add(compressed)
    assert all(value != value for value in (window.mean_kl, window.flip_rate, window.tie_rate))  # noqa: PLR0124


def test_certainty_and_impossibility_have_finite_divergences() -> None:
    compressed = torch.tensor([[0.0, -200.0, -200.0], [-200.0, 0.0, -200.0]])
    dense = Expected(
        torch.zeros(2, 1, dtype=torch.long),
        torch.tensor([[0.0, -torch.inf], [-1e-3, -6.9]], dtype=torch.float64),
        torch.zeros(2, dtype=torch.bool),
    )
    assert divergence.flips(compressed, dense)[0].tolist() == [0, 1]
    kl = divergence.divergence(compressed, dense)
    assert kl[0] == 0
    assert 100 < kl[1] < 250


def test_the_dense_run_writes_it_and_compressed_runs_read_it(cache: Path) -> None:
    dense, compressed = pair()
    runs = dense_runs(dense)
    row = OPTIONS.measure(dense)
    assert "kl" not in row.metrics
    assert len(list(cache.glob("*.npy"))) == 1
    before = len(runs)
    first = OPTIONS.measure(compressed)
    assert len(runs) == before
    for file in cache.glob("*.npy"):
        file.unlink()
    assert OPTIONS.measure(compressed) == first  # written again, by the dense model
    assert runs[before:].count(torch.Size([1, SEQLEN])) == 3
    assert OPTIONS.measure(dense) == row


def test_without_it_nothing_is_kept_or_said(cache: Path) -> None:
    dense, compressed = pair()
    for given in (dense, compressed):
        assert not {"kl", "flip_rate", "kl_top_k"} & set(replace(OPTIONS, top_k=None).measure(given).metrics)
    assert not cache.exists()


def test_perplexity_does_not_depend_on_it() -> None:
    _, compressed = pair()
    nll = [replace(OPTIONS, top_k=k).measure(compressed).samples["window_nll"] for k in (None, 4, VOCABULARY)]
    assert nll[0] == nll[1] == nll[2]


def test_a_file_takes_six_bytes_for_each_token_kept() -> None:
    dense, _ = pair()
    replace(OPTIONS, top_k=64).measure(dense)
    file = Reference.of(dense, OPTIONS._windows(dense), 64).entry.path
    assert file.stat().st_size <= 256 + 3 * (SEQLEN - 1) * (6 * 64 + 5)


def test_two_processes_may_write_it_at_once() -> None:
    dense, compressed = pair()
    expected = OPTIONS.measure(compressed).samples["window_kl"]
    reference = Reference.of(dense, OPTIONS._windows(dense), VOCABULARY)
    path = reference.entry.path
    path.unlink()
    windows = [window.float() for window in predictions(dense.model, dense)]
    with reference.create() as first, reference.create() as second:
        for window in windows:
            first(window.clone())
            assert not reference.exists
            second(window.clone())
    assert OPTIONS.measure(compressed).samples["window_kl"] == pytest.approx(expected, rel=1e-4)
    assert sorted(path.parent.iterdir()) == [path, path.with_name(path.name + CHECKSUM)]


def test_an_interrupted_pass_leaves_nothing(cache: Path) -> None:
    def interrupted(items: Any, description: str, total: int) -> Any:
        yield items[0]
        raise KeyboardInterrupt

    dense, _ = pair()
    with pytest.raises(KeyboardInterrupt):
        OPTIONS.measure(replace(dense, progress=interrupted))
    assert list(cache.iterdir()) == []


def test_it_is_known_by_its_content() -> None:
    def path(given: EvaluationContext, windows: int = 3, top_k: int = 8) -> Path:
        options = replace(OPTIONS, windows=windows)
        return Reference.of(given, options._windows(given), top_k).entry.path

    dense, compressed = pair()
    assert path(dense) == path(compressed)
    half = replace(dense.loaded, model=copy.deepcopy(dense.model).half())
    others = [
        replace(dense, tokens=dense.tokens.roll(1)),
        replace(dense, device=torch.device("meta")),
        replace(dense, loaded=replace(dense.loaded, identity={"name": "another"})),
        replace(dense, loaded=replace(dense.loaded, commit="abc")),
        replace(dense, loaded=half),
        subject(),
    ]
    assert len({path(dense), path(dense, windows=2), path(dense, top_k=9), *map(path, others)}) == 3 + len(
        others
    )


def test_measurements_are_means_over_positions_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    _, compressed = pair()
    whole = OPTIONS.measure(compressed).samples
    monkeypatch.setattr("experiments.evaluation.logits.POSITIONS_AT_ONCE", 7)
    chunks = OPTIONS.measure(compressed).samples
    for name, values in whole.items():
        assert chunks[name] == pytest.approx(values, rel=1e-5)
