"""Answers of a model, item by item and small enough for a row, and the flips between two models' answers.

Equal accuracies can hide many changed answers, since as many may turn right as turn wrong. Two definitions of
a flip are in use, so both are given:

- *prediction*: the answer changed (the SINQ paper, Table 2);
- *correctness*: it was right and is wrong, or the reverse (Dutta et al. 2024, "Accuracy is not all you
  need").

With two choices they are the same; with more, an answer can change from wrong to wrong. Shares have Wilson's
interval, which is sensible even for no flip among few items; so is Bonett's and Price's of the difference of
accuracies (`experiments/common/intervals.py`).

Predictions are a letter per item (the choice's number, in digits and then letters), or a hash per item where
the answer is a text. Where lm-eval only asks for the likelihood of the right answer (LAMBADA), there is no
prediction to compare, only correctness.
"""

import hashlib
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.common.intervals import paired_shares, share

Answers = dict[str, dict[str, Any]]
"""Kind → metric → answers.

The kinds are "correct" (a letter, 0 or 1, per item), "prediction" (see above), and "values" (a number per
item of a metric that is no accuracy).
"""

LETTERS = string.digits + string.ascii_letters
LENGTHS: dict[str, Callable[[str], float]] = {
    "acc": lambda _: 1.0,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
"""Metric → divisor of a choice's log-likelihood; the largest quotient is the answer."""


def metric_name(metric: str, filtered: str) -> str:
    """Return lm-eval's name of a metric, followed by the filter of the answers where there is one."""
    return metric if filtered == "none" else f"{metric}@{filtered}"


def answers(task: Any, samples: list[dict[str, Any]]) -> Answers:
    """Return the answers to one task, from the samples that lm-eval logged, as plain JSON values."""
    kept: Answers = {"correct": {}, "prediction": {}, "values": {}}
    for filtered in dict.fromkeys(sample["filter"] for sample in samples):
        items = sorted(
            (sample for sample in samples if sample["filter"] == filtered),
            key=lambda sample: sample["doc_id"],
        )
        for metric in items[0]["metrics"]:
            name, values = metric_name(metric, filtered), [item[metric] for item in items]
            if all(np.isscalar(value) and value in (0, 1) for value in values):
                kept["correct"][name] = "".join(str(int(value)) for value in values)
                prediction = predictions(task, metric, items)
                kept["prediction"] |= {} if prediction is None else {name: prediction}
            elif all(np.issubdtype(np.asarray(value).dtype, np.number) for value in values):
                kept["values"][name] = [np.asarray(value).tolist() for value in values]
    return {kind: found for kind, found in kept.items() if found}


def predictions(task: Any, metric: str, items: list[dict[str, Any]]) -> str | list[str] | None:
    """Return the answer to each item (see the module's docstring); None where lm-eval does not log it."""
    if task.OUTPUT_TYPE == "generate_until":
        return [hashlib.sha256(str(item["filtered_resps"][0]).encode()).hexdigest()[:8] for item in items]
    if task.OUTPUT_TYPE != "multiple_choice" or metric not in LENGTHS:
        return None
    chosen = [_likeliest(item, task.doc_to_choice(item["doc"]), metric) for item in items]
    return "".join(LETTERS[number] for number in chosen)


def _likeliest(item: dict[str, Any], choices: list[str], metric: str) -> int:
    scores = [
        response[0] / LENGTHS[metric](choice)
        for response, choice in zip(item["filtered_resps"], choices, strict=False)
    ]
    return int(np.argmax(scores))


def flips(compressed: Sequence[Answers], dense: Sequence[Answers]) -> dict[str, Any]:
    """Return by metric the flips from the dense model's answers, over one task or several tasks together."""
    pairs = list(zip(compressed, dense, strict=True))
    metrics = [
        name
        for name in compressed[0].get("correct", {})
        if all(name in answered.get("correct", {}) for answered in compressed)
    ]
    return {name: _flips_of(name, pairs) for name in metrics}


def _flips_of(metric: str, pairs: list[tuple[Answers, Answers]]) -> dict[str, Any]:
    right = np.array([(a == "1", b == "1") for a, b in _paired(pairs, "correct", metric)])
    compressed, dense = right[:, 0], right[:, 1]
    to_wrong, to_right = int((dense & ~compressed).sum()), int((compressed & ~dense).sum())
    low, high = paired_shares(to_right, to_wrong, len(right))
    result: dict[str, Any] = {
        "correctness": share(compressed != dense),
        "to_wrong": to_wrong,
        "to_right": to_right,
        "dense": float(dense.mean()),
        "difference": {"value": float(compressed.mean() - dense.mean()), "low": low, "high": high},
    }
    if all(metric in answered.get("prediction", {}) for answered, _ in pairs):
        result["prediction"] = share(np.array([a != b for a, b in _paired(pairs, "prediction", metric)]))
    return result


def _paired(pairs: list[tuple[Answers, Answers]], kind: str, metric: str) -> Iterator[tuple[str, str]]:
    """Yield the compressed and the dense model's answer to each item of all tasks."""
    for compressed, dense in pairs:
        yield from zip(compressed[kind][metric], dense[kind][metric], strict=True)
