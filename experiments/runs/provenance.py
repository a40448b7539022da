"""What a row says about how it was made: code, packages, machine, and the protocol its perplexity stands under."""

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

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "safetensors", "hydra-core", "numpy")


def provenance(device: torch.device) -> dict[str, Any]:
    """Code version, packages and hardware."""
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "code": _git(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def protocol(loaded: LoadedModel, passage: Document, tokens: torch.Tensor) -> dict[str, Any]:
    """What must be equal before two perplexities may be compared (with windows and seqlen, which are in the metrics)."""
    bos = loaded.tokenizer.bos_token_id
    return {
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
    """Commit of this checkout; empty where it is none."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = ask("status", "--porcelain")
    return {"commit": ask("rev-parse", "HEAD"), "changed": None if status is None else bool(status)}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
