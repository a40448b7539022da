"""The report: all rows of a results folder as one HTML page that needs no network, and figures for a paper.

    python -m experiments.report --results results --out report.html

Comparable rows form groups (`comparable.py`). A figure is one Vega-Lite specification, made with Altair, and
rows of plain numbers (`figure.py`); `figures/` has a file for each kind, `figures/all.py` the list. The page
draws it in the browser, `export.py` writes the same specification as PDF, PNG or SVG: so page and paper show
the same numbers. Colours are a theme's (`theme.py`), light and dark.

`page.py` puts everything into one file, with the scripts and the style sheet of `assets/`.
"""
