"""What a model answered, item by item and small enough to be kept in a row; and how two models' answers differ.

Equal accuracies can hide many changed answers, since as many may turn right as turn wrong. Two definitions of a flip are in use,
so both are given:

- *prediction*: the answer is another one (the SINQ paper, Table 2);
- *correctness*: it was right and is wrong, or the other way (Dutta et al. 2024, "Accuracy is not all you need").

With two choices they are the same; with more, an answer can change from wrong to wrong. Shares have Wilson's interval, which is
sensible for none of few; the difference of accuracies has the paired bootstrap's (`compare.py`).

Predictions are a letter per item (the choice's number, in digits and then letters), or a hash per item where the answer is a text.
Where lm-eval only asks for the likelihood of the right answer (LAMBADA), there is no prediction to compare, only correctness.
"""

import hashlib
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.common.intervals import bootstrap_interval, share

Answers = dict[str, dict[str, Any]]
"""By metric: "correct", a letter (0 or 1) per item; "prediction"; "values" per item of metrics that are no accuracy."""

LETTERS = string.digits + string.ascii_letters
LENGTHS: dict[str, Callable[[str], float]] = {
    "acc": lambda _: 1.0,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
"""By what each metric divides a choice's log-likelihood before it takes the largest."""


def metric_name(metric: str, filtered: str) -> str:
    """lm-eval's name of a metric, with the filter the answer went through where there is one."""
    return metric if filtered == "none" else f"{metric}@{filtered}"


def answers(task: Any, samples: list[dict[str, Any]]) -> Answers:
    """Of one task: what lm-eval logged of each item, as plain JSON values."""
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
    """What was answered; None where that cannot be known."""
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


def flips(own: Sequence[Answers], dense: Sequence[Answers]) -> dict[str, Any]:
    """By metric, how answers differ from the dense model's: of one task, or of several taken together."""
    pairs = list(zip(own, dense, strict=True))
    metrics = [
        name for name in own[0].get("correct", {}) if all(name in mine.get("correct", {}) for mine in own)
    ]
    return {name: _flips_of(name, pairs) for name in metrics}


def _flips_of(metric: str, pairs: list[tuple[Answers, Answers]]) -> dict[str, Any]:
    right = np.array(
        [(a == "1", b == "1") for own, dense in pairs for a, b in _both(own, dense, "correct", metric)]
    )
    own, dense = right[:, 0], right[:, 1]
    low, high = bootstrap_interval(own.astype(float) - dense)
    result: dict[str, Any] = {
        "correctness": share(own != dense),
        "to_wrong": int((dense & ~own).sum()),
        "to_right": int((own & ~dense).sum()),
        "dense": float(dense.mean()),
        "difference": {"value": float(own.mean() - dense.mean()), "low": low, "high": high},
    }
    if all(metric in mine.get("prediction", {}) for mine, _ in pairs):
        result["prediction"] = share(
            np.array([a != b for mine, other in pairs for a, b in _both(mine, other, "prediction", metric)])
        )
    return result


def _both(own: Answers, dense: Answers, kind: str, metric: str) -> list[tuple[str, str]]:
    return list(zip(own[kind][metric], dense[kind][metric], strict=True))
