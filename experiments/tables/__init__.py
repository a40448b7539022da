"""Tables of papers as data: `conf/tables/<name>.yaml` has rows, columns and the paper's values.

Rows of a results folder fill the cells:

    python -m experiments.tables table1 --results results --format latex     only renders
    python run.py experiment=paper table=table1                              runs what is missing, then prints

A cell is a set of options of `run.py`: those of the table, the column and the row together. `match.py` looks
for the run they describe among the finished rows, by model, method, layers, text and calibration, so a cell
never shows a run with another constant. `cells.py` fills and judges the cells; `layout.py` and `formats.py`
render them.
"""
