"""Sweeps of many runs: jobs, the plan, experiments that fill a table, the summary."""
