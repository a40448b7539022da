"""Texts that models are evaluated on and calibrated with."""
