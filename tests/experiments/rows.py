"""Hand-made finished rows, as the pipeline records them, and their tables of layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.results import record
from experiments.results.record import Row

HARD = 3 + np.random.default_rng(1).normal(0, 0.5, 20)  # what makes a window hard is hard for everyone
SHIFTS = {"none": 0.0, "sinq": 0.1, "rtn": 0.2, "hqq": 0.15}
KINDS = ("self_attn.q_proj", "mlp.down_proj")


def finished(
    method: str = "sinq", bits: int = 4, text: str = "t", shift: float | None = None, **grid: Any
) -> Row:
    """A finished row; the dense one for method "none"."""
    noise = np.random.default_rng(len(method) + bits).normal(0, 0.005, len(HARD))
    nll = (
        HARD
        + (SHIFTS[method] * 2.0 ** (4 - bits) if shift is None else shift)
        + (0 if method == "none" else noise)
    )
    dense = method == "none"
    options: dict[str, Any] = {} if dense else {"grid": {"bits": bits, "group_size": 64, **grid}}
    ratio = 0.5 * bits
    speed = {"dense_tokens_per_second": 10.0}
    if not dense:
        speed |= {"tokens_per_second": 10 * ratio, "ratio": ratio}
    metrics: dict[str, Any] = {
        "perplexity": {
            "value": float(np.exp(nll.mean())), "windows": 20, "windows_available": 40, "seqlen": 2048,
        },
        "size": {
            "bits_per_weight": 16.0 if dense else bits + 0.5, "model_nbytes": 1e8 if dense else bits * 1e7,
        },
        "latency": {phase: dict(speed) for phase in ("prefill", "decode")} | {"kernel": "cpu"},
    }  # fmt: skip
    if not dense:
        metrics["compression"] = {
            "seconds_quantize": 1.0 + bits,
            "seconds_statistics": 0.5,
            "relative_error_mean": 0.1,
        }
        metrics["perplexity"] |= {"kl": 0.1, "flip_rate": 0.2}
    return {
        "schema": record.SCHEMA,
        "run_id": f"{method}{bits}{text}{'-'.join(str(value) for value in grid.values())}",
        "name": method if dense else f"{method} {bits}-bit g{options['grid']['group_size']}",
        "choices": {"method": method, "model": "m", "text": text},
        "identity": {
            "model": {"name": "m", "dtype": "float32"}, "text": {"name": text},
            "method": {"name": method, **options}, "device": "cpu",
            "evaluation": {"perplexity": {"name": "perplexity"}},
        },
        "options": {"method": {"name": method, **options}},
        "status": record.FINISHED,
        "dense_run_id": None if dense else f"none4{text}",
        "metrics": metrics,
        "samples": {
            "perplexity": {"window_nll": nll.tolist(), "window_kl": [0.1] * 20},
            "latency": {
                "seconds": {
                    phase: {"dense": [1.0, 1.0], "compressed": [1 / ratio, 0.8 / ratio]}
                    for phase in ("prefill", "decode")
                }
            },
        },
        "protocol": {
            "source": f"file {text}", "fingerprint": text, "tokens": 9000, "tokenizer": "k", "bos": "none",
            "dtype": "float32", "model_commit": None,
        },
        "provenance": {
            "finished_at": "2026-01-02T03:04:05+00:00",
            "code": {"commit": "0123456789abcdef", "changed": False}, "device": "A chip",
        },
    }  # fmt: skip


def layers(row: Row, blocks: int = 3) -> pd.DataFrame:
    """A table of layers in which each error is unlike any other."""
    names = [f"model.layers.{block}.{kind}" for block in range(blocks) for kind in KINDS]
    scale = 2.0 ** -row["metrics"]["size"]["bits_per_weight"]
    error = [scale * (1 + number) for number in range(len(names))]
    return pd.DataFrame(
        {
            "name": names,
            "relative_error": error,
            "imbalance_after": [1 + e for e in error],
            "bits_per_weight": 4.5,
        }
    )


def store(results_dir: Path, *rows: Row) -> list[Row]:
    """Write rows, each compressed one with its layers."""
    for row in rows:
        record.write(results_dir, row, layers(row) if "compression" in row["metrics"] else None)
    return list(rows)


def failed(name: str = "gptq 2-bit g64", reason: str = "OutOfMemoryError: 8 GB wanted") -> Row:
    """A row of a run that failed."""
    return finished() | {
        "run_id": "broken",
        "name": name,
        "status": record.FAILED,
        "reason": reason,
        "metrics": {},
        "samples": {},
    }
