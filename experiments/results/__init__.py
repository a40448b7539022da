"""Rows of finished runs: their schema and migrations, reading and writing, an overview.

`python -m experiments.results` prints them."""
