"""Configuration: YAML to objects, and options as data."""

from experiments.config.build import build, register

__all__ = ["build", "register"]
