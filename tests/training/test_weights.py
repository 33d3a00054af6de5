"""A model whose weights are not finite is refused by the file, wherever one is read."""

from __future__ import annotations

import ast

import pytest
import torch
from safetensors.torch import save_file

from fairseq_ext.training.errors import CheckpointError
from fairseq_ext.training.pretrained import read_weights
from fairseq_ext.training.weights import check_finite
from tests.helpers import ROOT
from tests.test_floors import SOURCES

READERS = {"load_safely", "load_file", "from_pretrained", "load_checkpoint_to_cpu"}
CHECKS = {"check_finite", "load_model", "read_weights"}
NO_MODELS = {
    "fairseq_ext/training/checkpoint.py": "a training that is resumed, whose first loss tells",
    "fairseq_ext/compat/resuming.py": "likewise",
    "fairseq_ext/compat/processes.py": "likewise",
    "fairseq_ext/compat/messages.py": "for its messages alone",
    "fairseq_ext/tasks/captioning.py": "the state of a task",
    "fairseq_ext/translate/command.py": "through translate/loading.py",
    "graph/label_graph/model.py": "vectors of torch",
    "graph/renode/data.py": "a graph",
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_file_and_the_first_weights_are_named(value):
    weights = {"whole": torch.ones(2), "count": torch.tensor(3), "note": "text", "half": torch.ones(2).half()}
    check_finite(weights, "model.pt")
    damaged = {name: torch.tensor([1.0, value]) for name in "abcde"}
    with pytest.raises(CheckpointError, match=r"^model\.pt: its weights are not finite in a, b, c and 2 more: "):
        check_finite(weights | damaged, "model.pt")


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_weights_that_are_laid_over_a_model(tmp_path, save):
    path = tmp_path / ("a.pt" if save is torch.save else "a.safetensors")
    save({"a": torch.tensor([torch.nan])}, path)
    with pytest.raises(CheckpointError, match=r"its weights are not finite in a: "):
        read_weights(path)


def called(path) -> set[str]:
    """The names of all functions that a file calls or hands on."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


def test_every_file_that_reads_a_model_checks_its_weights():
    of_files = {path.relative_to(ROOT).as_posix(): called(path) for path in SOURCES}
    unchecked = {path for path, names in of_files.items() if names & READERS and not names & CHECKS}
    assert unchecked == NO_MODELS.keys()
