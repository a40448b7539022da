"""`sweep=search`: Optuna's search for small models with low perplexity, over any options of a run.

Every trial is one normal run, with a row of its own, found again if it is finished. Two numbers are minimized
at once, the model's bytes and its perplexity. The trials that no other trial beats in both are the Pareto
front, which is printed at the end. A budget in either number is a constraint: trials beyond it count as worse
than all trials within, and are not in the front.

No trial is repeated. Where Optuna suggests options that were tried, it hears that this suggestion failed, and
is asked again; if it insists, options that were not tried are drawn at random. The search ends after `trials`
trials, or when all combinations were tried.

The study is kept in `<results_dir>/search.db` under a hash of the space, the budget and all other options, so
the same command resumes after a kill, up to `trials` in all. A trial is reported to Optuna as failed if it
fails, or if its options make no sense together. The same command later tries again what failed.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.results.record import Row, writing
from sinq.common.options import SEED, check, number, whole

METRICS = (("size", "model_nbytes"), ("perplexity", "value"))
"""The minimized metrics: evaluation, and name of the metric."""
STUDY = "search.db"
UNCOUNTED = "uncounted"
"""Mark of trials that are no obstacle to trying their options again."""
REPEATS = 4
"""Suggestions in a row that were tried before, after which one is drawn at random."""
Try = Callable[[Sequence[str], int], Row | None]
"""Function that runs options, as the trial of a number from 1 on, and returns the row.

It returns None where they make no sense together.

Raises:
    TrialError: they failed for another reason.
"""


class TrialError(Exception):
    """Failure of a trial, which a later call of the search tries again."""


@dataclass(frozen=True)
class NoSearch:
    """No search: the given options are run."""


@dataclass(frozen=True)
class Search:
    """Space and budget of a search."""

    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Options and the values each may take."""
    trials: int = 20
    """Number of different trials in all, including those of earlier calls."""
    max_bytes: float | None = None
    """Bytes of the whole model, embeddings included."""
    max_perplexity: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        budget = number(above=0)
        check(self, "sweep", trials=whole(1), max_bytes=budget, max_perplexity=budget, seed=SEED)
        if not self.space or not all(self.space.values()):
            raise ValueError(
                f"sweep.space={dict(self.space)} is not possible;"
                " it must have options, each with at least one value"
            )

    @property
    def combinations(self) -> int:
        """Number of combinations in the space."""
        return math.prod(len(set(map(_as_json, values))) for values in self.space.values())

    @property
    def total(self) -> int:
        """Number of trials after which the search ends."""
        return min(self.trials, self.combinations)

    def front(self, attempt: Try, fixed: Sequence[str], results_dir: Path) -> list[str]:
        """Run the remaining trials; return the ids of the runs on the Pareto front, the smallest model first.

        Args:
            attempt: runs the options of a trial.
            fixed: the other options; they identify the search.
            results_dir: the folder of rows and of the study.

        Raises:
            ValueError: Optuna is not installed, the folder cannot be written, or the study cannot be read.
        """
        with _reading(results_dir / STUDY):
            study = self._study(fixed, results_dir)
            tried = _tried(study)
            while len(tried) < self.total:
                trial = self._next(study, tried)
                tried.add(_as_json(trial.params))
                self._try(trial, study, attempt, len(tried))
            best = sorted(study.best_trials, key=lambda trial: trial.values)
            ids = [trial.user_attrs["run_id"] for trial in best if trial.user_attrs["within"]]
        return list(dict.fromkeys(ids))

    def _next(self, study: Any, tried: set[str]) -> Any:
        """Return a trial of options that were not tried."""
        from optuna.trial import TrialState

        for _ in range(REPEATS):
            trial = study.ask()
            if _as_json(self._suggested(trial)) not in tried:
                return trial
            trial.set_user_attr(UNCOUNTED, True)
            study.tell(trial, state=TrialState.FAIL)
        draw = random.Random(f"{self.seed} {len(study.trials)}")
        while _as_json(options := {k: draw.choice(list(v)) for k, v in self.space.items()}) in tried:
            pass
        study.enqueue_trial(options)
        trial = study.ask()
        self._suggested(trial)
        return trial

    def _suggested(self, trial: Any) -> dict[str, Any]:
        return {name: trial.suggest_categorical(name, list(values)) for name, values in self.space.items()}

    def _try(self, trial: Any, study: Any, attempt: Try, number: int) -> None:
        """Run a trial, and report it to the study."""
        from optuna.trial import TrialState

        try:
            row = attempt([f"{name}={value}" for name, value in trial.params.items()], number)
        except TrialError:
            row = None
            trial.set_user_attr(UNCOUNTED, True)
        if row is None:
            study.tell(trial, state=TrialState.FAIL)
            return
        values = [row["metrics"][evaluation][name] for evaluation, name in METRICS]
        budgets = (("max_bytes", self.max_bytes), ("max_perplexity", self.max_perplexity))
        excesses = {
            name: value - limit
            for (name, limit), value in zip(budgets, values, strict=True)
            if limit is not None
        }
        for name, excess in excesses.items():
            trial.set_constraint(name, excess)  # satisfied where it is 0 or less
        trial.set_user_attr("within", all(excess <= 0 for excess in excesses.values()))
        trial.set_user_attr("run_id", row["run_id"])
        study.tell(trial, values)

    def _study(self, fixed: Sequence[str], results_dir: Path) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        identity = json.dumps([sorted(fixed), asdict(self) | {"trials": None}], sort_keys=True)
        with writing(results_dir):
            results_dir.mkdir(parents=True, exist_ok=True)
        sampler = optuna.samplers.TPESampler(seed=self.seed)
        return optuna.create_study(
            storage=f"sqlite:///{results_dir.resolve() / STUDY}",
            study_name=hashlib.sha256(identity.encode()).hexdigest()[:12],
            directions=["minimize", "minimize"],
            sampler=sampler,
            load_if_exists=True,
        )


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _tried(study: Any) -> set[str]:
    """Return the options of the trials that count."""
    return {
        _as_json(trial.params)
        for trial in study.trials
        if trial.state.is_finished() and UNCOUNTED not in trial.user_attrs
    }


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Name the file of the study in errors of the database.

    Raises:
        ValueError: the file is no study, is damaged, or cannot be written.
    """
    try:
        from optuna.exceptions import OptunaError
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise ValueError("sweep=search needs Optuna: pip install 'sinq-harness[search]'") from error
    try:
        yield
    except (SQLAlchemyError, OptunaError) as error:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        reason = str(getattr(cause, "orig", cause)).strip().splitlines()[0]
        raise ValueError(
            f"{file} cannot be used as Optuna's study ({reason}); delete it: finished runs are found again"
        ) from error
