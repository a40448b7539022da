"""Tables of papers, as data: `conf/tables/<name>.yaml` says rows, columns and the paper's values; rows of a results folder fill the cells.

    python -m experiments.tables table1 --results results --format latex     only renders
    python run.py experiment=paper table=table1                              runs what is missing, then prints

A cell is a set of options, those of its table, column and row together, as one would give them to `run.py`. The run they describe is looked
for among the finished rows by its model, method, layers, text and calibration (`match.py`), so a cell never shows a run with another
constant. What is shown of a run, and what may be said of it, is `cells.py`; how it looks, `layout.py` and `formats.py`.
"""
