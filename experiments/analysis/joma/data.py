"""Texts of the paper's figure: frequencies of contextual tokens for each class, and first weights.

A class has ten tokens that tell it, whose frequencies are a bump which moves with the class (or uniform
draws), and ten common ones; a text's frequencies have Euclidean length 1. There is one text for each class.
"""

import numpy as np

from experiments.analysis.joma.block import Activation, Array, Attention, Block, Weights

CLASSES, TELLING, COMMON = 20, 10, 10
WIDTH = 30.0
"""Width of the bump: exp(−(token − centre)² / WIDTH)."""
SPREAD = 0.01
"""Standard deviation of the first weights."""


def frequencies(random: np.random.Generator, bumps: bool = True) -> Array:
    """Return frequencies (classes, tokens); without `bumps` the telling tokens are uniform draws too."""
    x = random.uniform(0, 0.5, (CLASSES, TELLING + COMMON))
    if bumps:
        tokens, centres = np.arange(TELLING), np.arange(CLASSES)[:, None] / CLASSES * TELLING
        x[:, :TELLING] = np.exp(-((tokens - centres) ** 2) / WIDTH)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def figure(
    attention: Attention,
    activation: Activation,
    seed: int = 0,
    queries: int = 1,
    temperature: float = 1.0,
    bumps: bool = True,
    overlap: float = 0.0,
) -> tuple[Block, Weights]:
    """Return a block on these texts, one for each class and query, and small random weights.

    Linear attention begins at logits near 1: at 0 it would look at nothing.
    """
    random = np.random.default_rng(seed)
    x = np.concatenate([frequencies(random, bumps) for _ in range(queries)])
    labels = np.tile(np.arange(CLASSES), queries)
    numbers = np.repeat(np.arange(queries), CLASSES)
    block = Block(x, labels, numbers, attention, activation, temperature, overlap)
    shapes = ((CLASSES, x.shape[1]), (queries, x.shape[1]), (CLASSES, queries))
    v, z, r = (random.normal(0, SPREAD, shape) for shape in shapes)
    return block, Weights(v, z + (attention is Attention.linear), r)
