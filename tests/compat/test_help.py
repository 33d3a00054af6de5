"""``--help`` of fairseq's commands, as a user asks for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import fairseq_ext
from fairseq_ext.models.ext_options import ExtOptions
from fairseq_ext.training.options import flag
from tests.fairseq_commands import FairseqCommands

OURS = [field.name for field in dataclasses.fields(ExtOptions) if not field.name.startswith("_")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, fairseq_server):
    """With an architecture and a criterion, without, and with an architecture that is none."""
    commands = FairseqCommands(tmp_path_factory.mktemp("help"), fairseq_server)
    train = ("fairseq_cli.train", "--help", "--user-dir", Path(fairseq_ext.__file__).parent)
    chosen = ("--arch", "transformer_ext", "--criterion", "label_smoothed_encouraging_loss")
    return commands.run_together([(*train, *chosen), train, (*train, "--arch", "none_such")])


def test_it_shows_every_option_of_what_was_chosen(outcomes):
    shown = outcomes[0].stdout
    assert outcomes[0].code == 0 and len(OURS) > 20
    assert not [name for name in (*OURS, "log_end", "source_lang") if f"  {flag(name)}" not in shown]


def test_without_an_architecture_it_shows_what_all_have(outcomes):
    assert outcomes[1].code == 0 and "  --arch" in outcomes[1].stdout and "--attention-topk" not in outcomes[1].stdout


def test_a_wrong_architecture_is_refused(outcomes):
    assert outcomes[2].code == 2 and outcomes[2].last_line.startswith("--arch") and not outcomes[2].traceback
