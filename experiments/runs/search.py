"""`sweep=search`: Optuna's search for small models with low perplexity, over any options of a run.

Every trial is one normal run, with a row of its own, found again if it is finished. Two numbers are minimized
at once, the model's bytes and its perplexity. The trials that no other trial beats in both are the Pareto
front, which is printed at the end. A budget in either number is a constraint: trials beyond it count as worse
than all trials within, and are not in the front.

The study is kept in `<results_dir>/search.db` under a hash of the space, the budget and all other options, so
the same command resumes after a kill, up to `trials` in all. A trial is reported to Optuna as failed if it
fails, or if its options make no sense together.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.results.record import Row, writing
from sinq.common.options import SEED, check, number, whole

METRICS = (("size", "model_nbytes"), ("perplexity", "value"))
"""The minimized metrics: evaluation, and name of the metric."""
Try = Callable[[Sequence[str]], Row | None]
"""Function that runs options and returns the row; None where they failed or make no sense."""


@dataclass(frozen=True)
class NoSearch:
    """No search: the given options are run."""


@dataclass(frozen=True)
class Search:
    """Space and budget of a search."""

    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Options and the values each may take."""
    trials: int = 20
    """Number of trials in all, including those of earlier calls."""
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

    def front(self, attempt: Try, fixed: Sequence[str], results_dir: Path) -> list[str]:
        """Run the remaining trials; return the ids of the runs on the Pareto front, the smallest model first.

        Args:
            attempt: runs the options of a trial.
            fixed: the other options; they identify the search.
            results_dir: the folder of rows and of the study.

        Raises:
            ValueError: Optuna is not installed, or the folder cannot be written.
        """
        study = self._study(fixed, results_dir)
        while sum(trial.state.is_finished() for trial in study.trials) < self.trials:
            self._try(study, attempt)
        best = sorted(study.best_trials, key=lambda trial: trial.values)
        return list(dict.fromkeys(trial.user_attrs["run_id"] for trial in best if trial.user_attrs["within"]))

    def _try(self, study: Any, attempt: Try) -> None:
        from optuna.trial import TrialState

        trial = study.ask()
        suggested = {
            name: trial.suggest_categorical(name, list(values)) for name, values in self.space.items()
        }
        row = attempt([f"{name}={value}" for name, value in suggested.items()])
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
        try:
            import optuna
        except ImportError as error:
            raise ValueError("sweep=search needs Optuna: pip install 'sinq-harness[search]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        identity = json.dumps([sorted(fixed), asdict(self) | {"trials": None}], sort_keys=True)
        with writing(results_dir):
            results_dir.mkdir(parents=True, exist_ok=True)
        sampler = optuna.samplers.TPESampler(seed=self.seed)
        return optuna.create_study(
            storage=f"sqlite:///{results_dir.resolve() / 'search.db'}",
            study_name=hashlib.sha256(identity.encode()).hexdigest()[:12],
            directions=["minimize", "minimize"],
            sampler=sampler,
            load_if_exists=True,
        )
