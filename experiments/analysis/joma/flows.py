"""Integrators of gradient flow: scipy's adaptive solver, and gradient descent with small steps.

The solver is for smooth nonlinearities. At the kinks of ReLU its steps shrink without end, so there descent
is used, whose error is proportional to the step.
"""

from collections.abc import Iterator

import numpy as np
from scipy.integrate import solve_ivp

from experiments.analysis.joma.block import Activation, Array, Block, Weights

RTOL = 1e-12


def solved(block: Block, start: Weights, times: Array, rtol: float = RTOL) -> list[Weights]:
    """Return the weights of gradient flow at each of some times, from `start` at time 0.

    Raises:
        ValueError: ReLU, or a solution that ends before the last time.
    """
    if block.activation is Activation.relu:
        raise ValueError("activation=relu has kinks that stop an adaptive solver; use descent, or tanh")

    def velocity(_: float, flat: Array) -> Array:
        return block.gradient(start.like(flat)).flat()

    span = (0.0, float(times[-1]))
    found = solve_ivp(velocity, span, start.flat(), "DOP853", times, rtol=rtol, atol=rtol * 1e-3)
    if not found.success or len(found.t) < len(times):
        raise ValueError(
            f"gradient flow was solved to time {found.t[-1]:g} of {times[-1]:g}: {found.message}"
        )
    return [start.like(flat) for flat in found.y.T]


def descent(block: Block, start: Weights, steps: int, rate: float) -> Iterator[Weights]:
    """Yield the weights after each of `steps` steps of gradient descent, `start` first."""
    weights = start
    yield weights
    for _ in range(steps):
        change = block.gradient(weights)
        weights = Weights(
            weights.v + rate * change.v, weights.z + rate * change.z, weights.r + rate * change.r
        )
        yield weights


def evenly(until: float, count: int) -> Array:
    """Return `count` times from 0 to `until`."""
    return np.linspace(0, until, count)
