"""The browser for every test of the report."""

from tests.experiments.report.browser import chromium

__all__ = ["chromium"]
