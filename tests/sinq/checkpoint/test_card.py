"""The model card: its numbers are those of the files beside it."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

import sinq
from sinq import SINQ, Activations, Grid
from sinq.checkpoint.card import CARD
from tests.conftest import tiny_model


def rows(folder: Path) -> dict[str, str]:
    """Return the table of a card."""
    lines = (folder / CARD).read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and line != "| | |"]
    return dict(cells)


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    model = tiny_model("llama")
    report = SINQ(Grid(bits=3, group_size=16)).compress(model)
    sinq.save(model, tmp_path)
    found, tensors = rows(tmp_path), load_file(tmp_path / "model.safetensors").values()
    total = sum(tensor.nbytes for tensor in tensors)
    assert found["matrices, 3-bit g16"] == (
        f"14, {report.bits_per_weight:.3f} bits per weight, {report.nbytes / 1e6:.2f} MB"
    )
    assert found["dense tensors"] == f"{(total - report.nbytes) / 1e6:.2f} MB, float32"
    assert found["all tensors"] == f"{total / 1e6:.2f} MB"
    assert list(found) == ["matrices, 3-bit g16", "dense tensors", "all tensors"]


def test_a_streamed_folder_has_the_same_card(tiny_folder: Path, tmp_path: Path) -> None:
    model, method = tiny_model("llama"), SINQ(Grid(group_size=16))
    method.compress(model)
    sinq.save(model, tmp_path / "saved")
    sinq.stream(tiny_folder, tmp_path / "streamed", method)
    assert (tmp_path / "streamed" / CARD).read_text() == (tmp_path / "saved" / CARD).read_text()


def test_facts_are_cells_whatever_they_hold(tmp_path: Path) -> None:
    model = tiny_model("llama")
    Activations(SINQ(Grid(group_size=16))).compress(model)
    sinq.save(model, tmp_path, about={"perplexity": 12.34567, "note": "a | b\nc"})
    found = rows(tmp_path)
    assert found["perplexity"] == "12.35"
    assert found["note"] == "a \\| b c"
    assert found["other changes to the model"] == "round_inputs"


@pytest.mark.parametrize("architecture", ["moe", "gpt2"])
def test_every_matrix_is_counted(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    report = SINQ(Grid(group_size=16)).compress(model)
    sinq.save(model, tmp_path)
    assert rows(tmp_path)["matrices, 4-bit g16"].startswith(f"{len(report.parts)}, ")


def test_a_dense_model_has_a_card_too(tmp_path: Path) -> None:
    sinq.save(tiny_model("llama"), tmp_path)
    assert "LlamaForCausalLM, dense" in (tmp_path / CARD).read_text()
    assert list(rows(tmp_path)) == ["dense tensors", "all tensors"]
