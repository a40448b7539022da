"""Basics of the harness: paths, files, console, errors, intervals, meters."""
