"""Helpers that know nothing of quantization: names, errors, progress, timing, files."""
