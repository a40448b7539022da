"""Texts of a tree by counting, correlations by numpy, and a training that finds the latents."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.analysis.latent_tree.learned import (
    architecture,
    learned,
    levels,
    normalized_correlation,
)
from experiments.analysis.latent_tree.tree import Tree
from sinq.model.blocks import find_blocks
from sinq.training.trainer import Precision, Training
from tests.experiments.analysis.command import command

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # by runpy
SMALL = Tree(classes=3, upper=2, children=2, length=12, flip=0.1)


def test_tokens_tell_their_latents_and_the_class_comes_last() -> None:
    texts = SMALL.draw(50, seed=1)
    assert texts.ids.shape == (50, 14)
    assert SMALL.vocabulary == 8 + 1 + 3
    for text, lower in zip(texts.ids.tolist(), texts.lower.tolist(), strict=True):
        for token in text[:12]:
            assert lower[token // 2] == (1 if token % 2 else -1)
        assert text[12] == 8
        assert 9 <= text[13] < 12
    assert torch.equal(SMALL.draw(50, seed=1).ids, texts.ids)
    assert not torch.equal(SMALL.draw(50, seed=2).ids, texts.ids)


def test_values_are_those_of_parents_but_for_flips() -> None:
    texts = SMALL.draw(20_000, seed=0)
    codes = SMALL.codes()[texts.ids[:, -1] - 9]
    assert (texts.upper != codes).double().mean().item() == pytest.approx(0.1, abs=0.01)
    parents = texts.upper[:, [0, 0, 1, 1]]
    assert (texts.lower != parents).double().mean(0).tolist() == pytest.approx([0.1] * 4, abs=0.01)


def test_a_correlation_is_the_largest_of_numpys() -> None:
    random = np.random.default_rng(0)
    latents, units = random.normal(size=(40, 3)), random.normal(size=(40, 6))
    units[:, 5] = 7.0
    found = normalized_correlation(torch.from_numpy(latents), torch.from_numpy(units))
    for i in range(3):
        every = [abs(np.corrcoef(latents[:, i], units[:, u])[0, 1]) for u in range(5)]
        assert found[i].item() == pytest.approx(max(every))
    signs = torch.from_numpy(latents)
    assert torch.allclose(normalized_correlation(signs, -3 * signs + 1), torch.ones(3).double())


def test_units_are_activations_of_the_mlp_at_the_query() -> None:
    texts = SMALL.draw(30, seed=1)
    torch.manual_seed(0)
    model = architecture(width=16, neurons=24).model(SMALL.vocabulary, 14).eval()
    seen: list[torch.Tensor] = []
    for block in find_blocks(model):
        block.fc2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].view(30, 13, 24)[:, -1]))
    found = levels(model, texts)
    with torch.no_grad():
        model(texts.ids[:, :-1])
    for block, units in enumerate(seen[-2:]):
        expected = normalized_correlation(texts.lower, units).mean().item()
        assert found["lower", block] == pytest.approx(expected, abs=1e-5)


def test_training_tells_classes_and_follows_latents() -> None:
    tree = Tree(classes=2, upper=3, length=8, flip=0.05)
    assert not torch.equal(*tree.codes())
    options = Training(steps=40, batch=32, at_once=32, learning_rate=5e-3, precision=Precision.float32)
    found = learned(tree, architecture(width=16, neurons=32), options)
    assert found.accuracy > 0.75  # half by chance
    after = {(each.level, each.block): each.after for each in found.levels}
    before = {(each.level, each.block): each.before for each in found.levels}
    assert set(after) == {("lower", 0), ("lower", 1), ("upper", 0), ("upper", 1)}
    assert after["upper", 1] > before["upper", 1] + 0.05


def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--steps", 1, "--width", 8, "--out", tmp_path / "t.json")
    assert command(monkeypatch, "latent_tree", *words) == 0
    assert "of classes are told" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "t.json").read_text())
    assert len(found["levels"]) == 4
    assert command(monkeypatch, "latent_tree", "--seeds", 0) == 1
    assert "--seeds 0 is not possible" in " ".join(capsys.readouterr().out.split())
    assert command(monkeypatch, "latent_tree", "--out", "t.csv") == 1


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tree\.flip=0\.5 is not possible"):
        Tree(flip=0.5)
