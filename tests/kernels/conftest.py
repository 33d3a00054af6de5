from __future__ import annotations

from collections.abc import Iterator

import pytest

from fairseq_ext import kernels
from tests.kernels.interpreted import DEVICE, interpreter


def pytest_itemcollected(item: pytest.Item) -> None:
    """Where there is a GPU these are GPU tests, but for those that compile for cards that need not be there."""
    if DEVICE.type == "cuda" and "compiled" not in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _interpreter():
    with interpreter():
        yield


@pytest.fixture(autouse=True)
def torch_path() -> Iterator[None]:
    """The public functions are what kernels are compared with: on a card they would hand over to the same kernels."""
    with kernels.disabled():
        yield
