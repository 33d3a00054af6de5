"""A fairseq plugin (``--user-dir``) of sequence-to-sequence methods, and the torch blocks that they are made of.

Imported after fairseq, as ``--user-dir`` does, this package repairs fairseq (:mod:`fairseq_ext.compat`) and registers
its models, criterions and tasks. Imported alone it stays light, so that ``fairseq_ext.modules`` and
``fairseq_ext.losses`` serve users who have no fairseq.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairseq_ext.translate.translator import Translator

__version__ = "0.1.0"
__all__ = ["Translator", "__version__", "register"]


def __getattr__(name: str) -> Any:
    if name == "Translator":  # fairseq's import takes seconds: only users of Translator pay for it
        register()
        return importlib.import_module(f"{__name__}.translate.translator").Translator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Repair fairseq and register our models, criterions and tasks with it; calling it again changes nothing.

    Only a program that imports ``fairseq_ext`` *before* fairseq has to call it: otherwise the import does.

    Example:
        >>> from fairseq_ext.losses import encouraging_loss  # light, fairseq is not loaded
        >>> import fairseq_ext
        >>> fairseq_ext.register()  # now ``transformer_ext`` is in fairseq's registries
    """
    # Importing fairseq opens the root logger for debugging, of every library: one of its models calls basicConfig.
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    import fairseq

    if not handlers:
        root.setLevel(level)
        root.handlers[:] = []

    from fairseq_ext import compat

    # In a normal install `--user-dir fairseq_ext` is found by fairseq as `<fairseq>/../fairseq_ext`; unless our path
    # has that spelling too, fairseq takes a package that is already imported for a foreign one of the same name, and
    # refuses it.
    alias = os.path.join(os.path.dirname(fairseq.__file__), "..", __name__)
    if os.path.isdir(alias) and alias not in __path__:
        __path__.append(alias)
    compat.apply()
    for binding in ("models", "criterions", "tasks"):
        importlib.import_module(f"{__name__}.{binding}")


def _lend_name(alias: str, folder: str) -> None:
    """Make ``alias`` another name of the package, where ``--user-dir`` named a link to it: ``folder``.

    Python takes a folder of another name for another package, which would register every model a second time.
    """
    target = os.path.realpath(folder)
    if os.path.basename(target) == "fairseq_ext":
        sys.path.insert(0, os.path.dirname(target))
    spec = importlib.util.find_spec("fairseq_ext")
    installed = os.path.dirname(os.path.realpath(spec.origin)) if spec and spec.origin else None
    if installed != target:
        from fairseq_ext.training.errors import OptionError

        instead = f"use {installed}" if installed else "call the folder fairseq_ext"
        raise OptionError(f"--user-dir {folder}: another copy of fairseq_ext, under another name; {instead}")
    importlib.import_module("fairseq_ext").register()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "fairseq_ext":
            sys.modules[alias + name.removeprefix("fairseq_ext")] = module


if __name__ != "fairseq_ext":
    _lend_name(__name__, os.path.dirname(__file__))
elif "fairseq" in sys.modules:
    register()
