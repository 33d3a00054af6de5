"""A model is evaluated in evaluation mode, and is afterwards as it was."""

from __future__ import annotations

import ast

import pytest
from torch import nn

from fairseq_ext.training.modes import evaluating
from tests.helpers import ROOT
from tests.test_floors import SOURCES


def test_evaluating_leaves_every_module_in_its_mode():
    """A frozen batch norm too, and after an error."""
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)))
    model[1][0].eval()
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2


def test_no_other_file_switches_a_model_by_hand():
    """``model.eval()`` as a statement, or called on its way; a model that is loaded may be left in evaluation mode."""
    by_hand = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = node.value if isinstance(node, ast.Expr) else node.func if isinstance(node, ast.Call) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "eval":
                by_hand.add(path.relative_to(ROOT).as_posix())
    fused = {f"fairseq_ext/models/fused_{name}.py" for name in ("muse", "transformer")}  # of modules they make
    assert by_hand == {"fairseq_ext/training/modes.py", *fused}
