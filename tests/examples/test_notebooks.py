"""The notebooks run from top to bottom, and what they are committed with is what a reader should see."""

from __future__ import annotations

import shutil

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from examples.notebooks.__main__ import HERE, QUICK, execute, main, problems, with_parameters
from fairseq_ext.training.errors import OptionError
from tests.helpers import DATA

CORA = DATA / "pyg" / "Planetoid" / "Cora" / "raw"


def read(name):
    return nbformat.read(HERE / f"{name}.ipynb", as_version=4)


def graph_at_hand(folder) -> dict[str, object]:
    """Cora where it lies on this machine, else a file with a graph of three blocks: no test uses the network."""
    if CORA.is_dir():
        shutil.copytree(CORA, folder / "runs" / "data" / "Cora" / "raw")
        return {}
    from torch_geometric.utils import stochastic_blockmodel_graph  # an import of seconds, which Cora does without

    torch.manual_seed(0)
    y = torch.arange(3).repeat_interleave(100)
    edges = stochastic_blockmodel_graph([100] * 3, [[0.05 if a == b else 0.01 for a in range(3)] for b in range(3)])
    x = torch.eye(3)[y] + torch.randn(300, 3)
    torch.save({"x": x, "y": y, "edge_index": edges}, folder / "graph.pt")
    return {"DATASET": "graph.pt"}


@pytest.mark.parametrize("name", QUICK)
def test_it_runs(name, tmp_path):
    """Each ends with a cell that asserts what the notebook claims."""
    before = (HERE / f"{name}.ipynb").read_bytes()
    graph = graph_at_hand(tmp_path) if name == "topology_imbalance" else {}
    notebook = execute(HERE / f"{name}.ipynb", tmp_path, {**QUICK[name], **graph}, timeout=300)
    assert "assert" in notebook.cells[-1].source and notebook.cells[-1].execution_count
    assert list(problems(notebook)) == []
    figures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(figures) >= 2
    assert (HERE / f"{name}.ipynb").read_bytes() == before


def test_all_notebooks_are_run():
    assert {path.stem for path in HERE.glob("*.ipynb")} == set(QUICK)


@pytest.mark.parametrize("name", QUICK)
def test_what_is_committed_was_run_and_is_clean(name):
    notebook, path = read(name), HERE / f"{name}.ipynb"
    nbformat.validate(notebook)
    assert list(problems(notebook)) == []
    assert path.stat().st_size <= 300 * 1024
    assert path.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"  # the form that a new run has, too
    assert set(notebook.metadata) == {"kernelspec", "language_info"} and len({cell.id for cell in notebook.cells}) > 10
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells) == 1


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ({"output_type": "stream", "name": "stderr", "text": "FutureWarning"}, "stream"),
        ({"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}, "error"),
        ({"output_type": "stream", "name": "stdout", "text": "saved in /home/ada/runs"}, "'/home/ada/runs'"),
        ({"output_type": "display_data", "metadata": {}, "data": {"text/plain": "<A at 0x7f0012345678>"}}, "0x7f"),
        (
            {"output_type": "display_data", "metadata": {}, "data": {"application/vnd.jupyter.widget-view+json": {}}},
            "widget",
        ),
    ],
)
def test_noise_is_seen(output, problem):
    cells = [
        new_code_cell("1", execution_count=1),
        new_markdown_cell("/home"),
        new_code_cell("/home", execution_count=2),
    ]
    notebook = new_notebook(cells=cells)
    assert list(problems(notebook)) == []
    cells[2].outputs.append(nbformat.from_dict(output))
    (seen,) = problems(notebook)
    assert seen.startswith("cell 2: ") and problem in seen
    cells[0].execution_count = None
    assert list(problems(notebook)) == ["cell 1: was not run from top to bottom, its count is None", seen]


def test_parameters_are_those_of_the_notebook():
    with pytest.raises(OptionError, match="SPLITS"):
        with_parameters(read("topology_imbalance"), {"SPLIT": 3})
    for name, values in QUICK.items():
        (cell,) = (
            cell for cell in with_parameters(read(name), values).cells if "parameters" in cell.metadata.get("tags", [])
        )
        scope: dict[str, object] = {}
        exec(cell.source, scope)
        assert {key: scope[key] for key in values} == values


@pytest.mark.parametrize(
    ("arguments", "message"), [(["translatoin"], "translation"), (["--quick"], "--quick: needs --out")]
)
def test_bad_options_end_in_one_line(arguments, message):
    with pytest.raises(OptionError, match=message):
        main(arguments)
