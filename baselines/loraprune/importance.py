"""Importance of heads and neurons from the gradients of adapters, without a gradient of the frozen weight.

    Ĝ = gB·A + B·gA − η·gB·gA          paper's equation 9 has η = 1

This is the change of the product B·A in one step of gradient descent, divided by −η:
Ĝ = (B·A − (B − η·gB)(A − η·gA)) / η. With the true gradient G of the effective weight W + s·B·A it is
s·G·AᵀA + s·B·Bᵀ·G − η·s²·(G·Aᵀ)(Bᵀ·G): what the thin matrices see of G.

η = 1 adds a first power of gradients to a second one, so the last term depends on their scale. Gradients are
clipped to norm 1 before they are read, which keeps it small; `product_share` measures it.
"""

import enum

import torch
from torch import Tensor

from sinq.training.lora import LoRALinear

TINY = 1e-8


class Criterion(enum.Enum):
    """Source of importance: the adapters' gradients; the weight's own (more memory); the weight alone."""

    lora = "lora"
    grad = "grad"
    magnitude = "magnitude"


class Power(enum.Enum):
    """Importance of an element: |Ĝ ⊙ W|, as in the released code, or its square, as in the paper."""

    absolute = "absolute"
    squared = "squared"


def estimated_gradient(a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, eta: float) -> Tensor:
    """Return Ĝ (out, in).

    Args:
        a: A (rank, in), and its gradient `grad_a`.
        b: B (out, rank), and its gradient `grad_b`.
    """
    return grad_b @ (a - eta * grad_a) + b @ grad_a


def product_share(a: Tensor, grad_a: Tensor, grad_b: Tensor) -> float:
    """Return ‖gB·gA‖ / ‖gB·A‖, Frobenius, from products of (rank, rank) alone; 0 where B has no gradient."""
    gram = grad_b.T @ grad_b
    whole = (gram * (a @ a.T)).sum().clamp_min(0).sqrt()
    share = (gram * (grad_a @ grad_a.T)).sum().clamp_min(0).sqrt() / whole
    return share.item() if whole > 0 else 0.0


@torch.no_grad()
def element_importance(adapter: LoRALinear, criterion: Criterion, power: Power, eta: float) -> Tensor:
    """Return the importance of each element of the effective weight, float32 (out, in)."""
    weight = adapter.effective()
    if criterion is Criterion.magnitude:
        return weight.abs() if power is Power.absolute else weight.square()
    if criterion is Criterion.grad:
        gradient = adapter.base_gradient().float()
    else:
        gradient = estimated_gradient(adapter.a, adapter.b, _gradient(adapter.a), _gradient(adapter.b), eta)
    product = gradient * weight
    return product.abs() if power is Power.absolute else product.square()


def shared_out(importance: Tensor, groups: int) -> Tensor:
    """Return the importance of each group, scaled to norm 1 over them, (groups,).

    Args:
        importance: of rows or columns, of which each group has equally many, next to each other.
    """
    sums = importance.reshape(groups, -1).sum(1)
    return sums / (torch.linalg.vector_norm(sums) + TINY)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None  # every adapter has taken part in the loss
    return parameter.grad
