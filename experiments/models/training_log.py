"""The log of a training as a table beside the model that it made."""

import csv
from pathlib import Path

from sinq.training.log import TrainingLog


def write_log(path: Path, done: TrainingLog) -> None:
    """Write loss, tokens and seconds of each step as a table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "loss", "gradient_norm", "tokens", "seconds"))
        columns = done.losses, done.gradient_norms, done.tokens, done.seconds
        for step, row in enumerate(zip(*columns, strict=True), 1):
            writer.writerow((step, *row))
