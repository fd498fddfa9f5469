"""Notebooks run from the first cell to the last, in a kernel, and are stored without outputs.

A model with few words stands for MiniLM, and one round for twenty: what is tested is that the cells work.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each
def test_a_notebook_runs(path, tiny_encoder, tmp_path):
    if path.stem == "federated":
        pytest.importorskip("flwr")
    notebook = nbformat.read(path, as_version=4)
    replaced = {'"minilm"': repr(str(tiny_encoder)), "rounds=20, hidden=32": "rounds=1, hidden=16"}
    assert any(there in cell.source for there in replaced for cell in notebook.cells)
    for cell in notebook.cells:
        for there, here in replaced.items():
            cell.source = cell.source.replace(there, here)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [output.text for cell in notebook.cells for output in cell.get("outputs", ()) if output.name == "stdout"]
    assert any(" MB" in text or "largest difference" in text for text in printed)


@each
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
