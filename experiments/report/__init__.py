"""The report: all rows of a results folder as one HTML page that needs no network, and its figures as files for a paper.

    python -m experiments.report --results results --out report.html

Rows become groups of what may be compared (`group.py`). Each figure is first plain data (`figures.py`), made from a group by `pareto.py`,
`intervals.py`, `timing.py` and `layers.py`; two renderers draw that data: `drawing.py` as SVG for the page, `paper.py` with matplotlib.
So the page and the paper show the same numbers.

The page's SVG places things across in per cent and down in pixels. It is as wide as the window without a script, and its text keeps its
size on a telephone. The script only sorts and filters the table and shows what lies under the pointer.
"""
