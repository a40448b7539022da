"""Figures of a group of comparable runs, one file for each kind; `all.py` has the list.

Each file turns a group into rows of plain numbers, and describes once, with Altair, how they are drawn. Names
starting with an underscore in no specification; fields of rows are `run`, `name`, `method`, `group` (size),
`bits`, and what the figure shows.
"""
