"""Data of the tasks beside this file, read from the folder `$SINQ_DATA` in the form lm-eval's own tasks have it.

lm-eval calls a function with what the YAML says in `metadata`, and wants rows by split name. Which items were asked is
hashed later, from the requests themselves (`experiments/evaluation/zero_shot/tasks.py`).
"""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset

from experiments.common.paths import data_dir

TITLE = re.compile(r" = [^=].* = \n")
"""The line an article of WikiText begins with; headings inside one have more signs."""


def piqa(**metadata: Any) -> dict[str, Dataset]:
    """PIQA's validation rows: goal, sol1, sol2, label."""
    rows = [
        json.loads(line)
        for line in _file("piqa_local", "piqa/dev.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    labels = _file("piqa_local", "piqa/dev-labels.lst").read_text().split()
    asked = [{key: row[key] for key in ("goal", "sol1", "sol2")} for row in rows]
    return {
        "validation": Dataset.from_list(
            [row | {"label": int(label)} for row, label in zip(asked, labels, strict=True)]
        )
    }


def wikitext2(**metadata: Any) -> dict[str, Dataset]:
    """Articles of WikiText-2's test split, as `page`."""
    with _file("wikitext2_local", "wikitext2/wiki.test.raw").open(encoding="utf-8", newline="\n") as lines:
        return {"test": Dataset.from_list([{"page": page} for page in articles(list(lines))])}


def articles(lines: list[str]) -> list[str]:
    """Lines (each with its end) as articles, from title to title; what stands before the first title belongs to it."""
    starts = [
        number for number, line in enumerate(lines) if TITLE.fullmatch(line) and not line.startswith(" = = ")
    ]
    bounds = [0, *starts[1:], len(lines)]
    return ["".join(lines[first:last]) for first, last in pairwise(bounds)]


def _file(task: str, name: str) -> Path:
    folder = data_dir()
    if folder is None or not (folder / name).is_file():
        where = (
            f"SINQ_DATA={folder} has no {name}"
            if folder
            else f"SINQ_DATA is not set; it must name a folder with {name}"
        )
        raise ValueError(
            f"evaluation.zero_shot.tasks={task}: {where}. From the hub, the task is {task.removesuffix('_local')}"
        )
    return folder / name
