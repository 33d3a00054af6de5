"""Which fairseq is installed, what this package repairs in it, and what stays broken."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

from fairseq_ext.doctor.check import Check

__all__ = ["CHECKS", "NOT_INSTALLED"]

NOT_INSTALLED = (
    "fairseq is not installed (pip install 'fairseq-ext[fairseq]'; Linux x86_64, Python 3.11 or 3.12 only); "
    "fairseq_ext.modules and fairseq_ext.losses work without it"
)
OTHER_BUILDS = {"fairseq", "fairseq-fixed", "fairseq-built"}
"""Distributions that install the same files as ve-fairseq."""


def installation() -> Check:
    names = sorted({distribution.name for distribution in metadata.distributions()} & OTHER_BUILDS)
    problems = [
        f"{name} shares its files with ve-fairseq: uninstall both, then pip install 'fairseq-ext[fairseq]'"
        for name in names
    ]
    if importlib.util.find_spec("fairseq") is None:
        return Check(None, NOT_INSTALLED, problems)
    import fairseq

    folder = Path(fairseq.__file__).parent
    return Check({"version": fairseq.__version__, "folder": str(folder)}, f"{fairseq.__version__} ({folder})", problems)


def repairs() -> Check:
    if importlib.util.find_spec("fairseq") is None:
        return Check([], "")
    import fairseq  # noqa: F401 - the plugin repairs what is imported

    from fairseq_ext import compat

    names = compat.apply()
    off = [] if names else [f"the repairs of fairseq are turned off: unset {compat.OFF_SWITCH}"]
    return Check(names, ", ".join(names) or "nothing", off)


def broken() -> Check:
    if importlib.util.find_spec("fairseq") is None:
        return Check({}, "")
    from fairseq_ext import compat

    return Check(compat.BROKEN, "\n".join(f"{what}: {way_out}" for what, way_out in compat.BROKEN.items()))


CHECKS = {"installed": installation, "repaired": repairs, "broken": broken}
