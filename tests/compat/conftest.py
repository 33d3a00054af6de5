"""The repairs are in place for every test of this folder."""

from __future__ import annotations

import pytest

from fairseq_ext import compat


@pytest.fixture(autouse=True, scope="session")
def repaired():
    compat.apply()
