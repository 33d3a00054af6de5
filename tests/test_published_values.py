"""Presets, recipes and the trainers' defaults beside the published values."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import re
from argparse import Namespace
from typing import Any

import pytest
from fairseq import options
from fairseq.models import ARCH_CONFIG_REGISTRY, MODEL_DATACLASS_REGISTRY

import fairseq_ext.losses
import fairseq_ext.modules
from fairseq_ext.criterions.label_smoothed_encouraging_loss import LabelSmoothedEncouragingLossCriterionConfig
from fairseq_ext.models.captioning_options import VisualOptions
from fairseq_ext.models.config import TransformerExtConfig
from fairseq_ext.models.ext_options import ExtOptions
from fairseq_ext.recipes import OURS, PRESETS, RECIPES, SourcedValues
from fairseq_ext.tasks.caption_options import CaptioningConfig
from tests import published
from tests.published import Ours


def effective(name: str) -> dict[str, Any]:
    """Every option of the model under ``--arch name``: the preset's, then the defaults."""
    config = MODEL_DATACLASS_REGISTRY[PRESETS[name].model]
    args = Namespace()
    ARCH_CONFIG_REGISTRY[name](args)
    return {field.name: field.default for field in dataclasses.fields(config)} | vars(args)


@pytest.mark.parametrize("name", published.PRESETS)
def test_a_preset_is_what_was_published(name):
    options = effective(name)
    for source, expected in published.PRESETS[name]:
        assert {option: options[option] for option in expected} == expected, source


def test_every_preset_with_a_source_is_in_the_table():
    """A preset whose summary does not call it our choice claims a source."""
    claimed = {name for name, preset in PRESETS.items() if "ur choice: " not in preset.summary}
    assert claimed - published.PRESETS.keys() <= {"transformer_lm_ext_wiki103"}, (
        "fairseq's own, compared with it elsewhere"
    )


def claimed(settings: SourcedValues, ours: tuple[str, ...] = (OURS,)) -> dict[str, tuple[Any, str]]:
    """The values that have a source, each with its document; a remark in parentheses behind it counts as nothing."""
    documents = {source for source, _ in itertools.chain(*published.PRESETS.values(), *published.RECIPES.values())}
    found = {}
    for option, (value, source) in settings.items():
        if not source.startswith(ours):
            (document,) = [
                known for known in documents if source == known or source.startswith((f"{known} (", f"{known}, "))
            ]
            found[option] = (value, document)
    return found


def test_what_was_published_is_there():
    assert published.PRESETS.keys() <= PRESETS.keys() and published.RECIPES.keys() <= RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_claims_what_was_published_and_nothing_else(name):
    """Each value that a recipe has from a source, and each that was published: the same, of the same document."""
    recipe = RECIPES[name]
    found = claimed(recipe.training) | claimed(recipe.model) | claimed(recipe.evaluation)
    assert found == published.stated(published.RECIPES.get(name, []))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_claims_only_what_was_published(name):
    """By the document that it names: fairseq's sizes are compared with fairseq elsewhere."""
    stated = published.stated(published.PRESETS.get(name, []))
    assert claimed(PRESETS[name].settings, (OURS, "fairseq, ")).items() <= stated.items()


# --- trainers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, str], str]:
    return {}


def help_of(program: str, command: str, helps: dict[tuple[str, str], str], capsys, monkeypatch) -> str:
    """What ``python -m program command --help`` prints, each option on a line of its own."""
    if (program, command) not in helps:
        monkeypatch.setenv("COLUMNS", "100000")
        with pytest.raises(SystemExit) as end:
            if program == "fairseq-train":
                options.parse_args_and_arch(options.get_training_parser(), [*command.split(), "--help"])
            importlib.import_module(f"{program}.__main__").main([command, "--help"])
        assert not end.value.code
        text = capsys.readouterr().out
        helps[program, command] = re.sub(r"\n {6,}(?! *-)", "  ", text)
    return helps[program, command]


def same(text: str, value: Any) -> bool:
    """Whether a help text says ``value``: as a number, or word for word."""
    if isinstance(value, str):
        return text == value or text.startswith((f"{value} ", f"{value};", f"{value},"))
    number = re.match(r"[-+.\de]++(?!, *\d)", text)  # of several, as of a grid, none is it
    return bool(number) and float(number[0].rstrip(".,e")) == value


SOURCES = (
    r"[Rr]eleased(?: code| MUSE)?|[Pp]aper(?:'s code)?|[Mm]eant by the released code|[Pp]ublished(?: translation)?|"
    r"authors(?:' De-En|' enwik8| enwik8)?(?: with top-k)?"
)


def claims_in(text: str) -> list[str]:
    """What a help text says to be published, but for the values of another paper."""
    return re.findall(rf"(?<!its )(?:{SOURCES}): ([^()\]]*)", text)


def line_of(option: str, text: str) -> str:
    """What a help says of ``--option``."""
    line = re.search(rf"^ +(?:-\w, )?--{option}(?: [^\n]*?)?  +(.+)$|^ +--{option} [A-Z].*? (.+)$", text, re.MULTILINE)
    assert line, f"there is no --{option}"
    return line[1] or line[2]


CASES = [(*system, option) for system, (_, values) in published.HELP.items() for option in values]


@pytest.mark.parametrize(("program", "command", "option"), CASES, ids=lambda part: part)
def test_help_has_the_published_value_and_the_default(program, command, option, helps, capsys, monkeypatch):
    source, values = published.HELP[program, command]
    value = values[option]
    expected, default = value if isinstance(value, Ours) else (value, value)
    text = help_of(program, command, helps, capsys, monkeypatch)
    said = line_of(option, text)
    shown = re.search(r"\[([^\][]*)\](?: \(|$)|\(?default: ([^;)]*)", said)
    assert shown and same((shown[1] or shown[2]).strip(), default), f"default of --{option}: {said}"
    claims = claims_in(said)
    assert not claims or any(same(claim.strip(), expected) for claim in claims), f"{source} has {expected}: {said}"
    assert claims or not isinstance(value, Ours), f"--{option} departs from {expected} ({source}) without a word"


@pytest.mark.parametrize(("program", "command"), published.HELP, ids=lambda part: part)
def test_help_claims_nothing_that_is_not_in_the_table(program, command, helps, capsys, monkeypatch):
    lines = help_of(program, command, helps, capsys, monkeypatch).splitlines()
    claimed = {option[1] for line in lines if (option := re.match(r" +(?:-\w, )?--([\w-]+)", line)) and claims_in(line)}
    tables = [values for system, (_, values) in published.HELP.items() if system[0] == program]
    assert claimed and claimed <= set().union(*tables)


@pytest.mark.parametrize(
    ("chosen", "kinds"),
    [
        (
            "--arch transformer_ext --criterion label_smoothed_encouraging_loss",
            (ExtOptions, LabelSmoothedEncouragingLossCriterionConfig),
        ),
        ("--arch transformer_lm_ext --task language_modeling", (ExtOptions,)),
        ("--arch captioning_transformer_ext --task captioning", (ExtOptions, VisualOptions, CaptioningConfig)),
    ],
)
def test_fairseqs_help_has_every_default_of_ours(chosen, kinds, helps, capsys, monkeypatch):
    """As an OptionSet shows it: in brackets at the end, and of a flag that is off none."""
    text = help_of("fairseq-train", chosen, helps, capsys, monkeypatch)
    fields = [item for kind in kinds for item in dataclasses.fields(kind) if "idle" in item.metadata]
    said = {item.name: line_of(item.name.replace("_", "-"), text) for item in fields if item.name != "data"}
    shown = {name: re.findall(r" \[([^\][]*)\]$", line) for name, line in said.items()}
    defaults = {item.name: [] if item.default is False else [str(item.default)] for item in fields}
    assert len(said) > 25 and shown == {name: defaults[name] for name in said}


def test_fairseqs_help_says_what_a_preset_turns_on_and_what_an_option_follows(helps, capsys, monkeypatch):
    preset = help_of("fairseq-train", "--arch adanorm_transformer_iwslt_de_en", helps, capsys, monkeypatch)
    assert line_of("share-all-embeddings", preset).endswith(" [on]")
    bare = help_of("fairseq-train", "--arch transformer_ext", helps, capsys, monkeypatch)
    assert line_of("decoder-embed-dim", bare).endswith(" [as --encoder-embed-dim]") and "[on]" not in bare


# --- blocks and losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thing", "values"),
    [
        # arXiv 2110.06537 and its released losses: log_end 0.75, in the one for fairseq 0.5; clamp 1e-5
        (fairseq_ext.losses.encouraging_loss, {"log_end": 0.75, "bonus_clamp": 1e-5, "label_smoothing": 0.0}),
        (fairseq_ext.losses.EncouragingLoss, {"log_end": 0.75, "label_smoothing": 0.0}),
        (LabelSmoothedEncouragingLossCriterionConfig, {"log_end": 0.5, "label_smoothing": 0.0}),
        # lancopku/MUSE: kernels 3 and 15, weight dropout 0.1; AdaNorm as below, in the place of every norm
        (
            TransformerExtConfig,
            {
                "muse_kernels": "3,15",
                "muse_weight_dropout": 0.1,
                "adanorm_scale": 1.0,
                "adanorm_k": 0.1,
                "norm_scope": "all",
            },
        ),
        # arXiv 1911.07013: k = 1/10; lancopku/AdaNorm: C = 1 in the README, eps 1e-5, torch.std
        (fairseq_ext.modules.AdaNorm, {"scale": 1.0, "k": 0.1, "eps": 1e-5, "unbiased": True}),
    ],
    ids=lambda thing: getattr(thing, "__name__", ""),
)
def test_blocks_and_losses_default_to_the_published_values(thing, values):
    parameters = inspect.signature(thing).parameters
    assert {name: parameters[name].default for name in values} == values
