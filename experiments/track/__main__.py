"""Finished rows of a results folder, sent to Weights & Biases: all that were not sent yet.

    python -m experiments.track
    python -m experiments.track --results other/folder --project sinq --where method=sinq,bits=3

It needs a network and a key (`wandb login`, or WANDB_API_KEY). Run it again after an error: what was sent is
not sent twice.
"""

import argparse
import sys
from pathlib import Path

from experiments.common.console import console, set_up
from experiments.common.errors import run_cli
from experiments.compare.query import matching
from experiments.results import record
from experiments.track.weights_and_biases import NotLoggedError, WandB, is_sent, one_line


def main() -> None:
    """Send the rows; print a line for each that was not sent, and counts.

    Raises:
        ValueError: a query matches no row.
        SystemExit: a row was not sent; the status is 1.
    """
    options = _parse()
    set_up()
    results_dir: Path = options.results
    rows, unreadable = record.read(results_dir)
    for name, reason in unreadable.items():
        console.print(f"cannot be read: {results_dir / 'runs' / name}: {reason}", soft_wrap=True)
    rows = [row for row in rows if row["status"] == record.FINISHED]
    for query in options.where:
        rows = matching(rows, query)
    waiting = [row for row in rows if not is_sent(row, results_dir)]
    logger = WandB(project=options.project, mode="online", entity=options.entity, group=options.group)
    failed = sum(not _is_taken(logger, row, results_dir) for row in waiting)
    counts = f"{len(waiting) - failed} rows sent, {len(rows) - len(waiting)} before, {failed} not"
    console.print(counts, soft_wrap=True)
    if failed:
        sys.exit(1)


def _is_taken(logger: WandB, row: record.Row, results_dir: Path) -> bool:
    """Send a row; print why where it is not taken."""
    try:
        layers = record.read_layers(results_dir, row["run_id"])
        logger.send(row, layers, results_dir)
    except NotLoggedError as error:
        raise ValueError(f"nothing can be sent to W&B: {error}") from error
    except Exception as error:  # noqa: BLE001 - W&B raises anything; the other rows are sent
        console.print(f"not sent: {row['run_id']} {row['name']}: {one_line(error)}", soft_wrap=True)
        return False
    return True


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.track",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--results", metavar="FOLDER", default="results", type=Path, help="default: results")
    add("--project", default="sinq", help="default: sinq")
    add("--entity", help="user or team of the project; default: your own")
    add("--group", help="a name that these runs share")
    add(
        "--where",
        metavar="QUERY",
        action="append",
        default=[],
        help="only these rows: method=sinq,bits=4; may be repeated",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_cli(main)
