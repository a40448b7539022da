"""Runs: options, identity, the pipeline that carries a run out, its cost and its failures."""
