"""The report: all rows of a results folder as one HTML page that needs no network, and figures for a paper.

    python -m experiments.report --results results --out report.html

Comparable rows form groups (`comparable.py`). Each figure is first plain data (`figures.py`), made from a
group by `pareto.py`, `forest.py`, `durations.py` and `heat_maps.py`. Two renderers draw that data:
`render_svg.py` for the page, `render_matplotlib.py` for a paper. So the page and the paper show the same
numbers.

Horizontal SVG coordinates are percentages, vertical ones are pixels. The page fits the width of the window
without a script, and its text keeps its size on a telephone. The script only sorts and filters the table and
shows details at the pointer.
"""
