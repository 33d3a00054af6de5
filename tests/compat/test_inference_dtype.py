"""``--inference-dtype`` as a user gives it to fairseq's commands."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from fairseq import options
from fairseq.dataclass.configs import GenerationConfig
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer

from fairseq_ext.modules.packed_linear import INFERENCE_DTYPES
from fairseq_ext.training.errors import OptionError
from tests.compat.test_generation import SHORT, Project, hypotheses
from tests.helpers import ROOT

USER_DIR = ROOT / "fairseq_ext"


@pytest.fixture(scope="module")
def project(tmp_path_factory, fairseq_server):
    return Project(tmp_path_factory.mktemp("project"), fairseq_server)


def scores(outcome) -> dict[str, float]:
    return {number: float(score) for number, score in re.findall(r"^H-(\d+)\t(\S+)\t", outcome.stdout, re.MULTILINE)}


def command(project, *extra):
    path = project.folder / "model" / "checkpoint_last.pt"
    return ["mmap", "--user-dir", USER_DIR, "--path", path, "--cpu", *SHORT, *extra]


def test_generate_in_every_dtype(project):
    plain = project.must("fairseq_cli.generate", *command(project))
    for dtype in INFERENCE_DTYPES:
        outcome = project.must("fairseq_cli.generate", *command(project, "--inference-dtype", dtype))
        assert scores(outcome) == pytest.approx(scores(plain), abs=2e-4 if dtype == "float32" else 0.05)
        if dtype == "float32":
            assert hypotheses(outcome) == hypotheses(plain)


def test_interactive(project):
    arguments = command(project, "-s", "de", "-t", "en")
    lines = "der zug ist schon weg .\ndas brot ist frisch .\n"
    plain = project.must("fairseq_cli.interactive", *arguments, stdin=lines)
    packed = project.must("fairseq_cli.interactive", *arguments, "--inference-dtype", "float32", stdin=lines)
    assert hypotheses(packed) == hypotheses(plain) != {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--inference-dtype", "int4"], "--inference-dtype: 'int4' is not one of float32, bfloat16, int8"),
        (["--inference-dtype", "int8", "--fp16"], "--inference-dtype int8: weights must be float32 on the CPU"),
        (["--model-overrides", "{'inference_dtype': 'int8'}"], "--model-overrides: inference_dtype is no option"),
    ],
)
def test_bad_input_ends_in_one_line(project, words, message):
    outcome = project.run("fairseq_cli.generate", *command(project, *words))
    assert outcome.code == 2 and outcome.last_line.startswith(message)
    assert not outcome.traceback and not hypotheses(outcome)


def test_every_program_that_prepares_a_model_has_the_option():
    for parser in (
        options.get_generation_parser(),
        options.get_interactive_generation_parser(),
        options.get_eval_lm_parser(),
    ):
        (action,) = (action for action in parser._actions if action.dest == "inference_dtype")
        assert action.default is None and "int8" in action.help
    assert not any(action.dest == "inference_dtype" for action in options.get_training_parser()._actions)


def test_the_other_options_of_generation_keep_their_helps_and_defaults():
    config = GenerationConfig()
    assert config.beam == 5 and config.inference_dtype is None
    assert config._get_help("beam") == "beam size"


def test_where_it_would_do_nothing_it_is_refused():
    cfg = SimpleNamespace(generation=SimpleNamespace(inference_dtype="int8"))
    with pytest.raises(OptionError, match=r"^generation.inference_dtype=int8: has no effect on a training"):
        Trainer(cfg, None, None, None)
    # as the generator of --eval-bleu is built, from --eval-bleu-args
    with pytest.raises(OptionError, match=r"^--inference-dtype int8: the model is as it was trained"):
        FairseqTask.build_generator(None, [torch.nn.Linear(1, 1)], cfg.generation)
