"""Suites of the bench: quantizing, products, decoding."""
