"""Leaves that know nothing of tensors' meaning: names, errors, progress, timing, files."""
