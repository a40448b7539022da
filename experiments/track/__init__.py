"""Tracking: finished rows are copied to Weights & Biases, by runs or later (`__main__.py`)."""
