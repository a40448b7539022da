"""Rows of runs: their schema and migrations, reading and writing, and overviews.

`python -m experiments.results` prints them.
"""
