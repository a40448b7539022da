"""The table of architectures, `docs/architectures.md`: a row for each, made of what `check` saw.

    python -m tests.sinq.architectures.table            # rewrites the page; minutes

The tests compare each row with what they see.
"""

import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers

from sinq import Kernel, using
from tests.sinq.architectures.check import Outcome, check
from tests.sinq.architectures.tiny import ARCHITECTURES, UNBUILT

PAGE = Path(__file__).parents[3] / "docs" / "architectures.md"
HEAD = """# Architectures

Every decoder architecture of transformers {version}, as a tiny random model. Compressed at 8 bits it predicts
nearly what the dense model does; its statistics for calibration are those of plain hooks on the whole model;
saved and loaded, or streamed from a checkpoint, it is the same bit for bit. What does not hold is refused in
one line, which stands here. Written by `python -m tests.sinq.architectures.table`; `make test-all` compares.

*Layers* counts matrices, each expert's too. Output heads stay dense everywhere. Fused experts whose layout is
known are compressed, and have no statistics of inputs.

| architecture | layers compressed | left dense, and why | calibration | reload | stream |
|---|---|---|---|---|---|
"""


def row(name: str) -> str:
    """Check an architecture and return its row."""
    if name in UNBUILT:
        return f"| {name} | not tried: {UNBUILT[name]} | | | | |"
    torch.manual_seed(0)
    with using(Kernel.reference), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _row(name, check(name))


def _row(name: str, seen: Outcome) -> str:
    reasons = Counter(seen.left_dense.values())
    left = "; ".join(f"{count}: {reason}" for reason, count in sorted(reasons.items()))
    cells = (name, seen.layers, left, seen.calibration, seen.reload, seen.stream)
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def stored() -> dict[str, str]:
    """Return the rows of the page, by architecture."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def main() -> None:
    """Rewrite the rows of the named architectures, or of all."""
    transformers.logging.set_verbosity_error()
    named = sys.argv[1:] or ARCHITECTURES
    rows = stored() if PAGE.exists() else {}
    for name in named:
        try:
            rows[name] = row(name)
        except Exception as error:  # noqa: BLE001 - one architecture's failure is not that of others
            rows.pop(name, None)
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
    lines = [rows[name] for name in ARCHITECTURES if name in rows]
    PAGE.write_text(HEAD.format(version=transformers.__version__) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
