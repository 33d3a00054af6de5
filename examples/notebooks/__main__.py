"""Run the notebooks from top to bottom and keep what they print and draw; see README.md beside this file."""

from __future__ import annotations

import ast
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from fairseq_ext.training.errors import DataError, OptionError, choose
from fairseq_ext.training.files import output_folder, replacing
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.program import Program
from fairseq_ext.training.progress import progress

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# The values of each notebook's parameters with --quick: enough for every cell to run, too little to learn from.
QUICK: dict[str, dict[str, Any]] = {
    "translation": {"PAIRS": 600, "VOCAB": 300, "UPDATES": 12, "TEST_LINES": 16},
    "topology_imbalance": {"SPLITS": 1, "INITS": 1},
    "merging_classifiers": {"PASSES": 3},
}
# What fairseq_ext.training.progress writes where there is no terminal.
PROGRESS = re.compile(r"^(?:.*\d% \S+/\S+ \[.*\]|\| .*)\n", re.MULTILINE)
MACHINE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|work|opt|var|mnt|Users)/|\b0x[0-9a-f]{6,}\b")


def with_parameters(notebook: NotebookNode, values: Mapping[str, Any]) -> NotebookNode:
    """``notebook``, whose cell tagged ``parameters`` ends with ``values``.

    Raises:
        OptionError: a name that this cell does not set.
    """
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    names = [line.targets[0].id for line in ast.parse(cell.source).body if isinstance(line, ast.Assign)]
    for name in values:
        choose("parameter", name, names)
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    return notebook


def execute(path: Path, folder: Path, parameters: Mapping[str, Any] | None = None, timeout: int = 3600) -> NotebookNode:
    """The notebook with its outputs, without the progress of trainings and whatever else differs from run to run.

    Args:
        path: path of the notebook, whose file stays as it is.
        folder: the working directory of its cells.
        parameters: other values for some names of the cell tagged ``parameters``.
        timeout: seconds that a cell may take.

    Raises:
        OptionError: a parameter that the notebook does not have.
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = with_parameters(nbformat.read(path, as_version=4), parameters or {})
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--HistoryManager.enabled=False", "--log-level=ERROR"],
    )
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "MPLBACKEND": "",  # the notebook's own
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm.auto without ipywidgets
    }
    with tempfile.TemporaryDirectory() as settings:  # neither read nor written: the user's of IPython
        client.execute(env={**environment, "IPYTHONDIR": settings})
    for cell in notebook.cells:
        for output in cell.get("outputs", [])[:]:
            if output.get("name") == "stderr":
                output.text = PROGRESS.sub("", output.text)
                if not output.text:
                    cell.outputs.remove(output)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def problems(notebook: NotebookNode) -> Iterator[str]:
    """Things that readers of the outputs should not see: cells that did not run, errors, noise, paths of a machine."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        if cell.execution_count != number:
            yield f"cell {number}: was not run from top to bottom, its count is {cell.execution_count}"
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"cell {number}: {output.output_type} {output.get('text', output.get('evalue'))!r}"
            data = {"text/plain": output.get("text", ""), **output.get("data", {})}
            if widgets := [kind for kind in data if "widget" in kind]:
                yield f"cell {number}: {widgets[0]}"
            for kind, text in data.items():
                if not kind.startswith("image/") and (place := MACHINE.search(str(text))):
                    yield f"cell {number}: {str(text)[place.start() : place.start() + 60]!r} is of this machine"


main = Program("examples.notebooks")


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """Which notebooks, and where to.

    Raises:
        OptionError: a notebook that there is not, or small values in place of a notebook's own.
    """

    names: tuple[str, ...] = option((), f"notebooks to run: {', '.join(QUICK)} (default: all of them)", positional=True)
    out: str = option("", "folder for the notebooks and all that they write (default: in place)")
    quick: bool = option(False, "run with small values of the parameters, into --out")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.names:
            choose("NAMES", name, QUICK)
        if self.quick and not self.out:
            raise OptionError("--quick: needs --out, as its outputs are not those of the notebooks' own parameters")


@main.only
def run(options: Options) -> None:
    """Run the notebooks from top to bottom, and write them with what they print and draw.

    Raises:
        DataError: outputs that are not to be shown.
    """
    folder = output_folder(options.out or HERE)
    for name in progress(options.names or tuple(QUICK), "notebooks", unit=" notebooks"):
        notebook = execute(HERE / f"{name}.ipynb", folder, QUICK[name] if options.quick else {})
        with replacing(folder / f"{name}.ipynb") as partial:
            nbformat.write(notebook, partial)
        if seen := list(problems(notebook)):
            raise DataError(f"{folder / name}.ipynb: not to be shown as it is: {'; '.join(seen)}")
        print(folder / f"{name}.ipynb", flush=True)


if __name__ == "__main__":
    main()
