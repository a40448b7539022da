"""Zero-shot tasks, asked through lm-eval, and the flips from the dense model's answers.

Every task, group or tag of lm-eval is available by name, and two tasks on local files (`local_tasks/`).
Accuracies and their standard errors are lm-eval's. The answer to each item is kept in the row, so that flips
(`answers.py`) can be computed between any two rows; the flips from the dense model are in the row. The dense
model is asked once, in a run of its own.

Not covered: chat templates, tasks with pictures, tasks that run code the model writes.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.evaluation.base import Evaluation, EvaluationContext, Measurement
from experiments.evaluation.zero_shot import tasks
from experiments.evaluation.zero_shot.answers import answers, flips, metric_name
from sinq.common.options import check, whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPTION = "evaluation.zero_shot"


@dataclass(frozen=True)
class ZeroShot(Evaluation):
    """Accuracies on lm-eval's tasks, and flips."""

    name: ClassVar[str] = "zero_shot"

    tasks: tuple[str, ...] = ("piqa_local",)
    """Names of tasks, groups or tags."""
    limit: int | None = None
    """Number of items of each task, from its start; null for all."""
    shots: int | None = None
    """Solved examples before each question; null for the task's own number."""
    max_length: int | None = 2048
    """Longest input in tokens, at most the model's context; null for the context.

    Longer inputs lose their beginning.
    """
    batch_size: int | None = None
    """Items at once; null for as many as fit."""

    def __post_init__(self) -> None:
        check(
            self, OPTION, limit=whole(1), shots=whole(0, 100), max_length=whole(2), batch_size=whole(1, 4096)
        )
        object.__setattr__(self, "tasks", tuple(self.tasks))  # Hydra gives a list
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(
                f"{OPTION}.tasks={list(self.tasks)} is not possible;"
                " it must name one or more tasks, each once"
            )

    def content(self) -> dict[str, Any]:
        return {"questions": tasks.fingerprints(self.tasks, self.limit, self.shots)}

    def check(self, context: EvaluationContext) -> None:
        tokenizer, longest = context.loaded.tokenizer, self._max_length(context)
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise ValueError(
                f"{OPTION}: the model's tokenizer has neither a first nor a last token (bos, eos);"
                " lm-eval needs one"
            )
        self.content()  # loads the tasks and builds their requests
        for loaded in tasks.load(self.tasks, self.shots).values():
            for name, task in loaded["tasks"].items():
                _check_answers(name, task, tokenizer, longest)
                if self.shots:
                    _check_examples(name, task, tokenizer, longest, self.shots)

    def _max_length(self, context: EvaluationContext) -> int:
        return min(self.max_length or context.loaded.context, context.loaded.context)

    def measure(self, context: EvaluationContext) -> Measurement:
        from experiments.evaluation.zero_shot.harness import Harness, ask

        with tasks.quiet():
            harness = Harness(
                context.model, context.loaded.tokenizer, self._max_length(context), self.batch_size
            )
        metrics: dict[str, Any] = {}
        samples: dict[str, Any] = {}
        label = f"zero-shot, {'dense' if context.is_dense else 'compressed'}"
        for loaded in context.progress(tasks.load(self.tasks, self.shots).values(), label, len(self.tasks)):
            result = ask(harness, loaded, self.limit)
            for name, numbers in result["results"].items():
                metrics[name] = _numbers(numbers)
            for name, task in loaded["tasks"].items():
                samples[name] = answers(task, result["samples"][name])
                metrics[name] |= _facts(task, result["samples"][name]) | {"batch_size": harness.used}
            for name, group in loaded["groups"].items():
                metrics[name]["tasks"] = [task.task_name for task in group.get_all_tasks()]
        settings = {"limit": self.limit, "max_length": harness.max_length, "lm_eval": version("lm-eval")}
        return Measurement({"tasks": metrics} | settings, samples)

    def against_dense(self, compressed: Measurement, dense: Measurement) -> dict[str, Any]:
        """Return the metrics of every task and group, with the flips from the dense model's answers."""
        with_flips = {}
        for name, metrics in compressed.metrics["tasks"].items():
            members = metrics.get("tasks", [name])
            found = flips(
                [compressed.samples[member] for member in members],
                [dense.samples[member] for member in members],
            )
            with_flips[name] = metrics | ({"flips": found} if found else {})
        return {"tasks": with_flips}


def _check_answers(name: str, task: Any, tokenizer: "PreTrainedTokenizerBase", longest: int) -> None:
    """Raise `ValueError` if an answer of a task has more than `longest` tokens."""
    for instance in task.instances:
        if instance.request_type != "loglikelihood":
            continue
        answer = tokenizer(instance.arguments[1], add_special_tokens=False, verbose=False)
        length = len(answer["input_ids"])
        if length > longest:
            raise ValueError(
                f"{OPTION}.tasks={name}: item {instance.doc_id} has an answer of {length} tokens,"
                f" longer than an input may be ({longest}, the smaller of {OPTION}.max_length and the model's"
                " context)"
            )


def _check_examples(
    name: str, task: Any, tokenizer: "PreTrainedTokenizerBase", longest: int, shots: int
) -> None:
    """Raise `ValueError` if the first question with its examples has more than `longest` tokens."""
    for instance in task.instances[:1]:
        asked = "".join(part for part in instance.arguments if isinstance(part, str))
        length = len(tokenizer(asked, verbose=False)["input_ids"])
        if length > longest:
            raise ValueError(
                f"{OPTION}.shots={shots}: the first item of {name} has {length} tokens with its examples,"
                f" longer than an input may be ({longest}), so that examples would be cut; take fewer shots"
            )


def _numbers(results: dict[str, Any]) -> dict[str, float]:
    """Return {"acc": 0.5, "acc_stderr": 0.1} of {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": …}."""
    numbers = {}
    for key, value in results.items():
        metric, comma, filtered = key.partition(",")
        if comma and not isinstance(value, str):
            numbers[metric_name(metric, filtered)] = float(value)
    return numbers


def _facts(task: Any, samples: list[dict[str, Any]]) -> dict[str, Any]:
    items = len({sample["doc_id"] for sample in samples})
    return {
        "items": items,
        "items_available": len(task.eval_docs),
        "shots": task.get_config("num_fewshot"),
        "version": str(task.VERSION),
    }
