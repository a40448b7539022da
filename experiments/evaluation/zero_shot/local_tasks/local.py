"""Data of the tasks beside this file, read from the folder `$SINQ_DATA` in the form of lm-eval's tasks.

lm-eval calls a function with the `metadata` of the YAML file, and expects rows by split name. The items are
hashed later, from the requests (`experiments/evaluation/zero_shot/tasks.py`).
"""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset

from experiments.common.paths import data_dir

TITLE = re.compile(r" = [^=].* = \n")
"""First line of a WikiText article; headings inside an article have more equals signs."""


def piqa(**metadata: Any) -> dict[str, Dataset]:
    """Return PIQA's validation rows: goal, sol1, sol2, label."""
    lines = _file("piqa_local", "piqa/dev.jsonl").read_text(encoding="utf-8").splitlines()
    labels = _file("piqa_local", "piqa/dev-labels.lst").read_text().split()
    rows = [
        {key: row[key] for key in ("goal", "sol1", "sol2")} | {"label": int(label)}
        for row, label in zip(map(json.loads, lines), labels, strict=True)
    ]
    return {"validation": Dataset.from_list(rows)}


def wikitext2(**metadata: Any) -> dict[str, Dataset]:
    """Return the articles of WikiText-2's test split, as `page`."""
    with _file("wikitext2_local", "wikitext2/wiki.test.raw").open(encoding="utf-8", newline="\n") as lines:
        return {"test": Dataset.from_list([{"page": page} for page in articles(list(lines))])}


def articles(lines: list[str]) -> list[str]:
    """Join lines (each with its line end) to articles, from title to title.

    Lines before the first title belong to the first article.
    """
    starts = [
        number for number, line in enumerate(lines) if TITLE.fullmatch(line) and not line.startswith(" = = ")
    ]
    bounds = [0, *starts[1:], len(lines)]
    return ["".join(lines[first:last]) for first, last in pairwise(bounds)]


def _file(task: str, name: str) -> Path:
    """Return the path of a data file; raise `ValueError` if it does not exist."""
    folder = data_dir()
    if folder is None or not (folder / name).is_file():
        where = (
            f"SINQ_DATA={folder} has no {name}"
            if folder
            else f"SINQ_DATA is not set; it must name a folder with {name}"
        )
        from_hub = f"From the hub, the task is {task.removesuffix('_local')}"
        raise ValueError(f"evaluation.zero_shot.tasks={task}: {where}. {from_hub}")
    return folder / name
