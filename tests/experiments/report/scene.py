"""Marks of a figure as Vega draws them: positions and words, from the scene that vl-convert computes."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import vl_convert

from experiments.report.figure import Figure
from experiments.report.theme import LIGHT, Theme

Item = dict[str, Any]
Row = dict[str, Any]


def marks(
    figure: Figure, kind: str, keep: Callable[[Row], bool] = lambda _: True, theme: Theme = LIGHT
) -> list[Item]:
    """Return the drawn items of a kind, "symbol", "line", "rule", "text" or "rect".

    Args:
        keep: rows that a filter of the page leaves; rows without run are always left.
    """
    spec = figure.standalone(theme)
    spec["datasets"] = {"rows": [row for row in figure.rows if "run" not in row or keep(row)]}
    scene = vl_convert.vegalite_to_scenegraph(spec, allowed_base_urls=[])
    return list(_items(scene["scenegraph"], kind))


def words(figure: Figure, keep: Callable[[Row], bool] = lambda _: True) -> list[str]:
    """Return the texts in a figure, without those of axes and legends."""
    return [str(item["text"]) for item in marks(figure, "text", keep)]


def ids(items: list[Item]) -> list[str]:
    """Return the ids of runs that marks belong to, from what a screen reader says of them."""
    return [found[1] for item in items if (found := re.search(r"; id: ([^;]+)", item.get("description", "")))]


def _items(node: Any, kind: str) -> Iterator[Item]:
    if isinstance(node, dict):
        if node.get("marktype") == kind and node.get("role") == "mark":
            yield from node["items"]
        else:
            for item in node.get("items", []):
                yield from _items(item, kind)
