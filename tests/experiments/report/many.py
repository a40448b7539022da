"""Very many synthetic rows from one real row's JSON: several models, texts, methods, bits and group sizes.

    python -m tests.experiments.report.many ROW.json FOLDER 2000

Numbers follow a plain law (the loss doubles with each bit taken away, with noise by run and window), so that
pages of any size have the shape of real ones. They are nobody's measurements.
"""

import copy
import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from experiments.results.record import Row

METHODS = ("rtn", "sinq", "hqq", "gptq", "awq", "sinq_refined", "asinq", "aqlm", "quip", "spqr")
GROUPS = (("smollm2", "wikitext2"), ("smollm2", "c4"), ("qwen3", "wikitext2"), ("llama", "c4"))


def rows(like: Row, count: int) -> Iterator[Row]:
    """Yield `count` rows, each group's dense one first."""
    sizes = (64, 32, 128, 256)
    options = [(method, bits, size) for size, bits, method in product(sizes, (4, 3, 8, 2), METHODS)]
    for index in range(count):
        number, group = divmod(index, len(GROUPS))
        row = copy.deepcopy({name: value for name, value in like.items() if not name.endswith("sha256")})
        row["run_id"] = f"{index:012x}"
        _read(row, *GROUPS[group])
        if number == 0:
            _leave_dense(row)
        else:
            repeat, option = divmod(number - 1, len(options))
            row["dense_run_id"] = f"{group:012x}"
            _compress(row, *options[option], repeat)
        yield row


def _read(row: Row, model: str, text: str) -> None:
    row["choices"] |= {"model": model, "text": text}
    row["identity"] |= {"model": {"name": model, "dtype": "float32"}, "text": {"name": text}}
    row["protocol"]["fingerprint"] = text


def _leave_dense(row: Row) -> None:
    row |= {"name": "none", "dense_run_id": None}
    row["choices"]["method"] = "none"
    row["identity"]["method"] = row["options"]["method"] = {"name": "none"}
    _measure(row, 0.0)
    row["metrics"]["size"] |= {"bits_per_weight": 16.0, "model_nbytes": 256e6}
    row["metrics"].pop("compression", None)
    for name in ("kl", "flip_rate", "divergence"):
        row["metrics"]["perplexity"].pop(name, None)
    row["samples"]["perplexity"] = {"window_nll": row["samples"]["perplexity"]["window_nll"]}


def _compress(row: Row, method: str, bits: int, size: int, repeat: int) -> None:
    """Make it a row of a compressed model; a repeated one has another option."""
    grid = {"bits": bits, "group_size": size}
    row["name"] = f"{method} {bits}-bit g{size}"
    row["choices"]["method"] = method
    row["identity"]["method"] = {"name": method, "grid": grid} | ({"repeat": repeat} if repeat else {})
    row["options"]["method"] = {"name": method, "grid": grid, "repeat": repeat}
    _measure(row, 2.0 ** (3 - bits) * (0.5 + METHODS.index(method) / 20 + size / 512))
    row["metrics"]["size"] |= {"bits_per_weight": bits + 32 / size, "model_nbytes": bits * 16e6}


def _measure(row: Row, loss: float) -> None:
    """Give a row the losses of a run that is `loss` nats worse than the dense model."""
    noise = np.random.default_rng(int(row["run_id"], 16))
    metrics, samples = row["metrics"]["perplexity"], row["samples"]["perplexity"]
    text = np.random.default_rng(len(row["protocol"]["fingerprint"])).normal(3.0, 0.4, metrics["windows"])
    windows = text + loss * (1 + noise.normal(0, 0.1, len(text)))
    samples["window_nll"] = windows.tolist()
    samples.pop("block_nll", None)
    metrics |= {"value": float(np.exp(windows.mean())), "nll": float(windows.mean())}
    for name, factor in {"window_kl": 0.9, "window_divergence": 1.0, "window_flips": 0.1}.items():
        samples[name] = (factor * loss * (1 + noise.normal(0, 0.1, len(text)))).tolist()
    metrics |= {"kl": 0.9 * loss, "flip_rate": 0.1 * loss}
    for name, value in metrics.get("divergence", {}).items():
        if name.startswith("kl"):
            metrics["divergence"][name] = 5 * value * loss


def store(folder: Path, like: dict[str, Any], count: int) -> None:
    """Write the rows to a results folder, without tables of layers."""
    (folder / "runs").mkdir(parents=True)
    for row in rows(like, count):  # without the pipeline's care for each file, which takes its time
        (folder / "runs" / f"{row['run_id']}.json").write_text(json.dumps(row))


if __name__ == "__main__":
    store(Path(sys.argv[2]), json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[3]))
