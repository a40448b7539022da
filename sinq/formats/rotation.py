"""Random-sign Hadamard rotations of a layer's inputs, and the compressed weight that undoes one.

A Hadamard matrix H has entries ±1 and orthogonal rows: H·Hᵀ = n·I. With random signs s, Q = H·diag(s)/√n is
orthogonal and mixes every input with every other, so a few large weights are spread over a whole row and
the row looks Gaussian (QuIP#, arXiv 2402.04396; QuaRot, arXiv 2404.00456). Rounding W·Qᵀ instead of W then
loses less, and Ŵ = round(W·Qᵀ)·Q.

H is a Kronecker product: Sylvester's 2^k, and one factor of Paley's two constructions for the rest of n
(576 = 16·36, 1536 = 128·12). A product with H is one small dense product per factor: n·Σ(factors)
operations a row, against n² for H itself.

Not covered: orders that need other constructions (92, 116, 156 are the first): those sizes are refused. If
the inner weight has a fast product, x is rotated (`kernels/product.py`). Otherwise a `Rotated` layer
dequantizes, and so rotates, its whole weight at every call.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sinq.common.errors import NotApplicable
from sinq.formats.base import INNER, CompressedWeight, inner_of, stored_as
from sinq.formats.checks import require_names, require_tensor
from sinq.formats.packing import pack, packed_bytes, unpack

SYLVESTER = 64
"""Largest factor of a power of two: few enough products, each dense enough to be fast."""


@lru_cache
def factors(size: int) -> tuple[int, ...]:
    """Return Hadamard orders whose product is `size`.

    The smallest factor that is not a power of two comes first, then powers of two up to 64.

    Raises:
        NotApplicable: there is no Hadamard matrix of this size among Sylvester's and Paley's.
    """
    twos = size & -size
    candidates = (size // twos << k for k in range(twos.bit_length()))
    first = next((order for order in candidates if order == 1 or _paley_field(order)), None)
    if first is None:
        raise NotApplicable(
            f"no Hadamard matrix is known here for {size} inputs;"
            " sizes are a power of two times one of Paley's orders"
        )
    rest, parts = size // first, [first] if first > 1 else []
    while rest > 1:
        parts.append(min(rest, SYLVESTER))
        rest //= parts[-1]
    return tuple(parts)


@lru_cache
def hadamard(order: int) -> Tensor:
    """Return a Hadamard matrix, float32 (order, order) of ±1.

    It is Sylvester's if `order` is a power of two, else Paley's.

    Raises:
        NotApplicable: neither of Paley's constructions gives the order.
    """
    sylvester = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    if order <= 1:
        return torch.ones(1, 1)
    if order & (order - 1) == 0:
        return torch.kron(sylvester, hadamard(order // 2))
    field = _paley_field(order)
    if field is None:
        raise NotApplicable(f"neither of Paley's constructions gives a Hadamard matrix of order {order}")
    conference = _conference(*field)
    identity = torch.eye(len(conference))
    if len(conference) == order:  # Paley I
        return identity + conference
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    return torch.kron(conference, sylvester) + torch.kron(identity, diagonal)  # Paley II


@lru_cache
def hadamard_on(order: int, device: torch.device) -> Tensor:
    """Return `hadamard(order)` on a device, copied once: a copy waits, and CUDA graphs can have none."""
    return hadamard(order).to(device)


def _paley_field(order: int) -> tuple[int, int] | None:
    """Return p and k of the field GF(p^k) that Paley's construction of an order needs, or None.

    With q = p^k, the order is q + 1 for q ≡ 3, and 2·(q + 1) for q ≡ 1 (mod 4).
    """
    for size, remainder in ((order - 1, 3), (order // 2 - 1, 1)):
        if order % 4 == 0 and size % 4 == remainder and (field := _prime_power(size)):
            return field
    return None


def _prime_power(size: int) -> tuple[int, int] | None:
    """Return p and k with p^k = size and p prime, or None."""
    prime = next((p for p in range(2, int(sqrt(size)) + 1) if size % p == 0), size)
    exponent = 0
    while size > 1 and size % prime == 0:
        size, exponent = size // prime, exponent + 1
    return (prime, exponent) if size == 1 and exponent else None


def _conference(prime: int, exponent: int) -> Tensor:
    """Return Paley's conference matrix (q + 1, q + 1), for q = p^k.

    Its entries are χ(a − b) for field elements a, b, with a border of ones, antisymmetric for q ≡ 3 (mod 4).
    χ is 1 for squares, −1 for non-squares, 0 for zero. The powers of a generator are alternately squares and
    non-squares. The index of an element is Σ_j coefficient_j·p^j.
    """
    size = prime**exponent
    digit_values = torch.tensor([prime**j for j in range(exponent)])
    powers = (torch.tensor(_powers_of_generator(prime, exponent)) * digit_values).sum(1)
    character = torch.zeros(size)
    character[powers] = torch.tensor([1.0, -1.0]).repeat(size // 2)
    digits = torch.arange(size)[:, None] // digit_values % prime
    differences = (((digits[:, None] - digits[None]) % prime) * digit_values).sum(2)
    matrix = torch.zeros(size + 1, size + 1)
    matrix[0, 1:] = 1.0
    matrix[1:, 0] = 1.0 if size % 4 == 1 else -1.0
    matrix[1:, 1:] = character[differences]
    return matrix


def _powers_of_generator(prime: int, exponent: int) -> list[tuple[int, ...]]:
    """Return the q − 1 nonzero elements of GF(p^k) as powers of a generator.

    An element is a tuple of the coefficients of a polynomial in x, lowest first. Multiplication by x is a
    shift with feedback. Feedback whose cycle has the full length is a primitive polynomial; all are tried
    in order.
    """
    one = (1,) + (0,) * (exponent - 1)
    for feedback in itertools.product(range(prime), repeat=exponent):
        cycle: dict[tuple[int, ...], None] = {}
        element = one
        while any(element) and element not in cycle:
            cycle[element] = None
            shifted, top = (0, *element[:-1]), element[-1]
            element = tuple(
                (digit + top * back) % prime for digit, back in zip(shifted, feedback, strict=True)
            )
        if len(cycle) == prime**exponent - 1:
            return list(cycle)
    raise AssertionError(f"GF({prime}^{exponent}) has no generator")


@dataclass(frozen=True, eq=False)
class Rotation:
    """The rotation Q = H·diag(signs)/√n.

    A vector x becomes Q·x. A matrix W that reads x becomes W·Qᵀ, so that W·Qᵀ·Q·x = W·x.
    """

    signs: Tensor
    """n bits packed into uint8, 1 for −1."""
    size: int

    @classmethod
    def random(cls, size: int, seed: int, device: torch.device | str = "cpu") -> Self:
        """Return the rotation of `size` inputs that a seed stands for, the same on any device.

        Raises:
            NotApplicable: no Hadamard matrix of this size is known (see `factors`).
        """
        factors(size)
        bits = torch.randint(2, (size,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        return cls(pack(bits, 1).to(device), size)

    @classmethod
    def plain(cls, size: int, device: torch.device | str = "cpu") -> Self:
        """Return the rotation of `size` inputs without signs, H/√n.

        Raises:
            NotApplicable: no Hadamard matrix of this size is known (see `factors`).
        """
        factors(size)
        return cls(torch.zeros(packed_bytes(size, 1), dtype=torch.uint8, device=device), size)

    def apply(self, rows: Tensor) -> Tensor:
        """Return Q·x for each row x of (..., n): rows·Qᵀ, float32."""
        return product(rows.float() * self._scaled_signs(), transposed=False)

    def undo(self, rows: Tensor) -> Tensor:
        """Return Qᵀ·y for each row y of (..., n): rows·Q, float32; the inverse of `apply`."""
        return product(rows.float(), transposed=True) * self._scaled_signs()

    def matrix(self) -> Tensor:
        """Return Q, float32 (n, n)."""
        return self.undo(torch.eye(self.size, device=self.signs.device))

    def _scaled_signs(self) -> Tensor:
        return (1.0 - 2.0 * unpack(self.signs, 1, (self.size,)).float()) / sqrt(self.size)


def product(rows: Tensor, transposed: bool) -> Tensor:
    """Return H·x (Hᵀ·x if transposed) for each row x of (..., n), one Kronecker factor at a time.

    Each step multiplies the last axis and moves it to the front, so the axes end in their original order.
    """
    size = rows.shape[-1]
    result = rows.reshape(-1, size)
    for order in reversed(factors(size)):
        matrix = hadamard_on(order, rows.device)
        multiplied = result.reshape(len(result), size // order, order) @ (matrix if transposed else matrix.T)
        result = multiplied.transpose(1, 2).reshape(-1, size)
    return result.reshape(rows.shape)


def segment_length(size: int) -> int:
    """Return the power of two in a size: n over the order of the factor that is Paley's, if one is.

    Raises:
        NotApplicable: no Hadamard matrix of this size is known (see `factors`).
    """
    return size // _paley_order(size)


def paley_product(rows: Tensor, transposed: bool) -> Tensor:
    """Return (P ⊗ I)·x for each row x of (..., n), float32, where P is Paley's factor, or its transpose."""
    size = rows.shape[-1]
    order = _paley_order(size)
    if order == 1:
        return rows
    matrix = hadamard_on(order, rows.device)
    segments = rows.reshape(-1, order, size // order)
    return torch.matmul(matrix.T if transposed else matrix, segments).reshape(rows.shape)


def _paley_order(size: int) -> int:
    """Return the factor of a size that is no power of two, or 1."""
    first = next(iter(factors(size)), 1)
    return 1 if first & (first - 1) == 0 else first


@dataclass(frozen=True, eq=False)
class Rotated(CompressedWeight):
    """A compressed weight of rotated inputs, and the rotation: W ≈ inner · Q.

    tensors: those of `inner` with a prefix, and `signs`, one bit per input (1 / out_features bits per
    weight). A file thus does not depend on a random number generator.

    Raises:
        ValueError: the signs are not one bit for each input of `inner`.
        NotApplicable: no Hadamard matrix of this size is known (see `factors`).
    """

    name: ClassVar[str] = "rotated"

    rotation: Rotation
    inner: CompressedWeight

    def __post_init__(self) -> None:
        columns = self.inner.shape[1]
        if self.rotation.size != columns:
            raise ValueError(f"a rotation of {self.rotation.size} inputs does not fit a matrix of {columns}")
        require_tensor("signs", self.rotation.signs, torch.uint8, (packed_bytes(columns, 1),))
        factors(columns)

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.inner.shape

    @property
    def notes(self) -> Mapping[str, float]:  # type: ignore[override]
        return self.inner.notes

    @property
    def core(self) -> CompressedWeight:
        return self.inner.core

    def core_inputs(self, x: Tensor) -> Tensor:
        return self.inner.core_inputs(self.rotation.apply(x).to(x.dtype))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.rotation.undo(self.inner.dequantize()).to(dtype)

    def state_dict(self) -> dict[str, Tensor]:
        inner = {INNER + name: tensor for name, tensor in self.inner.state_dict().items()}
        return {"signs": self.rotation.signs} | inner

    def config(self) -> dict[str, Any]:
        return {"inner": stored_as(self.inner)}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        inner, rest = inner_of(config, tensors)
        require_names(cls.name, rest, ("signs",))
        return cls(Rotation(rest["signs"], inner.shape[1]), inner)
