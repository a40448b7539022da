"""A transformer trained on a tree's texts, and the correlation of its hidden units with the latents.

The loss is that of the class after the query. Of every block, the activations of the MLP at the query are
compared with every latent over new texts: the normalized correlation of a latent is the largest |correlation|
with any unit, and a level's is the mean over its latents. The largest of many correlations is above 0 by
chance, so the same is told of the model before its training.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.analysis.latent_tree.tree import Texts, Tree
from experiments.models.architectures import MLP, Transformer
from sinq.common.progress import Progress, silent
from sinq.model.blocks import find_blocks
from sinq.training.batches import seed_of
from sinq.training.trainer import Trainer, Training

HELD_OUT = 2000
"""Texts that are compared."""


@dataclass(frozen=True)
class Level:
    """Normalized correlations of a level of latents with the units of a block."""

    level: str
    block: int
    before: float
    after: float


@dataclass(frozen=True)
class Learned:
    """Result of a training."""

    levels: tuple[Level, ...]
    accuracy: float
    """Share of new texts whose class is told."""


def architecture(layers: int = 2, width: int = 128, neurons: int = 512) -> Transformer:
    """Return the transformer: one head and ReLU, as the paper's; its 1,024 channels take a GPU."""
    return Transformer(layers=layers, width=width, heads=1, neurons=neurons, mlp=MLP.relu)


def learned(tree: Tree, transformer: Transformer, training: Training, progress: Progress = silent) -> Learned:
    """Train on a tree's texts, and correlate before and after."""
    texts = tree.draw(HELD_OUT, seed_of(training.seed, training.steps))
    with torch.random.fork_rng([]):
        torch.manual_seed(training.seed)
        model: Any = transformer.model(tree.vocabulary, tree.length + 2)
    before = levels(model, texts)
    Trainer(
        training, partial(class_loss, model.train()), dict(model.named_parameters()),
        lambda step: tree.draw(training.batch, seed_of(training.seed, step)).ids.split(training.at_once),
        torch.device("cpu"), progress=progress,
    ).run()  # fmt: skip
    after = levels(model, texts)
    found = tuple(Level(*key, before[key], after[key]) for key in before)
    return Learned(found, accuracy(model, texts))


def class_loss(model: Any, ids: Tensor) -> Tensor:
    """Return the mean NLL of the class, the last of ids (texts, length + 2), a scalar."""
    return nn.functional.cross_entropy(model(ids[:, :-1], use_cache=False).logits[:, -1], ids[:, -1])


@torch.inference_mode()
def accuracy(model: Any, texts: Texts) -> float:
    """Return the share of texts whose class is the most probable token after the query."""
    logits = model.eval()(texts.ids[:, :-1], use_cache=False).logits[:, -1]
    return (logits.argmax(-1) == texts.ids[:, -1]).double().mean().item()


@torch.inference_mode()
def levels(model: Any, texts: Texts) -> dict[tuple[str, int], float]:
    """Return the normalized correlation of each level with each block, by level and block."""
    units: list[Tensor] = []
    blocks: list[Any] = list(find_blocks(model))
    handles = [
        block.fc1.register_forward_hook(
            lambda _module, _inputs, output: units.append(_at_query(output, texts))
        )
        for block in blocks
    ]
    try:
        model.eval()(texts.ids[:, :-1], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    named = {"lower": texts.lower, "upper": texts.upper}
    return {
        (name, block): normalized_correlation(latents, each).mean().item()
        for name, latents in named.items()
        for block, each in enumerate(units)
    }


def _at_query(output: Tensor, texts: Texts) -> Tensor:
    """Return activations at the last position (texts, neurons); OPT may join texts and tokens before."""
    return output.view(len(texts.ids), -1, output.shape[-1])[:, -1].relu()


def normalized_correlation(latents: Tensor, units: Tensor) -> Tensor:
    """Return the largest |correlation| (latents,) of each latent (texts, latents) with units (texts, units).

    A unit that never changes correlates with nothing.
    """
    a, b = (_standardized(each.double()) for each in (latents, units))
    return (a.T @ b).abs().amax(1) / len(latents)


def _standardized(values: Tensor) -> Tensor:
    centred = values - values.mean(0)
    spread = centred.square().mean(0).sqrt()
    return torch.where(spread > 1e-12, centred / spread.clamp_min(1e-12), 0.0)
