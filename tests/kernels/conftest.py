from __future__ import annotations

import pytest

from tests.kernels.interpreted import interpreter


@pytest.fixture(autouse=True)
def _interpreter():
    with interpreter():
        yield
