"""SEA: sparse attention with an estimated mask; `method.py` reads top-down."""

from baselines.sea.method import SEA

__all__ = ["SEA"]
