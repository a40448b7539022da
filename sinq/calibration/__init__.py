"""Calibration: text, sites, statistics, their collection, and gradients."""
