"""The notebook of docs/: from rows to a table and a figure, with nothing of a machine in it."""

import json
import math
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from experiments.compare.paired import compare
from tests.conftest import ROOT
from tests.experiments.rows import failed, finished, store

NOTEBOOK = ROOT / "docs/paper.ipynb"


def test_no_output_is_committed() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(cell.get("outputs", []) == [] for cell in cells)
    assert all(cell.get("execution_count") is None for cell in cells)
    assert not re.search(r'["\'(]/(?!/)\w', NOTEBOOK.read_text())


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder that the notebook wrote, and its outputs."""
    folder = tmp_path_factory.mktemp("notebook")
    compressed = [finished(method, bits) for method in ("sinq", "rtn") for bits in (4, 3)]
    store(folder / "results", finished("none"), *compressed, finished("sinq", text="u"), failed())
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SINQ_RESULTS", str(folder / "results"))
        patch.setenv("SINQ_PAPER", str(folder / "paper"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return folder / "paper", [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_the_table_has_the_numbers_of_the_rows(paper: tuple[Path, list[Any]]) -> None:
    lines = (paper[0] / "table.tex").read_text().splitlines()
    assert lines[1] == r"\toprule"
    cells = {line.split(" & ")[0]: line.split(" & ") for line in lines if line.endswith(r"\\")}
    assert set(cells) == {
        "name",
        "none",
        "rtn 3-bit g64",
        "rtn 4-bit g64",
        "sinq 3-bit g64",
        "sinq 4-bit g64",
    }
    dense, row = finished("none"), finished("sinq", 3)
    perplexity = math.exp(sum(row["samples"]["perplexity"]["window_nll"]) / 20)
    found = compare(row, dense)
    assert found.interval
    assert cells["sinq 3-bit g64"][1:5] == ["3.500", f"{perplexity:.3f}", "0.100", f"{found.delta_nll:+.4f}"]
    assert f"{found.interval[0]:+.4f}" in cells["sinq 3-bit g64"][5]


def test_the_figure_is_a_pdf_and_is_shown(paper: tuple[Path, list[Any]]) -> None:
    folder, outputs = paper
    (file,) = folder.glob("*.pdf")
    assert file.read_bytes().startswith(b"%PDF")
    said = "".join(output.get("text", "") for output in outputs)
    assert "5 of 7 rows; 0 files cannot be read" in said
    assert [1 for output in outputs if "image/png" in output.get("data", {})] == [1]
