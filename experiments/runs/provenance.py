"""Provenance of a row (code, packages, machine), and the protocol of its perplexity."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments.data.text import Document
from experiments.models.source import LoadedModel
from experiments.runs.portable import portable
from sinq import Calibration

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "safetensors", "hydra-core", "numpy")


def provenance(device: torch.device) -> dict[str, Any]:
    """Return time, command, code version, packages and hardware, as plain JSON values."""
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": portable([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "code": _git(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def protocol(
    loaded: LoadedModel, passage: Document, tokens: torch.Tensor, calibration: Calibration | None = None
) -> dict[str, Any]:
    """Return the conditions of a perplexity: text, tokens, tokenizer, commit and number formats.

    A calibrated run has the facts of its windows besides, as they were drawn and not as they were asked for.

    Two perplexities may be compared only if these conditions (but for the stored number format and the
    source's words), `windows` and `seqlen` are equal; `windows` and `seqlen` are in the metrics.
    """
    bos = loaded.tokenizer.bos_token_id
    drawn = {} if calibration is None else {"calibration": dict(calibration.facts)}
    return drawn | {
        "source": passage.source,
        "fingerprint": passage.fingerprint,
        "tokens": len(tokens),
        "tokenizer": loaded.tokenizer_hash,
        "model_commit": loaded.commit,
        "bos": "tokenizer default: " + ("added once" if bos is not None and tokens[0] == bos else "none"),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "stored_dtype": str(loaded.stored_dtype).removeprefix("torch."),
    }


def _git() -> dict[str, Any]:
    """Return the commit of this checkout, and whether files changed; None for both outside a checkout."""

    def ask(*arguments: str) -> str | None:
        command = ["git", *arguments]
        try:
            done = subprocess.run(
                command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = ask("status", "--porcelain")
    return {"commit": ask("rev-parse", "HEAD"), "changed": None if status is None else bool(status)}


def _processor() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
