"""Trajectories: rows of one training at several steps, in the order of the steps.

A row tells its step where the model was trained here (`model.step`), or where a hub's revision has one, such
as Pythia's `step3000`. Rows of the dense model belong together if all else is equal: recipe, text, tokens,
device and evaluations. Trainings that differ in the seed alone share a `key`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.results.paths import flatten, get_path
from experiments.results.record import FINISHED, Row

FEWEST = 3
"""Steps without which there is no trajectory."""
OF_STEP = ("step", "name", "fingerprint", "revision", "commit", "recipe")
"""Facts of a model that differ from step to step, or are compared by themselves."""
SEED = "training.seed"


@dataclass(frozen=True)
class Trajectory:
    """Rows of one training, by step, ascending."""

    name: str
    """The model, and the options that set its training apart from the others."""
    key: str
    """Equal for trainings that differ in the seed alone."""
    rows: dict[int, Row]

    def curve(self, path: str) -> dict[int, float]:
        """Return a metric by step, where it was measured."""
        found = {step: get_path(row["metrics"], path) for step, row in self.rows.items()}
        return {step: value for step, value in found.items() if value is not None}

    def layers(self, path: str) -> dict[str, dict[int, float]]:
        """Return a sample of every layer by step: name of the layer → step → value."""
        found: dict[str, dict[int, float]] = {}
        for step, row in self.rows.items():
            for layer, value in (get_path(row.get("samples", {}), path) or {}).items():
                found.setdefault(layer, {})[step] = value
        return found


def trajectories(rows: Sequence[Row]) -> list[Trajectory]:
    """Return the trajectories of at least `FEWEST` steps among rows, by name."""
    members: dict[str, dict[int, Row]] = {}
    for row in rows:
        step = step_of(row) if row["status"] == FINISHED and row["dense_run_id"] is None else None
        if step is not None:
            members.setdefault(_same(row), {})[step] = row
    found = [dict(sorted(each.items())) for each in members.values() if len(each) >= FEWEST]
    names = _names([next(iter(each.values())) for each in found])
    made = [
        Trajectory(name, _same(next(iter(each.values())), without_seed=True), each)
        for name, each in zip(names, found, strict=True)
    ]
    return sorted(made, key=lambda each: each.name)


def step_of(row: Row) -> int | None:
    """Return the training step of a row's model; None where the row tells none."""
    model = row["identity"]["model"]
    if (step := model.get("step")) is not None:
        return int(step)
    named = re.search(r"step(\d+)$", model.get("revision") or "")
    return int(named[1]) if named else None


def _same(row: Row, without_seed: bool = False) -> str:
    """Return what the rows of a trajectory have in common, as JSON."""
    parts = row["identity"]
    model = {name: value for name, value in parts["model"].items() if name not in OF_STEP}
    recipe = _recipe(row)
    if without_seed:
        recipe.pop(SEED, None)
    common = {name: parts.get(name) for name in ("text", "evaluation", "device")}
    return json.dumps([_model_name(row), model, recipe, common], sort_keys=True)


def _recipe(row: Row) -> dict[str, Any]:
    return flatten(json.loads(row["identity"]["model"].get("recipe") or "{}"))


def _model_name(row: Row) -> str:
    return re.sub(r" step \d+$", "", str(row["identity"]["model"].get("name")))


def _names(rows: Sequence[Row]) -> list[str]:
    """Return a name for each row's training: the model's, and options that are not the same in all."""
    recipes = [_recipe(row) for row in rows]
    options = sorted({name for recipe in recipes for name in recipe})
    differ = [name for name in options if len({str(recipe.get(name)) for recipe in recipes}) > 1]
    return [
        ", ".join([_model_name(row), *(_option(name, recipe[name]) for name in differ if name in recipe)])
        for row, recipe in zip(rows, recipes, strict=True)
    ]


def _option(path: str, value: Any) -> str:
    return f"{path.rpartition('.')[2].replace('_', ' ')} {value}"
