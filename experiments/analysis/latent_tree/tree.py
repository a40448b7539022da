"""Texts from a tree of binary latents.

    class y → upper latents z¹_i = ±1, a random code of the class
            → lower latents z⁰_j, `children` of each upper one
            → tokens: a text is `length` draws of a lower latent j, written as token 2j or 2j + 1 by its value

Each value is its parent's, but for a flip with probability `flip`. After the tokens a text has a query, and
what follows it is the class. From our notes on the paper come the class, two levels of 10 and 20 latents,
2 or 3 children, and texts of 30 tokens; codes, flips and two tokens for each latent are choices made here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sinq.common.options import SEED, check, number, whole


@dataclass(frozen=True)
class Texts:
    """Texts with what they were drawn from."""

    ids: Tensor
    """Tokens, query and class (texts, length + 2), int64."""
    upper: Tensor
    """Values ±1 of the upper latents (texts, upper)."""
    lower: Tensor
    """Values ±1 of the lower latents (texts, upper · children)."""


@dataclass(frozen=True)
class Tree:
    """A tree of latents. Its seed draws the codes of the classes.

    Raises:
        ValueError: an option is out of range.
    """

    classes: int = 20
    upper: int = 10
    children: int = 2
    length: int = 30
    flip: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        size = whole(1, 1000)
        check(
            self, "tree", classes=whole(2, 1000), upper=size, children=size, length=size,
            flip=number(least=0, below=0.5), seed=SEED,
        )  # fmt: skip

    @property
    def lower(self) -> int:
        """Return the number of lower latents."""
        return self.upper * self.children

    @property
    def query(self) -> int:
        """Return the id of the query; those of classes follow it."""
        return 2 * self.lower

    @property
    def vocabulary(self) -> int:
        return self.query + 1 + self.classes

    def codes(self) -> Tensor:
        """Return the code ±1 of every class (classes, upper)."""
        return _signs((self.classes, self.upper), 0.5, torch.Generator().manual_seed(self.seed))

    def draw(self, count: int, seed: int) -> Texts:
        """Return `count` texts, the same for the same seed."""
        random = torch.Generator().manual_seed(seed)
        classes = torch.randint(self.classes, (count, 1), generator=random)
        upper = self.codes()[classes[:, 0]] * _signs((count, self.upper), self.flip, random)
        lower = upper.repeat_interleave(self.children, 1) * _signs((count, self.lower), self.flip, random)
        chosen = torch.randint(self.lower, (count, self.length), generator=random)
        tokens = 2 * chosen + (lower.gather(1, chosen) > 0)
        query = torch.full((count, 1), self.query)
        return Texts(torch.cat([tokens, query, self.query + 1 + classes], 1), upper, lower)


def _signs(shape: tuple[int, ...], flip: float, random: torch.Generator) -> Tensor:
    """Return values that are −1 with probability `flip`, else 1."""
    return 1.0 - 2.0 * (torch.rand(shape, generator=random) < flip)
