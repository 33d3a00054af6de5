import shutil

import pytest

from tests.helpers import require_data


@pytest.fixture(scope="session")
def planetoid_root(tmp_path_factory):
    """A writable copy of the citation graphs: torch_geometric writes its processed files beside the raw ones."""
    folder = tmp_path_factory.mktemp("data") / "Planetoid"
    shutil.copytree(require_data("pyg/Planetoid"), folder)
    return str(folder)
