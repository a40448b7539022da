"""Figures of a group of comparable runs, one file for each kind; `all.py` has the list.

Each file turns a group into rows of plain numbers, and describes once, with Altair, how they are drawn. Every
row of a run has its `run`, `name`, `method`, `group` (size) and `bits` (`series.facts`), and what the figure
shows. `strips.py`, `curves.py` and `heat_maps.py` are the forms that several kinds share.
"""
