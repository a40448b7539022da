import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from wandb.proto import wandb_internal_pb2 as pb

from experiments.loggers import WandB
from experiments.record import flatten

ROW = {
    "run_id": "0123456789ab",
    "name": "sinq 4-bit g64",
    "choices": {"method": "sinq"},
    "identity": {"method": {"grid": {"bits": 4}}},
    "protocol": {"dtype": "float32"},
    "provenance": {"python": "3.11"},
    "metrics": {"perplexity": {"value": 12.5}, "size": {"bits_per_weight": 4.5}},
}


BLOCK, HEADER = 32768, 7


def records(file: Path) -> Iterator[pb.Record]:
    """What an offline file holds: a LevelDB log of protobuf messages, after a header of seven bytes."""
    content, place, message = file.read_bytes(), HEADER, b""
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block too short for a header is padding
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        message += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield pb.Record.FromString(message)
            message = b""


def finished_records(file: Path) -> list[pb.Record]:
    """All records, once the last one is there: W&B's own process may still be writing when `finish` returns."""
    start = time.monotonic()
    while time.monotonic() - start < 120:
        found = list(records(file))
        if found and found[-1].HasField("exit"):
            return found
        time.sleep(0.2)
    raise AssertionError(f"{file.name} was never finished; it has {[record.WhichOneof('record_type') for record in records(file)]}")


def test_an_offline_run_mirrors_the_row(tmp_path: Path) -> None:
    WandB().log(ROW, pd.DataFrame({"name": ["q_proj"], "relative_error": [0.09]}), tmp_path)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-0123456789ab.wandb")
    history: dict[str, str] = {}
    config: dict[str, str] = {}
    for record in finished_records(file):
        history |= {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        config |= {item.key or ".".join(item.nested_key): item.value_json for item in record.run.config.update}
    assert history["metrics.perplexity.value"] == "12.5"
    assert history["metrics.size.bits_per_weight"] == "4.5"
    assert '"bits":4' in config["identity"].replace(" ", "")
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    assert "q_proj" in table.read_text()


def test_modes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"logger\.mode=cloud is not possible; it must be offline or online"):
        WandB(mode="cloud")


def test_flat_names_are_the_rows_own() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}}) == {"a.b": 1, "a.c.d": 2}
