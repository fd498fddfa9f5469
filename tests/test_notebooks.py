"""Notebooks run from the first cell to the last, and are stored without outputs.

Their cells run in this process: a kernel each would load torch three times more. A model with few words stands for
MiniLM, and one round for twenty.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each
def test_a_notebook_runs(path, tiny_encoder, capsys):
    if path.stem == "federated":
        pytest.importorskip("flwr")
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    replaced = {'"minilm"': repr(str(tiny_encoder)), "rounds=20, hidden=32": "rounds=1, hidden=16"}
    assert any(there in cell for there in replaced for cell in cells)
    names: dict[str, object] = {}
    for cell in cells:
        for there, here in replaced.items():
            cell = cell.replace(there, here)
        exec(compile(cell, path.name, "exec"), names)
    printed = capsys.readouterr().out
    assert " MB" in printed or "largest difference" in printed


@each
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
