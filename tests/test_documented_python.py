"""The Python code of the pages runs as pasted, into an empty folder."""

from __future__ import annotations

import pytest

from tests.helpers import python_blocks

# The other folders' pages need data, and are run by the tests of their folder; so is what needs a trained model.
PAGES = (
    "README.md",
    "fairseq_ext/integrations/README.md",
    "vision_language/iais/README.md",
    "vision_language/muka/README.md",
)
BLOCKS = [
    pytest.param(code, id=f"{page}-{number}")
    for page in PAGES
    for number, code in enumerate(python_blocks(page), start=1)
    if "runs/quickstart" not in code
]


def test_every_page_has_code():
    assert len(BLOCKS) >= 6 + len(PAGES) - 1


@pytest.mark.parametrize("code", BLOCKS)
def test_it_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})
