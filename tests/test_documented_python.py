"""The Python code of the pages runs as pasted, into an empty folder."""

from __future__ import annotations

import pytest

from tests.helpers import ROOT, python_blocks
from tests.test_documented_commands import PAGES

NOT_RUN = {
    "CONTRIBUTING.md": "a part of a trainer",
    "examples/captioning/README.md": "needs a trained model",
    "graph/graph_classification/README.md": "run by the tests of its folder, which have data",
    "graph/label_graph/README.md": "run by the tests of its folder",
    "graph/renode/README.md": "needs data",
}
NAMES = [name for page in PAGES if (name := page.relative_to(ROOT).as_posix()) not in NOT_RUN]
# One that stands on several pages runs once. What needs the quickstart's model is run by tests/translate.
BLOCKS = {
    code: f"{name}-{number}"
    for name in NAMES
    for number, code in enumerate(python_blocks(name), start=1)
    if "runs/quickstart" not in code
}


def test_every_page_is_there():
    assert {"README.md", "docs/howto/own_model.md", "fairseq_ext/integrations/README.md"} <= set(NAMES)
    assert all((ROOT / name).is_file() and python_blocks(name) for name in NOT_RUN)
    assert len(BLOCKS) >= 9


@pytest.mark.parametrize("code", BLOCKS, ids=BLOCKS.values())
def test_it_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})
